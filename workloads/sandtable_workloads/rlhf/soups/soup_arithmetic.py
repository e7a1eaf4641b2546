"""Averages of stored elements: compiled where numba is installed, in NumPy otherwise, with the same bits.

Elements of 16 bits are added up in float32, in the order of the models, and rounded once, to nearest even; those of 32
bits that stay as wide, and of 64, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sandtable_kernels.files import dtypes

# names of types in checkpoints, and here
NAMES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# elements whose sum stays in the cache of a core until it is rounded
_TILE: Final = 1 << 15

Array = np.ndarray[Any, Any]


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy type in which a checkpoint's type is held: bits of 16-bit types."""
    return np.dtype(np.float64) if dtype == "F64" else dtypes.storage_dtype(NAMES[dtype])


def accumulator(in_dtype: str, out_dtype: str) -> np.dtype[Any]:
    """Return the type in which elements are added up."""
    wide = "F64" in (in_dtype, out_dtype) or in_dtype == out_dtype == "F32"
    return np.dtype(np.float64 if wide else np.float32)


def average(out: Array, inputs: Sequence[Array], weights: Sequence[float], in_dtype: str, out_dtype: str) -> bool:
    """Write the weighted sum of ``inputs`` [n] to ``out`` [n]; return whether all of it is finite.

    Args:
        out: Of `stored_dtype` of ``out_dtype``.
        inputs: One array for each model, of `stored_dtype` of ``in_dtype``.
        weights: One for each model.
        in_dtype: Type of the models, by its name in checkpoints.
        out_dtype: That of the sum.
    """
    loops = _loops()
    kind = accumulator(in_dtype, out_dtype)
    factors = [kind.type(weight) for weight in weights]
    total = np.empty(min(_TILE, len(out)), kind)
    finite = True
    for start in range(0, len(out), _TILE):
        part = total[: min(_TILE, len(out) - start)]
        part[:] = -0.0  # so that -0 stays what it is
        span = slice(start, start + len(part))
        for stored, factor in zip(inputs, factors, strict=True):
            _add(loops, part, stored[span], factor, in_dtype)
        finite &= _round(loops, out[span], part, out_dtype)
    return finite


def warm_up(in_dtype: str, out_dtype: str) -> None:
    """Load what is compiled for these types, so that neither a pass's time nor its memory holds that."""
    average(np.zeros(1, stored_dtype(out_dtype)), [np.zeros(1, stored_dtype(in_dtype))], [1.0], in_dtype, out_dtype)


def widened(stored: Array, dtype: str) -> npt.NDArray[Any]:
    """Return stored elements as float32, or float64 where they are."""
    return stored if dtype == "F64" else dtypes.decode(stored, NAMES[dtype])


def _add(loops: Any, total: Array, stored: Array, weight: Any, dtype: str) -> None:
    if loops is None or dtype == "F64":
        with np.errstate(all="ignore"):  # what is not finite is found by whoever asks
            total += weight * widened(stored, dtype)
    else:
        {"F32": loops.add_f32, "F16": loops.add_f16, "BF16": loops.add_bf16}[dtype](total, stored, weight)


def _round(loops: Any, out: Array, total: Array, dtype: str) -> bool:
    if loops is not None and dtype != "F64":
        return bool({"F32": loops.round_f32, "F16": loops.round_f16, "BF16": loops.round_bf16}[dtype](out, total))
    with np.errstate(over="ignore"):
        out[:] = total if dtype == "F64" else dtypes.encode(total.astype(np.float32), NAMES[dtype])
    return bool(np.isfinite(widened(out, dtype)).all())


@lru_cache(maxsize=1)
def _loops() -> Any:
    try:
        from sandtable_workloads.rlhf.soups import soup_loops
    except ImportError:  # numba is an extra
        return None
    return soup_loops
