"""The interval of a sum of ops: laws err on their own, the ops of one law together, and drift is shared by all."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandtable.demand.op import Op, sequential_read
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.plan_process import process_of
from sandtable.engine.recorder import StepResult
from sandtable.engine.simulation import run
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable.runs import reduction

same_machine = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
BYTES = 1e8  # the test machine's compute and memory laws are equal: 10 us + bytes / 10 GB/s, 0.9 to 1.1


def op(kind: str, account: str, n_bytes: float = BYTES, **changes: Any) -> Op:
    return Op(name=kind, operator=kind, account=account, bytes_read=n_bytes, **changes)


GEMV, COPY, ATTEND = op("gemv", "compute"), op("copy", "memory"), op("attend", "compute")


def plan_of(*ops: Op, steps: int = 1) -> Plan:
    phase = Phase(name="main", steps=tuple(Step(name=f"{i}", ops=ops) for i in range(steps)))
    return Plan(workload="made_up", phases=(phase,), main_phase="main")


def simulate(machine: Machine, *ops: Op) -> StepResult:
    return run(plan_of(*ops), CostModel(machine)).steps[0]


def width(step: StepResult, what: str = "total") -> tuple[float, float]:
    value = step.total_s if what == "total" else step.by_account[what]
    return (value - step.low[what]) / value, (step.high[what] - value) / value


def drifting(machine: Machine, drift: float) -> Machine:
    """Give every law of the machine's memory and processor that drift."""

    def changed(fit: Any) -> Any:
        return fit.model_copy(update={"evidence": fit.evidence.model_copy(update={"drift_frac": drift})})

    memory, processor = machine.memory.fitted, machine.processor.fitted
    assert memory is not None
    assert processor is not None
    of_memory = {kind: changed(fit) for kind, fit in memory.ops.items()}
    of_processor = {kind: {d: changed(f) for d, f in laws.items()} for kind, laws in processor.ops.items()}
    return machine.model_copy(
        update={
            "memory": machine.memory.model_copy(update={"fitted": memory.model_copy(update={"ops": of_memory})}),
            "processor": machine.processor.model_copy(
                update={"fitted": processor.model_copy(update={"ops": of_processor})}
            ),
        }
    )


ALONE = (1 - 1 / 1.1, 1 / 0.9 - 1)


@pytest.mark.parametrize("ops", [(GEMV,), (GEMV, GEMV), (GEMV, dataclasses.replace(GEMV, account="memory"))])
def test_one_law_keeps_its_width(machine: Machine, ops: tuple[Op, ...]) -> None:
    assert width(simulate(machine, *ops)) == pytest.approx(ALONE, rel=1e-9)


@pytest.mark.parametrize("other", [COPY, ATTEND, dataclasses.replace(GEMV, dtype="float16")])
def test_two_equal_laws_give_the_root_of_a_half(machine: Machine, other: Op) -> None:
    low, high = width(simulate(machine, GEMV, other))
    assert (low, high) == pytest.approx(tuple(part * math.sqrt(2) / 2 for part in ALONE), rel=1e-9)


@given(st.integers(1, 40), st.integers(1, 40))
@same_machine
def test_two_laws_join_in_squares_whatever_their_shares(machine: Machine, n: int, m: int) -> None:
    a, b = op("gemv", "compute", repeat=n), op("attend", "compute", repeat=m)
    step = simulate(machine, a, b)
    share = n / (n + m)
    wanted = ALONE[1] * math.hypot(share, 1 - share)
    assert width(step)[1] == pytest.approx(wanted, rel=1e-6)
    assert width(step, "compute")[1] == pytest.approx(wanted, rel=1e-6)


def test_more_steps_do_not_narrow_a_mean(machine: Machine) -> None:
    metrics = []
    for steps in (2, 50):
        plan = plan_of(GEMV, COPY, steps=steps)
        found = reduction.collect(run(plan, CostModel(machine)).recorder, process_of(plan))
        metrics.append(reduction.metrics_of(found)["latency_s.mean"])
    assert metrics[0].low == pytest.approx(metrics[1].low, rel=1e-9)
    assert metrics[0].high == pytest.approx(metrics[1].high, rel=1e-9)


def test_what_all_laws_share_does_not_cancel(machine: Machine) -> None:
    # a drift of ten percent is all that these laws are uncertain by, upwards 1 / 0.9 - 1 of which is more
    shaky = drifting(machine, 0.1)
    assert width(simulate(shaky, GEMV)) == pytest.approx(ALONE, rel=1e-9)
    low, high = width(simulate(shaky, GEMV, COPY, ATTEND))
    assert low == pytest.approx(ALONE[0], rel=1e-9)
    own = math.sqrt(ALONE[1] ** 2 - 0.1**2)
    assert high == pytest.approx(math.hypot(0.1, own / math.sqrt(3)), rel=1e-9)


@given(st.lists(st.sampled_from([GEMV, COPY, ATTEND]), min_size=1, max_size=8), st.floats(0, 0.3))
@same_machine
def test_drift_never_narrows_and_a_sum_is_never_wider_than_its_parts(
    machine: Machine, ops: list[Op], drift: float
) -> None:
    steady, shaky = simulate(machine, *ops), simulate(drifting(machine, drift), *ops)
    for side, alone in enumerate(ALONE):
        assert width(steady)[side] <= width(shaky)[side] * (1 + 1e-9)
        assert width(shaky)[side] <= alone * (1 + 1e-9)


def test_the_data_sheet_is_one_law(machine: Machine) -> None:
    """What is not fitted follows one guess of what software reaches: there nothing cancels."""
    from sandtable.hardware import library

    laptop = library.load_machine("laptop_pcie4")
    one, both = (width(simulate(laptop, *ops)) for ops in ((GEMV,), (GEMV, COPY, ATTEND)))
    assert one == pytest.approx(both, rel=1e-6)
    # storage has a law of its own
    read = sequential_read("s", n_bytes=BYTES, chunk_bytes=1 << 20, concurrency=4)
    parts = [simulate(laptop, part) for part in (GEMV, read)]
    below = [part.total_s - part.low["total"] for part in parts]
    joined = simulate(laptop, GEMV, read)
    assert joined.total_s - joined.low["total"] == pytest.approx(math.hypot(*below), rel=1e-6)
