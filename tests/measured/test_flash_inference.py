"""The flash engine on real files: every rung reads what its plan says, and computes what a dense model would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandtable import contracts, units
from sandtable.engine.plan_process import process_of
from sandtable.engine.recorder import Recorder, StepResult
from sandtable.engine.simulation import Run, run
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable.results import Measurement
from sandtable.runs import measure
from sandtable.workload.seam import Execution, ExecutionContext, Scenario, workload_named

pytest.importorskip("numba", reason="running for real needs numba")

from sandtable_kernels.files.reader import ReadStats
from sandtable_kernels.files.store import NeuronStore
from sandtable_kernels.operations.ffn import dense_ffn_masked_reference
from sandtable_workloads.flash import token_demand
from sandtable_workloads.flash.flash_parameters import FlashInference
from sandtable_workloads.flash.neuron_traces import trace_of
from sandtable_workloads.flash.runner import FlashModel, SparseDecoder, norm
from sandtable_workloads.flash.small import SCALE, SmallWeights
from sandtable_workloads.flash.token_demand import plan_of

pytestmark = pytest.mark.measured

RUNGS = ("naive", "hybrid", "predictor", "window", "bundling")
SPARSE = ("predictor", "window", "bundling")
TOKENS, COLD = 4, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder, so that model files are written once."""
    return tmp_path_factory.mktemp("stores")


def parameters(**changes: Any) -> FlashInference:
    values = {"geometry": "opt_mini", "tokens": TOKENS, "cold_tokens": COLD, "prompt_tokens": 3, "concurrency": 8}
    return FlashInference.model_validate(values | changes, context=units.AT_EDGE)


EXECUTED: dict[tuple[Any, ...], tuple[Run, Execution]] = {}


def execute(machine: Machine, folder: Path, **changes: Any) -> tuple[Run, Execution]:
    """Return what was planned and what was done; equal parameters are executed once."""
    key = (folder, *sorted(changes.items()))
    if key not in EXECUTED:
        EXECUTED[key] = _execute(machine, folder, **changes)
    return EXECUTED[key]


def _execute(machine: Machine, folder: Path, **changes: Any) -> tuple[Run, Execution]:
    chosen, workload = parameters(**changes), workload_named("flash_inference")
    context = ExecutionContext(folder=folder, n_threads=2)
    workload.prepare(chosen, machine, 1, context)
    return run(workload.plan(chosen, machine, 1), CostModel(machine)), workload.execute(chosen, machine, 1, context)


def total(execution: Execution, counter: str, phase: str = "decode") -> float:
    return sum(step.counters[counter] for step in execution.steps if step.phase == phase)


@pytest.mark.parametrize("rung", RUNGS)
def test_it_reads_what_its_plan_says(rung: str, machine: Machine, folder: Path) -> None:
    predicted, execution = execute(machine, folder, rung=rung)
    assert [s.phase for s in predicted.steps] == [s.phase for s in execution.steps]
    for planned, done in zip(predicted.steps, execution.steps, strict=True):
        assert done.counters["bytes_read"] == planned.counters["bytes_read"] > 0
        assert done.counters["n_requests"] == planned.counters["n_requests"] > 0
        assert done.counters["overhead_s"] >= 0
        assert done.counters["overhead_s"] < done.total_s
        assert sum(done.by_account.values()) + done.counters["overhead_s"] == pytest.approx(done.total_s)
        if rung in SPARSE and planned.phase != "prefill":
            assert done.counters["hit_frac"] == planned.counters["hit_frac"]
    cold = [step for step in execution.steps if step.phase == "cold"]
    assert len(cold) == (COLD if rung in SPARSE else 0)
    assert len([step for step in execution.steps if step.phase == "decode"]) == TOKENS


@pytest.mark.parametrize("rung", ["window", "bundling"])
def test_a_window_finds_neurons_in_memory(rung: str, machine: Machine, folder: Path) -> None:
    _, execution = execute(machine, folder, rung=rung)
    steps = [step for step in execution.steps if step.phase == "decode"]
    assert all(0.3 < step.counters["hit_frac"] < 1 for step in steps)
    first = next(step for step in execution.steps if step.phase == "cold")
    assert first.counters["hit_frac"] == 0


