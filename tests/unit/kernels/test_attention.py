from __future__ import annotations

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable_kernels.operations.attention import Attend, attend, attend_reference
from sandtable_kernels.support import seeded, seeded_weights

pytest.importorskip("numba", reason="the fast path needs numba")


def problem(h: int, g: int, e: int, positions: int, dtype: str, spread: float = 1.0) -> dict:
    return {
        "q": seeded((h, e), 0, scale=spread),
        "keys": seeded_weights((positions, g, e), dtype, 1),
        "values": seeded_weights((positions, g, e), dtype, 2),
        "dtype": dtype,
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("h", "g"), [(4, 4), (6, 2), (5, 1)])
def test_every_context_and_grouping(h, g, dtype):
    args = problem(h, g, 24, 40, dtype)
    for n_ctx in (1, 2, 3, 4, 5, 9, 40):
        for n_threads in (1, 2):
            result = attend(**args, n_ctx=n_ctx, n_threads=n_threads)
            assert np.allclose(result, attend_reference(**args, n_ctx=n_ctx), rtol=1e-4, atol=1e-6)


def test_large_scores_do_not_overflow():
    args = problem(2, 2, 16, 30, "float32", spread=3000.0)
    result = attend(**args, n_ctx=30)
    assert np.isfinite(result).all()
    assert np.allclose(result, attend_reference(**args, n_ctx=30), rtol=1e-2, atol=1e-3)


def test_equal_keys_give_the_mean_value():
    args = problem(2, 1, 8, 10, "float32")
    args["keys"][:] = 1
    assert np.allclose(attend(**args, n_ctx=10), args["values"][:10].mean(0), atol=1e-6)


def test_buffers_are_used_in_place():
    args = problem(4, 4, 8, 10, "float32")
    out, scores = np.empty((4, 8), np.float32), np.empty((4, 32), np.float32)
    assert attend(**args, n_ctx=10, out=out, scores=scores) is out
    assert np.allclose(out, attend_reference(**args, n_ctx=10), atol=1e-6)


def test_contexts_and_shapes_out_of_range_are_refused():
    args = problem(4, 4, 8, 10, "float32")
    with pytest.raises(ConfigError, match="11 positions asked for, but the cache holds 1 to 10"):
        attend(**args, n_ctx=11)
    with pytest.raises(ConfigError, match="cannot attend"):
        attend(**problem(4, 3, 8, 10, "float32"), n_ctx=1)


def test_cost_counts_each_cached_element_once():
    dims = {"n_heads": 8, "n_kv_heads": 2, "head_dim": 16, "n_ctx": 100, "dtype": "float16"}
    op = Attend().cost(dims)
    assert op.bytes_read == 2 * 100 * 2 * 16 * 2
    assert op.flops == 4 * 100 * 8 * 16
