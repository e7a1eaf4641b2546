"""Measured energy is what counters of hardware say: of a made-up powercap tree, and of a recorded NVML."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sandtable.engine.recorder import Recorder, StepResult
from sandtable.hardware import Machine, Power, library
from sandtable.results import Metric
from sandtable.runs import energy, measure
from sandtable.runs.energy import EnergyMeter, GpuCounter, RaplCounter
from sandtable.runs.nvml import GpuSample
from sandtable.workload.seam import Execution, ExecutionContext, Scenario, Workload, workloads

RANGE_UJ = 262_143_328_850
GPUS = library.load_machine("dgx_a100_80gb")


def zone(root: Path, folder: str, name: str, microjoules: int) -> Path:
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return path


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages as a server shows them: cores within, memory beside, the platform and a second way to a package."""
    for number in (0, 1):
        zone(tmp_path, f"intel-rapl:{number}", f"package-{number}", 1_000_000)
        zone(tmp_path, f"intel-rapl:{number}:0", "core", 700_000)
        zone(tmp_path, f"intel-rapl:{number}:1", "dram", 200_000)
    zone(tmp_path, "intel-rapl:2", "psys", 5_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    return tmp_path


def fake_nvml(n_gpus: int) -> ModuleType:
    """Return a pynvml that knows nothing of its GPUs but their energy so far."""
    module = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})  # type: ignore[attr-defined]
    answers: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: n_gpus,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 1000 * (handle + 1),
    }
    for name, answer in answers.items():
        setattr(module, name, answer)
    return module


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def filled(meter: EnergyMeter, clock: Clock, advance: Any, n: int = 41) -> EnergyMeter:
    for number in range(n):
        clock.now = number * 0.1
        advance(number)
        meter.sample()
    return meter


# --- counters ----------------------------------------------------------------------------------------------


def test_packages_and_their_memory_are_counted_once(powercap: Path) -> None:
    counters = energy.rapl_counters(powercap)
    assert [counter.folder.name for counter in counters] == [
        "intel-rapl:0",
        "intel-rapl:0:1",
        "intel-rapl:1",
        "intel-rapl:1:1",
    ]
    assert sum(counter.joules() or 0.0 for counter in counters) == pytest.approx(2.4)


def test_a_counter_that_begins_again_goes_on(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 3_000_000)
    counter = RaplCounter(folder)
    first = counter.joules()
    assert first is not None
    for after, microjoules in ((5.0, 2_000_000), (6.0, 3_000_000)):
        (folder / "energy_uj").write_text(str(microjoules))
        assert counter.joules() == pytest.approx(first + after)
    (folder / "energy_uj").write_text("1000000")  # once more
    assert counter.joules() == pytest.approx(first + 4.0 + RANGE_UJ / 1e6)


@pytest.mark.parametrize("breaks", ["missing", "not a number", "a folder"])
def test_what_cannot_be_read_measures_nothing(breaks: str, powercap: Path) -> None:
    path = powercap / "intel-rapl:1" / "energy_uj"
    path.unlink()
    if breaks == "not a number":
        path.write_text("no\n")
    elif breaks == "a folder":
        path.mkdir()
    assert energy.rapl_counters(powercap) == []
    meter = energy.meter_of(library.load_machine("laptop_pcie4"), powercap)
    assert (list(meter.counters), meter.covers) == ([], "")
    with energy.metered(meter):
        pass
    assert meter.joules(0.0, 1.0) is None


def test_a_machine_without_powercap_measures_nothing(tmp_path: Path) -> None:
    assert energy.rapl_counters(tmp_path / "none") == []


def test_a_gpu_that_counts_is_believed_and_one_that_does_not_is_summed() -> None:
    assert GpuCounter(lambda: GpuSample(power_w=300.0, energy_j=7.5)).joules() == 7.5
    assert GpuCounter(GpuSample).joules() is None
    clock, watts = Clock(), iter((100.0, 300.0, 300.0))
    counter = GpuCounter(lambda: GpuSample(power_w=next(watts)), clock)
    found = []
    for clock.now in (0.0, 1.0, 3.0):
        found.append(counter.joules())
    assert found == [0.0, 200.0, 800.0]


# --- meter -------------------------------------------------------------------------------------------------


def test_energy_is_that_between_two_moments(powercap: Path) -> None:
    clock = Clock()
    meter = EnergyMeter(energy.rapl_counters(powercap), "", clock)

    def advance(number: int) -> None:  # 50 W for two seconds, then 100 W, of which memory takes a fifth
        joules = number * 5 if number <= 20 else 100 + (number - 20) * 10
        for package in (0, 1):
            (powercap / f"intel-rapl:{package}" / "energy_uj").write_text(str(joules * 400_000))
            (powercap / f"intel-rapl:{package}:1" / "energy_uj").write_text(str(joules * 100_000))

    filled(meter, clock, advance)
    assert meter.joules(0.0, 4.0) == pytest.approx(300.0)
    assert meter.joules(0.25, 1.75) == pytest.approx(75.0)
    assert meter.joules(1.0, 3.0) == pytest.approx(150.0)


