"""Weights that are a function of (seed, element index), so that any of them can be recomputed without the file.

An element's 24 random bits come from a 32-bit integer hash of the low half of its index (the multiply-and-shift
rounds of "lowbias32", C. Wellons, https://github.com/skeeto/hash-prospector), keyed twice by a splitmix64 hash of the
seed and the high half. They are spread evenly over [-scale, scale) and rounded to the stored type. The compiled and
the NumPy version give identical bits; statistics matter little here, reproducibility and speed do.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError
from sandtable_kernels.files import dtypes

GENERATOR: Final = "keyed-lowbias32-uniform/1"
MULTIPLIER_1: Final = 0x7FEB352D
MULTIPLIER_2: Final = 0x846CA68B
_HALF: Final = 1 << 32
_MASK64: Final = (1 << 64) - 1
_PARALLEL_ITEMS: Final = 1 << 18


def fill(
    out: np.ndarray[Any, Any],
    dtype: str,
    seed: int,
    first_index: int,
    scale: float,
    *,
    row_stride: int | None = None,
    n_threads: int | None = None,
) -> None:
    """Fill ``out``, in place, with the weights of consecutive elements.

    Args:
        out: [n] or [n_rows, n_items], of `dtypes.storage_dtype(dtype)`; items of a row must be contiguous.
        dtype: "float32", "bfloat16" or "float16".
        seed: Any integer.
        first_index: Index of the first element, at least 0.
        scale: Weights lie in [-scale, scale).
        row_stride: Elements between the first ones of two rows; None means that rows follow each other.
        n_threads: Threads; None means one per usable core for large arrays.

    Raises:
        ConfigError: an array of another type or shape, or a negative index.
    """
    rows = _as_rows(out, dtype, first_index)
    stride = rows.shape[1] if row_stride is None else row_stride
    try:
        from sandtable_kernels.compiled import weight_bits
    except ImportError:
        rows[...] = _reference(rows.shape, dtype, seed, first_index, scale, stride)
        return
    work = [
        (rows[a:b, c:d], first_index + a * stride + c)
        for a, b, c, d in _shares(rows.shape, _threads(rows.size, n_threads))
    ]

    def fill_share(share: tuple[np.ndarray[Any, Any], int]) -> None:
        weight_bits.fill_rows(share[0], dtype, seed=seed, first_index=share[1], stride=stride, scale=scale)

    if len(work) == 1:
        fill_share(work[0])
        return
    with ThreadPoolExecutor(len(work)) as pool:
        list(pool.map(fill_share, work))


def reference(n: int, dtype: str, seed: int, first_index: int, scale: float) -> np.ndarray[Any, Any]:
    """Return the ``n`` stored weights from ``first_index`` on, computed plainly in NumPy."""
    flat: np.ndarray[Any, Any] = _reference((1, n), dtype, seed, first_index, scale, n)[0]
    return flat


def keys(seed: int, high: int) -> tuple[int, int]:
    """Return the two 32-bit keys of the elements whose index has ``high`` as its upper 32 bits."""
    word = _splitmix64(_splitmix64(seed & _MASK64) + high)
    return word & (_HALF - 1), word >> 32


def _reference(
    shape: tuple[int, ...], dtype: str, seed: int, first_index: int, scale: float, stride: int
) -> np.ndarray[Any, Any]:
    starts = first_index + np.arange(shape[0], dtype=np.uint64) * np.uint64(stride)
    index = starts[:, None] + np.arange(shape[1], dtype=np.uint64)[None, :]
    high = (index >> np.uint64(32)).astype(np.int64)
    values = np.empty(shape, np.float32)
    for part in np.unique(high):
        here = high == part
        values[here] = _uniform(index[here].astype(np.uint32), *keys(seed, int(part)), scale)
    return dtypes.encode(values, dtype)


def _uniform(low: npt.NDArray[np.uint32], key_1: int, key_2: int, scale: float) -> npt.NDArray[np.float32]:
    x = low ^ np.uint32(key_1)
    x ^= x >> np.uint32(16)
    x *= np.uint32(MULTIPLIER_1)
    x ^= x >> np.uint32(15)
    x += np.uint32(key_2)
    x *= np.uint32(MULTIPLIER_2)
    x ^= x >> np.uint32(16)
    # 24 bits convert, and shift by 2^23, without rounding; only the product rounds
    centred = (x >> np.uint32(8)).astype(np.float32) - np.float32(1 << 23)
    return centred * step_of(scale)


def step_of(scale: float) -> np.float32:
    """Return the distance between neighbouring values, before rounding to the stored type."""
    return np.float32(scale / (1 << 23))


def _splitmix64(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def _as_rows(out: np.ndarray[Any, Any], dtype: str, first_index: int) -> np.ndarray[Any, Any]:
    rows = out[None, :] if out.ndim == 1 else out
    if rows.ndim != 2 or rows.dtype != dtypes.storage_dtype(dtype):
        raise ConfigError(
            f"{dtype} weights fill one or two dimensions of {dtypes.storage_dtype(dtype)}, "
            f"not {out.dtype}{list(out.shape)}"
        )
    if rows.strides[1] != rows.itemsize and rows.shape[1] > 1:
        raise ConfigError("weights fill rows whose items are contiguous")
    if first_index < 0:
        raise ConfigError(f"an element's index is at least 0, not {first_index}")
    return rows


def _threads(n_items: int, n_threads: int | None) -> int:
    if n_threads is not None:
        return max(1, n_threads)
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(usable, n_items // _PARALLEL_ITEMS))


def _shares(shape: tuple[int, ...], n: int) -> list[tuple[int, int, int, int]]:
    """Split rows, or the items of a single row, into ``n`` ranges (row a to b, item c to d)."""
    n_rows, n_items = shape
    if n_rows == 1:
        cuts = [n_items * i // n for i in range(n + 1)]
        return [(0, 1, c, d) for c, d in itertools.pairwise(cuts)]
    cuts = [n_rows * i // n for i in range(n + 1)]
    return [(a, b, 0, n_items) for a, b in itertools.pairwise(cuts) if b > a]