def test_without_a_window_nothing_is_found(machine: Machine, folder: Path) -> None:
    _, execution = execute(machine, folder, rung="predictor")
    assert total(execution, "hit_frac") == 0


def test_each_rung_reads_less_than_the_one_before(machine: Machine, folder: Path) -> None:
    read = [total(execute(machine, folder, rung=rung)[1], "bytes_read") for rung in RUNGS]
    assert read == sorted(read, reverse=True)
    assert read[0] > read[1] > read[2] > read[3]


def test_bundling_halves_the_requests(machine: Machine, folder: Path) -> None:
    # 1024 float32 fill a page, so that neither layout pads
    _, apart = execute(machine, folder, rung="window", dtype="float32")
    _, bundled = execute(machine, folder, rung="bundling", dtype="float32")
    assert 2 * total(bundled, "n_requests") == total(apart, "n_requests")
    assert total(bundled, "bytes_read") == total(apart, "bytes_read")


def test_padding_makes_unbundled_vectors_cost_twice(machine: Machine, folder: Path) -> None:
    _, apart = execute(machine, folder, rung="window", dtype="float16")
    _, bundled = execute(machine, folder, rung="bundling", dtype="float16")
    # 1024 float16 are half a page: apart, each vector is padded to a whole one
    assert 2 * total(bundled, "bytes_read") == total(apart, "bytes_read")
    assert total(apart, "n_requests") == 2 * total(bundled, "n_requests")


