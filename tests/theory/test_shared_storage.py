"""A shared device: the closed form for one, request by request for several, and never more than the law allows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from sandtable.demand.op import Op, random_read, sequential_read
from sandtable.engine.clock import seconds, ticks
from sandtable.engine.process import Body, Process
from sandtable.engine.sharing import Load, RequestByRequest, SharedDevice, random_reads, reads_in_order, transfer
from sandtable.engine.simulation import run
from sandtable.engine.world import Options, World
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable.model.laws import storage_law
from sandtable.model.laws.storage_law import StorageLaw, law_of

Arrival = tuple[float, Load, int]  # seconds, load, rounds


@pytest.fixture
def law(machine: Machine) -> StorageLaw:
    return law_of(machine.storage)


def durations(kind: type[SharedDevice | RequestByRequest], arrivals: list[Arrival]) -> np.ndarray:
    """Return how long each load took, in seconds."""
    env = simpy.Environment()
    device, found = kind(env), np.zeros(len(arrivals))

    def reader(index: int, at_s: float, load: Load, rounds: int) -> Body:
        yield env.timeout(ticks(at_s))
        start = env.now
        yield device.serve(load, rounds)
        found[index] = seconds(env.now - start)

    for index, arrival in enumerate(arrivals):
        env.process(reader(index, *arrival))
    env.run()
    return found


def readers(law: StorageLaw, n: int, chunk: float, lanes: int, stagger: float) -> list[Arrival]:
    load = random_reads(law, n, chunk, lanes)
    return [(index * stagger * seconds(load.alone), load, 1) for index in range(4)]


GRID = list(itertools.product((64, 400), (4096.0, 16384.0, 131072.0), (1, 4, 32), (0.0, 0.15, 0.6)))


@pytest.mark.parametrize(("n", "chunk", "lanes", "stagger"), GRID)
def test_four_readers_take_what_they_take_request_by_request(
    law: StorageLaw, n: int, chunk: float, lanes: int, stagger: float
) -> None:
    arrivals = readers(law, n, chunk, lanes, stagger)
    assert durations(SharedDevice, arrivals) == pytest.approx(durations(RequestByRequest, arrivals), rel=0.03)


@pytest.mark.parametrize(("chunk", "lanes"), list(itertools.product((4096.0, 65536.0), (1, 8, 64))))
def test_readers_together_are_one_reader_of_all_their_requests(law: StorageLaw, chunk: float, lanes: int) -> None:
    n = 300
    together = storage_law.batch_s(law, 4 * n, chunk, 4 * lanes)
    for kind in (SharedDevice, RequestByRequest):
        assert durations(kind, readers(law, n, chunk, lanes, 0.0)).max() == pytest.approx(together, rel=0.03)


@given(st.integers(1, 500), st.sampled_from([4096.0, 16384.0, 262144.0]), st.integers(1, 64), st.integers(1, 5))
def test_one_reader_takes_the_closed_form_exactly(n: int, chunk: float, lanes: int, rounds: int) -> None:
    for drain in (0.05, 0.5, 1.0):
        law = some_law(drain)
        alone = ticks(storage_law.batch_s(law, n, chunk, lanes))
        found = durations(SharedDevice, [(0.0, random_reads(law, n, chunk, lanes), rounds)])
        assert found[0] == seconds(alone * rounds)
    in_order = reads_in_order(law, n * chunk, n, lanes)
    assert durations(SharedDevice, [(0.0, in_order, 1)])[0] == seconds(in_order.alone)


def some_law(drain: float = 0.5) -> StorageLaw:
    return StorageLaw(
        first_byte_s=118e-6,
        lane_bytes_per_s=1.23e9,
        requests_per_s=156e3,
        bandwidth_bytes_per_s=6.2e9,
        sequential_bytes_per_s=6.05e9,
        knee=3.5,
        blend=1.6,
        drain=drain,
        residual_low_frac=0.9,
        residual_high_frac=1.1,
        sequential_low_frac=0.9,
        sequential_high_frac=1.1,
    )


loads = st.builds(
    random_reads,
    st.builds(some_law, st.sampled_from([0.2, 1.0])),
    st.integers(1, 300),
    st.sampled_from([4096.0, 65536.0]),
    st.integers(1, 32),
) | st.builds(
    reads_in_order,
    st.just(some_law()),
    st.floats(1e4, 1e8),
    st.integers(1, 100),
    st.integers(1, 8),
)
arrivals = st.lists(st.tuples(st.floats(0, 3e-3), loads, st.integers(1, 3)), min_size=1, max_size=6)


@given(arrivals)
def test_nobody_is_served_faster_than_alone_and_the_last_waits_at_most_for_all(found: list[Arrival]) -> None:
    taken = durations(SharedDevice, found)
    alone = np.array([seconds(load.alone) * rounds for _, load, rounds in found])
    assert (taken >= alone - 1e-11).all()
    # a pipe that others have filled owes its first request like any other
    first = np.array([load.unit_s(load.lanes) for _, load, _ in found])
    assert (taken <= (alone + first).sum() * (1 + 1e-9) + 1e-11 * len(found)).all()


@given(st.integers(2, 400), st.integers(1, 8))
def test_many_lone_requests_never_exceed_the_rate_of_the_device(n: int, lanes: int) -> None:
    law = some_law()
    taken = durations(SharedDevice, [(0.0, random_reads(law, lanes, 4096.0, lanes), 1)] * n)
    per_s = storage_law.throughput_bytes_per_s(law, 4096.0, n * lanes) / 4096
    assert taken.max() >= (n * lanes - 1) / per_s - 1e-11


def test_a_stream_and_scattered_reads_slow_each_other_down(law: StorageLaw) -> None:
    scattered, stream = random_reads(law, 2000, 16384.0, 32), reads_in_order(law, 2e8, 200, 4)
    for kind in (SharedDevice, RequestByRequest):
        taken = durations(kind, [(0.0, scattered, 1), (0.0, stream, 1)])
        alone = np.array([seconds(load.alone) for load in (scattered, stream)])
        assert (taken > 1.2 * alone).all()
        assert taken.max() < alone.sum()
    default, single = (
        durations(kind, [(0.0, scattered, 1), (1e-3, stream, 1)]) for kind in (SharedDevice, RequestByRequest)
    )
    assert default == pytest.approx(single, rel=0.03)


def test_transfers_share_a_link_by_bandwidth() -> None:
    latency, rate = 10e-6, 20e9
    large, small = (transfer(size, latency + size / rate, latency) for size in (2e9, 2e8))
    together = durations(SharedDevice, [(0.0, large, 1), (0.0, small, 1)])
    assert together == pytest.approx([latency + 2.2e9 / rate, latency + 4e8 / rate], rel=1e-6)
    assert durations(SharedDevice, [(0.0, small, 1)])[0] == pytest.approx(latency + 2e8 / rate)


# --- in the world --------------------------------------------------------------------------------------------


def four(op: Op) -> Process:
    def reader(world: World) -> Body:
        yield world.serve(op)
        world.record("batch", 0.0)

    def body(world: World) -> Body:
        yield world.all_of([world.spawn(reader(world)) for _ in range(4)])

    return Process(workload="four readers", body=body, main_unit="batch")


@pytest.mark.parametrize(
    "op",
    [
        random_read("r", n_chunks=64, chunk_bytes=16384, concurrency=16),
        random_read("r", n_chunks=1000, chunk_bytes=4096, concurrency=64),
        sequential_read("s", n_bytes=1e8, chunk_bytes=1 << 20, concurrency=4),
    ],
)
def test_four_processes_share_one_device_by_default(machine: Machine, op: Op) -> None:
    costs = CostModel(machine)
    default, single = (run(four(op), costs, Options(per_request=flag)).total_s for flag in (False, True))
    assert default == pytest.approx(single, rel=0.03)
    assert costs.time(op).seconds < default <= 4 * costs.time(op).seconds * (1 + 1e-9)
