"""A matrix times a vector: what one decode step does with every resident weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable.errors import ConfigError
from sandtable_kernels.files.blocks import BLOCKS
from sandtable_kernels.files.dtypes import DTYPES, decode, row_bytes, widening
from sandtable_kernels.support import F32, Array, cold_weights, compiled, cycling, seeded, seeded_weights


def gemv(
    weights: Array,
    x: F32,
    *,
    dtype: str = "float32",
    out: F32 | None = None,
    n_threads: int | None = None,
) -> F32:
    """Return ``weights @ x``, float32 [m], summed in float32.

    Args:
        weights: Stored weights [m, k]; of a type of `BLOCKS`, uint8 [m, bytes of a row].
        x: Input, float32 [k].
        dtype: Element type of ``weights``.
        out: Where to write, float32 [m].
        n_threads: Threads to use; None is all.

    Raises:
        ConfigError: shapes that do not match.
        NoDevice: numba is not installed.
    """
    if weights.shape[1:] != ((row_bytes(dtype, len(x)),) if dtype in BLOCKS else x.shape):
        raise ConfigError(f"a matrix of shape {weights.shape} cannot multiply a vector of shape {x.shape}")
    result = np.empty(len(weights), np.float32) if out is None else out
    if dtype in BLOCKS:
        _gemv_blocks(weights, x, dtype, result, n_threads)
        return result
    fast = compiled("linear_loops")
    fast.gemv(fast.typed(weights, dtype), x, result, compiled("memory_loops").use_threads(n_threads))
    return result


def _gemv_blocks(weights: Array, x: F32, dtype: str, out: F32, n_threads: int | None) -> None:
    fast, sums = compiled("block_loops"), np.empty(len(x) // 16, np.float32)
    fast.group_sums(x, sums)
    fast.gemv(weights, BLOCKS.index(dtype), x, sums, out, compiled("memory_loops").use_threads(n_threads))


def gemv_reference(weights: Array, x: F32, *, dtype: str = "float32") -> F32:
    """Compute what `gemv` does, plainly in NumPy, summing in float64."""
    result: F32 = (decode(weights, dtype).astype(np.float64) @ x).astype(np.float32)
    return result


class Gemv(Kernel):
    """``[m, k] @ [k]``; dims m, k, dtype (of the weights)."""

    name: ClassVar[str] = "gemv"
    calibrates: ClassVar[str | None] = "compute"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From a matrix so small that the call itself is the cost, to those of a 7B model and its predictor."""
        sizes = [(64, 512), (2048, 2048), (4096, 4096), (16384, 128)]
        if not quick:
            sizes += [(256, 4096), (1024, 1024), (12288, 4096), (16384, 1024)]
        points = [{"m": m, "k": k, "dtype": dtype} for m, k in sizes for dtype in DTYPES]
        # those of a small and of a 7B model are enough for types that all follow one law
        blocks = [(512, 1024), (2048, 2048), (4096, 4096)] + ([] if quick else [(12288, 4096)])
        return points + [{"m": m, "k": k, "dtype": dtype} for m, k in blocks for dtype in BLOCKS]

    def probes(self) -> Sequence[Dims]:
        """One large matrix."""
        return [{"m": 4096, "k": 4096, "dtype": "float16"}]

    def cost(self, dims: Dims) -> Op:
        """Weights are read once; the input and output vectors count too."""
        m, k = dims["m"], dims["k"]
        return Op(
            name="gemv",
            operator="gemv",
            account="compute",
            dtype=dims["dtype"],
            flops=(2 + widening(dims["dtype"])) * m * k,
            bytes_read=m * row_bytes(dims["dtype"], k) + 4 * k,
            bytes_written=4 * m,
            n_items=m,
        )

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold matrices."""
        pool = cold_weights((dims["m"], dims["k"]), dims["dtype"], context.seed)
        x, out = seeded((dims["k"],), context.seed + 1), np.empty(dims["m"], np.float32)
        dtype, n_threads = dims["dtype"], context.n_threads
        return cycling(pool, lambda weights: gemv(weights, x, dtype=dtype, out=out, n_threads=n_threads))

    def example(self) -> Dims:
        """A matrix whose sides are multiples of neither four rows nor a block."""
        return {"m": 131, "k": 333, "dtype": "float16"}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the product of the fast path, float32 [m]."""
        weights, x = self._problem(dims, context)
        return gemv(weights, x, dtype=dims["dtype"], n_threads=context.n_threads)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the product computed in NumPy, float32 [m]."""
        weights, x = self._problem(dims, context)
        return gemv_reference(weights, x, dtype=dims["dtype"])

    def _problem(self, dims: Dims, context: KernelContext) -> tuple[Array, F32]:
        weights = seeded_weights((dims["m"], dims["k"]), dims["dtype"], context.seed)
        return weights, seeded((dims["k"],), context.seed + 1)
