"""A process and what it sees: service, time, memory, chance, composition, records."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from sandtable.demand.op import Op, random_read
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.process import Body, Process
from sandtable.engine.simulation import Run, run
from sandtable.engine.world import Options, World
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel

TICK = 1e-11
COMPUTE = Op(name="c", operator="gemv", account="compute", bytes_read=1e8)
COPY = Op(name="m", operator="copy", account="memory", bytes_read=1e8)
READ = random_read("r", n_chunks=100, chunk_bytes=16384, concurrency=8)
C = 10e-6 + 1e8 / 10e9  # both, on the test machine


def play(machine: Machine, body: Callable[[World], Body], *, seed: int = 0, **changes: object) -> Run:
    process = Process(workload="made_up", body=body, main_unit="unit", **changes)  # type: ignore[arg-type]
    return run(process, CostModel(machine), seed=seed)


def plan_of(*ops: Op, memory: float = 0.0) -> Plan:
    return Plan(
        workload="inner",
        phases=(Phase(name="inner", steps=(Step(name="step", ops=ops, repeat=3),)),),
        main_phase="inner",
        memory_bytes={"weights": memory} if memory else {},
    )


def test_what_is_served_takes_what_the_law_says_and_tells_when_it_began(machine: Machine) -> None:
    begun = []

    def body(world: World) -> Body:
        yield world.sleep(0.5)
        begun.append((yield world.serve(COMPUTE)))
        begun.append((yield world.serve(READ)))

    total = 0.5 + C + CostModel(machine).time(READ).seconds
    assert play(machine, body).total_s == pytest.approx(total, abs=TICK)
    assert begun == pytest.approx([0.5, 0.5 + C], abs=TICK)


def test_side_by_side_on_two_resources_and_in_turn_on_one(machine: Machine) -> None:
    def body(world: World) -> Body:
        yield world.all_of([world.serve(COMPUTE), world.serve(COPY)])
        assert world.now == pytest.approx(C, abs=TICK)
        yield world.all_of([world.serve(COMPUTE), world.serve(COMPUTE)])

    assert play(machine, body).total_s == pytest.approx(3 * C, abs=TICK)


def test_time_by_op_and_account_is_booked_however_many_ops_there_are(machine: Machine) -> None:
    def body(world: World) -> Body:
        for index in range(5000):
            yield world.serve(Op(name=f"op {index % 2}", operator="gemv", account="compute", bytes_read=1e6))
            yield world.serve(COPY)

    result = play(machine, body)
    each = 10e-6 + 1e6 / 10e9
    assert result.by_op == pytest.approx({"op 0": 2500 * each, "op 1": 2500 * each, "m": 5000 * C})
    assert result.by_account["compute"] == pytest.approx(5000 * each)
    assert result.ends_frac[0] < 1 < result.ends_frac[1]


def test_a_server_of_k_slots_serves_k_at_a_time(machine: Machine) -> None:
    begun = []

    def body(world: World) -> Body:
        server = world.server(2)
        begun.extend((yield world.all_of([server.serve(1.0) for _ in range(5)])).values())

    assert play(machine, body).total_s == pytest.approx(3.0)
    assert begun == pytest.approx([0.0, 0.0, 1.0, 1.0, 2.0])


def test_slots_are_held_for_as_long_as_it_takes(machine: Machine) -> None:
    def body(world: World) -> Body:
        slots = world.slots(1)

        def holder() -> Body:
            with slots.request() as turn:
                yield turn
                yield world.serve(COMPUTE)
                yield world.sleep(1.0)

        yield world.all_of([world.spawn(holder()) for _ in range(2)])

    assert play(machine, body).total_s == pytest.approx(2 * (1 + C), abs=TICK)


def test_the_first_of_two_wins(machine: Machine) -> None:
    def body(world: World) -> Body:
        signal = world.event()
        yield world.any_of([signal, world.sleep(0.25)])
        assert world.now == 0.25
        signal.succeed()

    play(machine, body)


def test_chance_is_seeded(machine: Machine) -> None:
    def body(world: World) -> Body:
        yield world.sleep(world.rng.exponential())

    first, again, other = (play(machine, body, seed=seed).total_s for seed in (1, 1, 2))
    assert first == again != other


# --- composition ---------------------------------------------------------------------------------------------


def test_a_plan_within_a_process_takes_what_it_takes_alone(machine: Machine) -> None:
    plan = plan_of(COMPUTE, READ)
    alone = run(plan, CostModel(machine))

    def body(world: World) -> Body:
        for _ in range(2):
            start = world.now
            seconds = yield world.spawn(plan)
            world.record("unit", start)
            assert seconds == pytest.approx(alone.total_s, abs=TICK)

    result = play(machine, body)
    assert result.total_s == pytest.approx(2 * alone.total_s, abs=TICK)
    assert [len(units) for units in result.recorder.units.values()] == [6, 2]
    assert result.by_op == pytest.approx({name: 2 * value for name, value in alone.by_op.items()})


def test_plans_at_once_contend_in_every_one_of_their_steps(machine: Machine) -> None:
    plan = plan_of(COMPUTE)

    def body(world: World) -> Body:
        others = [world.spawn(plan), world.spawn(plan)]
        # comes in the middle of both, and has its turn between their steps
        yield world.sleep(0.5 * C)
        start_s = yield world.serve(COMPUTE)
        assert start_s == pytest.approx(2 * C, abs=TICK)
        yield world.all_of(others)

    assert play(machine, body).total_s == pytest.approx(7 * C, abs=TICK)


def test_a_process_within_a_process_gives_its_value(machine: Machine) -> None:
    def inner(world: World) -> Body:
        yield world.sleep(2.0)
        return "answer"

    def body(world: World) -> Body:
        assert (yield world.spawn(inner(world))) == "answer"
        assert (yield world.spawn(Process(workload="inner", body=inner, main_unit="unit"))) == 2.0

    assert play(machine, body).total_s == 4.0


# --- memory --------------------------------------------------------------------------------------------------


def test_memory_is_counted_by_kind_with_its_peak(machine: Machine) -> None:
    def body(world: World) -> Body:
        yield world.memory.take("cache", 3e9)
        world.memory.give("cache", 2e9)
        yield world.memory.take("scratch", 5e9)
        world.memory.give("scratch", 5e9)
        yield world.spawn(plan_of(COMPUTE, memory=1e9))

    result = play(machine, body, memory_bytes={"weights": 10e9})
    assert result.memory_bytes == {"weights": 11e9, "cache": 3e9, "scratch": 5e9}
    assert result.peak_memory_bytes == 16e9


def test_what_does_not_fit_is_refused_with_what_takes_how_much(machine: Machine) -> None:
    def body(world: World) -> Body:
        yield world.memory.take("cache", 60e9)

    with pytest.raises(
        DoesNotFit, match=r"made_up needs 65.2 GiB .* 59.6 GiB \(cache 55.9 GiB, weights 9.31 GiB\)"
    ):
        play(machine, body, memory_bytes={"weights": 10e9})


def test_who_waits_for_memory_gets_it_in_turn(machine: Machine) -> None:
    got: list[tuple[str, float]] = []

    def body(world: World) -> Body:
        def holder(name: str, n_bytes: float) -> Body:
            yield world.memory.take(name, n_bytes, wait=True)
            got.append((name, world.now))
            yield world.sleep(1.0)
            world.memory.give(name, n_bytes)

        # the small one came last, and does not pass the large one
        yield world.all_of(
            [world.spawn(holder(*who)) for who in (("first", 50e9), ("large", 40e9), ("small", 5e9))]
        )
        with pytest.raises(DoesNotFit):
            world.memory.take("never", 100e9, wait=True)

    play(machine, body)
    assert got == [("first", 0.0), ("large", 1.0), ("small", 1.0)]


# --- timelines -----------------------------------------------------------------------------------------------


def test_a_process_has_a_timeline(machine: Machine) -> None:
    def body(world: World) -> Body:
        for op in (COMPUTE, READ, COPY):
            yield world.serve(op)

    process = Process(workload="made_up", body=body, main_unit="unit")
    rows = run(process, CostModel(machine), Options(trace=True)).trace
    assert [(row.track, row.name) for row in rows] == [("compute", "c"), ("storage", "r"), ("memory", "m")]
    for before, after in pairwise(rows):
        assert after.start_s == pytest.approx(before.end_s, abs=TICK)
