"""Aligned memory."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable_kernels.files import buffers


@pytest.mark.parametrize("shape", [0, 1, 7, (3, 5), (2, 3, 4), (0, 4), (1024, 1024)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int64])
@pytest.mark.parametrize("alignment", [1, 512, 4096, 1 << 16])
def test_shape_type_alignment_and_zero(shape: int | tuple[int, ...], dtype: type, alignment: int) -> None:
    array = buffers.aligned_empty(shape, dtype, alignment=alignment)
    assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert not array.any()
    if array.size:
        assert buffers.is_aligned(array, alignment)
        assert buffers.is_aligned(buffers.address(array), alignment)


def test_large_arrays_start_on_a_huge_page() -> None:
    assert buffers.is_aligned(buffers.aligned_empty((3 << 20,), np.uint8), buffers.HUGE_PAGE_BYTES)


def test_a_view_keeps_the_memory_alive() -> None:
    row = buffers.aligned_empty((64, 1 << 16), np.uint8)[63]
    gc.collect()
    row[:] = 7
    assert row.sum() == 7 * row.size


def test_arrays_do_not_overlap() -> None:
    one, other = (buffers.aligned_empty((100,), np.int64) for _ in range(2))
    assert not np.shares_memory(one, other)
    one[:] = 1
    assert not other.any()


def test_is_aligned_tells_no() -> None:
    assert not buffers.is_aligned(buffers.aligned_empty((16,), np.uint8)[1:], 2)
    assert not buffers.is_aligned(4097, 4096)


@pytest.mark.parametrize("alignment", [0, -1, 3, 4095])
def test_an_alignment_is_a_power_of_two(alignment: int) -> None:
    with pytest.raises(ConfigError, match="power of two"):
        buffers.aligned_empty((1,), np.uint8, alignment=alignment)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages to advise on this system")
def test_works_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # advice that the kernel refuses
    assert buffers.is_aligned(buffers.aligned_empty((4 << 20,), np.uint8))
