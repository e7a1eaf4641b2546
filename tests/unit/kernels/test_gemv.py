from __future__ import annotations

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable_kernels import support
from sandtable_kernels.files.dtypes import DTYPES
from sandtable_kernels.operations.gemm import Gemm, gemm, gemm_reference
from sandtable_kernels.operations.gemv import Gemv, gemv, gemv_reference
from sandtable_kernels.support import cold_copies, cold_weights, last_level_cache_bytes, seeded, seeded_weights

pytest.importorskip("numba", reason="the fast path needs numba")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_every_shape(dtype, n_threads):
    for m in (0, 1, 2, 3, 4, 5, 7, 64, 131):
        for k in (1, 31, 256, 300, 1025):
            weights, x = seeded_weights((m, k), dtype, 0), seeded((k,), 1)
            result = gemv(weights, x, dtype=dtype, n_threads=n_threads)
            assert np.allclose(result, gemv_reference(weights, x, dtype=dtype), rtol=1e-5, atol=2e-6)


def test_infinite_weights_stay_in_their_row():
    weights = np.ones((6, 8), np.float32)
    weights[4, 2] = np.inf
    result = gemv(weights, np.ones(8, np.float32))
    assert result[4] == np.inf
    assert result[[0, 1, 2, 3, 5]].tolist() == [8] * 5


def test_output_is_written_in_place():
    out = np.empty(3, np.float32)
    assert gemv(np.eye(3, dtype=np.float32), np.arange(3, dtype=np.float32), out=out) is out
    assert out.tolist() == [0, 1, 2]


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ConfigError, match=r"\(3, 4\) cannot multiply a vector of shape \(5,\)"):
        gemv(np.zeros((3, 4), np.float32), np.zeros(5, np.float32))


def test_cost_of_a_projection():
    op = Gemv().cost({"m": 4096, "k": 1024, "dtype": "bfloat16"})
    assert (op.flops, op.bytes_read, op.bytes_written) == (2 * 4096 * 1024, 2 * 4096 * 1024 + 4 * 1024, 4 * 4096)


def test_pools_exceed_the_cache_within_a_limit(monkeypatch):
    assert last_level_cache_bytes() >= 1 << 18
    # caches of servers reach half a gigabyte, and a pool that exceeded those would not fit the limit
    monkeypatch.setattr(support, "last_level_cache_bytes", lambda: 32 << 20)
    assert cold_copies(1 << 20) * (1 << 20) > 4 * support.last_level_cache_bytes()
    assert cold_copies(1e9) == 1
    assert cold_copies(200e6, limit_bytes=600e6) <= 3
    pool = cold_weights((2000, 4096), "bfloat16", 0)
    assert pool.nbytes > 4 * support.last_level_cache_bytes()
    assert pool.shape[1:] == (2000, 4096)
    assert pool[-1].any()


# --- gemm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m", "k"), [(1, 5, 7), (3, 131, 300), (16, 700, 8192)])
def test_gemm_equals_its_reference(n, m, k, dtype):
    weights, x = seeded_weights((m, k), dtype, 0), seeded((n, k), 1)
    assert np.allclose(gemm(weights, x, dtype=dtype), gemm_reference(weights, x, dtype=dtype), rtol=1e-4, atol=1e-5)


def test_gemm_of_one_token_is_gemv():
    weights, x = seeded_weights((40, 30), "float16", 0), seeded((30,), 1)
    assert np.allclose(gemm(weights, x[None], dtype="float16")[0], gemv(weights, x, dtype="float16"), atol=1e-5)


def test_gemm_shapes_and_cost():
    with pytest.raises(ConfigError, match="cannot multiply activations"):
        gemm(np.zeros((3, 4), np.float32), np.zeros((2, 5), np.float32))
    op = Gemm().cost({"n": 2, "m": 3, "k": 5, "dtype": "float16"})
    assert (op.flops, op.bytes_read, op.bytes_written) == (60, 2 * 15 + 4 * 10, 4 * 6)
