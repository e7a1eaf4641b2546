from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sandtable.demand.kernel import KernelContext
from sandtable_kernels.operations.memory_moves import WINDOW, CacheUpdate, Copy, Gather, Insert, MemoryRead

pytest.importorskip("numba", reason="the fast path needs numba")

KERNELS = [MemoryRead(), Copy(), Gather(), Insert(), CacheUpdate()]
SIZES = {
    "memory_read": [{"n_bytes": 8 * n} for n in (1, 3, 4, 5, 1001)],
    "copy": [{"n_bytes": 8 * n} for n in (1, 2, 3, 1001)],
    "gather": [{"n_rows": n, "row_bytes": row} for n in (1, 2, 7) for row in (8, 24, 4096)],
    "insert": [{"n_rows": n, "row_bytes": row} for n in (1, 2, 7) for row in (8, 24, 4096)],
    "cache_update": [{"n_active": a, "n_new": n, "row_bytes": 64} for a, n in ((1, 1), (5, 5), (30, 4), (64, 63))],
}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_small_and_odd_sizes(kernel, n_threads):
    context = KernelContext(folder=Path(), n_threads=n_threads)
    for dims in SIZES[kernel.name]:
        assert np.array_equal(kernel.run(dims, context), kernel.reference(dims, context)), dims


def test_copies_count_both_ways():
    assert Copy().cost({"n_bytes": 80}).bytes_moved == 160
    assert MemoryRead().cost({"n_bytes": 80}).bytes_moved == 80
    assert Gather().cost({"n_rows": 3, "row_bytes": 16}).bytes_moved == 96
    op = CacheUpdate().cost({"n_active": 30, "n_new": 4, "row_bytes": 64})
    assert (op.bytes_read, op.bytes_written, op.n_items) == (256, 256, 30)


def test_a_cache_in_steady_state_moves_as_many_rows_as_it_drops():
    dims = {"n_active": 50, "n_new": 6, "row_bytes": 64}
    layer = CacheUpdate()._layer(dims, seed=0)
    deltas = [layer.step(token, 1) for token in range(40)][2 * WINDOW :]
    assert {len(delta.missing) for delta in deltas} == {6}
    assert {delta.n_evicted for delta in deltas} == {6}
    assert {delta.n_used for delta in deltas} == {50 + (WINDOW - 1) * 6}
    assert np.mean([len(delta.moves_src) for delta in deltas]) == pytest.approx(6, rel=0.15)
    # the bias of a neuron is its number here: it is set when it comes, and moves with its row
    assert np.array_equal(layer.cache.used_bias(), layer.cache.index.present())
