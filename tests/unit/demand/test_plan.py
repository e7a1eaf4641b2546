import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.demand.op import Op, random_read, sequential_read
from sandtable.demand.operator import operators
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.errors import PlanError

GEMV = Op(name="a", operator="gemv", account="compute", flops=10.0, bytes_read=6.0, bytes_written=2.0)
READ = random_read("r", n_chunks=3, chunk_bytes=4096, concurrency=2)


def chain(*ops: Op, repeat: int = 1) -> Step:
    return Step(name="s", ops=ops, repeat=repeat)


def plan(*steps: Step) -> Plan:
    return Plan(workload="w", phases=(Phase(name="main", steps=steps),), main_phase="main")


def test_a_random_read_counts_its_bytes() -> None:
    assert READ.bytes_read == 3 * 4096
    assert READ.resource == "storage"
    assert READ.account == "io"


@given(n_bytes=st.integers(0, 1 << 40), chunk_bytes=st.integers(4096, 1 << 24))
def test_a_sequential_read_needs_a_request_for_its_last_piece_too(n_bytes: int, chunk_bytes: int) -> None:
    op = sequential_read("s", n_bytes=n_bytes, chunk_bytes=chunk_bytes, concurrency=1)
    assert op.n_requests == len(range(0, n_bytes, chunk_bytes))
    assert op.bytes_read == n_bytes


def test_every_operator_has_a_resource() -> None:
    found = {dataclasses.replace(GEMV, operator=name).resource for name in operators()}
    assert found == {"storage", "memory", "link", "compute", "network"}


def test_ops_form_a_chain_unless_they_say_otherwise() -> None:
    step = chain(GEMV, READ, dataclasses.replace(GEMV, after=()), dataclasses.replace(GEMV, after=(0, 2)))
    assert list(step.dependencies()) == [(), (0,), (), (0, 2)]


@pytest.mark.parametrize("after", [(1,), (2,), (-1,), (0, 1)])
def test_an_op_cannot_wait_for_itself_or_a_later_one(after: tuple[int, ...]) -> None:
    step = chain(GEMV, dataclasses.replace(GEMV, name="second", after=after), GEMV)
    with pytest.raises(PlanError, match=r"'second' of step 's' waits for an op that does not come before it"):
        list(step.dependencies())


def test_totals_count_repeats_of_steps_and_ops() -> None:
    twice = dataclasses.replace(GEMV, repeat=2)
    totals = plan(chain(twice, READ, repeat=5), chain(GEMV)).totals()
    assert totals == {
        "flops": 11 * 10.0,
        "memory_bytes": 11 * 8.0,
        "storage_bytes": 5 * 3 * 4096,
        "storage_requests": 15.0,
    }


@given(st.integers(1, 50), st.integers(1, 50))
def test_a_step_repeated_is_the_step_written_out(n: int, m: int) -> None:
    short = plan(chain(GEMV, READ, repeat=n * m))
    long = plan(*[chain(GEMV, READ, repeat=n)] * m)
    assert short.totals() == long.totals()
    assert short.phase("main").n_steps == long.phase("main").n_steps == n * m


def test_a_phase_is_found_by_name() -> None:
    assert plan(chain(GEMV)).phase("main").n_steps == 1
    with pytest.raises(PlanError, match="no phase 'decode'"):
        plan(chain(GEMV)).phase("decode")


def test_demands_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GEMV.flops = 1.0  # type: ignore[misc]
