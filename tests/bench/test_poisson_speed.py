"""How fast factorizations of events are: beside hpfrec on the same data, and each variant alone.

Rates are updates (events, or pairs where a peer knows only those, times components) per second and core.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
from sandtable_workloads.rpf.estimators.static_factorization import HPF

pytestmark = pytest.mark.skipif(os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 to measure")

K = 20


def events(n: int, n_users: int, n_items: int, repeats: float, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return n events, items by Zipf's law, of which a share of 1 - 1 / repeats follows an earlier one closely."""
    rng = np.random.default_rng(seed)
    first = int(n / repeats)
    weight = np.cumsum(1 / np.arange(1, n_items + 1))
    user = rng.integers(n_users, size=first)
    item = np.searchsorted(weight, rng.random(first) * weight[-1])
    when = rng.uniform(0, 5000, first)
    again = rng.integers(first, size=n - first)
    user, item = np.append(user, user[again]), np.append(item, item[again])
    when = np.append(when, when[again] + rng.exponential(1.0, n - first))
    order = np.argsort(when)
    return user[order], item[order], when[order]


def seconds_per_iteration(model: PoissonEstimator, data: Any, edges: Any = None, n: int = 5) -> float:
    """Return the least time of an iteration, of n after the first, that one thread works or that passes with all."""
    clock = time.process_time if model.n_threads == 1 else time.perf_counter
    model.begin(data, edges)
    model._iterate(model.observed_, model.state_)
    took = []
    for _ in range(n):
        start = clock()
        model._iterate(model.observed_, model.state_)
        took.append(clock() - start)
    return min(took)


def test_hierarchical_factorization_is_twenty_times_as_fast_as_hpfrec() -> None:
    hpfrec = pytest.importorskip("hpfrec", reason="hpfrec is not installed: pip install -e '.[bench]'")
    import pandas as pd

    data = events(1_200_000, 60_000, 15_000, 1.0)
    counts = pd.DataFrame({"UserId": data[0], "ItemId": data[1]}).value_counts().rename("Count").reset_index()
    ours = seconds_per_iteration(HPF(K, n_threads=1), data)
    took = {}
    for most in (2, 12):
        peer = hpfrec.HPF(k=K, maxiter=most, stop_crit="maxiter", check_every=None, ncores=1, verbose=False)
        start = time.process_time()
        peer.fit(counts)
        took[most] = time.process_time() - start
    theirs = (took[12] - took[2]) / 10
    rates = [len(counts) * K / seconds / 1e6 for seconds in (ours, theirs)]
    print(
        f"{len(counts):,} pairs: {rates[0]:.0f} M updates/s per core, hpfrec {rates[1]:.1f} M, {theirs / ours:.0f} x"
    )
    assert theirs / ours > 20


@pytest.mark.parametrize("model", [HPF, HRPF, SRPF])
def test_a_core_does_a_hundred_million_updates_a_second(model: type[PoissonEstimator]) -> None:
    n, n_users = 1_000_000, 20_000
    data = events(n, n_users, 10_000, 2.5)
    rng = np.random.default_rng(1)
    active = np.unique(data[0])
    edges = (rng.choice(active, 5 * n_users), rng.choice(active, 5 * n_users)) if model is SRPF else None
    rate = n * K / seconds_per_iteration(model(K, n_threads=1), data, edges) / 1e6
    print(f"{model.__name__}: {rate:.0f} M updates/s per core")
    assert rate > 100


def test_ten_million_events_take_less_than_five_seconds_an_iteration() -> None:
    import resource

    n = 10_000_000
    took = seconds_per_iteration(HRPF(K), events(n, 200_000, 50_000, 2.2), n=2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{took:.2f} s an iteration, peak {peak / 2**30:.1f} GiB, {n * K / took / 1e6:.0f} M updates/s")
    assert took < 5
    assert peak < 4e9
