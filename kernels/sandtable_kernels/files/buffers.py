"""Page-aligned arrays that a direct read can fill in place.

Direct I/O demands that memory, file offset and length are multiples of the device's block; 4096 bytes satisfies
every common file system. All but small arrays ask for huge pages: a direct request pins the pages that it lands in
and names each to the device, and one is cheaper than many (16 KiB reads under virtio: 20 % more bandwidth); a
row-wise GEMV over gigabytes then also stays inside the reach of the TLB.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from sandtable.errors import ConfigError

PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20
_SMALL_BYTES = 256 << 10  # below this, most of a huge page would be wasted


def aligned_empty(
    shape: int | tuple[int, ...], dtype: DTypeLike, *, alignment: int = PAGE_BYTES
) -> np.ndarray[Any, Any]:
    """Return a C-contiguous array of ``shape`` whose first byte is at a multiple of ``alignment`` bytes.

    The memory is anonymous, private, zero, and already touched, so that no page fault lands inside a timed
    region. It lives as long as the array or any view of it.

    Raises:
        ConfigError: ``alignment`` is not a power of two.
    """
    if alignment < 1 or alignment & (alignment - 1):
        raise ConfigError(f"an alignment must be a power of two, not {alignment}")
    kind = np.dtype(dtype)
    n_items = int(np.prod(shape, dtype=np.int64))
    n_bytes = max(1, n_items * kind.itemsize)
    mapped = n_bytes
    if n_bytes >= _SMALL_BYTES:  # a huge page only backs a whole, aligned range
        alignment = max(alignment, HUGE_PAGE_BYTES)
        mapped = -(-n_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    raw = np.frombuffer(_anonymous(mapped + alignment), dtype=np.uint8)
    skip = -address(raw) % alignment
    part = raw[skip : skip + n_bytes]
    part[::PAGE_BYTES] = 0
    return part[: n_items * kind.itemsize].view(kind).reshape(shape)


def address(array: np.ndarray[Any, Any]) -> int:
    """Return the address of the first byte of ``array``."""
    return int(array.ctypes.data)


def is_aligned(array_or_address: np.ndarray[Any, Any] | int, alignment: int = PAGE_BYTES) -> bool:
    """Say whether an array, or a plain address, starts at a multiple of ``alignment`` bytes."""
    where = array_or_address if isinstance(array_or_address, int) else address(array_or_address)
    return where % alignment == 0


def _anonymous(n_bytes: int) -> mmap.mmap:
    # private: Python's default is shared, which is backed by shmem and gets no huge pages
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    memory = mmap.mmap(-1, n_bytes, flags=private) if private else mmap.mmap(-1, n_bytes)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None and n_bytes >= HUGE_PAGE_BYTES:
        with contextlib.suppress(OSError):  # a kernel built without huge pages: only speed is lost
            memory.madvise(advice)
    return memory
