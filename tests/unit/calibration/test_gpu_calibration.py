"""Calibrating GPUs from a recording: the constants that made its seconds are found again, and the machine works.

No GPU made these recordings: their seconds come from the laws, with known constants and noise, and say so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandtable.calibration import session
from sandtable.calibration.gpu import gpu_datasheet, gpu_fit, recordings
from sandtable.calibration.gpu.recordings import Gpu, RecordedGpus, RecordedPoint, Recording
from sandtable.demand.kernel import Dims, Kernel
from sandtable.demand.op import Op
from sandtable.demand.operator import operator_named
from sandtable.errors import CalibrationError, ConfigError, DoesNotFit, MeasureError, NoDevice
from sandtable.hardware import LinkSheet, Machine, OperatorFits, Roofline, library
from sandtable.runs import predict
from sandtable.runs.nvml import GpuFacts, GpuSample
from sandtable.workload import scenarios

GIB = 1 << 30
NOISE = 0.02
LAUNCH_S, HOST_CALL_S = 1.3e-6, 4.2e-6
COPY = (2.5e-6, 2.8e12)
PINNED, PAGEABLE = (9e-6, 52e9), (14e-6, 11e9)
SUSTAINED_FRAC = 0.83
CONSTANTS = {
    "gemm": {"rate_frac": 0.78, "bandwidth_frac": 0.88, "launch_s": 4e-6, "tile_s": 1.4e-6, "quantise_passes": 1.7},
    "attention": {
        "rate_frac": 0.62,
        "bandwidth_frac": 0.8,
        "launch_s": 12e-6,
        "item_s": 1.1e-6,
        "narrow_gain": 1.0,
    },
    "memory_bound": {"bandwidth_frac": 0.83, "launch_s": 2.3e-6, "special_s": 6e-11, "wait_clocks": 1000.0},
    "collective": {
        "bandwidth_frac": 0.7,
        "pair_frac": 0.9,
        "launch_s": 9e-6,
        "hop_s": 1.3e-6,
        "call_s": 3e-6,
        "direct_bytes": 1.0,
    },
}
H100 = GpuFacts(
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=80 * GIB,
    memory_bus_bits=5120,
    max_clock_hz=1.98e9,
    max_memory_clock_hz=2.619e9,
    power_limit_w=700.0,
    pcie_generation=5,
    pcie_lanes=16,
    nvlinks=18,
    mig="off",
    driver="550.54.15",
    cuda="12.4",
)


def seconds_of(op: Op, dims: Dims, sheet: Roofline, links: LinkSheet) -> float:
    """Return what the constants above make of one demand."""
    law = operator_named(op.operator)
    if op.shape is not None:
        place: Roofline | LinkSheet = links if op.resource == "network" else sheet
        typical = {constant.name: constant.typical for constant in law.constants}
        found = law.seconds(place, CONSTANTS.get(law.fitted_as, typical), law.columns(op.shape), dtype=op.dtype)
        return float(found[0]) / (SUSTAINED_FRAC if op.sustained else 1.0)
    if op.operator == "host":
        return HOST_CALL_S if dims["what"] == "host" else LAUNCH_S
    latency, rate = COPY if op.operator == "copy" else PINNED if dims["pinned"] else PAGEABLE
    return latency + op.bytes_moved / rate


class GeneratedGpus(RecordedGpus):
    """GPUs that take what the laws say, with noise. ``refuses`` names a point that they cannot do, and why."""

    def __init__(
        self, gpus: list[Gpu], refuses: Callable[[Kernel, Dims], Exception | None] = lambda *_: None
    ) -> None:
        watched = {
            recordings.IDLE: tuple((GpuSample(power_w=72.0),) * 4 for _ in gpus),
            recordings.BUSY: tuple(
                (GpuSample(power_w=690.0, clock_hz=1.4e9, throttle=("power cap",)),) * 9 for _ in gpus
            ),
        }
        software = {"torch": "2.9.0+cu126", "cuda": "12.6", "nccl": "2.27.5"}
        made = "laws of sandtable.model with known constants, 2 % noise"
        super().__init__(Recording(generated=made, gpus=tuple(gpus), software=software, watched=watched))
        device, memory = gpu_datasheet.known_gpu(gpus[0]), gpu_datasheet.memory_of(gpus[0], 2.9e12)
        self.sheet = Roofline.of(device or library.load_accelerator("nvidia_h100_sxm"), memory)
        host = gpu_datasheet.link_of(gpus[0], None)
        self.links = LinkSheet.of(gpu_datasheet.peer_link_of(gpus[0], host, 400e9))
        self.refuses = refuses

    def work(self, *, quick: bool) -> list[tuple[Kernel, Dims]]:
        """Return all grids, as real GPUs do."""
        return recordings.grids(len(self.gpus), quick=quick)

    def time(self, kernel: Kernel, dims: Dims, *, repeats: int, budget_s: float) -> list[float]:
        """Return five calls."""
        refused = self.refuses(kernel, dims)
        if refused is not None:
            raise refused
        true = seconds_of(kernel.cost(dims), dims, self.sheet, self.links)
        # a point's noise is its own, whatever else is timed
        rng = np.random.default_rng(zlib.crc32(repr((kernel.name, sorted(dims.items()))).encode()))
        return list(true * np.exp(rng.normal(0.0, NOISE, 5)))


def one(**changes: Any) -> Gpu:
    fields = {"name": H100.name, "units": 132, "memory_bytes": 79.1 * GIB, "cache_bytes": 50e6, "capability": "9.0"}
    return Gpu(**{**fields, "facts": H100, **changes})


@lru_cache(maxsize=4)
def recording(n: int = 1, name: str = H100.name) -> Recording:
    facts = GpuFacts(**{**{f: getattr(H100, f) for f in H100.__dataclass_fields__}, "name": name})
    return recordings.observe(
        GeneratedGpus([one(name=name, facts=facts)] * n), quick=False, progress=lambda _: None
    ).recording()


_done: list[Machine] = []


@pytest.fixture
def calibrated(machine: Machine) -> Machine:
    """The same for every test: fitting takes a second or two."""
    if not _done:
        _done.append(gpu_fit.fitted(machine, recording(8), "sandtable calibrate --only gpu").machine)
    return _done[0]


def operators(component: Any) -> OperatorFits:
    assert component is not None
    assert component.fitted is not None
    found: OperatorFits = component.fitted.operators
    return found


# --- constants ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names", "tolerance"),
    [
        ("gemm", ("rate_frac", "bandwidth_frac", "launch_s"), 0.1),
        ("attention", ("rate_frac", "bandwidth_frac", "launch_s"), 0.1),
        ("memory_bound", ("bandwidth_frac", "launch_s"), 0.1),
    ],
)
def test_the_constants_are_found_again(
    calibrated: Machine, kind: str, names: tuple[str, ...], tolerance: float
) -> None:
    assert calibrated.accelerator is not None
    fit = operators(calibrated.accelerator.processor)[kind]["pytorch_cuda"]
    for name in names:
        estimate, true = fit.constants[name], CONSTANTS[kind][name]
        assert estimate.value == pytest.approx(true, rel=tolerance), name
        # the interval, with a little more for the noise that all of its draws share, and as launches are found 6 % low
        assert estimate.low * 0.93 <= true <= estimate.high * 1.07, name
    assert fit.evidence.median_abs_error_frac < 0.04
    assert "generated" in fit.evidence.method


def test_collectives_are_found_again(calibrated: Machine) -> None:
    assert calibrated.accelerator is not None
    fit = operators(calibrated.accelerator.peer_link)["collective"]["nccl"]
    assert fit.constants["bandwidth_frac"].value == pytest.approx(0.7, rel=0.1)
    assert fit.constants["launch_s"].value == pytest.approx(9e-6, rel=0.15)
    assert fit.evidence.median_abs_error_frac < 0.04


def test_attention_that_writes_its_scores_has_constants_of_its_own(calibrated: Machine) -> None:
    assert calibrated.accelerator is not None
    assert "pytorch_cuda_vanilla" in operators(calibrated.accelerator.processor)["attention"]


def test_copies_are_found_again(calibrated: Machine) -> None:
    accelerator = calibrated.accelerator
    assert accelerator is not None
    assert accelerator.link.fitted is not None
    for fit, (latency, rate) in (
        (accelerator.link.fitted.transfer, PINNED),
        (accelerator.link.fitted.pageable, PAGEABLE),
    ):
        assert fit is not None
        assert fit.bandwidth_bytes_per_s.value == pytest.approx(rate, rel=0.05)
        assert fit.latency_s.value == pytest.approx(latency, rel=0.1)
    assert accelerator.memory.fitted is not None
    within = accelerator.memory.fitted.ops["copy"].bandwidth_bytes_per_s
    assert within is not None
    assert within.value == pytest.approx(COPY[1], rel=0.05)


def test_launches_power_and_the_clock_that_lasts(calibrated: Machine) -> None:
    accelerator = calibrated.accelerator
    assert accelerator is not None
    assert accelerator.processor.fitted is not None
    assert accelerator.processor.fitted.call_overhead_s is not None
    assert accelerator.processor.fitted.call_overhead_s.value == pytest.approx(LAUNCH_S, rel=0.05)
    assert calibrated.stack is not None
    assert calibrated.stack.name == "pytorch_cuda"
    assert calibrated.stack.datasheet.host_call_s == pytest.approx(HOST_CALL_S, rel=0.05)
    assert accelerator.processor.datasheet.sustained_frac == pytest.approx(SUSTAINED_FRAC, rel=0.05)
    assert calibrated.power is not None
    assert (calibrated.power.idle_w, calibrated.power.max_w) == pytest.approx((8 * 72, 8 * 690))
    expected = {"gpu": H100.name, "gpus": "8", "gpu_driver": "550.54.15", "gpu_power_limit": "700 W"}
    assert expected.items() <= calibrated.environment.items()


# --- the machine -------------------------------------------------------------------------------------------


def test_the_machine_file_is_complete_and_simulates(calibrated: Machine, machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "this_machine.yaml"
    library.save_component(calibrated, path)
    loaded = library.load_machine(str(path))
    assert loaded.processor == machine.processor
    assert loaded.storage == machine.storage
    assert loaded.accelerator is not None
    assert loaded.accelerator.n == 8
    case = scenarios.load("slm_100m_a100", machine=str(path))
    result = predict.predict(case.scenario, case.workload, case.parameters, case.machine)[0]
    step = result.metrics["step_s.mean"]
    # 65 536 tokens of a model of a hundred million on eight GPUs that reach 0.78 of 989 TFLOP/s at most
    assert 6 * 1e8 * 65_536 / (8 * 989e12) < step.value < 1


def test_a_product_costs_on_the_machine_what_was_timed(calibrated: Machine) -> None:
    from sandtable.model.cost_model import CostModel

    costs = CostModel(calibrated)
    points = [p for p in gpu_fit.timings_of(recording(8)) if p.op.operator == "gemm" and not p.op.sustained]
    errors = [costs.time(p.op).seconds / p.seconds - 1 for p in points]
    assert len(errors) > 30
    assert np.median(np.abs(errors)) < 0.04


def test_a_gpu_that_the_library_lacks_gets_a_measured_data_sheet(machine: Machine) -> None:
    found = gpu_fit.fitted(machine, recording(1, "NVIDIA X1 Prototype"), "sandtable calibrate --only gpu").machine
    assert found.accelerator is not None
    processor = found.accelerator.processor
    assert processor.datasheet.cores == 132
    assert str(processor.sources["datasheet.peak"]).startswith("measured")
    assert processor.datasheet.peak_flops_per_s["bfloat16"] == pytest.approx(0.78 * 989e12, rel=0.15)
    # bus and clock as NVML tells them
    assert found.accelerator.memory.datasheet.bandwidth_bytes_per_s == pytest.approx(3.35e12, rel=0.01)
    assert found.accelerator.peer_link is None


@pytest.mark.parametrize(
    ("name", "units", "gib", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 132, 80, "nvidia_h100_sxm"),
        ("NVIDIA H100 PCIe", 114, 80, "nvidia_h100_pcie"),
        ("NVIDIA A100-SXM4-80GB", 108, 80, "nvidia_a100_sxm"),
        ("NVIDIA A100-SXM4-40GB", 108, 40, "nvidia_a100_sxm_40gb"),
        ("NVIDIA GeForce RTX 4090", 128, 24, "nvidia_rtx_4090"),
        ("Tesla T4", 40, 15, "nvidia_t4"),
        ("Tesla V100-SXM2-32GB", 80, 32, "nvidia_v100_sxm2_32gb"),
        ("NVIDIA GH200 480GB", 132, 95.6, "nvidia_gh200"),
        ("NVIDIA L4", 58, 22.5, "nvidia_l4"),
        ("NVIDIA GeForce RTX 4080 SUPER", 80, 16, None),
        # a slice of a GPU has its name, and fewer units
        ("NVIDIA H100 80GB HBM3", 60, 40, None),
        # sold under the same name with less memory
        ("NVIDIA GeForce RTX 3060", 28, 8, None),
    ],
)
def test_names_that_drivers_give(name: str, units: int, gib: float, expected: str | None) -> None:
    found = gpu_datasheet.known_gpu(Gpu(name=name, units=units, memory_bytes=gib * GIB))
    assert (None if found is None else found.name) == expected


def test_the_library_knows_memory_and_links() -> None:
    memory, link = gpu_datasheet.memory_of(one(), None), gpu_datasheet.link_of(one(), None)
    assert memory.datasheet.technology == "HBM3"
    assert memory.datasheet.bandwidth_bytes_per_s == 3.35e12
    peer = gpu_datasheet.peer_link_of(one(), link, None)
    assert peer.notes == "Data sheet of nvlink4."


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_points_that_do_not_fit_are_left_out_and_named(machine: Machine) -> None:
    def refuses(kernel: Kernel, dims: Dims) -> Exception | None:
        if dims.get("m") == 8192 and not kernel.cost(dims).sustained:
            return DoesNotFit("does not fit into the memory that is free")
        return NoDevice("fp8 products need compute capability 8.9") if dims.get("dtype") == "fp8" else None

    observed = recordings.observe(GeneratedGpus([one()], refuses), quick=True, progress=lambda _: None)
    notes = gpu_fit.fitted(machine, observed.recording(), "test").notes
    assert any("does not fit" in note and "m=8192" in note for note in notes)
    assert any("8.9" in note for note in notes)
    assert any("power cap" in note for note in notes)


def test_an_interruption_keeps_what_was_timed(machine: Machine) -> None:
    count = 0

    def refuses(kernel: Kernel, dims: Dims) -> Exception | None:
        nonlocal count
        count += 1
        if count > 60:
            raise KeyboardInterrupt
        return None

    observed = recordings.observe(GeneratedGpus([one()], refuses), quick=False, progress=lambda _: None)
    assert observed.broken_by is not None
    assert len(observed.points) == 60
    assert gpu_fit.fitted(machine, observed.recording(), "test").machine.accelerator is not None


def test_without_nvml_there_is_no_power_and_a_hint(machine: Machine) -> None:
    seen = recording().model_copy(update={"gpus": (one(facts=None),), "watched": {}})
    found = gpu_fit.fitted(machine, seen, "test")
    assert found.machine.power is None
    assert any("nvidia" in note for note in found.notes)


def test_a_recording_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    path.write_text(recording().to_json(), encoding="utf-8")
    assert recordings.read_recording(path) == recording()
    again = recordings.observe(RecordedGpus(recording()), quick=False, progress=lambda _: None).recording()
    assert {(p.kernel, str(p.dims)): p.seconds for p in again.points} == {
        (p.kernel, str(p.dims)): p.seconds for p in recording().points
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"gpus": []}', '{"gpus": [{"name": "x"}]}'])
def test_what_is_no_recording_is_refused_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.json"):
        recordings.read_recording(path)


def test_a_point_shows_why_it_is_missing() -> None:
    kernel = next(k for k in recordings.gpu_kernels() if k.name == "torch_cuda_gemm")
    dims = dict(kernel.grid(quick=True)[0])
    point = RecordedPoint(kernel=kernel.name, dims=dims, skipped="does not fit")
    source = RecordedGpus(recording().model_copy(update={"points": (point,)}))
    with pytest.raises(NoDevice, match="does not fit"):
        source.time(kernel, dims, repeats=1, budget_s=1.0)


# --- the command -------------------------------------------------------------------------------------------


def sandtable(*arguments: str) -> Any:
    from typer.testing import CliRunner

    from sandtable.cli.app import app

    return CliRunner().invoke(app, ["calibrate", *arguments])


@pytest.fixture
def base_file(machine: Machine, tmp_path: Path) -> Path:
    path = tmp_path / "this_machine.yaml"
    library.save_component(machine, path)
    return path


def test_the_command_fits_a_recording_into_the_machine(base_file: Path, machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "h100.json"
    file.write_text(recording().to_json(), encoding="utf-8")
    done = sandtable("--only", "gpu", "--replay", str(file), "-o", str(base_file), "--full")
    assert done.exit_code == 0, done.output
    assert done.output.startswith("How fast is this machine")
    assert "torch_cuda_gemm" in done.output
    loaded = library.load_machine(str(base_file))
    assert loaded.accelerator is not None
    assert loaded.memory == machine.memory


def test_a_gpu_alone_is_no_machine(tmp_path: Path) -> None:
    file = tmp_path / "h100.json"
    file.write_text(recording().to_json(), encoding="utf-8")
    done = sandtable("--replay", str(file), "-o", str(tmp_path / "none.yaml"))
    assert isinstance(done.exception, ConfigError)
    assert done.exception.exit_code == 2
    assert "calibrating only gpu needs an earlier full calibration" in str(done.exception)


def test_a_part_that_is_misspelt_is_told_from_a_gpu_that_is_missing(tmp_path: Path) -> None:
    done = sandtable("--only", "gpus", "-o", str(tmp_path / "none.yaml"))
    assert isinstance(done.exception, ConfigError)
    assert "did you mean 'gpu'" in str(done.exception)


def test_a_recording_is_about_gpus(base_file: Path, tmp_path: Path) -> None:
    done = sandtable("--only", "memory", "--replay", str(tmp_path / "x.json"), "-o", str(base_file))
    assert isinstance(done.exception, ConfigError)
    assert "are about GPUs" in str(done.exception)


def test_recording_writes_what_was_timed(base_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LiveGpus", lambda: GeneratedGpus([one()]))
    file = tmp_path / "seen.json"
    done = sandtable("--only", "gpu", "--quick", "--record", str(file), "-o", str(base_file))
    assert done.exit_code == 0, done.output
    assert len(recordings.read_recording(file).points) > 50


@pytest.mark.parametrize(
    ("installed", "words"),
    [(None, "pip install -e '.[torch]'"), ("2.13.0+cpu", "built without")],
)
def test_a_machine_without_what_it_takes_says_so_in_one_sentence(
    base_file: Path, monkeypatch: pytest.MonkeyPatch, installed: str | None, words: str
) -> None:
    from sandtable_kernels.cuda import cuda_pool

    def version(name: str) -> str:
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(cuda_pool, "version", version)
    monkeypatch.setattr(recordings, "IDLE_S", 0.0)
    done = sandtable("--only", "gpu", "-o", str(base_file))
    assert isinstance(done.exception, NoDevice)
    assert done.exception.exit_code == 4
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        ({"version": "2.9.0", "built": None, "gpus": 0}, "built without"),
        ({"version": "2.9.0", "built": "12.6", "gpus": 0}, "no NVIDIA GPU"),
        ({"version": "2.9.0", "built": "12.6", "gpus": 1}, "1 NVIDIA GPU"),
    ],
)
def test_too_few_gpus_are_refused(greeting: dict[str, Any], words: str) -> None:
    from sandtable_kernels.cuda import cuda_pool

    with pytest.raises(NoDevice, match=words):
        cuda_pool.check(greeting, 2)


# --- a recording of the repository -------------------------------------------------------------------------

SHIPPED = Path(__file__).parents[2] / "fixtures" / "gpu_2x_rtx_4090_generated.json"


def test_the_shipped_recording_says_that_no_gpu_made_it() -> None:
    shipped = recordings.read_recording(SHIPPED)
    assert shipped.generated is not None
    assert "generated" in SHIPPED.name
    installed = {kernel.name for kernel in recordings.gpu_kernels()}
    assert {point.kernel for point in shipped.points} == installed
    assert [point.skipped for point in shipped.points if not point.seconds] == [
        "does not fit into the memory that is free"
    ]


def test_a_recording_makes_a_machine_that_trains(base_file: Path) -> None:
    done = sandtable("--replay", str(SHIPPED), "-o", str(base_file))
    assert done.exit_code == 0, done.output
    loaded = library.load_machine(str(base_file))
    accelerator = loaded.accelerator
    assert accelerator is not None
    assert accelerator.processor.notes is not None
    assert "nvidia_rtx_4090" in accelerator.processor.notes
    assert accelerator.peer_link is not None
    assert accelerator.peer_link.datasheet.shared, "without NVLink, GPUs meet on PCIe"
    assert accelerator.link.datasheet.bandwidth_bytes_per_s == pytest.approx(31.5e9, rel=0.01)
    settings = ("parameters.devices=2", "parameters.sharding=fsdp_full")
    case = scenarios.load("slm_100m_a100", changes=scenarios.changes_of(settings), machine=str(base_file))
    two = predict.predict(case.scenario, case.workload, case.parameters, case.machine)[0]
    assert two.metrics["communication_s.mean"].value > 0
    assert two.metrics["energy_j"].value > 0
    # every number of the machine has a source, and what was generated is not passed off as measured
    assert all(
        "generated" in accelerator.processor.sources[f"fitted.operators.{kind}.pytorch_cuda"]
        for kind in ("gemm", "memory_bound")
    )


def command(replay: Path, output: Path) -> None:
    session.run(
        quick=True,
        only="gpu",
        folder=output.parent,
        file_size=None,
        output=output,
        cross_check=None,
        keep_file=False,
        progress=lambda _: None,
        replay=replay,
    )


@pytest.mark.parametrize(("most", "saved"), [(100, True), (0, False)])
def test_an_interrupted_command_saves_what_can_be_fitted(
    base_file: Path, monkeypatch: pytest.MonkeyPatch, most: int, saved: bool
) -> None:
    timed = RecordedGpus.time
    left = iter(range(most))

    def time(self: RecordedGpus, *arguments: Any, **options: Any) -> list[float]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return timed(self, *arguments, **options)

    monkeypatch.setattr(RecordedGpus, "time", time)
    with pytest.raises(KeyboardInterrupt):
        command(SHIPPED, base_file)
    assert (library.load_machine(str(base_file)).accelerator is not None) == saved


def test_a_process_that_dies_ends_the_command_after_saving(
    base_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = RecordedGpus.time
    left = iter(range(100))

    def time(self: RecordedGpus, *arguments: Any, **options: Any) -> list[float]:
        if next(left, None) is None:
            raise MeasureError("a process that times a GPU died; what it said is above")
        return timed(self, *arguments, **options)

    monkeypatch.setattr(RecordedGpus, "time", time)
    with pytest.raises(MeasureError, match="died"):
        command(SHIPPED, base_file)
    assert library.load_machine(str(base_file)).accelerator is not None


def test_a_gpu_that_can_do_nothing_is_an_error(base_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> list[float]:
        raise DoesNotFit("does not fit into the memory that is free")

    monkeypatch.setattr(RecordedGpus, "time", refuse)
    with pytest.raises(CalibrationError, match=r"none of \d+ points could be timed: does not fit"):
        command(SHIPPED, base_file)
