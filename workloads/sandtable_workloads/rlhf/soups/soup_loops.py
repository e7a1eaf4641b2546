"""The arithmetic of a soup, compiled: elements are widened, weighted and added up, and rounded once. Needs numba.

Fast-math is off: the bits are those of NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from sandtable_kernels.compiled.conversions import bf16_to_f32, f16_to_f32, f32_bits, f32_to_bf16, f32_to_f16

_EXPONENT = np.uint32(0x7F800000)


@njit(nogil=True, cache=True)
def add_f16(total: Any, stored: Any, weight: Any) -> None:
    """Add ``weight`` times float16 ``stored`` (its bits) to ``total``."""
    for i in range(len(total)):
        total[i] += weight * f16_to_f32(stored[i])


@njit(nogil=True, cache=True)
def add_bf16(total: Any, stored: Any, weight: Any) -> None:
    """Add ``weight`` times bfloat16 ``stored`` (its bits) to ``total``."""
    for i in range(len(total)):
        total[i] += weight * bf16_to_f32(stored[i])


@njit(nogil=True, cache=True)
def add_f32(total: Any, stored: Any, weight: Any) -> None:
    """Add ``weight`` times ``stored`` to ``total``."""
    for i in range(len(total)):
        total[i] += weight * stored[i]


@njit(nogil=True, cache=True)
def round_f16(out: Any, total: Any) -> Any:
    """Round to the bits of float16; return whether all are finite."""
    bad = np.uint16(0)
    for i in range(len(total)):
        bits = f32_to_f16(np.float32(total[i]))
        out[i] = bits
        bad |= np.uint16((bits & np.uint16(0x7C00)) == np.uint16(0x7C00))
    return bad == 0


@njit(nogil=True, cache=True)
def round_bf16(out: Any, total: Any) -> Any:
    """Round to the bits of bfloat16; return whether all are finite."""
    bad = np.uint16(0)
    for i in range(len(total)):
        value = np.float32(total[i])
        bits = f32_to_bf16(value)
        # the carry of rounding would turn some NaNs into zero
        if value != value:  # noqa: PLR0124
            bits = np.uint16(0x7FC0)
        out[i] = bits
        bad |= np.uint16((bits & np.uint16(0x7F80)) == np.uint16(0x7F80))
    return bad == 0


@njit(nogil=True, cache=True)
def round_f32(out: Any, total: Any) -> Any:
    """Round to float32; return whether all are finite."""
    bad = np.uint32(0)
    for i in range(len(total)):
        value = np.float32(total[i])
        out[i] = value
        bad |= np.uint32((f32_bits(value) & _EXPONENT) == _EXPONENT)
    return bad == 0
