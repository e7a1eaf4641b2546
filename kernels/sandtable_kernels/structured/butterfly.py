"""The butterfly transform of rows, and its gradients: what a pointwise convolution or a linear layer can be instead.

Rows are float32, or bfloat16 as its bits in uint16; weights are of the same type, and sums are float32. Both are
row-major. Numbers between levels are never rounded, and results do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np

from sandtable.errors import ConfigError
from sandtable_kernels.files.dtypes import decode
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.support import F32, Array, compiled

NAMES = {"float32": "float32", "uint16": "bfloat16"}
NOTHING = np.empty(0, np.float32)
# multiply-accumulates that take about as long as the start of a thread's share, 15 us
THREAD_WORK = 400_000
# gradients by weights are sums of parts of at least so many rows, at most so many parts, whatever the threads
PART_ROWS, MOST_PARTS = 64, 32


def butterfly(
    x: Array,
    weights: Array,
    layout: ButterflyLayout,
    *,
    residual: bool = True,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Return the transform of rows, ``y = B x + x`` or ``y = B x``, of the type of ``x``.

    Args:
        x: Rows [r, n_in]; copied where they do not lie one after another.
        weights: Of the layout's ``weights_shape``.
        layout: The transform's shape.
        residual: Add each square transform's input to its output.
        out: Where to write, contiguous [r, n_out].
        n_threads: Threads to use; None is all.

    Raises:
        ConfigError: another shape or type.
        NoDevice: numba is not installed.
    """
    dtype = _check(x, weights, layout)
    result: Array = np.empty((len(x), layout.n_out), x.dtype) if out is None else out
    if result.shape != (len(x), layout.n_out) or result.dtype != x.dtype or not result.flags.c_contiguous:
        raise ConfigError(f"out must be contiguous {dtype} of shape {[len(x), layout.n_out]}")
    fast, run = compiled("butterfly_loops"), _Call(layout, weights, dtype)
    given = (*run.shape, *run.rows(x), run.weights, residual, result, run.flat(result))
    used = run.threads(len(x), 1, n_threads)
    if used == 1:
        fast.forward_rows(*given, 0, len(x))
    else:
        fast.forward(*given, used)
    return result