@pytest.mark.parametrize("rung", RUNGS)
def test_nothing_is_read_behind_the_counters_back(rung: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FlashModel(parameters(rung=rung), 1, folder, 2)
    read: list[int] = []

    def counting(method: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> ReadStats:
            stats: ReadStats = method(*args, **kwargs)
            read.append(stats.n_bytes)
            return stats

        return wrapped

    for reader in (model.reader, model.blob_reader):
        monkeypatch.setattr(reader, "read_sequential", counting(reader.read_sequential))
        monkeypatch.setattr(reader, "read_batch", counting(reader.read_batch))
    model.prefill()
    step = model.watch.recorder.steps()[-1]
    assert sum(read) == step.counters["bytes_read"] > 0
    read.clear()
    if model.parameters.is_sparse:
        decoder = SparseDecoder(model)
        active = next(iter(trace_of(model.parameters, 1).tokens(1)))
        decoder.token(0, "decode", active)
    else:
        model.decode_dense("token")
    step = model.watch.recorder.steps()[-1]
    model.close()
    assert sum(read) == step.counters["bytes_read"] > 0


def stored_rows(store: NeuronStore, layer: int) -> np.ndarray[Any, Any]:
    every = store.read_neurons_reference(layer, np.arange(store.geometry.n_neurons))
    return every.reshape(len(every), -1)


@pytest.mark.parametrize("rung", SPARSE)
@pytest.mark.parametrize("compute_rows", ["active", "cached"])
def test_the_sparse_block_equals_the_dense_one_with_a_mask(rung: str, compute_rows: str, folder: Path) -> None:
    chosen = parameters(rung=rung, compute_rows=compute_rows)
    model = FlashModel(chosen, 1, folder, 2)
    decoder = SparseDecoder(model)
    layer = 2
    rows = stored_rows(model.store, layer)
    x = norm(np.random.default_rng(3).standard_normal(model.shape.d_model).astype(np.float32))
    for number, active_by_layer in enumerate(trace_of(chosen, 1).tokens(COLD + TOKENS)):
        active = active_by_layer[layer]
        decoder._load(layer, active, number)
        index = decoder.caches[layer].index
        assert set(active) <= set(index.present()), "an active neuron is missing from the cache"
        used = active if compute_rows == "active" else np.sort(index.present())
        wanted = dense_ffn_masked_reference(x, rows, used, bias=model.small.ffn_bias[layer])
        found = decoder._ffn(layer, active, x)
        assert np.abs(wanted).max() > 0
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    model.close()


@pytest.mark.parametrize("rung", ["naive", "hybrid"])
def test_a_dense_rung_computes_every_neuron(rung: str, folder: Path) -> None:
    model = FlashModel(parameters(rung=rung), 1, folder, 2)
    rng = np.random.default_rng(4)
    xs = norm(rng.standard_normal((2, model.shape.d_model)).astype(np.float32))
    rows = stored_rows(model.store, 1)
    every = np.arange(len(rows))
    bias = model.small.ffn_bias[1]
    assert bias is not None
    assert np.abs(bias).max() > 0
    wanted = np.stack([dense_ffn_masked_reference(x, rows, every, bias=bias) for x in xs])
    assert (model._resident_neurons() > 0) == (rung == "hybrid")
    alone = model.dense_ffn(1, xs[0])
    together = model.dense_ffn(1, xs)
    model.close()
    assert np.abs(alone - wanted[0]).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(together - wanted).max() <= 1e-5 * np.abs(wanted).max()


# --- memory ------------------------------------------------------------------------------------------------


def arrays_of(thing: object, seen: set[int]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield every array that hangs on an object of ours, views as well."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        yield thing
    elif isinstance(thing, dict | list | tuple):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from arrays_of(part, seen)
    elif type(thing).__module__.startswith("sandtable"):
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        for part in (*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name) for name in slots)):
            yield from arrays_of(part, seen)


def held(*things: object) -> int:
    """Return the bytes that arrays cover, each byte once."""
    seen: set[int] = set()
    arrays = [array for thing in things for array in arrays_of(thing, seen)]
    total, end = 0, 0
    for start, size in sorted((array.ctypes.data, array.nbytes) for array in arrays if array.flags.c_contiguous):
        total += max(0, start + size - max(start, end))
        end = max(end, start + size)
    return total


@pytest.mark.parametrize("rung", RUNGS)
def test_every_array_held_is_counted(rung: str, folder: Path) -> None:
    model = FlashModel(parameters(rung=rung), 1, folder, 2)
    counted, things = model.memory_bytes(), [model]
    if model.parameters.is_sparse:
        decoder = SparseDecoder(model)
        counted |= decoder.memory_bytes()
        things = [model, decoder]
    found = held(*things)
    model.close()
    assert 20e6 < sum(counted.values()) == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("rung", RUNGS)
def test_the_plan_knows_what_is_held(rung: str, machine: Machine, folder: Path) -> None:
    _, execution = execute(machine, folder, rung=rung)
    plan = plan_of(parameters(rung=rung), machine, 1)
    assert dict(execution.memory_bytes) == pytest.approx(dict(plan.memory_bytes), rel=1e-3)
    assert ("staging" in plan.memory_bytes) == (rung in ("predictor", "window"))


@pytest.mark.parametrize(
    ("kind", "sentence"), [("layer buffer", "kinds of memory differ: layer buffer"), ("predictor", "predictor")]
)
def test_an_array_that_is_not_planned_is_found(
    kind: str, sentence: str, machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = token_demand.sparse_memory

    def forgetful(*args: Any) -> dict[str, float]:
        return {name: size for name, size in whole(*args).items() if name != kind}

    monkeypatch.setattr(token_demand, "sparse_memory", forgetful)
    with pytest.raises(AssertionError, match=sentence):
        contracts.check_execution(
            process_of(plan_of(parameters(), machine, 1)),
            run(plan_of(parameters(), machine, 1), CostModel(machine)),
            execute(machine, folder, rung="bundling")[1],
        )


def test_an_array_that_grew_is_found(machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An execution that holds twice the room for keys and values as its plan does not pass, nor predict its peak."""
    init = FlashModel.__init__

    def generous(self: FlashModel, *args: Any) -> None:
        init(self, *args)
        self.keys, self.values = (np.concatenate([half, half], axis=1) for half in (self.keys, self.values))

    monkeypatch.setattr(FlashModel, "__init__", generous)
    workload = workload_named("flash_inference")
    with pytest.raises(AssertionError, match="keys and values is planned at"):
        contracts.check_workload(workload, machine, ExecutionContext(folder=folder, n_threads=2))


def test_the_process_grows_by_what_is_counted(machine: Machine, folder: Path) -> None:
    if measure.start_peak() is None:
        pytest.skip("this system does not tell a process its peak memory")
    scenario = Scenario(name="mini", title="Mini", workload="flash_inference", repeats=1)
    workload, context = workload_named("flash_inference"), ExecutionContext(folder=folder, n_threads=2)
    chosen = parameters(dtype="float32")
    workload.prepare(chosen, machine, 1, context)
    measure.execute(scenario, workload, chosen, machine, context)  # compiles
    execution = measure.execute(scenario, workload, chosen, machine, context)
    counted = sum(execution.memory_bytes.values())
    assert execution.process_bytes is not None
    # pages of the last run may still be with the allocator; results of single calls come on top
    assert 0.9 * counted < execution.process_bytes < 1.1 * counted + (32 << 20)


def test_memory_that_is_not_counted_is_told(machine: Machine) -> None:
    steps = [StepResult(phase="decode", name="token", total_s=1.0, by_account={"io": 1.0})]
    scenario = Scenario(name="mini", title="Mini", workload="flash_inference")
    notes = []
    for grown in (1.0e9, 2.0e9):
        execution = Execution(recorder=Recorder.of(steps), memory_bytes={"cache": 1e9}, process_bytes=grown)
        repeats = measure.Repeats(executions=[execution], probes=[])
        plan = plan_of(parameters(), machine, 1)
        measurement = measure.measurement_of(scenario, parameters(), machine, process_of(plan), repeats)
        assert measurement.metrics["peak_memory_bytes"].value == 1e9
        assert measurement.metrics["process_memory_bytes"].value == grown
        notes.append([note for note in measurement.validity if "does not report" in note])
    assert [len(found) for found in notes] == [0, 1]


def test_the_same_seed_decodes_the_same_tokens(folder: Path) -> None:
    found = []
    for _ in range(2):
        model = FlashModel(parameters(), 1, folder, 2)
        model.prefill()
        decoder, tokens = SparseDecoder(model), []
        for number, active in enumerate(trace_of(model.parameters, 1).tokens(3)):
            decoder.token(number, "decode", active)
            tokens.append(model.next_token)
        model.close()
        found.append(tokens)
    assert found[0] == found[1]


def test_a_measurement_reports_its_own_quality(machine: Machine, folder: Path) -> None:
    scenario = Scenario(name="mini", title="Mini", workload="flash_inference", repeats=2)
    workload = workload_named("flash_inference")
    context = ExecutionContext(folder=folder, n_threads=2)
    *_, (measurement, done) = measure.measure(scenario, workload, parameters(), machine, context)
    executions = done.executions
    assert isinstance(measurement, Measurement)
    assert len(measurement.metrics["latency_s.mean"].samples) == 2 * TOKENS
    assert measurement.metrics["overhead_s.mean"].value >= 0
    assert {"cold_s", "prefill_s", "ttft_s", "tokens_per_s"} <= set(measurement.metrics)
    assert measurement.repeat_spread_frac is not None
    # what no calibration took tells nothing of drift
    assert measurement.drift == {}
    assert {"cpu", "cpus", "memory", "kernel", "numpy", "numba"} <= set(measurement.environment)
    assert executions[-1].trace
    for row in executions[-1].trace:
        assert row.start_s <= row.end_s


@pytest.mark.parametrize(
    "geometry", ["opt_6_7b_2l", "falcon_7b_2l", "persimmon_8b_2l", "phi_2_2l", "llama_2_7b_2l", "opt_mini"]
)
def test_small_weights_are_all_held_and_all_used(geometry: str) -> None:
    shape = parameters(geometry=geometry).shape
    small = SmallWeights(shape)
    assert small.flat.nbytes == 4 * shape.small_params
    views = [small.positions, small.head_bias, *small.qkv_bias, *small.ffn_bias]
    for weights in (small.first, *small.after_attention, *small.after_ffn):
        views += [weights.bias, weights.gain, weights.shift]
    covered = held([view for view in views if view is not None])
    # norms of queries and keys are not computed
    assert covered == 4 * (shape.small_params - shape.n_layers * shape.qk_norm_params)
    assert all(np.all(np.abs(gain - 1) <= SCALE) for gain in (small.first.gain, small.after_ffn[-1].gain))
    assert (small.ffn_bias[0] is None) == (not shape.ffn_bias)
