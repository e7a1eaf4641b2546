"""The whole feed-forward block for many tokens at once: prefill, where together the tokens use nearly all neurons.

Records are widened to float32 a block of neurons at a time, and each block is multiplied from there, once up and once
down, so that the weights are read from memory once::

    y = act(x Up^T) Down                     plain
    y = act(x Gate^T) * (x Up^T) Down        gated
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Final

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable.demand.operator import Bound, PlainOperator, Resource
from sandtable_kernels.files.dtypes import DTYPES, decode, itemsize
from sandtable_kernels.operations.ffn import Activation, activate
from sandtable_kernels.support import F32, Array, cold_weights, compiled, cycling, seeded, seeded_weights

# float32 bytes widened at a time: they stay in the last-level cache, and the BLAS is slow on thin blocks
BLOCK_BYTES: Final = 8 << 20


def dense_ffn_batch(
    x: F32,
    rows: Array,
    *,
    dtype: str = "float32",
    activation: Activation = "relu",
    gated: bool = False,
    bundled: bool = True,
    bias: F32 | None = None,
) -> F32:
    """Return the block's output over all neurons, float32 [n_tokens, d].

    Args:
        x: Inputs, float32 [n_tokens, d].
        rows: Stored records: bundled [n_neurons, at least vectors * d]; otherwise [vectors * n_neurons, at least d],
            all up vectors first and all down vectors last. Elements beyond the vectors are padding.
        dtype: Element type of ``rows``.
        activation: See `sandtable_kernels.operations.ffn.sparse_ffn`.
        gated: Whether records hold up, gate and down, or only up and down.
        bundled: Whether a record is a whole neuron.
        bias: Added before the activation, float32 [n_neurons]; None is zero.

    Raises:
        NoDevice: a half type, and numba is not installed.
    """
    n_vectors, d = (3 if gated else 2), x.shape[1]
    n_neurons = len(rows) // (1 if bundled else n_vectors)
    block = max(16, BLOCK_BYTES // (4 * n_vectors * rows.shape[1]))
    y = np.zeros_like(x)
    for low in range(0, n_neurons, block):
        high = min(low + block, n_neurons)
        if bundled:
            wide = _widen(rows[low:high], dtype)
            vectors = [wide[:, v * d : (v + 1) * d] for v in range(n_vectors)]
        else:
            parts = (rows[v * n_neurons + low : v * n_neurons + high] for v in range(n_vectors))
            vectors = [_widen(part, dtype)[:, :d] for part in parts]
        up = x @ vectors[0].T
        before = x @ vectors[1].T if gated else up
        if bias is not None:
            # not in place: ``up`` itself takes no bias
            before = before + bias[low:high]
        hidden = activate(before, activation) * up if gated else activate(before, activation)
        y += hidden @ vectors[-1]
    return y


def _widen(rows: Array, dtype: str) -> F32:
    if dtype == "float32":
        return rows
    fast = compiled("linear_loops")
    wide = np.empty(rows.shape, np.float32)
    fast.decode_serial(fast.typed(rows, dtype).reshape(-1), wide.reshape(-1))
    return wide


def dense_ffn_batch_reference(
    x: F32, rows: Array, *, dtype: str = "float32", activation: Activation = "relu", gated: bool = False
) -> F32:
    """Compute what `dense_ffn_batch` does over bundled rows, plainly in NumPy, in float64."""
    d = x.shape[1]
    wide = decode(rows, dtype).astype(np.float64)
    up = x @ wide[:, :d].T
    hidden = activate(x @ wide[:, d : 2 * d].T, activation) * up if gated else activate(up, activation)
    result: F32 = (hidden @ wide[:, (2 * d if gated else d) :][:, :d]).astype(np.float32)
    return result


class FfnBatchOperator(PlainOperator):
    """A feed-forward block of many tokens."""

    name: ClassVar[str] = "ffn_batch"
    resource: ClassVar[Resource] = "compute"
    bound_by: ClassVar[Bound] = "both"


class DenseFfnBatch(Kernel):
    """The dense block for ``n`` tokens; dims n, n_rows, d_model, n_vectors (3 is gated), dtype."""

    name: ClassVar[str] = "dense_ffn_batch"
    calibrates: ClassVar[str | None] = "compute"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """A few tokens, where widening weights is the cost, and many, where arithmetic is."""
        sizes = [(4, 1024, 2048), (16, 2048, 4096), (64, 1024, 2048)]
        if not quick:
            sizes += [(1, 2048, 2048), (16, 512, 1024), (128, 2048, 2048)]
        return [
            {"n": n, "n_rows": rows, "d_model": d, "n_vectors": 2, "dtype": dtype}
            for n, rows, d in sizes
            for dtype in DTYPES
        ]

    def cost(self, dims: Dims) -> Op:
        """Weights are read once; each element takes one multiply and one add per token."""
        elements = dims["n_rows"] * dims["n_vectors"] * dims["d_model"]
        return Op(
            name="feed-forward",
            operator="ffn_batch",
            account="compute",
            dtype=dims["dtype"],
            flops=2 * dims["n"] * elements,
            bytes_read=elements * itemsize(dims["dtype"]) + 4 * dims["n"] * dims["d_model"],
            bytes_written=4 * dims["n"] * dims["d_model"],
            n_items=dims["n"],
        )

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold records."""
        pool = cold_weights((dims["n_rows"], dims["n_vectors"] * dims["d_model"]), dims["dtype"], context.seed)
        x = seeded((dims["n"], dims["d_model"]), context.seed + 1)
        dtype, gated = dims["dtype"], dims["n_vectors"] == 3
        return cycling(pool, lambda rows: dense_ffn_batch(x, rows, dtype=dtype, gated=gated))

    def example(self) -> Dims:
        """Gated, with odd sides."""
        return {"n": 3, "n_rows": 37, "d_model": 300, "n_vectors": 3, "dtype": "bfloat16"}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the output of the fast path, float32 [n, d]."""
        x, rows = self._problem(dims, context)
        return dense_ffn_batch(x, rows, dtype=dims["dtype"], gated=dims["n_vectors"] == 3)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the output computed in NumPy, float32 [n, d]."""
        x, rows = self._problem(dims, context)
        return dense_ffn_batch_reference(x, rows, dtype=dims["dtype"], gated=dims["n_vectors"] == 3)

    def _problem(self, dims: Dims, context: KernelContext) -> tuple[F32, Array]:
        rows = seeded_weights((dims["n_rows"], dims["n_vectors"] * dims["d_model"]), dims["dtype"], context.seed)
        return seeded((dims["n"], dims["d_model"]), context.seed + 1), rows
