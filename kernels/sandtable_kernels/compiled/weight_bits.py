"""The generator of `sandtable_kernels.files.weights`, compiled. Importing this module needs numba.

Everything stays in 32 bits, so that the loops vectorise; fast-math is off, so that the bits are those of NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from sandtable_kernels.compiled.conversions import f32_to_bf16, f32_to_f16
from sandtable_kernels.files import weights

_M1 = np.uint32(weights.MULTIPLIER_1)
_M2 = np.uint32(weights.MULTIPLIER_2)
_BLOCK = 2048  # floats on the way to 16 bits: small enough for the first cache
_LOW = (1 << 32) - 1


def fill_rows(out: Any, dtype: str, *, seed: int, first_index: int, stride: int, scale: float) -> None:
    """Fill ``out`` [n_rows, n_items] without the GIL; row r starts at index ``first_index + r * stride``."""
    n_rows, n_items = out.shape
    step = weights.step_of(scale)
    last = first_index + max(0, n_rows - 1) * stride + n_items
    parts = np.array([weights.keys(seed, high) for high in range(first_index >> 32, (last >> 32) + 1)], np.uint32)
    if dtype == "float32":
        _fill_32(out, first_index, stride, parts, step)
    else:
        _fill_16(out, first_index, stride, parts, step, dtype == "float16")


@njit(nogil=True, cache=True)
def _uniform(out: Any, low: Any, key_1: Any, key_2: Any, step: Any) -> None:
    for i in range(len(out)):
        x = np.uint32(np.uint32(low + np.uint32(i)) ^ key_1)
        x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
        x = np.uint32(x * _M1)
        x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
        x = np.uint32(x + key_2)
        x = np.uint32(x * _M2)
        x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
        out[i] = (np.float32(np.int32(x >> np.uint32(8))) - np.float32(8388608.0)) * step


@njit(nogil=True, cache=True)
def _fill_span(out: Any, index: Any, parts: Any, first_part: Any, step: Any) -> None:
    done = 0
    while done < len(out):  # the keys change where the low half of the index wraps around
        low = (index + done) & _LOW
        n = min(len(out) - done, _LOW + 1 - low)
        part = ((index + done) >> 32) - first_part
        _uniform(out[done : done + n], np.uint32(low), parts[part, 0], parts[part, 1], step)
        done += n


@njit(nogil=True, cache=True)
def _fill_32(out: Any, first_index: Any, stride: Any, parts: Any, step: Any) -> None:
    for row in range(out.shape[0]):
        _fill_span(out[row], first_index + row * stride, parts, first_index >> 32, step)


@njit(nogil=True, cache=True)
def _fill_16(out: Any, first_index: Any, stride: Any, parts: Any, step: Any, half: Any) -> None:
    block = np.empty(_BLOCK, np.float32)
    for row in range(out.shape[0]):
        for start in range(0, out.shape[1], _BLOCK):
            n = min(_BLOCK, out.shape[1] - start)
            wide, narrow = block[:n], out[row, start : start + n]
            _fill_span(wide, first_index + row * stride + start, parts, first_index >> 32, step)
            if half:
                for i in range(n):
                    narrow[i] = f32_to_f16(wide[i])
            else:
                for i in range(n):
                    narrow[i] = f32_to_bf16(wide[i])