def butterfly_backward(
    x: Array,
    weights: Array,
    grad_out: Array,
    layout: ButterflyLayout,
    *,
    residual: bool = True,
    n_threads: int | None = None,
) -> tuple[Array, F32]:
    """Return the gradients of a loss by ``x`` and by ``weights``, for its gradient by the transform's result.

    Args:
        x: Rows [r, n_in], as `butterfly` was given.
        weights: Of the layout's ``weights_shape``.
        grad_out: [r, n_out], of the type of ``x``.
        layout: The transform's shape.
        residual: As `butterfly` was given.
        n_threads: Threads to use; None is all.

    Returns:
        [r, n_in] of the type of ``x``; and float32 of ``weights_shape``.

    Raises:
        ConfigError: another shape or type.
        NoDevice: numba is not installed.
    """
    dtype = _check(x, weights, layout)
    if grad_out.shape != (len(x), layout.n_out) or grad_out.dtype != x.dtype:
        raise ConfigError(
            f"gradients by the result must be {dtype} of shape {[len(x), layout.n_out]}, "
            f"not {NAMES.get(str(grad_out.dtype), grad_out.dtype)} of shape {list(grad_out.shape)}"
        )
    fast, run = compiled("butterfly_loops"), _Call(layout, weights, dtype)
    grad_x, used = np.empty(x.shape, x.dtype), run.threads(len(x), 3, n_threads)
    n_parts = max(1, min(len(x) // PART_ROWS, MOST_PARTS))
    sums = np.zeros((n_parts, weights.size), np.float32)
    given = (*run.shape, *run.rows(x), run.weights, residual, *run.rows(grad_out), grad_x)
    if used == 1:
        for part, total in enumerate(sums):
            fast.backward_rows(*given, total, part * len(x) // n_parts, (part + 1) * len(x) // n_parts)
    else:
        fast.backward(*given, sums)
    grad_weights: F32 = sums[0] if n_parts == 1 else sums.sum(0)
    return grad_x, grad_weights.reshape(weights.shape)


class _Call:
    """What the compiled loops take: the shape, float32 weights, and rows with their own memory where it is float32."""

    def __init__(self, layout: ButterflyLayout, weights: Array, dtype: str) -> None:
        self.layout = layout
        plan: Array = compiled("butterfly_loops").plan(layout.base, layout.size, layout.strides)
        self.shape = (0,) * layout.base, plan
        self.weights = np.ascontiguousarray(decode(weights, dtype)).reshape(-1)

    @staticmethod
    def flat(rows: Array) -> Array:
        """Return contiguous rows as one array of float32, an empty one where they are of another type."""
        return rows.reshape(-1) if rows.dtype == np.float32 else NOTHING

    def rows(self, x: Array) -> tuple[Array, Array]:
        """Return rows one after another, and `flat`."""
        rows = np.ascontiguousarray(x)
        return rows, self.flat(rows)

    def threads(self, n_rows: int, passes: int, n_threads: int | None) -> int:
        """Return how many threads are worth their start, of those that are allowed; let loops use them."""
        work = n_rows * self.layout.multiplications * passes
        most = max(1, min(n_rows, work // THREAD_WORK))
        if most == 1:
            return 1
        used: int = compiled("memory_loops").use_threads(n_threads)
        if most < used:
            used = compiled("memory_loops").use_threads(most)
        return used


def _check(x: Array, weights: Array, layout: ButterflyLayout) -> str:
    """Return the element type's name.

    Raises:
        ConfigError: another shape or type.
    """
    if str(x.dtype) not in NAMES:
        raise ConfigError(
            f"a butterfly takes float32, or bfloat16 as its bits in uint16, not {x.dtype}: "
            "write x.astype(numpy.float32)"
        )
    if x.ndim != 2 or x.shape[1] != layout.n_in:
        raise ConfigError(f"this butterfly takes rows of shape [rows, {layout.n_in}], not {list(x.shape)}")
    if weights.shape != layout.weights_shape or weights.dtype != x.dtype:
        raise ConfigError(
            f"this butterfly of {NAMES[str(x.dtype)]} rows takes weights of the same type and of shape "
            f"{list(layout.weights_shape)}, not {NAMES.get(str(weights.dtype), weights.dtype)} of shape "
            f"{list(weights.shape)}"
        )
    return NAMES[str(x.dtype)]


def butterfly_reference(x: Array, weights: Array, layout: ButterflyLayout, *, residual: bool = True) -> Array:
    """Compute what `butterfly` does, plainly in NumPy, in float64; returns float64 where ``x`` is, else float32."""
    levels = _levels(_squares(x, layout.n_in, layout), weights, layout)
    result = _rows(levels[-1] + levels[0] if residual else levels[-1], layout.n_out, layout)
    return result if x.dtype == np.float64 else result.astype(np.float32)


def butterfly_backward_reference(
    x: Array, weights: Array, grad_out: Array, layout: ButterflyLayout, *, residual: bool = True
) -> tuple[Array, Array]:
    """Compute what `butterfly_backward` does, plainly in NumPy, in float64; returns float64."""
    levels = _levels(_squares(x, layout.n_in, layout), weights, layout)
    last = grad = np.broadcast_to(_squares(grad_out, layout.n_out, layout), levels[-1].shape)
    by_weights = np.empty(layout.weights_shape)
    for level, stride in reversed(list(enumerate(layout.strides))):
        groups, grads = _groups(levels[level], layout, stride), _groups(grad, layout, stride)
        by_weights[:, level] = np.einsum("rbgis,rbgjs->bgisj", grads, groups).reshape(by_weights[:, level].shape)
        factors = _factors(weights[:, level], layout, stride)
        grad = np.einsum("rbgis,bgisj->rbgjs", grads, factors).reshape(last.shape)
    return _rows(grad + last if residual else grad, layout.n_in, layout), by_weights


def _levels(x: Array, weights: Array, layout: ButterflyLayout) -> list[Array]:
    """Return the input of every level and the output of the last, each [r, blocks, size]."""
    levels = [x]
    for level, stride in enumerate(layout.strides):
        factors = _factors(weights[:, level], layout, stride)
        outputs = np.einsum("rbgjs,bgisj->rbgis", _groups(levels[-1], layout, stride), factors)
        levels.append(outputs.reshape(x.shape))
    return levels


def _groups(x: Array, layout: ButterflyLayout, stride: int) -> Array:
    return x.reshape(*x.shape[:2], layout.size // (layout.base * stride), layout.base, stride)


def _factors(weights: Array, layout: ButterflyLayout, stride: int) -> Array:
    return weights.astype(np.float64).reshape(layout.n_blocks, -1, layout.base, stride, layout.base)


def _squares(rows: Array, width: int, layout: ButterflyLayout) -> Array:
    """Return what each square transform sees of rows [r, width], with zeros behind it: [r, blocks, size]."""
    split = layout.n_blocks if width > layout.side else 1
    parts, squares = np.zeros((len(rows), split * layout.side)), np.zeros((len(rows), layout.n_blocks, layout.size))
    parts[:, :width] = rows
    squares[:, :, : layout.side] = parts.reshape(len(rows), split, layout.side)
    return squares


def _rows(squares: Array, width: int, layout: ButterflyLayout) -> Array:
    """Return rows [r, width] of what square transforms give: one after the other, or their sum."""
    kept = squares[:, :, : layout.side]
    result: Array = (
        kept.reshape(len(kept), layout.n_blocks * layout.side)[:, :width] if width > layout.side else kept.sum(1)
    )
    return result


def butterfly_dense(weights: Array, layout: ButterflyLayout, *, residual: bool = True) -> Array:
    """Return the dense matrix that a transform is equal to, float32 [n_out, n_in]; float64 for float64 weights."""
    kind = np.float64 if weights.dtype == np.float64 else np.float32
    rows = butterfly_reference(np.eye(layout.n_in), weights, layout, residual=residual)
    return np.ascontiguousarray(rows.T, dtype=kind)


def initial_weights(layout: ButterflyLayout, rng: np.random.Generator) -> F32:
    """Return uniform weights in (-y, y) with ``y = x**(1/L) * 2**((L-1)/L)``, ``x = sqrt(6 / (n_in + n_out))``.

    Entries of the dense matrix then have the mean magnitude of Xavier's bound x (paper, section 3.1):
    ``(y / 2)**L = x / 2``.
    """
    bound, n_levels = np.sqrt(6 / (layout.n_in + layout.n_out)), layout.n_levels
    reach = bound ** (1 / n_levels) * 2 ** ((n_levels - 1) / n_levels)
    return rng.uniform(-reach, reach, layout.weights_shape).astype(np.float32)
