"""How fast factorizations that follow the clock are, in updates (events times components) per second and core."""

from __future__ import annotations

import os
import resource
import time
from typing import Any

import pytest

from sandtable_workloads.rpf.estimators.dynamic_factorization import DRPF, DSRPF
from sandtable_workloads.rpf.events.generated_events import GeneratedEvents

pytestmark = pytest.mark.skipif(os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 to measure")

K = 20


def seconds_per_iteration(model: Any, made: GeneratedEvents, n: int = 5) -> float:
    """Return the least time of an iteration, of n after the first; of the process's own where it has one thread."""
    clock = time.process_time if model.n_threads == 1 else time.perf_counter
    table = made.table()
    model.begin(table, table.user_ids[made.edges()] if model.social else None)
    model._iterate(model.observed_, model.state_)
    took = []
    for _ in range(n):
        start = clock()
        model._iterate(model.observed_, model.state_)
        took.append(clock() - start)
    return min(took)


@pytest.mark.parametrize("model", [DRPF, DSRPF])
def test_a_core_does_a_hundred_million_updates_a_second(model: Any) -> None:
    made = GeneratedEvents(n_users=20_000, n_items=10_000, n_events=2_000_000, mean_degree=5.0 * model.social)
    rate = made.n_events * K / seconds_per_iteration(model(K, n_threads=1), made) / 1e6
    print(f"{model.__name__}: {rate:.0f} M updates/s per core")
    assert rate > 100


def test_ten_million_events_take_less_than_five_seconds_an_iteration() -> None:
    made = GeneratedEvents(n_users=100_000, n_items=20_000, n_events=10_000_000)
    took = seconds_per_iteration(DRPF(K), made, n=2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{took:.2f} s an iteration, peak {peak / 2**30:.1f} GiB, {made.n_events * K / took / 1e6:.0f} M updates/s"
    )
    assert took < 5
    assert peak < 8e9
