"""Weights times many tokens at once: prefill, and the verification step of speculative decoding.

Float32 weights go straight to the BLAS that NumPy brings. Half types are widened a block of rows at a time into a
buffer that stays in cache, and each block is multiplied from there; widening stays on the calling thread, as two
pools of threads that take turns every millisecond get in each other's way. The BLAS has threads of its own (set
``OPENBLAS_NUM_THREADS``), which `KernelContext.n_threads` does not govern.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Final

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable.errors import ConfigError
from sandtable_kernels.files.blocks import BLOCKS
from sandtable_kernels.files.dtypes import DTYPES, decode, row_bytes, widening
from sandtable_kernels.support import F32, Array, cold_weights, compiled, cycling, seeded, seeded_weights

# float32 bytes widened at a time: they stay in the last-level cache, and the BLAS is slow on thin blocks
BLOCK_BYTES: Final = 8 << 20


def gemm(weights: Array, x: F32, *, dtype: str = "float32", out: F32 | None = None) -> F32:
    """Return ``x @ weights.T``, float32 [n, m].

    Args:
        weights: Stored weights [m, k]; of a type of `BLOCKS`, uint8 [m, bytes of a row].
        x: Activations, float32 [n, k].
        dtype: Element type of ``weights``.
        out: Where to write, float32 [n, m].

    Raises:
        ConfigError: shapes that do not match.
        NoDevice: a half type, and numba is not installed.
    """
    if weights.shape[1] != (row_bytes(dtype, x.shape[1]) if dtype in BLOCKS else x.shape[1]):
        raise ConfigError(f"weights of shape {weights.shape} cannot multiply activations of shape {x.shape}")
    result = np.empty((len(x), len(weights)), np.float32) if out is None else out
    if dtype == "float32":
        np.matmul(x, weights.T, out=result)
    else:
        _gemm_by_blocks(weights, x, dtype, result)
    return result


def _gemm_by_blocks(weights: Array, x: F32, dtype: str, out: F32) -> None:
    m, k = len(weights), x.shape[1]
    widen = _widener(dtype)
    n_rows = max(1, min(m, BLOCK_BYTES // (4 * k)))
    block = np.empty((n_rows, k), np.float32)
    for low in range(0, m, n_rows):
        high = min(low + n_rows, m)
        wide = block[: high - low]
        widen(weights[low:high], wide)
        np.matmul(x, wide.T, out=out[:, low:high])


def _widener(dtype: str) -> Callable[[Array, F32], None]:
    """Return what widens rows of stored weights into a float32 array on the calling thread."""
    if dtype in BLOCKS:
        decode_rows, code = compiled("block_loops").decode_rows, BLOCKS.index(dtype)
        return lambda rows, wide: decode_rows(rows, code, wide)
    fast = compiled("linear_loops")
    return lambda rows, wide: fast.decode_serial(fast.typed(rows, dtype).reshape(-1), wide.reshape(-1))


def gemm_reference(weights: Array, x: F32, *, dtype: str = "float32") -> F32:
    """Compute what `gemm` does, plainly in NumPy, summing in float64."""
    result: F32 = (x.astype(np.float64) @ decode(weights, dtype).astype(np.float64).T).astype(np.float32)
    return result


class Gemm(Kernel):
    """``[n, k] @ [m, k].T``; dims n (tokens), m, k, dtype (of the weights)."""

    name: ClassVar[str] = "gemm"
    calibrates: ClassVar[str | None] = "compute"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From a few tokens, where reading weights is the cost, to many, where arithmetic is."""
        sizes = [(16, 64, 512), (8, 2048, 2048), (128, 2048, 2048)]
        if not quick:
            sizes += [(64, 512, 512), (32, 4096, 4096), (128, 4096, 4096)]
        points = [{"n": n, "m": m, "k": k, "dtype": dtype} for n, m, k in sizes for dtype in DTYPES]
        return points + [{"n": n, "m": m, "k": k, "dtype": dtype} for n, m, k in sizes[:3] for dtype in BLOCKS]

    def cost(self, dims: Dims) -> Op:
        """Weights and activations are read once, the result is written once."""
        n, m, k = dims["n"], dims["m"], dims["k"]
        return Op(
            name="gemm",
            operator="gemm",
            account="compute",
            dtype=dims["dtype"],
            flops=(2 * n + widening(dims["dtype"])) * m * k,
            bytes_read=m * row_bytes(dims["dtype"], k) + 4 * n * k,
            bytes_written=4 * n * m,
            n_items=n,
        )

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold matrices."""
        pool = cold_weights((dims["m"], dims["k"]), dims["dtype"], context.seed)
        x = seeded((dims["n"], dims["k"]), context.seed + 1)
        out = np.empty((dims["n"], dims["m"]), np.float32)
        dtype = dims["dtype"]
        return cycling(pool, lambda weights: gemm(weights, x, dtype=dtype, out=out))

    def example(self) -> Dims:
        """A few tokens and a matrix of odd sides."""
        return {"n": 5, "m": 131, "k": 333, "dtype": "bfloat16"}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the product of the fast path, float32 [n, m]."""
        weights, x = self._problem(dims, context)
        return gemm(weights, x, dtype=dims["dtype"])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the product computed in NumPy, float32 [n, m]."""
        weights, x = self._problem(dims, context)
        return gemm_reference(weights, x, dtype=dims["dtype"])

    def _problem(self, dims: Dims, context: KernelContext) -> tuple[Array, F32]:
        weights = seeded_weights((dims["m"], dims["k"]), dims["dtype"], context.seed)
        return weights, seeded((dims["n"], dims["k"]), context.seed + 1)
