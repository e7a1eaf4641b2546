"""Compiled matrix-vector loops over stored weights. Importing this module needs numba.

Weights come as float32, or as the bits of a 16-bit type, told apart by the array's type: uint16 holds bfloat16 and
int16 holds float16 (`typed` makes that view). All sums are float32.

Two things make one core reach four fifths of the read bandwidth, and two cores nine tenths. Rows are taken four at
a time, so that four streams are in flight and each load of the input (or output) serves four rows. And while one
group of rows is computed, block by block, the rows that are needed next are prefetched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from sandtable_kernels.compiled.conversions import bf16_to_f32, f16_to_f32
from sandtable_kernels.compiled.memory_loops import parallel, prefetch, serial

# elements computed between two bursts of prefetches; 256 was best of 256, 512, 1024 and 4096
BLOCK = 256
LINE_BYTES = 64
RELU, RELU2, IDENTITY = 0, 1, 2
ZERO = np.float32(0)


def typed(stored: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """View stored weights so that their array type tells the element type: float16 becomes int16."""
    return stored.view(np.int16) if dtype == "float16" else stored


def widen(stored: Any) -> Any:
    """Widen one stored element to float32; exists in compiled code only."""
    raise NotImplementedError("compiled code only")


@overload(widen, inline="always")
def _widen(stored: Any) -> Any:
    # numba wants the signature of `widen`, annotations included
    def from_f32(stored: Any) -> Any:
        return stored

    def from_bf16(stored: Any) -> Any:
        return bf16_to_f32(stored)

    def from_f16(stored: Any) -> Any:
        return f16_to_f32(stored)

    if isinstance(stored, types.Float):
        return from_f32
    return from_bf16 if stored == types.uint16 else from_f16


# --- four rows at a time -----------------------------------------------------------------------------------


@serial
def _dot4(a: Any, b: Any, c: Any, d: Any, x: Any) -> Any:
    s, t, u, v = ZERO, ZERO, ZERO, ZERO
    for i in range(x.shape[0]):
        s += widen(a[i]) * x[i]
        t += widen(b[i]) * x[i]
        u += widen(c[i]) * x[i]
        v += widen(d[i]) * x[i]
    return s, t, u, v


@serial
def _add4(y: Any, a: Any, b: Any, c: Any, d: Any, s: Any, t: Any, u: Any, v: Any) -> None:
    for i in range(y.shape[0]):
        y[i] += s * widen(a[i]) + t * widen(b[i]) + u * widen(c[i]) + v * widen(d[i])


@serial
def _prefetch4(rows: Any, quad: Any, start: Any, stop: Any) -> None:
    step = LINE_BYTES // rows.itemsize
    a, b, c, d = rows[quad[0]], rows[quad[1]], rows[quad[2]], rows[quad[3]]
    for i in range(start, stop, step):
        prefetch(a, i)
        prefetch(b, i)
        prefetch(c, i)
        prefetch(d, i)


@serial
def _dots(rows: Any, quad: Any, start: Any, x: Any, next_quad: Any, next_start: Any) -> Any:
    """Return four products ``rows[quad, start : start + d] @ x``, prefetching the next four vectors."""
    n = x.shape[0]
    s, t, u, v = ZERO, ZERO, ZERO, ZERO
    for low in range(0, n, BLOCK):
        high = min(low + BLOCK, n)
        _prefetch4(rows, next_quad, next_start + low, next_start + high)
        i, j = start + low, start + high
        a, b, c, d = rows[quad[0], i:j], rows[quad[1], i:j], rows[quad[2], i:j], rows[quad[3], i:j]
        ds, dt, du, dv = _dot4(a, b, c, d, x[low:high])
        s, t, u, v = s + ds, t + dt, u + du, v + dv
    return s, t, u, v


@serial
def _accumulate(y: Any, rows: Any, quad: Any, start: Any, h: Any, next_quad: Any) -> None:
    """Add ``h @ rows[quad, start : start + d]`` to ``y``, prefetching the first vectors of the next four rows."""
    n = y.shape[0]
    for low in range(0, n, BLOCK):
        high = min(low + BLOCK, n)
        _prefetch4(rows, next_quad, low, high)
        i, j = start + low, start + high
        a, b, c, d = rows[quad[0], i:j], rows[quad[1], i:j], rows[quad[2], i:j], rows[quad[3], i:j]
        _add4(y[low:high], a, b, c, d, h[0], h[1], h[2], h[3])


@serial
def _quad(index: Any, first: Any, last: Any) -> Any:
    """Return the rows at places ``first`` to ``first + 3``, the place ``last`` standing in beyond the end."""
    a, b, c, d = min(first, last), min(first + 1, last), min(first + 2, last), min(first + 3, last)
    if index is None:
        return a, b, c, d
    return index[a], index[b], index[c], index[d]


# --- GEMV --------------------------------------------------------------------------------------------------


@parallel
def gemv(weights: Any, x: Any, out: Any, n_threads: Any) -> None:
    """Compute ``out = weights @ x`` for [m, k] and [k]."""
    m = weights.shape[0]
    for thread in prange(n_threads):
        low, high = thread * m // n_threads, (thread + 1) * m // n_threads
        for row in range(low, high, 4):
            quad = _quad(None, row, high - 1)
            sums = _dots(weights, quad, 0, x, _quad(None, row + 4, high - 1), 0)
            for i in range(min(4, high - row)):
                out[row + i] = sums[i]


@serial
def decode_serial(stored: Any, out: Any) -> None:
    """Widen ``stored`` [n] to float32 ``out`` [n] on the calling thread: the one to use between BLAS calls."""
    for i in range(out.shape[0]):
        out[i] = widen(stored[i])


@parallel
def decode(stored: Any, out: Any, n_threads: Any) -> None:
    """Widen ``stored`` [n] to float32 ``out`` [n]."""
    n = stored.shape[0]
    for thread in prange(n_threads):
        low, high = thread * n // n_threads, (thread + 1) * n // n_threads
        decode_serial(stored[low:high], out[low:high])


# --- sparse FFN --------------------------------------------------------------------------------------------


@serial
def _activate(value: Any, activation: Any) -> Any:
    if activation == IDENTITY:
        return value
    positive = max(value, ZERO)
    return positive * positive if activation == RELU2 else positive


@serial
def _hidden(up: Any, gate: Any, bias: Any, quad: Any, n_left: Any, activation: Any, gated: Any) -> Any:
    """Return the four hidden activations; zero for places beyond the end, which repeat the last row."""
    h0 = _activate((gate[0] if gated else up[0]) + bias[quad[0]], activation)
    h1 = _activate((gate[1] if gated else up[1]) + bias[quad[1]], activation) if n_left > 1 else ZERO
    h2 = _activate((gate[2] if gated else up[2]) + bias[quad[2]], activation) if n_left > 2 else ZERO
    h3 = _activate((gate[3] if gated else up[3]) + bias[quad[3]], activation) if n_left > 3 else ZERO
    if gated:
        return h0 * up[0], h1 * up[1], h2 * up[2], h3 * up[3]
    return h0, h1, h2, h3


@serial
def _ffn_share(
    rows: Any, index: Any, low: Any, high: Any, x: Any, bias: Any, activation: Any, gated: Any, y: Any
) -> None:
    """Sum the contributions of places ``low`` to ``high`` into ``y`` [d]."""
    d = x.shape[0]
    y[:] = ZERO
    for place in range(low, high, 4):
        quad = _quad(index, place, high - 1)
        up = _dots(rows, quad, 0, x, quad, d)
        gate = _dots(rows, quad, d, x, quad, 2 * d) if gated else up
        h = _hidden(up, gate, bias, quad, high - place, activation, gated)
        _accumulate(y, rows, quad, 2 * d if gated else d, h, _quad(index, place + 4, high - 1))


@parallel
def sparse_ffn(
    rows: Any, index: Any, n: Any, x: Any, bias: Any, activation: Any, gated: Any, out: Any, n_threads: Any
) -> None:
    """Compute the FFN over ``n`` places of ``rows``, each thread into a sum of its own."""
    parts = np.empty((n_threads, x.shape[0]), np.float32)
    for thread in prange(n_threads):
        low, high = thread * n // n_threads, (thread + 1) * n // n_threads
        _ffn_share(rows, index, low, high, x, bias, activation, gated, parts[thread])
    for i in range(x.shape[0]):
        total = ZERO
        for thread in range(n_threads):
            total += parts[thread, i]
        out[i] = total


# --- attention ---------------------------------------------------------------------------------------------


@serial
def _score(q: Any, keys: Any, low: Any, high: Any, scores: Any) -> None:
    """Set ``scores[h, t]`` to the product of query ``h`` and key ``t``, four positions at a time."""
    group = q.shape[0] // keys.shape[1]
    for t in range(low, high, 4):
        i, j, k, m = t, min(t + 1, high - 1), min(t + 2, high - 1), min(t + 3, high - 1)
        for g in range(keys.shape[1]):
            a, b, c, d = keys[i, g], keys[j, g], keys[k, g], keys[m, g]
            for h in range(g * group, (g + 1) * group):
                # the last position stands in beyond the end: it is written again with its own score
                scores[h, i], scores[h, j], scores[h, k], scores[h, m] = _dot4(a, b, c, d, q[h])


@serial
def _weigh(scores: Any, scale: Any) -> Any:
    """Turn ``scores`` [t] into ``exp(scale * (score - largest))``; return scaled largest and sum."""
    if scores.shape[0] == 0:
        return np.float32(-np.inf), ZERO
    peak, total = scores.max(), ZERO
    for t in range(scores.shape[0]):
        scores[t] = np.exp(scale * (scores[t] - peak))
        total += scores[t]
    return scale * peak, total


@serial
def _mix(values: Any, low: Any, high: Any, scores: Any, sums: Any) -> None:
    """Set ``sums[h]`` to the values of positions ``low`` to ``high``, weighted by ``scores[h]``."""
    group = sums.shape[0] // values.shape[1]
    sums[:] = ZERO
    for t in range(low, high, 4):
        i, j, k, m = t, min(t + 1, high - 1), min(t + 2, high - 1), min(t + 3, high - 1)
        for g in range(values.shape[1]):
            a, b, c, d = values[i, g], values[j, g], values[k, g], values[m, g]
            for h in range(g * group, (g + 1) * group):
                w = scores[h]
                s, u, v = w[j] if j > i else ZERO, w[k] if k > j else ZERO, w[m] if m > k else ZERO
                _add4(sums[h], a, b, c, d, w[i], s, u, v)


@serial
def _merge(peaks: Any, totals: Any, sums: Any, out: Any) -> None:
    """Add the threads' shares, each rescaled to the largest score of all; serial, for it is short."""
    for h in range(out.shape[0]):
        peak, total = peaks[:, h].max(), ZERO
        out[h, :] = ZERO
        for thread in range(len(sums)):
            weight = np.exp(peaks[thread, h] - peak)
            total += weight * totals[thread, h]
            for i in range(out.shape[1]):
                out[h, i] += weight * sums[thread, h, i]
        for i in range(out.shape[1]):
            out[h, i] /= total


@parallel
def attend(q: Any, keys: Any, values: Any, n_ctx: Any, out: Any, scores: Any, n_threads: Any) -> None:
    """Attend from one token to ``n_ctx`` positions; ``scores`` [heads, positions] is scratch.

    Positions are split over threads, so that one key-value head (MQA) is no slower than many; the shares are
    merged by rescaling each to the largest score of all.
    """
    n_heads, head_dim = q.shape
    scale = np.float32(1 / np.sqrt(head_dim))
    peaks = np.empty((n_threads, n_heads), np.float32)
    totals = np.empty((n_threads, n_heads), np.float32)
    sums = np.empty((n_threads, n_heads, head_dim), np.float32)
    for thread in prange(n_threads):
        low, high = thread * n_ctx // n_threads, (thread + 1) * n_ctx // n_threads
        _score(q, keys, low, high, scores)
        for h in range(n_heads):
            peaks[thread, h], totals[thread, h] = _weigh(scores[h, low:high], scale)
        _mix(values, low, high, scores, sums[thread])
    _merge(peaks, totals, sums, out)
