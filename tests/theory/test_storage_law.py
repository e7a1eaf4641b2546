"""The storage law in closed form against the same law simulated request by request, and laws that must hold."""

from __future__ import annotations

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.engine.clock import seconds
from sandtable.engine.sharing import RequestByRequest, SharedDevice, random_reads
from sandtable.model.laws import storage_law as model
from sandtable.model.laws.storage_law import StorageLaw


def law(**changes: float) -> StorageLaw:
    values = {
        "first_byte_s": 118e-6,
        "lane_bytes_per_s": 1.23e9,
        "requests_per_s": 156e3,
        "bandwidth_bytes_per_s": 6.2e9,
        "sequential_bytes_per_s": 6.05e9,
        "knee": 3.5,
        "blend": 1.6,
        "drain": 0.5,
        "residual_low_frac": 0.9,
        "residual_high_frac": 1.1,
        "sequential_low_frac": 0.9,
        "sequential_high_frac": 1.1,
    }
    return StorageLaw(**(values | changes))


def simulated(law: StorageLaw, n: int, chunk: float, concurrency: int) -> float:
    env = simpy.Environment()
    RequestByRequest(env).serve(random_reads(law, n, chunk, concurrency))
    env.run()
    return seconds(env.now)


laws = st.builds(
    law,
    first_byte_s=st.floats(5e-6, 1e-3),
    lane_bytes_per_s=st.floats(1e8, 5e9),
    requests_per_s=st.floats(1e4, 2e6),
    bandwidth_bytes_per_s=st.floats(3e8, 2e10),
    knee=st.floats(1, 6),
    blend=st.floats(1, 6),
    drain=st.floats(0.02, 1.0),
)
chunks = st.sampled_from([4096.0, 8192.0, 16384.0, 65536.0, 262144.0, 1048576.0])


@settings(deadline=None, max_examples=60)
@given(laws, st.integers(1, 600), chunks, st.integers(1, 64))
def test_per_request_simulation_agrees_with_the_closed_form(
    law: StorageLaw, n: int, chunk: float, concurrency: int
) -> None:
    # one batch alone: the two must agree within 2 %; they differ only where the pipe's start and end overlap
    closed = model.batch_s(law, n, chunk, concurrency)
    assert simulated(law, n, chunk, concurrency) == pytest.approx(closed, rel=0.02)


def test_a_token_of_opt_agrees_request_by_request() -> None:
    # 12 583 neurons over 32 layers, each layer waited for
    per_layer = simulated(law(), 393, 16384.0, 32)
    assert per_layer == pytest.approx(model.batch_s(law(), 393, 16384.0, 32), rel=0.001)


def test_two_readers_share_the_device() -> None:
    together, alone = model.batch_s(law(), 4000, 16384.0, 32), model.batch_s(law(), 2000, 16384.0, 16)
    for kind in (SharedDevice, RequestByRequest):
        env = simpy.Environment()
        device = kind(env)
        for _ in range(2):
            device.serve(random_reads(law(), 2000, 16384.0, 16))
        env.run()
        assert seconds(env.now) == pytest.approx(together, rel=0.02)
        assert seconds(env.now) > alone


@given(laws, chunks, st.integers(1, 63))
def test_more_in_flight_is_never_slower(law: StorageLaw, chunk: float, concurrency: int) -> None:
    slow = model.throughput_bytes_per_s(law, chunk, concurrency)
    assert model.throughput_bytes_per_s(law, chunk, concurrency + 1) >= slow * (1 - 1e-12)


@given(laws, chunks, st.integers(1, 64))
def test_larger_chunks_carry_more_bytes(law: StorageLaw, chunk: float, concurrency: int) -> None:
    assert model.throughput_bytes_per_s(law, 2 * chunk, concurrency) >= model.throughput_bytes_per_s(
        law, chunk, concurrency
    ) * (1 - 1e-12)


@given(laws, chunks, st.integers(1, 64))
def test_rate_stays_below_every_limit(law: StorageLaw, chunk: float, concurrency: int) -> None:
    rate = model.throughput_bytes_per_s(law, chunk, concurrency)
    assert rate <= concurrency * chunk / model.lane_s(law, chunk) * (1 + 1e-9)
    assert rate <= law.requests_per_s * chunk * (1 + 1e-9)
    assert rate <= law.bandwidth_bytes_per_s * (1 + 1e-9)


@given(laws, st.integers(0, 500), chunks, st.integers(1, 64))
def test_a_longer_batch_takes_longer(law: StorageLaw, n: int, chunk: float, concurrency: int) -> None:
    # beyond the lanes: below them one more request also means one more in flight
    n += concurrency
    assert model.batch_s(law, n + 1, chunk, concurrency) >= model.batch_s(law, n, chunk, concurrency)


def test_arrays_and_scalars_agree() -> None:
    n = np.array([1.0, 10, 393])
    chunk = np.array([4096.0, 16384, 32768])
    lanes = np.array([1.0, 4, 32])
    together = model.batch_s(law(), n, chunk, lanes)
    one_by_one = [model.batch_s(law(), *point) for point in zip(n, chunk, lanes, strict=True)]
    assert together == pytest.approx(one_by_one)


def test_nothing_takes_no_time() -> None:
    assert model.batch_s(law(), 0, 4096.0, 8) == 0.0
    assert model.sequential_s(law(), 0) == 0.0
    assert simulated(law(), 0, 4096.0, 8) == 0.0
