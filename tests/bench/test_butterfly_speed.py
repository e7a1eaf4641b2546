"""How much faster a butterfly is than the dense product of PyTorch, measured alternately in one run.

Run with ``SANDTABLE_BENCH=1 pytest -s tests/bench/test_butterfly_speed.py`` on an otherwise idle machine.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from sandtable_kernels.structured.butterfly import butterfly, butterfly_backward, initial_weights
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.support import compiled

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="a benchmark: set SANDTABLE_BENCH=1"
)
pytest.importorskip("numba", reason="the fast path needs numba")
torch = pytest.importorskip("torch", reason="compares with torch")

ROUNDS = 21
SIZES = (64, 256, 512, 1024, 4096)
BATCHES = (1, 16, 256)
any_threads = pytest.mark.parametrize("n_threads", sorted({1, os.cpu_count() or 1}))
any_size = pytest.mark.parametrize("n", SIZES)
# least ratios at 256 rows
FORWARD = {256: 1.5, 512: 1.5, 1024: 1.5, 4096: 20.0}
TRAINING = {256: 1 / 1.5, 512: 1.0, 1024: 1.0, 4096: 1.0}


def alternate(*calls: Callable[[], object]) -> list[float]:
    """Return the least seconds of calls timed in turn, each after one untimed: other programs only ever add.

    A pause lets the threads of the other library sleep.
    """
    seconds = np.empty((ROUNDS, len(calls)))
    for row in seconds:
        for i, call in enumerate(calls):
            time.sleep(0.002)
            call()
            start = time.perf_counter()
            call()
            row[i] = time.perf_counter() - start
    return [float(value) for value in seconds.min(axis=0)]


def report(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")


class Layer:
    """A square layer of base 4 and its dense twin, on the same rows."""

    def __init__(self, n: int, n_rows: int, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        self.layout, self.n_threads = ButterflyLayout(n, n), n_threads
        rng = np.random.default_rng(0)
        self.weights = initial_weights(self.layout, rng)
        self.x, self.grad = (rng.standard_normal((n_rows, n), dtype=np.float32) for _ in range(2))
        self.out = np.empty_like(self.x)
        self.tensors = [torch.from_numpy(part) for part in (self.x, self.grad)]
        self.dense_weights = torch.randn(n, n)

    def forward(self) -> None:
        butterfly(self.x, self.weights, self.layout, out=self.out, n_threads=self.n_threads)

    def step(self) -> None:
        self.forward()
        butterfly_backward(self.x, self.weights, self.grad, self.layout, n_threads=self.n_threads)

    def dense(self) -> None:
        self.tensors[0] @ self.dense_weights.T

    def dense_step(self) -> None:
        x, grad = self.tensors
        self.dense()
        grad @ self.dense_weights
        grad.T @ x


def compare(what: str, ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    """Return our seconds, and how many times as long the others take."""
    mine, other = alternate(ours, theirs)
    report(f"{what}: {1e6 * mine:.0f} us, dense {1e6 * other:.0f} us: {other / mine:.2f} times as fast")
    return mine, other / mine


@any_threads
@any_size
def test_forward_against_dense(n, n_threads):
    ratios = {}
    for n_rows in BATCHES:
        layer = Layer(n, n_rows, n_threads)
        what = f"{n_rows} rows of {n}, {n_threads} threads"
        ratios[n_rows] = compare(what, layer.forward, layer.dense)[1]
    assert ratios[256] >= FORWARD.get(n, 0.0)


@any_threads
@any_size
def test_a_training_step_against_dense(n, n_threads):
    layer = Layer(n, 256, n_threads)
    what = f"training step, 256 rows of {n}, {n_threads} threads"
    assert compare(what, layer.step, layer.dense_step)[1] >= TRAINING.get(n, 0.0)


@any_threads
@pytest.mark.parametrize("n", [1024, 4096])
def test_share_of_the_limit(n, n_threads):
    """The limit is the longer of the arithmetic at BLAS' rate in cache, and of all bytes once at the rate of a copy."""
    layer, fast = Layer(n, 256, n_threads), compiled("memory_loops")
    square = torch.randn(1024, 1024)
    source, target = (np.zeros(32 << 20, np.float32) for _ in range(2))
    mine, product, copy = alternate(
        layer.forward, lambda: square @ square, lambda: fast.copy(target, source, fast.use_threads(n_threads))
    )
    arithmetic = product / 1024**3 * 256 * layer.layout.multiplications
    traffic = copy / (2 * source.nbytes) * (2 * layer.x.nbytes + layer.weights.nbytes)
    share = max(arithmetic, traffic) / mine
    report(f"256 rows of {n}, {n_threads} threads: {share:.2f} of the limit")
    assert share >= 0.5
