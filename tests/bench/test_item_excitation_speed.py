"""How fast an iteration of IIRPF and XIIRPF is, and that it is linear in events.

Run with ``SANDTABLE_BENCH=1 pytest -s tests/bench/test_item_excitation_speed.py`` on an otherwise idle machine.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
import pytest

from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_workloads.rpf import IIRPF, XIIRPF, GeneratedEvents

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="a benchmark: set SANDTABLE_BENCH=1"
)
pytest.importorskip("numba", reason="the fast paths need numba")

K = 20
CORES = os.cpu_count() or 1


def seconds(model: Any, n_events: int, rounds: int = 5) -> float:
    """Return the median time of an iteration over generated events, each pair twice in the mean."""
    n = n_events // 50
    made = GeneratedEvents(n_users=n, n_items=max(n // 4, 500), n_events=n_events, n_pairs=n_events // 2)
    stamps: list[float] = []
    model.max_iter, model.tol = rounds + 2, 1e-300
    model.fit(made.table(), progress=lambda _: stamps.append(time.perf_counter()))
    assert isinstance(model.observed_.pairs, EventPairs)
    return float(np.median(np.diff(stamps)[-rounds:]))


@pytest.mark.parametrize("model", [IIRPF(K), XIIRPF(K, clusters=20)], ids=["IIRPF", "XIIRPF"])
def test_an_iteration_updates_a_hundred_million_per_core_second_and_is_linear(model: Any) -> None:
    sizes = [100_000, 1_000_000, 4_000_000]
    times = [seconds(model, n) for n in sizes]
    for n, took in zip(sizes, times, strict=True):
        rate = n * K / took / CORES / 1e6
        sys.stdout.write(
            f"\n{type(model).__name__}, {n:,} events: {took:.3f} s, {rate:.0f} M updates per core-second\n"
        )
    assert sizes[-1] * K / times[-1] / CORES > 100e6
    assert times[-1] / times[-2] < 1.5 * sizes[-1] / sizes[-2]
