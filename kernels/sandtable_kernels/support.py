"""What several kernels share: the compiled path on demand, weights that are cold, seeded data.

A token passes every layer once, so the weights of a layer are never in the processor's cache when its turn comes.
A benchmark that reads one matrix again and again measures the cache instead. Kernels here therefore cycle through a
pool of equal buffers of at least four last-level caches (`cold_copies`).
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sandtable.errors import missing_extra
from sandtable.system import limits
from sandtable_kernels.files.blocks import BLOCKS, random_blocks
from sandtable_kernels.files.buffers import aligned_empty
from sandtable_kernels.files.dtypes import encode, row_bytes, storage_dtype

Array = np.ndarray[Any, Any]
F32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
T = TypeVar("T")

DEFAULT_CACHE_BYTES = 32 << 20
POOL_LIMIT_BYTES = 600_000_000


@lru_cache(maxsize=8)
def compiled(module: str) -> Any:
    """Import a module of compiled loops, such as "linear_loops".

    Raises:
        NoDevice: numba is not installed.
    """
    try:
        return importlib.import_module(f"sandtable_kernels.compiled.{module}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] in ("numba", "llvmlite"):
            raise missing_extra("numba", "run") from error
        raise


@lru_cache(maxsize=1)
def last_level_cache_bytes() -> int:
    """Return the size of the largest cache of the first core, in bytes; 32 MiB where it is not told."""
    return limits.last_level_cache_bytes() or DEFAULT_CACHE_BYTES


def cold_copies(n_bytes: float, *, limit_bytes: float = POOL_LIMIT_BYTES) -> int:
    """Return how many buffers of ``n_bytes`` to cycle through so that each is cold when its turn comes."""
    wanted = math.ceil(4 * last_level_cache_bytes() / n_bytes) + 1
    return max(1, min(wanted, int(limit_bytes / n_bytes)))


def seeded(shape: Sequence[int], seed: int, *, scale: float = 1.0) -> F32:
    """Return normal float32 values of standard deviation ``scale``."""
    values = np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)
    return values * np.float32(scale)


def seeded_weights(shape: Sequence[int], dtype: str, seed: int) -> Array:
    """Return stored weights (`storage_dtype`) with the usual spread, 1 over the root of the last dimension."""
    return encode(seeded(shape, seed, scale=1 / math.sqrt(shape[-1])), dtype)


def cold_weights(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Return a pool of stored weights [copies, *shape], page-aligned, of more than four last-level caches.

    All copies hold the same repeated values: only where they lie matters for time, and drawing gigabytes of random
    numbers would take longer than the measurement.
    """
    if dtype in BLOCKS:
        return _cold_blocks(shape, dtype, seed)
    n_items = math.prod(shape)
    pool = aligned_empty((cold_copies(n_items * storage_dtype(dtype).itemsize), *shape), storage_dtype(dtype))
    tile = encode(seeded((min(pool.size, 1 << 18),), seed, scale=1 / math.sqrt(shape[-1])), dtype)
    flat = pool.reshape(-1)
    whole = flat.size // tile.size * tile.size
    flat[:whole].reshape(-1, tile.size)[:] = tile
    flat[whole:] = tile[: flat.size - whole]
    return pool


def _cold_blocks(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Return such a pool of weights in blocks, uint8 [copies, ..., bytes of a row]."""
    one: Array = random_blocks(
        math.prod(shape[:-1]) * row_bytes(dtype, shape[-1]), dtype, seed, 1 / math.sqrt(shape[-1])
    )
    pool: Array = aligned_empty((cold_copies(one.nbytes), *shape[:-1], row_bytes(dtype, shape[-1])), np.uint8)
    pool[:] = one.reshape(pool.shape[1:])
    return pool


@contextmanager
def cycling(pool: Sequence[T] | Array, call: Callable[[Any], object]) -> Iterator[Callable[[], None]]:
    """Give the timed call of a kernel: ``call`` on the next entry of ``pool``, round and round.

    It is called once beforehand, so that compilation and first touches stay out of the timings.
    """
    entries = itertools.cycle(range(len(pool)))

    def timed() -> None:
        call(pool[next(entries)])

    timed()
    yield timed
