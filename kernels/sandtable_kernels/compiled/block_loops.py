"""Compiled products with weights in blocks; see `sandtable_kernels.files.blocks`. Importing this module needs numba.

Rows come as bytes. What a block subtracts from every weight (8, 32, or its minimum) is taken off once per group: times
the sum of the inputs that the group meets, which is found once for all rows. Sums are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from sandtable_kernels.compiled.conversions import f16_to_f32
from sandtable_kernels.compiled.memory_loops import parallel, serial
from sandtable_kernels.files.blocks import BLOCKS

Q8_0, Q4_0, Q4_K, Q6_K = range(4)
ZERO = np.float32(0)
# typed, so that compiled arithmetic stays as narrow as the bytes are
MASK, TWO_BITS = np.uint8(15), np.uint8(3)
TWO, NIBBLE, SIX = np.uint8(2), np.uint8(4), np.uint8(6)
EIGHT, THIRTY_TWO = np.float32(8), np.float32(32)
assert BLOCKS == ("q8_0", "q4_0", "q4_K", "q6_K")


@serial
def _half(row: Any, at: Any) -> Any:
    return f16_to_f32(np.uint16(row[at]) | np.uint16(np.uint16(row[at + 1]) << np.uint16(8)))


@serial
def _group_scale(scales: Any, j: Any) -> Any:
    """Return the 6-bit scale and minimum of group ``j`` of a block of q4_K."""
    if j < 4:
        return np.float32(scales[j] & 63), np.float32(scales[j + 4] & 63)
    s = (scales[j + 4] & 15) | ((scales[j - 4] >> 6) << 4)
    m = (scales[j + 4] >> 4) | ((scales[j] >> 6) << 4)
    return np.float32(s), np.float32(m)


@serial
def group_sums(x: Any, sums: Any) -> None:
    """Set ``sums`` [k / 16] to the sums of 16 inputs each."""
    for i in range(sums.shape[0]):
        total = ZERO
        for j in range(16 * i, 16 * i + 16):
            total += x[j]
        sums[i] = total


# --- products of four rows -------------------------------------------------------------------------------------
# Four at a time share each load of the input, and their sums do not wait for each other.


@serial
def _dots_q8_0(a: Any, b: Any, c: Any, d: Any, x: Any) -> Any:
    s, t, u, w = ZERO, ZERO, ZERO, ZERO
    for block in range(x.shape[0] // 32):
        at = 34 * block
        p, q, r, o = a[at + 2 : at + 34], b[at + 2 : at + 34], c[at + 2 : at + 34], d[at + 2 : at + 34]
        v = x[32 * block : 32 * block + 32]
        e, f, g, h = ZERO, ZERO, ZERO, ZERO
        for i in range(32):
            e += np.float32(np.int8(p[i])) * v[i]
            f += np.float32(np.int8(q[i])) * v[i]
            g += np.float32(np.int8(r[i])) * v[i]
            h += np.float32(np.int8(o[i])) * v[i]
        s += _half(a, at) * e
        t += _half(b, at) * f
        u += _half(c, at) * g
        w += _half(d, at) * h
    return s, t, u, w


@serial
def _low(byte: Any) -> Any:
    return np.float32(np.uint8(byte & MASK))


@serial
def _high(byte: Any) -> Any:
    return np.float32(np.uint8(byte >> NIBBLE))


@serial
def _dots_q4_0(a: Any, b: Any, c: Any, d: Any, x: Any, sums: Any) -> Any:
    s, t, u, w = ZERO, ZERO, ZERO, ZERO
    for block in range(x.shape[0] // 32):
        at, first = 18 * block, 32 * block
        p, q, r, o = a[at + 2 : at + 18], b[at + 2 : at + 18], c[at + 2 : at + 18], d[at + 2 : at + 18]
        v, z = x[first : first + 16], x[first + 16 : first + 32]
        e, f, g, h = ZERO, ZERO, ZERO, ZERO
        for i in range(16):
            e += _low(p[i]) * v[i] + _high(p[i]) * z[i]
            f += _low(q[i]) * v[i] + _high(q[i]) * z[i]
            g += _low(r[i]) * v[i] + _high(r[i]) * z[i]
            h += _low(o[i]) * v[i] + _high(o[i]) * z[i]
        offset = EIGHT * (sums[2 * block] + sums[2 * block + 1])
        s += _half(a, at) * (e - offset)
        t += _half(b, at) * (f - offset)
        u += _half(c, at) * (g - offset)
        w += _half(d, at) * (h - offset)
    return s, t, u, w


@serial
def _pair_q4_k(row: Any, at: Any, pair: Any, low: Any, high: Any, of_low: Any, of_high: Any) -> Any:
    """Return what two groups of a block add, of their products with the inputs and the sums of those."""
    d, e, scales = _half(row, at), _half(row, at + 2), row[at + 4 : at + 16]
    s, m = _group_scale(scales, 2 * pair)
    t, n = _group_scale(scales, 2 * pair + 1)
    return d * (s * low + t * high) - e * (m * of_low + n * of_high)


@serial
def _dots_q4_k(a: Any, b: Any, c: Any, d: Any, x: Any, sums: Any) -> Any:
    s, t, u, w = ZERO, ZERO, ZERO, ZERO
    for block in range(x.shape[0] // 256):
        at = 144 * block
        for pair in range(4):
            start, end, first = at + 16 + 32 * pair, at + 48 + 32 * pair, 256 * block + 64 * pair
            p, q, r, o = a[start:end], b[start:end], c[start:end], d[start:end]
            v, z = x[first : first + 32], x[first + 32 : first + 64]
            e, f, g, h = ZERO, ZERO, ZERO, ZERO
            e_high, f_high, g_high, h_high = ZERO, ZERO, ZERO, ZERO
            for i in range(32):
                e += _low(p[i]) * v[i]
                e_high += _high(p[i]) * z[i]
                f += _low(q[i]) * v[i]
                f_high += _high(q[i]) * z[i]
                g += _low(r[i]) * v[i]
                g_high += _high(r[i]) * z[i]
                h += _low(o[i]) * v[i]
                h_high += _high(o[i]) * z[i]
            group = first // 16
            of_low, of_high = sums[group] + sums[group + 1], sums[group + 2] + sums[group + 3]
            s += _pair_q4_k(a, at, pair, e, e_high, of_low, of_high)
            t += _pair_q4_k(b, at, pair, f, f_high, of_low, of_high)
            u += _pair_q4_k(c, at, pair, g, g_high, of_low, of_high)
            w += _pair_q4_k(d, at, pair, h, h_high, of_low, of_high)
    return s, t, u, w


# --- products of one row ---------------------------------------------------------------------------------------


@serial
def _six(low: Any, bits: Any) -> Any:
    return np.float32(np.uint8(np.uint8(low & MASK) | np.uint8(np.uint8(bits & TWO_BITS) << NIBBLE)))


@serial
def _dot_q6_k(row: Any, x: Any, sums: Any) -> Any:
    """Four groups of 16 at a time: the low and high halves of two runs of bytes, with one run of high bits."""
    total = ZERO
    for block in range(x.shape[0] // 256):
        at, part = 210 * block, ZERO
        for run in range(4):
            half, side = run // 2, run % 2
            i, j = at + 64 * half + 16 * side, at + 128 + 32 * half + 16 * side
            p, q, bits = row[i : i + 16], row[i + 32 : i + 48], row[j : j + 16]
            first = 256 * block + 128 * half + 16 * side
            v, w = x[first : first + 16], x[first + 32 : first + 48]
            y, z = x[first + 64 : first + 80], x[first + 96 : first + 112]
            e, f, g, h = ZERO, ZERO, ZERO, ZERO
            for i in range(16):
                e += _six(p[i], bits[i]) * v[i]
                f += _six(q[i], np.uint8(bits[i] >> TWO)) * w[i]
                g += _six(np.uint8(p[i] >> NIBBLE), np.uint8(bits[i] >> NIBBLE)) * y[i]
                h += _six(np.uint8(q[i] >> NIBBLE), np.uint8(bits[i] >> SIX)) * z[i]
            group, scale = first // 16, at + 192 + 8 * half + side
            part += np.float32(np.int8(row[scale])) * (e - THIRTY_TWO * sums[group])
            part += np.float32(np.int8(row[scale + 2])) * (f - THIRTY_TWO * sums[group + 2])
            part += np.float32(np.int8(row[scale + 4])) * (g - THIRTY_TWO * sums[group + 4])
            part += np.float32(np.int8(row[scale + 6])) * (h - THIRTY_TWO * sums[group + 6])
        total += _half(row, at + 208) * part
    return total


@serial
def _share(rows: Any, code: Any, x: Any, sums: Any, out: Any, low: Any, high: Any) -> None:
    """Compute the products of rows ``low`` to ``high``; the last row stands in beyond the end."""
    for i in range(low, high, 4):
        last = high - 1
        a, b, c, d = rows[i], rows[min(i + 1, last)], rows[min(i + 2, last)], rows[min(i + 3, last)]
        if code == Q8_0:
            found = _dots_q8_0(a, b, c, d, x)
        elif code == Q4_0:
            found = _dots_q4_0(a, b, c, d, x, sums)
        elif code == Q4_K:
            found = _dots_q4_k(a, b, c, d, x, sums)
        else:
            found = _dot_q6_k(a, x, sums), _dot_q6_k(b, x, sums), _dot_q6_k(c, x, sums), _dot_q6_k(d, x, sums)
        for j in range(min(4, high - i)):
            out[i + j] = found[j]


@parallel
def gemv(rows: Any, code: Any, x: Any, sums: Any, out: Any, n_threads: Any) -> None:
    """Compute ``out = rows @ x``; ``code`` is the place of the type in `BLOCKS`, ``sums`` those of `group_sums`."""
    m = rows.shape[0]
    for thread in prange(n_threads):
        _share(rows, code, x, sums, out, thread * m // n_threads, (thread + 1) * m // n_threads)


# --- widening --------------------------------------------------------------------------------------------------


@serial
def _widen_q4_k(block: Any, out: Any) -> None:
    d, e = _half(block, 0), _half(block, 2)
    for pair in range(4):
        s, m = _group_scale(block[4:16], 2 * pair)
        t, n = _group_scale(block[4:16], 2 * pair + 1)
        for i in range(32):
            q = block[16 + 32 * pair + i]
            out[64 * pair + i] = d * s * np.float32(np.uint8(q & MASK)) - e * m
            out[64 * pair + 32 + i] = d * t * np.float32(np.uint8(q >> NIBBLE)) - e * n


@serial
def _widen_q6_k(block: Any, out: Any) -> None:
    d = _half(block, 208)
    for group in range(16):
        half, line = group // 8, group % 8 // 2
        low, high = 64 * half + 32 * (line % 2) + 16 * (group % 2), 128 + 32 * half + 16 * (group % 2)
        scale = d * np.float32(np.int8(block[192 + group]))
        shift, up = 4 * (line // 2), 2 * line
        for i in range(16):
            q = ((block[low + i] >> shift) & 15) | (((block[high + i] >> up) & 3) << 4)
            out[16 * group + i] = scale * (np.float32(q) - THIRTY_TWO)


@serial
def decode_rows(rows: Any, code: Any, out: Any) -> None:
    """Widen rows of blocks to float32 ``out`` [m, k] on the calling thread: the one to use between BLAS calls."""
    for r in range(rows.shape[0]):
        row, wide = rows[r], out[r]
        if code == Q8_0:
            for block in range(wide.shape[0] // 32):
                d = _half(row, 34 * block)
                for i in range(32):
                    wide[32 * block + i] = d * np.float32(np.int8(row[34 * block + 2 + i]))
        elif code == Q4_0:
            for block in range(wide.shape[0] // 32):
                d = _half(row, 18 * block)
                for i in range(16):
                    q = row[18 * block + 2 + i]
                    wide[32 * block + i] = d * (np.float32(np.uint8(q & MASK)) - EIGHT)
                    wide[32 * block + 16 + i] = d * (np.float32(np.uint8(q >> NIBBLE)) - EIGHT)
        elif code == Q4_K:
            for block in range(wide.shape[0] // 256):
                _widen_q4_k(row[144 * block : 144 * block + 144], wide[256 * block : 256 * block + 256])
        else:
            for block in range(wide.shape[0] // 256):
                _widen_q6_k(row[210 * block : 210 * block + 210], wide[256 * block : 256 * block + 256])
