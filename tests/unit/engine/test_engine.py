"""The engine: chains add up, free resources overlap, busy ones queue."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest

from sandtable.demand.op import Op, random_read, sequential_read
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.clock import seconds, ticks
from sandtable.engine.recorder import ACCOUNTS
from sandtable.engine.simulation import Run, run
from sandtable.engine.world import Options
from sandtable.errors import PlanError
from sandtable.hardware import Machine, OpEfficiency, Stack, StackDatasheet
from sandtable.model.cost_model import CostModel

TICK = 1e-11


def compute(name: str = "c", n_bytes: float = 1e8, **changes: Any) -> Op:
    return Op(name=name, operator="gemv", account="compute", bytes_read=n_bytes, **changes)


def memory(name: str = "m", n_bytes: float = 1e8, **changes: Any) -> Op:
    return Op(name=name, operator="copy", account="memory", bytes_read=n_bytes, **changes)


def stream(n_bytes: float = 1e8, **changes: Any) -> Op:
    read = sequential_read("s", n_bytes=n_bytes, chunk_bytes=1 << 20, concurrency=4)
    return dataclasses.replace(read, **changes)


# on the test machine: 10 us + bytes / 10 GB/s
C = 10e-6 + 1e8 / 10e9
S = 118e-6 + 1e8 / 6.05e9


def simulate(machine: Machine, *ops: Op, repeat: int = 1, **options: bool) -> Run:
    plan = Plan(
        workload="made_up",
        phases=(Phase(name="main", steps=(Step(name="step", ops=ops, repeat=repeat),)),),
        main_phase="main",
    )
    return run(plan, CostModel(machine), Options(**options))


def test_a_chain_adds_up(machine: Machine) -> None:
    result = simulate(machine, compute(), stream(), memory())
    assert result.total_s == pytest.approx(C + S + C, abs=TICK)
    step = result.steps[0]
    assert step.by_account == pytest.approx({"io": S, "memory": C, "compute": C, "communication": 0.0})
    assert sum(step.by_account.values()) == pytest.approx(step.total_s, abs=TICK)


def test_independent_ops_on_different_resources_overlap(machine: Machine) -> None:
    result = simulate(machine, compute(after=()), stream(after=()), memory(after=()))
    assert result.total_s == pytest.approx(S, abs=TICK)
    assert sum(result.steps[0].by_account.values()) == pytest.approx(C + S + C)


def test_independent_ops_on_one_resource_queue(machine: Machine) -> None:
    result = simulate(machine, *(compute(after=()) for _ in range(3)))
    assert result.total_s == pytest.approx(3 * C, abs=TICK)


def test_host_and_accelerator_are_different_resources(machine: Machine) -> None:
    # no accelerator is described, so its cost is taken from the host through the cost model's error
    with pytest.raises(PlanError, match="no accelerator"):
        simulate(machine, compute(after=(), on="accelerator"))


def test_an_op_waits_for_all_that_it_names(machine: Machine) -> None:
    # read and compute side by side; the last waits for both, so for the slower
    result = simulate(machine, compute(after=()), stream(after=()), memory(after=(0, 1)))
    assert result.total_s == pytest.approx(max(C, S) + C, abs=TICK)


def test_a_diamond(machine: Machine) -> None:
    first = memory()
    left, right = compute(n_bytes=3e8, after=(0,)), stream(after=(0,))
    last = memory(after=(1, 2))
    slower = max(10e-6 + 3e8 / 10e9, S)
    assert simulate(machine, first, left, right, last).total_s == pytest.approx(C + slower + C, abs=TICK)


@pytest.mark.parametrize("after", [(0,), (1,), (5,)])
def test_a_cycle_is_refused(machine: Machine, after: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="does not come before it"):
        simulate(machine, compute(after=after), compute())


def test_steps_follow_each_other(machine: Machine) -> None:
    result = simulate(machine, compute(after=()), stream(after=()), repeat=5)
    assert result.total_s == pytest.approx(5 * S, abs=5 * TICK)
    assert len(result.steps) == 5
    assert {step.phase for step in result.steps} == {"main"}


def test_an_op_repeated_takes_its_turns(machine: Machine) -> None:
    assert simulate(machine, compute(repeat=4)).total_s == pytest.approx(4 * C, abs=TICK)


def test_an_empty_step_takes_no_time(machine: Machine) -> None:
    result = simulate(machine)
    assert result.total_s == 0
    assert result.steps[0].by_account == dict.fromkeys(ACCOUNTS, 0.0)
    assert result.steps[0].low["total"] == 0


def test_counters_count_storage_alone(machine: Machine) -> None:
    read = random_read("r", n_chunks=7, chunk_bytes=4096, concurrency=2)
    counters = simulate(machine, read, compute(), dataclasses.replace(read, repeat=3)).steps[0].counters
    assert counters == {"bytes_read": 4 * 7 * 4096.0, "n_requests": 28.0}


def test_a_step_keeps_its_own_facts(machine: Machine) -> None:
    step = Step(name="step", ops=(compute(),), counters={"hit_frac": 0.7})
    plan = Plan(workload="made_up", phases=(Phase(name="main", steps=(step,)),), main_phase="main")
    assert run(plan, CostModel(machine)).steps[0].counters["hit_frac"] == 0.7


def test_time_by_op_adds_equal_names(machine: Machine) -> None:
    result = simulate(machine, compute("a"), memory("b"), compute("a"), repeat=3)
    assert result.by_op == pytest.approx({"a": 6 * C, "b": 3 * C})


def test_intervals_hold_the_value(machine: Machine) -> None:
    step = simulate(machine, compute(after=()), stream(after=()), memory(after=(0,))).steps[0]
    assert step.low["total"] < step.total_s < step.high["total"]
    for account, value in step.by_account.items():
        assert step.low[account] <= value <= step.high[account]


# --- a host that runs ahead --------------------------------------------------------------------------------


def queueing_ahead(machine: Machine, host_call_s: float) -> Machine:
    sheet = StackDatasheet(
        version="1",
        efficiency={"default": OpEfficiency()},
        host_call_s=host_call_s,
        overlaps_host=True,
        residual_low_frac=0.8,
        residual_high_frac=1.25,
    )
    stack = Stack(kind="stack", name="ahead", title="Ahead", datasheet=sheet, sources={"datasheet": "made up"})
    processor = machine.processor.model_copy(update={"fitted": None})
    return machine.model_copy(update={"stack": stack, "processor": processor})


@pytest.mark.parametrize("host_call_s", [1e-3, 20e-3])
def test_a_step_costs_the_longer_of_host_and_device(machine: Machine, host_call_s: float) -> None:
    device = 1e8 / 20e9  # data sheet: 20 GB/s
    result = simulate(queueing_ahead(machine, host_call_s), compute(), compute())
    assert result.total_s == pytest.approx(2 * max(device, host_call_s))
    assert result.steps[0].by_account["compute"] == pytest.approx(result.total_s)


# --- timelines ---------------------------------------------------------------------------------------------


def test_no_timeline_unless_asked(machine: Machine) -> None:
    assert simulate(machine, compute()).trace == []


def test_a_timeline_of_a_chain(machine: Machine) -> None:
    rows = simulate(machine, compute("a"), stream(), compute("b"), repeat=2, expand=True, trace=True).trace
    assert [(row.track, row.name, row.step) for row in rows] == [
        ("compute", "a", 0),
        ("storage", "s", 0),
        ("compute", "b", 0),
        ("compute", "a", 1),
        ("storage", "s", 1),
        ("compute", "b", 1),
    ]
    assert rows[0].start_s == 0
    for before, after in pairwise(rows):
        assert after.start_s == pytest.approx(before.end_s, abs=TICK)


def test_a_processor_does_one_thing_at_a_time(machine: Machine) -> None:
    ops = [compute(str(i), n_bytes=1e7 * (i + 1), after=()) for i in range(6)]
    ops += [memory("m", after=(2,)), stream(after=(0,)), stream(after=(1,))]
    rows = simulate(machine, *ops, trace=True).trace
    assert len(rows) == len(ops)
    for track in ("compute", "memory"):
        own = sorted((row for row in rows if row.track == track), key=lambda row: row.end_s)
        for before, after in pairwise(own):
            assert after.start_s >= before.end_s - TICK, f"{before} and {after} overlap"


# --- the clock ---------------------------------------------------------------------------------------------


def test_the_clock_does_not_drift(machine: Machine) -> None:
    # a tenth of a second has no exact binary fraction
    assert seconds(ticks(0.1) * 1_000_000) == 100_000.0
    assert ticks(-1.0) == 0
