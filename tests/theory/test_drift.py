"""A machine of another speed takes longer by as much, in all that its probes tell of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.demand.op import Op, random_read, sequential_read
from sandtable.engine.simulation import run
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.model.drift import NO_DRIFT, Drift
from sandtable.workload.seam import workload_named

RANDOM = random_read("random", n_chunks=100, chunk_bytes=16384, concurrency=8)
SEQUENTIAL = sequential_read("sequential", n_bytes=1e8, chunk_bytes=1 << 20, concurrency=4)
COPY = Op(name="copy", operator="copy", account="memory", bytes_read=1e6)
GEMV = Op(name="gemv", operator="gemv", account="compute", flops=1e6, bytes_read=1e6)
STATED = Op(name="stated", operator="startup", account="compute", seconds=0.25)
RATIOS = st.dictionaries(
    st.sampled_from(["storage.random_read", "storage.sequential_read", "compute.gemv", "training.torch_gemm"]),
    st.floats(0.1, 10.0),
)


def times(machine: Machine, drift: Drift) -> list[float]:
    costs = CostModel(machine, drift)
    return [costs.time(op).seconds for op in (RANDOM, SEQUENTIAL, COPY, GEMV, STATED)]


def test_each_op_follows_the_probe_of_its_kind(machine: Machine) -> None:
    drift = Drift({"storage.random_read": 2.0, "storage.sequential_read": 3.0, "compute.gemv": 0.5})
    ratios = [after / before for before, after in zip(times(machine, NO_DRIFT), times(machine, drift), strict=True)]
    assert ratios == pytest.approx([2.0, 3.0, 0.5, 0.5, 1.0])
    assert drift.typical == pytest.approx((6**0.5 * 0.5) ** 0.5)


def test_intervals_follow_and_stay_as_wide(machine: Machine) -> None:
    before, after = (
        CostModel(machine, drift).time(RANDOM) for drift in (NO_DRIFT, Drift({"storage.random_read": 2.0}))
    )
    assert (after.low, after.high) == pytest.approx((2 * before.low, 2 * before.high))


@given(ratios=RATIOS)
def test_two_times_between_probes_are_each_others_inverse(ratios: dict[str, float]) -> None:
    then_s = dict.fromkeys(ratios, 0.5)
    now_s = {key: 0.5 * ratio for key, ratio in ratios.items()}
    there, back = Drift.between(then_s, now_s), Drift.between(now_s, then_s)
    for op in (RANDOM, SEQUENTIAL, COPY, GEMV):
        assert there.of(op) * back.of(op) == pytest.approx(1.0)
    assert there.typical * back.typical == pytest.approx(1.0)


def test_a_whole_run_is_slower_by_as_much(machine: Machine) -> None:
    """All of a machine at half its speed: everything takes twice as long, what goes on side by side included."""
    workload = workload_named("flash_inference")
    parameters = workload.parameters.model_validate({"geometry": "opt_mini", "tokens": 4, "rung": "bundling"})
    drift = Drift({"storage.random_read": 2.0, "compute.gemv": 2.0})
    seconds = []
    for each in (NO_DRIFT, drift):
        found = run(workload.process(parameters, machine, 0), CostModel(machine, each))
        units = found.recorder.units
        seconds.append([sum(units[kind].values["latency_s"]) for kind in units])
    assert seconds[1] == pytest.approx([2 * each for each in seconds[0]])


def test_accelerators_and_their_links_are_not_probed() -> None:
    machine = library.load_machine("server_8x_a100_pcie")
    drift = Drift({"compute.gemv": 2.0})
    on_device = Op(name="copy", operator="copy", account="memory", bytes_read=1e6, on="accelerator")
    moved = Op(name="copy", operator="transfer", account="memory", bytes_read=1e6, on="accelerator")
    for op in (on_device, moved):
        before, after = (CostModel(machine, each).time(op).seconds for each in (NO_DRIFT, drift))
        assert after == before > 0
