"""Every workload keeps the contract; a new one, and each of its examples, is picked up by itself."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sandtable import contracts
from sandtable.demand.op import Op, random_read
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.plan_process import process_of
from sandtable.engine.recorder import Recorder, StepResult
from sandtable.engine.simulation import Run
from sandtable.errors import ConfigError, PlanError
from sandtable.hardware import Machine
from sandtable.workload.seam import Execution, ExecutionContext, Workload, workloads

WORKLOADS = workloads()
EXAMPLES = [(name, index) for name, found in WORKLOADS.items() for index in range(len(found.examples()))]
every_workload = pytest.mark.parametrize("name", sorted(WORKLOADS))
every_example = pytest.mark.parametrize(("name", "index"), EXAMPLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all executions, so that model files are written once."""
    return tmp_path_factory.mktemp("stores")


@every_workload
def test_it_says_what_it_is(name: str) -> None:
    workload = WORKLOADS[name]
    assert workload.name == name
    assert workload.examples()[0] == workload.example()
    if workload.planned_only is not None:
        assert not workload.needs


@every_example
def test_it_plans_and_predicts(name: str, index: int, machine: Machine) -> None:
    workload = WORKLOADS[name]
    checked = contracts.check_workload(workload, machine, example=workload.examples()[index])
    assert checked.execution is None
    assert checked.predicted.total_s > 0


@every_example
def test_it_executes_what_it_planned(name: str, index: int, machine: Machine, folder: Path) -> None:
    workload = WORKLOADS[name]
    for package in workload.needs:
        pytest.importorskip(package, reason=f"running {name} for real needs {package}")
    context = ExecutionContext(folder=folder, n_threads=2)
    checked = contracts.check_workload(workload, machine, context, example=workload.examples()[index])
    if workload.planned_only is None:
        assert checked.execution is not None
        assert len(checked.execution.steps) == len(checked.predicted.steps) > 0


# --- the contract itself must be able to fail --------------------------------------------------------------

READ = random_read("read", n_chunks=2, chunk_bytes=4096, concurrency=2)


def plan_of(*ops: Op, **changes: Any) -> Plan:
    step = Step(name="token", ops=ops)
    values: dict[str, Any] = {
        "workload": "made_up",
        "phases": (Phase(name="decode", steps=(step,)),),
        "main_phase": "decode",
        "memory_bytes": {"cache": 100.0},
    }
    return Plan(**(values | changes))


def test_a_good_plan_passes() -> None:
    contracts.check_plan(plan_of(READ, READ))


@pytest.mark.parametrize(
    ("op", "sentence"),
    [
        (dataclasses.replace(READ, operator="teleport"), "unknown operator"),
        (dataclasses.replace(READ, account="luck"), "booked to"),
        (dataclasses.replace(READ, shape=READ.shape._replace(n_chunks=3)), "reads 8192"),
        (dataclasses.replace(READ, flops=-1.0), "flops -1"),
        (dataclasses.replace(READ, repeat=0), "repeat"),
        (dataclasses.replace(READ, bytes_read=float("nan")), "nan"),
    ],
)
def test_a_bad_op_is_found(op: Op, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        contracts.check_plan(plan_of(op))


def test_a_cycle_is_found() -> None:
    with pytest.raises(PlanError, match="does not come before"):
        contracts.check_plan(plan_of(dataclasses.replace(READ, after=(0,))))


def test_a_main_phase_without_steps_is_found() -> None:
    empty = plan_of(phases=(Phase(name="decode", steps=()),))
    with pytest.raises(AssertionError, match="no steps"):
        contracts.check_plan(empty)


def step(**changes: Any) -> StepResult:
    values: dict[str, Any] = {
        "phase": "decode",
        "name": "token",
        "total_s": 1.0,
        "by_account": {"io": 0.5},
        "counters": {"bytes_read": 8192.0, "n_requests": 2.0},
    }
    return StepResult(**(values | changes))


def execution(*steps: StepResult, memory: dict[str, float] | None = None) -> Execution:
    return Execution(recorder=Recorder.of(steps), memory_bytes={"cache": 100.0} if memory is None else memory)


def announced() -> Run:
    held = {"cache": 100.0}
    return Run(
        recorder=Recorder.of([step()]),
        by_op={},
        by_account={},
        ends_frac=(1.0, 1.0),
        memory_bytes=held,
        peak_memory_bytes=100.0,
        trace=[],
        total_s=1.0,
    )


def test_an_execution_may_count_more_than_the_plan() -> None:
    more = step(counters={"bytes_read": 8192.0, "n_requests": 2.0, "overhead_s": 0.1})
    contracts.check_execution(process_of(plan_of(READ)), announced(), execution(more))


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (execution(), "no units 'decode'"),
        (execution(step(name="other")), "other"),
        (execution(step(counters={"bytes_read": 4096.0, "n_requests": 2.0})), "plans bytes_read 8192"),
        (execution(step(counters={"bytes_read": 8192.0, "n_requests": 1.0})), "plans n_requests 2"),
        (execution(step(by_account={"io": 0.5, "memory": 0.1})), "measured but not predicted: memory_s"),
        (execution(step(by_account={"io": 0.0})), "predicted but not measured: io_s"),
        (execution(step(by_account={"io": 2.0})), "more time than it took"),
        (execution(step(), memory={"other": 100.0}), "kinds of memory"),
        (execution(step(), memory={"cache": 150.0}), "planned at 100"),
    ],
)
def test_an_execution_that_differs_is_found(found: Execution, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        contracts.check_execution(process_of(plan_of(READ)), announced(), found)


# --- planned only ------------------------------------------------------------------------------------------


def test_a_workload_that_is_planned_only_refuses_to_run(machine: Machine, folder: Path) -> None:
    context = ExecutionContext(folder=folder, n_threads=2)
    kind = next(type(found) for found in WORKLOADS.values() if found.planned_only is None)
    only = type("PlannedOnly", (kind,), {"planned_only": "nobody has the hardware", "prepare": Workload.prepare})()
    assert contracts.check_workload(only, machine, context).execution is None
    with pytest.raises(ConfigError, match="nobody has the hardware"):
        Workload.execute(only, None, machine, 1, context)
    careless = type("Careless", (kind,), {"planned_only": "nobody has the hardware"})()
    with pytest.raises(AssertionError, match="planned only, and prepares to run"):
        contracts.check_workload(careless, machine, context)
