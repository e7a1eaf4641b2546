"""Predict, run, compare: what a check does with a workload, on one that only pretends to run."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sandtable.contracts import run_command
from sandtable.demand.op import Op
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.simulation import run
from sandtable.errors import ConfigError
from sandtable.hardware import Frozen, Machine
from sandtable.model.cost_model import CostModel
from sandtable.model.drift import Drift
from sandtable.runs import check, kept_execution, measure
from sandtable.runs.run_folder import RunFolder, list_runs
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import Execution, ExecutionContext, Scenario, Workload

# what the probe took at calibration
GEMV_S = {"compute.gemv": 0.1}


class Nothing(Frozen):
    """No parameters."""


class Counting(Workload[Nothing]):
    """Counts its calls; executes by saying what the engine says."""

    name: ClassVar[str] = "counting"
    parameters: ClassVar[type[Frozen]] = Nothing

    def __init__(self) -> None:
        self.calls = {"plan": 0, "execute": 0}

    def plan(self, parameters: Nothing, machine: Machine, seed: int) -> Plan:
        self.calls["plan"] += 1
        op = Op(name="copy", operator="copy", account="memory", bytes_read=1e6)
        phase = Phase(name="main", steps=(Step(name="step", ops=(op,), repeat=4),))
        return Plan(workload=self.name, phases=(phase,), main_phase="main", memory_bytes={"buffer": 1e6})

    def execute(self, parameters: Nothing, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        self.calls["execute"] += 1
        plan = Counting().plan(parameters, machine, seed)
        return Execution(recorder=run(plan, CostModel(machine)).recorder, memory_bytes={"buffer": 2e6})

    def example(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def cases(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "probe", lambda *_: {})
    scenarios = [Scenario(name=name, title=name, workload="counting", repeats=3) for name in ("one", "two")]
    return [Case(scenario=s, workload=Counting(), parameters=Nothing(), machine=machine) for s in scenarios]


def test_a_case_is_planned_once_and_executed_as_often_as_it_says(cases: list[Case], tmp_path: Path) -> None:
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    comparison, checked, _ = check.check(cases, context, name="suite")
    for case in cases:
        assert isinstance(case.workload, Counting)
        assert case.workload.calls == {"plan": 1, "execute": 3}
    assert comparison.summary.median_abs_error_frac == pytest.approx(0, abs=1e-9)
    assert [item.measurement is not None for item in checked] == [True, True]


def test_memory_is_compared_with_what_the_run_counted(cases: list[Case], tmp_path: Path) -> None:
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    comparison, _, _ = check.check(cases[:1], context, name="suite")
    row = next(row for row in comparison.comparisons if row.metric == "peak_memory_bytes")
    assert (row.predicted, row.measured, row.covered) == (1e6, 2e6, False)
    assert row.error_frac == pytest.approx(-0.5)


def test_the_process_is_watched_where_the_system_can(cases: list[Case], tmp_path: Path) -> None:
    if measure.start_peak() is None:
        pytest.skip("this system does not tell a process its peak memory")
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    case = cases[0]
    execution = measure.execute(case.scenario, case.workload, case.parameters, case.machine, context)
    assert execution.process_bytes is not None
    assert 0 <= execution.process_bytes < 1e9


class Slowed(Counting):
    """Takes twice what the machine's constants say."""

    def execute(self, parameters: Nothing, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        plan = self.plan(parameters, machine, seed)
        costs = CostModel(machine, Drift({"compute.gemv": 2.0}))
        return Execution(recorder=run(plan, costs).recorder, memory_bytes={"buffer": 1e6})


def test_a_run_is_compared_with_what_is_predicted_for_the_speed_that_probes_found(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.2, 0.1, 0.4])
    monkeypatch.setattr(measure, "probe", lambda *_: {"compute.gemv": next(seconds)})
    case = replace(cases[0], workload=Slowed(), machine=cases[0].machine.model_copy(update={"probe_s": GEMV_S}))
    comparison, (item,), folder = check.check([case], ExecutionContext(folder=tmp_path, n_threads=1), name="one")
    assert item.measurement is not None
    assert item.measurement.drift == {"compute.gemv": pytest.approx(2.0)}
    assert comparison.summary.median_abs_error_frac == pytest.approx(0, abs=1e-9)
    assert comparison.as_calibrated is not None
    assert comparison.as_calibrated.median_abs_error_frac == pytest.approx(0.5)
    # what was written down before stays as it was
    written = folder.prediction()
    row = next(row for row in comparison.comparisons if row.metric == "latency_s.mean")
    assert written is not None
    assert written.metrics["latency_s.mean"].value == pytest.approx(row.predicted / 2)
    assert comparison.answer is not None
    assert "(50.0 % for the speed at calibration: by its probes the machine was 100 % slower)" in (
        comparison.answer.verdict
    )
    page = run_command("show", str(folder.path))
    assert "0.0 % as fast as at its calibration" in page.out


# --- ended and finished ------------------------------------------------------------------------------------


@pytest.fixture
def known(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    monkeypatch.setattr(kept_execution, "workload_named", lambda _: cases[0].workload)
    return cases


class Impatient(Counting):
    """Is interrupted when it has run so many times, whatever the case."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.patience = patience

    def execute(self, parameters: Nothing, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        if self.calls["execute"] == self.patience:
            raise KeyboardInterrupt
        return super().execute(parameters, machine, seed, context)


@pytest.mark.parametrize("patience", [0, 1, 4])
@pytest.mark.parametrize("n_cases", [1, 2])
def test_an_ended_check_is_compared_saved_shown_and_finished(
    known: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, n_cases: int
) -> None:
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    workload = Impatient(min(patience, 3 * n_cases - 1))
    with pytest.raises(KeyboardInterrupt):
        check.check([replace(case, workload=workload) for case in known[:n_cases]], context, name="suite")
    (folder,) = list_runs()
    saved = folder.comparison()
    assert saved is not None
    assert saved.verdict == "inconclusive"
    assert f"{workload.patience} of {3 * n_cases} runs are done" in saved.reasons[-1]
    assert f"--resume {folder.path}" in saved.reasons[-1]
    assert run_command("show", str(folder.path)).code == 0
    # a report of one case cut short, and of a whole one beside it
    if find_spec("matplotlib") is not None and (n_cases, patience) in ((1, 1), (2, 4)):
        assert run_command("report", str(folder.path), "-o", "report.html").code == 0

    again = Counting()
    monkeypatch.setattr(kept_execution, "workload_named", lambda _: again)
    comparison, checked, about = check.resume(folder, context)
    assert again.calls["execute"] == 3 * n_cases - workload.patience
    assert about.name == "suite"
    assert comparison.verdict == "pass"
    assert comparison.summary.n == n_cases
    assert [len(item.repeats.executions) for item in checked] == [3] * n_cases
    assert folder.comparison() == comparison


def test_what_was_kept_of_an_execution_is_what_it_was(cases: list[Case], tmp_path: Path) -> None:
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    _, checked, _ = check.check(cases[:1], context, name="suite")
    kept = kept_execution.load(checked[0].folder, 3)
    for old, new in zip(checked[0].repeats.executions, kept.executions, strict=True):
        assert [step.total_s for step in old.steps] == [step.total_s for step in new.steps]
        assert [step.counters for step in old.steps] == [step.counters for step in new.steps]
        assert (old.memory_bytes, old.process_bytes) == (new.memory_bytes, new.process_bytes)


def test_a_folder_without_a_check_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no check"):
        check.resume(RunFolder(tmp_path), ExecutionContext(folder=tmp_path, n_threads=1))
