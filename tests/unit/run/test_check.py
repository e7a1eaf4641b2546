"""Predict, run, compare: what a check does with a workload, on one that only pretends to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from sandtable.demand.op import Op
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.simulation import run
from sandtable.hardware import Frozen, Machine
from sandtable.model.cost_model import CostModel
from sandtable.run import check, measure
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import Execution, ExecutionContext, Scenario, Workload


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
    monkeypatch.setattr(measure, "probe", lambda *_: 1.0)
    scenarios = [Scenario(name=name, title=name, workload="counting", repeats=3) for name in ("one", "two")]
    return [Case(scenario=s, workload=Counting(), parameters=Nothing(), machine=machine) for s in scenarios]


def test_a_case_is_planned_once_and_executed_as_often_as_it_says(cases: list[Case], tmp_path: Path) -> None:
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    comparison, checked, _ = check.check(cases, context, name="suite")
    for case in cases:
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
