"""Compiled loops of the butterfly transform. Importing this module needs numba.

A block of rows goes through all levels while it is in cache: through the first, whose groups exceed the first-level
cache, one after another; then each group of the others through all of them. What comes first reads the rows
themselves, what comes last writes the results and adds the rows. Only rows that need padding, a sum or a conversion
are copied.

`plan` says how a transform goes; ``base`` is a tuple of as many integers as the base. Arrays are flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from sandtable_kernels.compiled.butterfly_vectors import level, level_backward, tail, tail_backward, tail_number
from sandtable_kernels.compiled.conversions import f32_to_bf16
from sandtable_kernels.compiled.linear_loops import widen
from sandtable_kernels.compiled.memory_loops import parallel, serial

ZERO = np.float32(0)
QUIET_NAN = np.uint16(0x7FC0)
# bytes of a block of rows that stay in a first-level cache beside the weights that pass by
NEAR_BYTES = 24 << 10
LEAST_ROWS, MOST_ROWS = 16, 64
# numbers that are added before two slices of arrays are made
SHORT = 64
# floats between two rows of scratch beyond their size: rows a power of two apart would share few sets of a cache
SKEW = 272
# fields of a plan before its strides
SIZE, N_ROWS, N_OUTER, N_WIDE, NEAR, TAIL, N_FIELDS = range(7)


@lru_cache(maxsize=256)
def plan(base: int, size: int, strides: Sequence[int]) -> np.ndarray[Any, Any]:
    """Return how a square transform goes, int64.

    Its fields are the side, rows in a block, levels before the tail, how many of these take all positions one after
    another, positions that go through the others at once, the tail's number, and the strides.
    """
    number, n_tail = tail_number(base, size, strides)
    n_outer = len(strides) - n_tail
    n_rows = min(max(NEAR_BYTES // (4 * size), LEAST_ROWS), MOST_ROWS)
    spans = [base * stride for stride in strides[:n_outer]] + [size]
    n_wide = next((i for i, span in enumerate(spans) if 4 * span * n_rows <= NEAR_BYTES), n_outer)
    n_wide = min(n_wide, n_outer)
    return np.array([size, n_rows, n_outer, n_wide, spans[n_wide], number, *strides])


def narrow(value: Any, like: Any) -> Any:
    """Round a float32 to the element type of ``like``; exists in compiled code only."""
    raise NotImplementedError("compiled code only")


@overload(narrow, inline="always")
def _narrow(value: Any, like: Any) -> Any:
    def same(value: Any, like: Any) -> Any:
        return value

    def to_bf16(value: Any, like: Any) -> Any:
        return f32_to_bf16(value) if value == value else QUIET_NAN  # noqa: PLR0124  # NaN is not itself

    return to_bf16 if like.dtype == types.uint16 else same


# --- between rows and squares ------------------------------------------------------------------------------


@serial
def _load(x: Any, row: Any, column: Any, width: Any, n_rows: Any, square: Any, pitch: Any, size: Any) -> None:
    """Set ``square`` to columns of rows, zeros behind them."""
    for r in range(n_rows):
        values, target = x[row + r, column : column + width], square[r * pitch : r * pitch + size]
        for i in range(width):
            target[i] = widen(values[i])
        for i in range(width, size):
            target[i] = ZERO


@serial
def _store(square: Any, pitch: Any, n_rows: Any, x: Any, row: Any, column: Any, width: Any) -> None:
    """Set columns of rows to what ``square`` holds."""
    for r in range(n_rows):
        values, target = square[r * pitch : r * pitch + width], x[row + r, column : column + width]
        for i in range(width):
            target[i] = narrow(values[i], target)


# --- forward -----------------------------------------------------------------------------------------------


@serial
def _level(
    base: Any, how: Any, number: Any, source: Any, target: Any, weights: Any, places: Any, span: Any, n_rows: Any
) -> None:
    """Apply one level to the positions of ``span``; ``places`` are those of source and target and of the weights."""
    k, stride = len(base), how[N_FIELDS + number]
    source_at, source_pitch, target_at, target_pitch, at = places
    for start in range(span[0], span[1], k * stride):
        where = at + (number * how[SIZE] + start) * k
        ends = (source_at + start, source_pitch, target_at + start, target_pitch)
        level(base, (source, target, weights), (*ends, where, stride, n_rows))


@serial
def _square(
    base: Any, how: Any, x: Any, out: Any, scratch: Any, weights: Any, places: Any, residual: Any, n_rows: Any
) -> None:
    """Transform ``x`` to ``out``; ``places`` are those of x and out with their pitches, and of the weights."""
    size, n_outer, n_wide, near = how[SIZE], how[N_OUTER], how[N_WIDE], how[NEAR]
    x_at, x_pitch, out_at, out_pitch, at = places
    k, pitch = len(base), size + SKEW
    within, first = (0, pitch, 0, pitch, at), (x_at, x_pitch, 0, pitch, at)
    for number in range(n_wide):
        if number == 0:
            _level(base, how, 0, x, scratch, weights, first, (0, size), n_rows)
        else:
            _level(base, how, number, scratch, scratch, weights, within, (0, size), n_rows)
    for low in range(0, size, near):
        for number in range(n_wide, n_outer):
            if number == 0:
                _level(base, how, 0, x, scratch, weights, first, (low, low + near), n_rows)
            else:
                _level(base, how, number, scratch, scratch, weights, within, (low, low + near), n_rows)
        rest = (x_at + low, x_pitch, out_at + low, out_pitch, at + (n_outer * size + low) * k, size * k, near)
        if how[TAIL] == 0:
            _finish(scratch, low, pitch, x, out, rest, residual, n_rows)
        elif n_outer == 0:
            tail(base, (x, x, out, weights), (x_at + low, x_pitch, *rest, residual, n_rows, how[TAIL]))
        else:
            tail(base, (scratch, x, out, weights), (low, pitch, *rest, residual, n_rows, how[TAIL]))


@serial
def _finish(scratch: Any, low: Any, pitch: Any, x: Any, out: Any, rest: Any, residual: Any, n_rows: Any) -> None:
    """Write what no tail does, and add ``x``."""
    x_at, x_pitch, out_at, out_pitch, _, _, n = rest
    for r in range(n_rows):
        for i in range(n):
            added = x[x_at + r * x_pitch + i] if residual else ZERO
            out[out_at + r * out_pitch + i] = scratch[low + r * pitch + i] + added


@serial
def forward_rows(
    base: Any,
    how: Any,
    x: Any,
    flat_x: Any,
    weights: Any,
    residual: Any,
    out: Any,
    flat_out: Any,
    low: Any,
    high: Any,
) -> None:
    """Transform rows ``low`` to ``high - 1`` of ``x`` [r, n_in] into ``out`` [r, n_out]; weights are flat float32.

    ``flat_x`` and ``flat_out`` are the same memory, flat, where it is float32, and empty float32 arrays elsewhere.
    """
    size, most, n_in, n_out = how[SIZE], how[N_ROWS], x.shape[1], out.shape[1]
    side, summed, pitch = min(n_in, n_out), n_in > n_out, size + SKEW
    n_blocks = (max(n_in, n_out) + side - 1) // side
    most = max(1, min(most, high - low))
    scratch, start, end = (
        np.empty(most * pitch, np.float32),
        np.empty(most * pitch, np.float32),
        np.empty(most * pitch, np.float32),
    )
    total = np.empty(most * pitch if summed else 0, np.float32)
    for row in range(low, high, most):
        n_rows = min(most, high - row)
        for block in range(n_blocks):
            source, target = (block * side, 0) if summed else (0, block * side)
            n_from, n_to = min(side, n_in - source), min(side, n_out - target)
            given, written = n_from == size and len(flat_x) > 0, n_to == size and len(flat_out) > 0 and not summed
            if not given and (summed or block == 0):
                _load(x, row, source, n_from, n_rows, start, pitch, size)
            x_at, x_pitch = (row * n_in + source, n_in) if given else (0, pitch)
            out_at, out_pitch = (row * n_out + target, n_out) if written else (0, pitch)
            places = (x_at, x_pitch, out_at, out_pitch, block * (len(weights) // n_blocks))
            xs, ys = flat_x if given else start, flat_out if written else end
            _square(base, how, xs, ys, scratch, weights, places, residual, n_rows)
            if summed:
                _collect(total, end, pitch, n_rows, size, block == 0)
            elif not written:
                _store(end, pitch, n_rows, out, row, target, n_to)
        if summed:
            _store(total, pitch, n_rows, out, row, 0, n_out)


@serial
def _collect(total: Any, square: Any, pitch: Any, n_rows: Any, size: Any, first: Any) -> None:
    """Add ``square`` to ``total``, or set it to that."""
    for r in range(n_rows):
        at = r * pitch
        if size <= SHORT:
            for i in range(at, at + size):
                total[i] = square[i] if first else total[i] + square[i]
            continue
        values, target = square[at : at + size], total[at : at + size]
        if first:
            target[:] = values
        else:
            for i in range(size):
                target[i] += values[i]


@parallel
def forward(
    base: Any, how: Any, x: Any, flat_x: Any, weights: Any, residual: Any, out: Any, flat_out: Any, n_threads: Any
) -> None:
    """Transform all rows, each thread a share of them."""
    n = len(x)
    for t in prange(n_threads):
        low, high = t * n // n_threads, (t + 1) * n // n_threads
        if high > low:
            forward_rows(base, how, x, flat_x, weights, residual, out, flat_out, low, high)


# --- backward ----------------------------------------------------------------------------------------------


@serial
def _square_backward(
    base: Any, how: Any, x: Any, grad: Any, kept: Any, g: Any, weights: Any, sums: Any, places: Any, n_rows: Any
) -> None:
    """Set ``g`` to the gradients by a square's input, residual left out, and add to ``sums`` those by its weights.

    ``kept`` has room for a block of rows for each level before the tail; ``places`` are as for `_square`, of x and of
    the gradients by the result.
    """
    size, n_outer = how[SIZE], how[N_OUTER]
    x_at, x_pitch, grad_at, grad_pitch, at = places
    k, pitch, area = len(base), size + SKEW, len(g)
    for number in range(n_outer):
        if number == 0:
            _level(base, how, 0, x, kept, weights, (x_at, x_pitch, 0, pitch, at), (0, size), n_rows)
        else:
            between = ((number - 1) * area, pitch, number * area, pitch, at)
            _level(base, how, number, kept, kept, weights, between, (0, size), n_rows)
    source, source_at, source_pitch = (kept, (n_outer - 1) * area, pitch) if n_outer > 0 else (x, x_at, x_pitch)
    if how[TAIL] == 0:
        for r in range(n_rows):
            g[r * pitch : r * pitch + size] = grad[grad_at + r * grad_pitch : grad_at + r * grad_pitch + size]
    else:
        outer = (source_at, source_pitch, grad_at, grad_pitch, 0, pitch)
        where = at + n_outer * size * k
        tail_backward(base, (source, grad, g, weights, sums), (*outer, where, size * k, size, n_rows, how[TAIL]))
    for number in range(n_outer - 1, -1, -1):
        stride = how[N_FIELDS + number]
        source, source_at, source_pitch = (kept, (number - 1) * area, pitch) if number > 0 else (x, x_at, x_pitch)
        for start in range(0, size, k * stride):
            ends = (source_at + start, source_pitch, start, pitch)
            where = at + (number * size + start) * k
            level_backward(base, (source, g, weights, sums), (*ends, where, stride, n_rows))


@serial
def _add_rows(g: Any, pitch: Any, grad: Any, grad_at: Any, grad_pitch: Any, n_rows: Any, size: Any) -> None:
    for r in range(n_rows):
        values = grad[grad_at + r * grad_pitch : grad_at + r * grad_pitch + size]
        target = g[r * pitch : r * pitch + size]
        for i in range(size):
            target[i] += values[i]


@serial
def backward_rows(
    base: Any, how: Any, x: Any, flat_x: Any, weights: Any, residual: Any, grad: Any, flat_grad: Any, grad_x: Any,
    sums: Any, low: Any, high: Any,
) -> None:  # fmt: skip
    """Set gradients by rows ``low`` to ``high - 1``, and add those by weights to ``sums``, flat as the weights."""
    size, n_in, n_out = how[SIZE], x.shape[1], grad.shape[1]
    side, summed, pitch = min(n_in, n_out), n_in > n_out, size + SKEW
    n_blocks, most = (max(n_in, n_out) + side - 1) // side, max(1, min(how[N_ROWS], high - low))
    area = most * pitch
    kept, g, total = (
        np.empty(max(1, how[N_OUTER]) * area, np.float32),
        np.empty(area, np.float32),
        np.empty(area, np.float32),
    )
    start, end = np.empty(area, np.float32), np.empty(area, np.float32)
    spread = n_blocks > 1 and not summed
    for row in range(low, high, most):
        n_rows = min(most, high - row)
        for block in range(n_blocks):
            source, target = (block * side, 0) if summed else (0, block * side)
            n_from, n_to = min(side, n_in - source), min(side, n_out - target)
            given, known = n_from == size and len(flat_x) > 0, n_to == size and len(flat_grad) > 0
            if not given and (summed or block == 0):
                _load(x, row, source, n_from, n_rows, start, pitch, size)
            if not known and (spread or block == 0):
                _load(grad, row, target, n_to, n_rows, end, pitch, size)
            x_at, x_pitch = (row * n_in + source, n_in) if given else (0, pitch)
            grad_at, grad_pitch = (row * n_out + target, n_out) if known else (0, pitch)
            places = (x_at, x_pitch, grad_at, grad_pitch, block * (len(weights) // n_blocks))
            xs, gs = flat_x if given else start, flat_grad if known else end
            _square_backward(base, how, xs, gs, kept, g, weights, sums, places, n_rows)
            if residual:
                _add_rows(g, pitch, gs, grad_at, grad_pitch, n_rows, size)
            if spread:
                _collect(total, g, pitch, n_rows, size, block == 0)
            else:
                _store(g, pitch, n_rows, grad_x, row, source, n_from)
        if spread:
            _store(total, pitch, n_rows, grad_x, row, 0, n_in)


@parallel
def backward(
    base: Any, how: Any, x: Any, flat_x: Any, weights: Any, residual: Any, grad: Any, flat_grad: Any, grad_x: Any,
    sums: Any,
) -> None:  # fmt: skip
    """Set gradients by rows ``x`` [r, n_in] and add those by weights to the parts of ``sums`` [parts, weights].

    Each part takes a share of the rows that does not depend on the number of threads.
    """
    n, n_parts = len(x), len(sums)
    for part in prange(n_parts):
        low, high = part * n // n_parts, (part + 1) * n // n_parts
        if high > low:
            backward_rows(base, how, x, flat_x, weights, residual, grad, flat_grad, grad_x, sums[part], low, high)
