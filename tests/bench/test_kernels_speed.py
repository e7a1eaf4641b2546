"""How fast the kernels are, as ratios to what this machine can do, measured alternately in one run.

Run with ``SANDTABLE_BENCH=1 pytest -s tests/bench/test_kernels_speed.py`` on an otherwise idle machine. Weights are
cold: each call works on other rows than the calls before, of more than four last-level caches. Code is not: before
each timed call comes one that is not timed, on other weights. What cold code adds is shown by itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sandtable.demand.kernel import KernelContext
from sandtable_kernels.files.buffers import aligned_empty
from sandtable_kernels.files.dtypes import itemsize
from sandtable_kernels.neurons.neuron_cache import NeuronCache, WindowIndex
from sandtable_kernels.neurons.traces import SyntheticTrace
from sandtable_kernels.operations.ffn import SparseFfn, sparse_ffn
from sandtable_kernels.operations.gemv import gemv
from sandtable_kernels.operations.memory_moves import CacheUpdate, Copy, MemoryRead
from sandtable_kernels.support import cold_weights, compiled, seeded

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="a benchmark: set SANDTABLE_BENCH=1"
)
pytest.importorskip("numba", reason="the fast paths need numba")

N, D = 16384, 4096  # neurons and width of OPT 6.7B
ROUNDS = 31
PLACES = 5
THREADS = os.cpu_count() or 1
CONTEXT = KernelContext(folder=Path(), n_threads=THREADS)
LARGE = {"n_bytes": 128 << 20}


def alternate(*calls: Callable[[], object], rounds: int = ROUNDS) -> list[np.ndarray]:
    """Time the calls in turn, each after one untimed; return the seconds of each, first round dropped."""
    seconds = np.empty((rounds + 1, len(calls)))
    for row in seconds:
        for i, call in enumerate(calls):
            call()
            start = time.perf_counter()
            call()
            row[i] = time.perf_counter() - start
    return list(seconds[1:].T)


def report(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")


def rate(n_bytes: float, seconds: np.ndarray) -> float:
    """Return the median rate in GB/s."""
    return float(n_bytes / np.median(seconds) / 1e9)


def compare(
    what: str, n_bytes: float, ours: np.ndarray, other: str, other_bytes: float, theirs: np.ndarray
) -> float:
    """Report both rates; return the median over rounds of their ratio, as the machine drifts from round to round."""
    ratio = float(np.median(n_bytes / ours / (other_bytes / theirs)))
    report(f"{what}: {rate(n_bytes, ours):.1f} GB/s, {other} {rate(other_bytes, theirs):.1f}: ratio {ratio:.2f}")
    return ratio


class Pool:
    """Half a gigabyte of equal weights, to compute with one after the other and to read as a whole.

    Both happen on the same pages: on a virtual machine, how fast memory is depends on where it lies.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        one = cold_weights(shape, dtype, 0)[0]
        self.weights = aligned_empty((512 * 2**20 // one.nbytes, *shape), one.dtype)
        self.weights[:] = one
        self.words = self.weights.reshape(-1).view(np.int64)
        self.place = 0
        self.fast = compiled("memory_loops")

    def next(self) -> np.ndarray:
        self.place = (self.place + 1) % len(self.weights)
        return self.weights[self.place]

    def read(self) -> None:
        self.fast.read_sum(self.words, self.fast.use_threads(THREADS))


def share_of_read_bandwidth(what: str, shape: tuple[int, int], dtype: str, call: Callable) -> float:
    """Return the largest share over several places in memory, each the median of its rounds.

    Other programs disturb short calls more than long reads, and now and then a place is read far faster than others.
    """
    n_bytes = shape[0] * shape[1] * itemsize(dtype)
    shares = []
    for _ in range(PLACES):
        pool = Pool(shape, dtype)
        ours, reading = alternate(lambda pool=pool: call(pool.next()), pool.read, rounds=ROUNDS // 2)
        shares.append(compare(f"{what}, {dtype}", n_bytes, ours, "reading", pool.words.nbytes, reading))
    return max(shares)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("n_rows", [492, 1638])
def test_sparse_ffn_against_read_bandwidth(n_rows, dtype):
    x, out, bias = seeded((D,), 1), np.empty(D, np.float32), np.zeros(n_rows, np.float32)

    def call(rows: np.ndarray) -> None:
        sparse_ffn(x, rows, dtype=dtype, bias=bias, out=out, n_threads=THREADS)

    assert share_of_read_bandwidth(f"sparse_ffn of {n_rows} rows", (n_rows, 2 * D), dtype, call) >= 0.7


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gemv_against_read_bandwidth(dtype):
    x, out = seeded((D,), 1), np.empty(4096, np.float32)

    def call(weights: np.ndarray) -> None:
        gemv(weights, x, dtype=dtype, out=out, n_threads=THREADS)

    assert share_of_read_bandwidth("gemv 4096 x 4096", (4096, D), dtype, call) >= 0.7


def test_a_call_after_a_large_stream():
    kernel, reader = SparseFfn(), MemoryRead()
    dims = {"n_rows": 4, "d_model": D, "n_vectors": 2, "dtype": "bfloat16"}
    with kernel.prepare(dims, CONTEXT) as ffn, reader.prepare(LARGE, CONTEXT) as read:
        seconds = []
        for _ in range(ROUNDS):
            read()
            for _ in range(2):
                start = time.perf_counter()
                ffn()
                seconds.append(time.perf_counter() - start)
    cold, warm = 1e6 * np.median(seconds[::2]), 1e6 * np.median(seconds[1::2])
    report(f"sparse_ffn of 4 rows: {cold:.0f} us right after 128 MiB went by, {warm:.0f} us the next time")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_rows", [492, 1638])
def test_sparse_ffn_against_torch_gather_and_matmul(n_rows, dtype):
    torch = pytest.importorskip("torch", reason="compares with torch")
    torch.set_num_threads(THREADS)
    rows = cold_weights((N, 2 * D), dtype, 0)[0]
    weights = torch.from_numpy(rows)
    weights = weights if dtype == "float32" else weights.view(torch.bfloat16)
    x, rng = seeded((D,), 1), np.random.default_rng(2)
    x_torch = torch.from_numpy(x).to(weights.dtype)

    def picked() -> np.ndarray:
        time.sleep(0.005)  # lets the other library's threads stop spinning
        return np.sort(rng.permutation(N)[:n_rows])

    def ours(index: np.ndarray) -> np.ndarray:
        return sparse_ffn(x, rows, dtype=dtype, row_index=index)

    def theirs(index: np.ndarray) -> np.ndarray:
        chosen = weights.index_select(0, torch.from_numpy(index))
        return (chosen[:, D:].T @ torch.relu(chosen[:, :D] @ x_torch)).float().numpy()

    index = picked()
    assert np.allclose(ours(index), theirs(index), rtol=0.1, atol=0.05 * np.abs(ours(index)).max())
    seconds = np.empty((ROUNDS, 2))
    for row in seconds:
        for i, call in enumerate((ours, theirs)):
            index = picked()
            start = time.perf_counter()
            call(index)
            row[i] = time.perf_counter() - start
    mine, other = np.median(seconds, axis=0)
    n_bytes = n_rows * 2 * D * itemsize(dtype)
    report(
        f"sparse_ffn of {n_rows:5} rows of {N} {dtype:8}: {1e3 * mine:.2f} ms ({n_bytes / mine / 1e9:.1f} GB/s), "
        f"torch gather and matmul {1e3 * other:.2f} ms: {other / mine:.1f} times as fast"
    )
    assert other > mine


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_insert_and_delete_against_copy_bandwidth(dtype):
    n_active, n_new, n_layers = 1700, 400, 5
    layers = []
    for layer in range(n_layers):
        ring = np.random.default_rng(layer).permutation(40 * n_new)
        active = [np.sort(np.roll(ring, -n_new * step)[:n_active]) for step in range(40)]
        cache = NeuronCache(WindowIndex(len(ring), n_active + 4 * n_new, 4), d_model=D, dtype=dtype)
        layers.append((cache, active))
    staging = cold_weights((n_new, 2 * D), dtype, 0)
    token, moved = [0], []

    def manage() -> None:
        cache, active = layers[token[0] % n_layers]
        step = token[0] // n_layers
        delta = cache.index.update(active[step % 40], step)
        cache.apply_moves(delta, n_threads=THREADS)
        n = len(delta.rows)
        for start in range(0, n, n_new):  # only the first tokens of a layer bring more
            part = delta.rows[start : start + n_new]
            cache.insert_copy(part, staging[token[0] % len(staging)], n_threads=THREADS)
        moved.append(2 * (len(delta.moves_src) + n) * cache.row_bytes)
        token[0] += 1

    for _ in range(6 * n_layers):
        manage()
    with Copy().prepare(LARGE, CONTEXT) as copy:
        managing, copying = alternate(manage, copy)
    assert len(set(moved[-2 * ROUNDS :])) == 1
    n_bytes = moved[-1]
    ratio = compare(f"insert and delete, {dtype}", n_bytes, managing, "copying", 2 * LARGE["n_bytes"], copying)
    assert ratio >= 0.5


def test_cache_update_kernel_against_copy_bandwidth():
    kernel, dims = CacheUpdate(), {"n_active": 1700, "n_new": 400, "row_bytes": 16384}
    with kernel.prepare(dims, CONTEXT) as update, Copy().prepare(LARGE, CONTEXT) as copy:
        ours, copying = alternate(update, copy)
    n_bytes = kernel.cost(dims).bytes_moved
    compare("cache_update, bookkeeping included", n_bytes, ours, "copying", 2 * LARGE["n_bytes"], copying)


def test_bookkeeping_of_a_layer_takes_150_us():
    trace = SyntheticTrace.from_preset("opt_6_7b", 1, N, predicted=True)
    for capacity in (N, 2500):
        index, seconds = WindowIndex(N, capacity, 5), []
        for token, active in enumerate(trace.tokens(200)):
            start = time.perf_counter()
            delta = index.update(active[0], token)
            seconds.append(time.perf_counter() - start)
        report(
            f"WindowIndex.update, {len(active[0])} active, {len(delta.missing)} new, {delta.n_forced} forced out: "
            f"{1e6 * np.median(seconds):.0f} us"
        )
        assert np.median(seconds) < 150e-6


def test_traces_of_a_whole_model():
    start = time.perf_counter()
    trace = SyntheticTrace.from_preset("opt_6_7b", 32, N)
    made = time.perf_counter()
    n_active = sum(len(layer) for token in trace.tokens(100) for layer in token)
    done = time.perf_counter()
    report(f"trace of 32 layers x {N} x 100 tokens: {made - start:.2f} s to fit, {done - made:.2f} s to draw")
    assert n_active > 0
    assert done - start < 1.5
