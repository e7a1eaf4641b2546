"""What the engine skips must not change what it finds: shortcuts against the same plan written out."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandtable import units
from sandtable.demand.op import Op, random_read, sequential_read
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.simulation import Run, run
from sandtable.engine.world import Options
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable.workload.seam import workload_named

# the fixture is a machine that nothing changes
same_machine = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
# every duration is rounded to whole picoseconds
TICKS = 1e-12


@st.composite
def ops(draw: st.DrawFn, index: int, *, chain: bool) -> Op:
    n_bytes = float(draw(st.integers(1, 10**8)))
    kind = draw(st.sampled_from(["gemv", "copy", "random", "sequential"]))
    after = None
    if not chain and draw(st.booleans()):
        after = tuple(draw(st.sets(st.integers(0, index - 1), max_size=3))) if index else ()
    repeat = draw(st.integers(1, 3))
    if kind == "random":
        n, lanes = draw(st.integers(0, 40)), draw(st.integers(1, 8))
        op = random_read("read", n_chunks=n, chunk_bytes=4096.0 * draw(st.integers(1, 16)), concurrency=lanes)
    elif kind == "sequential":
        op = sequential_read("stream", n_bytes=n_bytes, chunk_bytes=1 << 20, concurrency=4)
    else:
        op = Op(name=kind, operator=kind, account="compute" if kind == "gemv" else "memory", bytes_read=n_bytes)
    return dataclasses.replace(op, after=after, repeat=repeat)


@st.composite
def plans(draw: st.DrawFn, *, chain: bool = False) -> Plan:
    phases = []
    for number in range(draw(st.integers(1, 2))):
        steps = tuple(
            Step(
                name=f"step {i}",
                ops=tuple(draw(ops(index, chain=chain)) for index in range(draw(st.integers(1, 5)))),
                repeat=draw(st.integers(1, 4)),
            )
            for i in range(draw(st.integers(1, 3)))
        )
        phases.append(Phase(name=f"phase {number}", steps=steps))
    return Plan(workload="made_up", phases=tuple(phases), main_phase="phase 0")


def n_waits(plan: Plan) -> int:
    return sum(times for _, times in plan.ops())


def simulate(plan: Plan, machine: Machine, **options: bool) -> Run:
    return run(plan, CostModel(machine), Options(**options))


SHARING_FRAC = 0.01


@same_machine
@given(plans())
def test_repeats_advanced_at_once_equal_repeats_one_by_one(machine: Machine, plan: Plan) -> None:
    short, long = simulate(plan, machine), simulate(plan, machine, expand=True)
    assert short.total_s == long.total_s
    assert short.steps == long.steps
    assert short.by_op == pytest.approx(long.by_op, rel=1e-12)


@same_machine
@given(plans(chain=True))
def test_the_accounts_of_a_chain_add_up_to_its_time(machine: Machine, plan: Plan) -> None:
    result = simulate(plan, machine)
    for step in result.steps:
        assert sum(step.by_account.values()) == pytest.approx(step.total_s, abs=TICKS * 40)
        # at most as uncertain as its parts together, at least as the most uncertain of them
        below = [step.by_account[account] - step.low[account] for account in step.by_account]
        total = step.total_s - step.low["total"]
        assert max(below) - TICKS * 40 <= total <= sum(below) + TICKS * 40
    assert sum(step.total_s for step in result.steps) == pytest.approx(result.total_s, abs=TICKS * 400)
    assert sum(result.by_op.values()) == pytest.approx(result.total_s, abs=TICKS * n_waits(plan), rel=1e-9)


@same_machine
@given(plans())
def test_a_graph_takes_at_least_its_busiest_processor_and_at_most_the_sum(machine: Machine, plan: Plan) -> None:
    costs = CostModel(machine)
    result = simulate(plan, machine)
    index = 0
    for phase in plan.phases:
        for step in phase.steps:
            times: dict[str, float] = {}
            for op in step.ops:
                times[op.resource] = times.get(op.resource, 0.0) + costs.time(op).seconds
            found = result.steps[index].total_s
            # storage serves several at a time
            busiest = max((time for resource, time in times.items() if resource != "storage"), default=0.0)
            # what each of them has of it changes at the ends of their requests
            slack = TICKS * 100 + SHARING_FRAC * times.get("storage", 0.0)
            assert busiest - TICKS * 100 <= found <= sum(times.values()) + slack
            index += step.repeat


@same_machine
@given(plans())
def test_intervals_hold_and_timelines_of_processors_do_not_overlap(machine: Machine, plan: Plan) -> None:
    result = simulate(plan, machine, trace=True, expand=True)
    for step in result.steps:
        assert step.low["total"] <= step.total_s * (1 + 1e-9)
        assert step.high["total"] >= step.total_s * (1 - 1e-9)
        for account, value in step.by_account.items():
            assert step.low[account] <= value <= step.high[account]
    for track in {row.track for row in result.trace} - {"storage"}:
        own = sorted((row for row in result.trace if row.track == track), key=lambda row: (row.end_s, row.start_s))
        for before, after in pairwise(own):
            assert after.start_s >= before.end_s - TICKS / 2


# --- request by request ------------------------------------------------------------------------------------


def token(machine: Machine, **changes: Any) -> Plan:
    workload = workload_named("flash_inference")
    values = {"geometry": "opt_6_7b_1l", "tokens": 2, "cold_tokens": 4, "prompt_tokens": 2, "window": 3}
    parameters = workload.parameters.model_validate(values | changes, context=units.AT_EDGE)
    return workload.plan(parameters, machine, 1)


@pytest.mark.parametrize("rung", ["predictor", "window", "bundling"])
@pytest.mark.parametrize("concurrency", [1, 8, 32])
def test_a_token_request_by_request_equals_the_law(machine: Machine, rung: str, concurrency: int) -> None:
    plan = token(machine, rung=rung, concurrency=concurrency)
    batch, single = simulate(plan, machine), simulate(plan, machine, per_request=True)
    for a, b in zip(batch.steps, single.steps, strict=True):
        assert b.total_s == pytest.approx(a.total_s, rel=0.02)
        assert b.counters == a.counters


def test_two_readers_share_one_device(machine: Machine) -> None:
    """Request by request, two batches at once take about as long as one batch of both at twice the concurrency."""
    half = random_read("half", n_chunks=400, chunk_bytes=16384, concurrency=8)
    together = [dataclasses.replace(half, after=()), dataclasses.replace(half, after=())]
    whole = random_read("whole", n_chunks=800, chunk_bytes=16384, concurrency=16)

    def plan(*ops: Op) -> Plan:
        phase = Phase(name="main", steps=(Step(name="step", ops=ops),))
        return Plan(workload="made_up", phases=(phase,), main_phase="main")

    shared = simulate(plan(*together), machine, per_request=True).total_s
    assert shared == pytest.approx(CostModel(machine).time(whole).seconds, rel=0.05)
    apart = simulate(plan(half, half), machine, per_request=True).total_s
    assert shared < apart


def test_a_plan_gives_the_same_answer_twice(machine: Machine) -> None:
    plan = token(machine)
    first, second = simulate(plan, machine, trace=True), simulate(plan, machine, trace=True)
    assert first.trace == second.trace
    assert np.array_equal([s.total_s for s in first.steps], [s.total_s for s in second.steps])
