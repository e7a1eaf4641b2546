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
MASK, TWO_BITS, NIBBLE = np.uint8(15), np.uint8(3), np.uint8(4)
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


# --- products of one row ---------------------------------------------------------------------------------------


@serial
def _dot_q8_0(row: Any, x: Any) -> Any:
    total = ZERO
    for block in range(x.shape[0] // 32):
        q, v, part = row[34 * block + 2 : 34 * block + 34], x[32 * block : 32 * block + 32], ZERO
        for i in range(32):
            part += np.float32(np.int8(q[i])) * v[i]
        total += _half(row, 34 * block) * part
    return total


@serial
def _dot_q4_0(row: Any, x: Any, sums: Any) -> Any:
    total = ZERO
    for block in range(x.shape[0] // 32):
        q = row[18 * block + 2 : 18 * block + 18]
        v, w = x[32 * block : 32 * block + 16], x[32 * block + 16 : 32 * block + 32]
        part = ZERO
        for i in range(16):
            part += np.float32(np.uint8(q[i] & MASK)) * v[i] + np.float32(np.uint8(q[i] >> NIBBLE)) * w[i]
        total += _half(row, 18 * block) * (part - EIGHT * (sums[2 * block] + sums[2 * block + 1]))
    return total


@serial
def _dot_q4_k(row: Any, x: Any, sums: Any) -> Any:
    total = ZERO
    for block in range(x.shape[0] // 256):
        at = 144 * block
        d, e, scales = _half(row, at), _half(row, at + 2), row[at + 4 : at + 16]
        for pair in range(4):
            q = row[at + 16 + 32 * pair : at + 48 + 32 * pair]
            first = 256 * block + 64 * pair
            v, w = x[first : first + 32], x[first + 32 : first + 64]
            low, high = ZERO, ZERO
            for i in range(32):
                low += np.float32(np.uint8(q[i] & MASK)) * v[i]
                high += np.float32(np.uint8(q[i] >> NIBBLE)) * w[i]
            g = first // 16
            s, m = _group_scale(scales, 2 * pair)
            total += d * s * low - e * m * (sums[g] + sums[g + 1])
            s, m = _group_scale(scales, 2 * pair + 1)
            total += d * s * high - e * m * (sums[g + 2] + sums[g + 3])
    return total


@serial
def _dot_q6_k(row: Any, x: Any, sums: Any) -> Any:
    total = ZERO
    for block in range(x.shape[0] // 256):
        at, part = 210 * block, ZERO
        for group in range(16):
            half, line = group // 8, group % 8 // 2  # 128 weights; 32 of them
            start = 64 * half + 32 * (line % 2) + 16 * (group % 2)
            low = row[at + start : at + start + 16]
            start = 128 + 32 * half + 16 * (group % 2)
            high = row[at + start : at + start + 16]
            first = 256 * block + 16 * group
            v, one = x[first : first + 16], ZERO
            shift, up = np.uint8(4 * (line // 2)), np.uint8(2 * line)
            for i in range(16):
                bits = np.uint8(np.uint8(high[i] >> up) & TWO_BITS)
                one += np.float32(np.uint8(np.uint8(low[i] >> shift) & MASK) | np.uint8(bits << NIBBLE)) * v[i]
            part += np.float32(np.int8(row[at + 192 + group])) * (one - THIRTY_TWO * sums[first // 16])
        total += _half(row, at + 208) * part
    return total


@parallel
def gemv(rows: Any, code: Any, x: Any, sums: Any, out: Any, n_threads: Any) -> None:
    """Compute ``out = rows @ x``; ``code`` is the place of the type in `BLOCKS`, ``sums`` those of `group_sums`."""
    m = rows.shape[0]
    for thread in prange(n_threads):
        low, high = thread * m // n_threads, (thread + 1) * m // n_threads
        for i in range(low, high):
            if code == Q8_0:
                out[i] = _dot_q8_0(rows[i], x)
            elif code == Q4_0:
                out[i] = _dot_q4_0(rows[i], x, sums)
            elif code == Q4_K:
                out[i] = _dot_q4_k(rows[i], x, sums)
            else:
                out[i] = _dot_q6_k(rows[i], x, sums)


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
