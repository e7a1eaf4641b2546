"""The feed-forward block computed over the neurons that are present, from their stored records.

A record holds all vectors of one neuron side by side: ``[up | down]``, or ``[up | gate | down]`` in a gated block
(LLM in a flash, section 3.2, row-column bundling). The output does not depend on the order of neurons, so the
block can be computed over the occupied prefix of a cache (section 3.3)::

    y = sum_i down_i * act(up_i . x + b_i)                 plain
    y = sum_i down_i * act(gate_i . x + b_i) * (up_i . x)  gated

Nothing is skipped when an activation turns out to be zero: the bytes read are then known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable.demand.operator import PlainOperator, Resource
from sandtable.errors import ConfigError
from sandtable_kernels.files.dtypes import DTYPES, decode, itemsize
from sandtable_kernels.support import F32, Array, Ids, cold_weights, compiled, cycling, seeded, seeded_weights

Activation = Literal["relu", "relu2", "identity"]
ACTIVATIONS: tuple[str, ...] = ("relu", "relu2", "identity")


def sparse_ffn(
    x: F32,
    rows: Array,
    *,
    dtype: str = "float32",
    bias: F32 | None = None,
    activation: Activation = "relu",
    gated: bool = False,
    row_index: Ids | None = None,
    out: F32 | None = None,
    n_threads: int | None = None,
) -> F32:
    """Compute the block over ``rows`` in one pass over the weights; returns float32 [d].

    Args:
        x: Input, float32 [d].
        rows: Stored records [n, at least vectors * d]; elements beyond the vectors are padding.
        dtype: Element type of ``rows``.
        bias: Added before the activation, float32, one per row of ``rows``; None is zero.
        activation: "relu", "relu2" (squared, as in Persimmon) or "identity".
        gated: Records hold up, gate and down; otherwise up and down.
        row_index: Compute only these rows, in this order; None computes all.
        out: Where to write, float32 [d].
        n_threads: Threads to use; None is all.

    Raises:
        ConfigError: records shorter than their vectors, or an unknown activation.
        NoDevice: numba is not installed.
    """
    _check(x, rows, activation, gated)
    fast = compiled("linear_loops")
    used = compiled("memory_loops").use_threads(n_threads)
    result = np.empty_like(x) if out is None else out
    biases = np.zeros(len(rows), np.float32) if bias is None else bias
    n = len(rows) if row_index is None else len(row_index)
    code = ACTIVATIONS.index(activation)
    fast.sparse_ffn(fast.typed(rows, dtype), row_index, n, x, biases, code, gated, result, used)
    return result


def sparse_ffn_reference(
    x: F32,
    rows: Array,
    *,
    dtype: str = "float32",
    bias: F32 | None = None,
    activation: Activation = "relu",
    gated: bool = False,
    row_index: Ids | None = None,
) -> F32:
    """Compute what `sparse_ffn` does, plainly in NumPy, summing in float64."""
    _check(x, rows, activation, gated)
    chosen = slice(None) if row_index is None else row_index
    wide = decode(rows[chosen], dtype).astype(np.float64)
    n_vectors = 3 if gated else 2
    vectors = wide[:, : n_vectors * x.size].reshape(len(wide), n_vectors, x.size)
    up = vectors[:, 0] @ x
    before = vectors[:, 1] @ x if gated else up
    hidden = activate(before if bias is None else before + bias[chosen], activation)
    result: F32 = ((hidden * up if gated else hidden) @ vectors[:, -1]).astype(np.float32)
    return result


def dense_ffn_masked_reference(
    x: F32,
    rows: Array,
    active: Ids,
    *,
    dtype: str = "float32",
    bias: F32 | None = None,
    activation: Activation = "relu",
    gated: bool = False,
) -> F32:
    """Compute all neurons [n, record], zero the hidden activations outside ``active``, then project down."""
    wide = decode(rows, dtype).astype(np.float64)
    d = x.size
    up = wide[:, :d] @ x
    before = wide[:, d : 2 * d] @ x if gated else up
    hidden = activate(before if bias is None else before + bias, activation) * (up if gated else 1.0)
    mask = np.zeros(len(wide), bool)
    mask[active] = True
    down = wide[:, 2 * d : 3 * d] if gated else wide[:, d : 2 * d]
    result: F32 = (np.where(mask, hidden, 0.0) @ down).astype(np.float32)
    return result


def activate(values: Array, activation: Activation) -> Array:
    """Apply an activation of `ACTIVATIONS`, elementwise."""
    if activation == "identity":
        return values
    positive: Array = np.maximum(values, 0)
    return positive * positive if activation == "relu2" else positive


def _check(x: F32, rows: Array, activation: str, gated: bool) -> None:
    needs = (3 if gated else 2) * x.size
    if rows.shape[1] < needs:
        raise ConfigError(
            f"records of {rows.shape[1]} elements are too short: {'three' if gated else 'two'} vectors of "
            f"{x.size} need {needs}"
        )
    if activation not in ACTIVATIONS:
        raise ConfigError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")


class SparseFfnOperator(PlainOperator):
    """A feed-forward block of the rows that a token uses."""

    name: ClassVar[str] = "sparse_ffn"
    resource: ClassVar[Resource] = "compute"


class SparseFfn(Kernel):
    """The block over ``n_rows`` present neurons; dims n_rows, d_model, n_vectors (3 is gated), dtype."""

    name: ClassVar[str] = "sparse_ffn"
    calibrates: ClassVar[str | None] = "compute"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Rows times width from one megabyte to a hundred, both record layouts."""
        sizes = [(64, 1024, 2), (492, 4096, 2), (1638, 4096, 2)]
        if not quick:
            sizes += [(16, 512, 2), (800, 2048, 3), (1600, 2048, 2), (3932, 4096, 2)]
        return [
            {"n_rows": n, "d_model": d, "n_vectors": v, "dtype": dtype} for n, d, v in sizes for dtype in DTYPES
        ]

    def cost(self, dims: Dims) -> Op:
        """Every element of every record is read once and takes one multiply and one add."""
        n_items, n_elements = dims["n_rows"], dims["n_rows"] * dims["n_vectors"] * dims["d_model"]
        return Op(
            name="ffn",
            operator="sparse_ffn",
            account="compute",
            dtype=dims["dtype"],
            flops=2 * n_elements,
            bytes_read=n_elements * itemsize(dims["dtype"]),
            n_items=n_items,
        )

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold caches of records."""
        shape = (dims["n_rows"], dims["n_vectors"] * dims["d_model"])
        pool = cold_weights(shape, dims["dtype"], context.seed)
        x = seeded((dims["d_model"],), context.seed + 1)
        options: dict[str, Any] = {
            "dtype": dims["dtype"],
            "bias": np.zeros(dims["n_rows"], np.float32),
            "gated": dims["n_vectors"] == 3,
            "out": np.empty_like(x),
            "n_threads": context.n_threads,
        }
        return cycling(pool, lambda rows: sparse_ffn(x, rows, **options))

    def example(self) -> Dims:
        """A few gated rows, neither a multiple of the four that are computed together nor of the block."""
        return {"n_rows": 37, "d_model": 300, "n_vectors": 3, "dtype": "bfloat16"}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the output of the fast path, float32 [d]."""
        return sparse_ffn(**self._problem(dims, context), n_threads=context.n_threads)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the output computed in NumPy, float32 [d]."""
        return sparse_ffn_reference(**self._problem(dims, context))

    def _problem(self, dims: Dims, context: KernelContext) -> dict[str, Any]:
        shape = (dims["n_rows"], dims["n_vectors"] * dims["d_model"])
        return {
            "x": seeded((dims["d_model"],), context.seed + 1),
            "rows": seeded_weights(shape, dims["dtype"], context.seed),
            "bias": seeded((dims["n_rows"],), context.seed + 2, scale=0.1),
            "dtype": dims["dtype"],
            "gated": dims["n_vectors"] == 3,
        }