@pytest.mark.parametrize("stretch", [(-1.0, 2.0), (1.0, 4.5), (1.0, 1.4)])
def test_a_stretch_that_the_samples_do_not_span_has_no_energy(stretch: tuple[float, float]) -> None:
    clock = Clock()
    meter = EnergyMeter([GpuCounter(lambda: GpuSample(energy_j=clock.now), clock)], "", clock)
    filled(meter, clock, lambda _: None)
    assert meter.joules(*stretch) is None
    assert meter.joules(1.0, 3.0) == pytest.approx(2.0)


def test_it_samples_while_inside() -> None:
    counter = GpuCounter(lambda: GpuSample(energy_j=10 * time.perf_counter()))
    with energy.metered(EnergyMeter([counter], "one GPU"), every_s=0.005) as meter:
        begin = time.perf_counter()
        time.sleep(0.2)
        end = time.perf_counter()
    assert meter.joules(begin, end) == pytest.approx(10 * (end - begin), rel=0.05)


def test_gpus_are_those_of_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(2))
    meter = energy.meter_of(GPUS)
    assert [counter.joules() for counter in meter.counters] == [1.0, 2.0]
    assert meter.covers == "2 GPUs, all of this machine (NVML)"
    for missing in (fake_nvml(0), None):
        monkeypatch.setitem(sys.modules, "pynvml", missing)
        assert not energy.meter_of(GPUS).counters


# --- measurements ------------------------------------------------------------------------------------------


class Careless(Workload[Any]):
    """A workload that says what its energy would be by the machine's stated power, as a measurement must not."""

    def __init__(self, inner: Workload[Any], execution: Execution | None = None) -> None:
        self.inner, self.name, self.execution = inner, inner.name, execution

    def plan(self, parameters: Any, machine: Machine, seed: int) -> Any:
        return self.inner.plan(parameters, machine, seed)

    def example(self) -> dict[str, Any]:
        return self.inner.example()

    def derived(self, parameters: Any, machine: Machine, known: Mapping[str, Metric]) -> dict[str, Metric]:
        found = dict(self.inner.derived(parameters, machine, known))
        return found | {"energy_j": Metric(value=1e9, low=1e9, high=1e9, unit="J")}


def measured(name: str, machine: Machine, **changes: Any) -> Any:
    """Return a measurement of made-up steps of a workload's example."""
    inner = workloads()[name]
    machine = machine.model_copy(update={"power": Power(idle_w=10.0, max_w=20.0)})
    parameters = inner.parameters.model_validate(inner.example())
    plan, process = inner.plan(parameters, machine, 1), inner.process(parameters, machine, 1)
    step = {"by_account": {"compute": 1.0}, "counters": {"forward_s": 0.5, "backward_s": 0.3, "optimizer_s": 0.2}}
    phases = [phase.name for phase in plan.phases for _ in range(phase.n_steps)]
    steps = [StepResult(phase=phase, name="step", total_s=1.0, **step) for phase in phases]  # type: ignore[arg-type]
    executions = [replace(Execution(recorder=Recorder.of(steps)), **changes) for _ in range(2)]
    scenario = Scenario(name="energy", title="Energy", workload=name)
    repeats = measure.Repeats(executions=executions, probes=[])
    return measure.measurement_of(scenario, parameters, machine, process, repeats, Careless(inner)), plan


@pytest.mark.parametrize("name", sorted(workloads()))
def test_a_measurement_has_no_energy_that_nobody_measured(name: str, machine: Machine) -> None:
    found, _ = measured(name, machine)
    assert not [metric for metric, value in found.metrics.items() if value.unit == "J"]
    assert "energy_j" not in found.environment


@pytest.mark.parametrize("name", sorted(workloads()))
def test_a_measurement_has_the_energy_of_one_step_as_it_was_counted(name: str, machine: Machine) -> None:
    found, plan = measured(name, machine, energy_j=600.0, energy_covers="processors: package-0 (RAPL)")
    n_steps = plan.phase(plan.main_phase).n_steps
    assert found.metrics["energy_j"].samples == (600.0 / n_steps, 600.0 / n_steps)
    assert found.environment["energy_j"] == "processors: package-0 (RAPL)"


@pytest.mark.parametrize("name", sorted(name for name, found in workloads().items() if not found.planned_only))
def test_an_execution_says_when_its_main_phase_was(name: str, machine: Machine, tmp_path: Path) -> None:
    workload = workloads()[name]
    for package in workload.needs:
        pytest.importorskip(package, reason=f"running {name} for real needs {package}")
    parameters = workload.parameters.model_validate(workload.example())
    context = ExecutionContext(folder=tmp_path, n_threads=2)
    workload.prepare(parameters, machine, 1, context)
    begin = time.perf_counter()
    execution = workload.execute(parameters, machine, 1, context)
    end = time.perf_counter()
    main = workload.plan(parameters, machine, 1).main_phase
    taken = sum(step.total_s for step in execution.steps if step.phase == main)
    assert execution.main_s is not None
    assert begin < execution.main_s[0] < execution.main_s[1] < end
    assert execution.main_s[1] - execution.main_s[0] >= 0.99 * taken
