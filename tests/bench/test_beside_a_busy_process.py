"""What two-thread kernels keep of their speed beside one process that keeps one core busy.

A half is what two threads with equal shares can keep where one of them has half a core; threads that spin while they
wait for each other keep a fifth.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sandtable.demand.kernel import Dims, Kernel, KernelContext, kernels
from sandtable.runs import measure

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="a benchmark: set SANDTABLE_BENCH=1"
)
pytest.importorskip("numba", reason="the fast paths need numba")
ROUNDS = 5
LEAST = 0.45


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy with a process of a session of its own."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def seconds(kernel: Kernel, dims: Dims) -> float:
    context = KernelContext(folder=Path(), n_threads=2)
    return float(np.median(measure.time_kernel(kernel, dims, context, repeats=100, budget_s=0.6)))


@pytest.mark.skipif(os.cpu_count() != 2, reason="one busy process is half of a machine of two cores")
@pytest.mark.parametrize("name", ["sparse_ffn", "insert", "cache_update", "gather", "gemv", "copy"])
def test_half_of_the_speed_stays(name: str) -> None:
    kernel = kernels()[name]
    grid = kernel.grid(quick=True)
    for dims in (grid[0], grid[len(grid) // 2], grid[-1]):
        ratios = []
        for _ in range(ROUNDS):
            alone = seconds(kernel, dims)
            with busy_core():
                ratios.append(alone / seconds(kernel, dims))
        sys.stdout.write(f"\n{name} {dims}: {np.median(ratios):.2f} of its speed alone\n")
        assert np.median(ratios) >= LEAST
