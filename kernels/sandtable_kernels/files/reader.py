"""Read scattered records from a file, straight to where they belong, with many requests in flight.

`FlashReader` is what every run on real storage reads with, calibration and workloads alike. It bypasses the page
cache (Linux: ``O_DIRECT``, macOS: ``F_NOCACHE``) as "LLM in a flash" (arXiv 2312.11514, appendix C) does, so that
what is timed is the device; where a file system refuses, it says so and reads through the cache.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError, MeasureError, NoDevice, StoreError
from sandtable_kernels.files import buffers
from sandtable_kernels.files.aio import MAX_DEPTH, AioEngine, ReadFailed, Requests, ThreadEngine

Backend = Literal["auto", "aio", "threads"]
# multiple of the block size of every device and file system that we know of
ALIGNMENT: Final = 4096
# the kernel cuts a single request at 2 GiB less a page
_MAX_REQUEST_BYTES: Final = 1 << 30


class DirectIOUnavailable(UserWarning):
    """The file system refuses direct I/O: reads go through the page cache and may be faster than the device."""


@dataclass(frozen=True, slots=True)
class ReadStats:
    """What a batch of reads took. ``direct`` and ``backend`` say how it was read in fact."""

    n_requests: int
    n_bytes: int
    seconds: float
    direct: bool
    backend: str

    @property
    def bytes_per_s(self) -> float:
        """Bandwidth of the batch."""
        return self.n_bytes / self.seconds if self.seconds > 0 else 0.0


class FlashReader:
    """Reads from one file with a fixed number of requests in flight; a context manager.

    Threads may share one; their batches then take turns.

    Args:
        path: The file.
        concurrency: Requests in flight, 1 to 64.
        direct: Bypass the page cache. Offsets, sizes and addresses must then be multiples of 4096 bytes.
        backend: "aio" (Linux native asynchronous I/O), "threads", or "auto": aio where it is really asynchronous,
            that is with direct I/O on Linux, otherwise threads.

    Raises:
        ConfigError: a bad argument, or a file that cannot be opened.
        NoDevice: ``backend="aio"`` where the machine has none.

    Warns:
        DirectIOUnavailable: direct I/O was asked for and refused; `direct` is then False.
    """

    def __init__(
        self, path: str | Path, *, concurrency: int = 1, direct: bool = True, backend: Backend = "auto"
    ) -> None:
        self.path = Path(path)
        self.concurrency = _checked_concurrency(concurrency)
        if backend not in ("auto", "aio", "threads"):
            raise ConfigError(f"a reader's backend is 'auto', 'aio' or 'threads', not {backend!r}")
        self._fd, self.direct = _open(self.path, direct)
        self._evict = direct and not self.direct
        self.n_bytes = os.fstat(self._fd).st_size
        try:
            self._engine = _engine(self._fd, backend, self.direct)
        except BaseException:
            os.close(self._fd)
            raise
        self._closed = False
        self._one_at_a_time = threading.Lock()  # the control blocks of an engine serve one batch

    @property
    def backend(self) -> str:
        """The engine in use: "aio" or "threads"."""
        return self._engine.name

    def read_batch(
        self,
        offsets: npt.NDArray[np.int64],
        size: int,
        addresses: npt.NDArray[np.int64],
        *,
        concurrency: int | None = None,
    ) -> ReadStats:
        """Read ``size`` bytes at each of ``offsets`` to the memory at each of ``addresses``, in any order.

        One request per offset, never merged; every completion is refilled at once. The caller keeps the memory
        alive until the call returns; when it returns or raises, nothing is in flight.

        Args:
            offsets: int64[n], bytes into the file.
            size: Bytes per request.
            addresses: int64[n], for example of the rows of an array made by `buffers.aligned_empty`.
            concurrency: Requests in flight for this batch, if not the reader's.

        Raises:
            ConfigError: shapes that differ, or an unaligned offset, size or address for direct I/O.
            StoreError: a request that reaches beyond the end of the file.
            MeasureError: the device answered with an error.
        """
        offsets, addresses = _as_int64(offsets, "offsets"), _as_int64(addresses, "addresses")
        if len(offsets) != len(addresses):
            raise ConfigError(f"{len(offsets)} offsets but {len(addresses)} addresses were given")
        sizes = np.full(len(offsets), size, np.int64)
        return self._read(Requests(offsets, sizes, addresses), concurrency)

    def read_sequential(
        self, offset: int, n_bytes: int, buffer_address: int, *, chunk_bytes: int, concurrency: int | None = None
    ) -> ReadStats:
        """Read ``n_bytes`` from ``offset`` on into one piece of memory, in requests of ``chunk_bytes``.

        The last request is shorter where ``chunk_bytes`` does not divide ``n_bytes``.

        Raises:
            ConfigError, StoreError, MeasureError: as `read_batch`.
        """
        if chunk_bytes < 1:
            raise ConfigError(f"chunk_bytes must be positive, not {chunk_bytes}")
        starts = np.arange(0, n_bytes, chunk_bytes, dtype=np.int64)
        sizes = np.minimum(chunk_bytes, n_bytes - starts)
        return self._read(Requests(offset + starts, sizes, buffer_address + starts), concurrency)

    def _read(self, requests: Requests, concurrency: int | None) -> ReadStats:
        depth = self.concurrency if concurrency is None else _checked_concurrency(concurrency)
        self._check(requests)
        with self._one_at_a_time:
            if self._closed:
                raise ConfigError(f"{self.path}: this reader is closed")
            if self._evict:  # the nearest thing to reading the device
                _advise(self._fd, "POSIX_FADV_DONTNEED")
            start = time.perf_counter()
            try:
                self._engine.run(requests, depth)
            except ReadFailed as failed:
                raise self._explain(requests, failed) from failed
            seconds = time.perf_counter() - start
        return ReadStats(len(requests.offsets), int(requests.sizes.sum()), seconds, self.direct, self._engine.name)

    def _check(self, requests: Requests) -> None:
        if not len(requests.offsets):
            return
        smallest, largest = int(requests.sizes.min()), int(requests.sizes.max())
        if smallest < 1 or largest > _MAX_REQUEST_BYTES:
            raise ConfigError(f"a request is 1 byte to 1 GiB, not {largest if smallest > 0 else smallest} bytes")
        if self.direct:
            for name, values in zip(("offset", "size", "address"), requests, strict=True):
                _check_aligned(self.path, name, values)
        ends = requests.offsets + requests.sizes
        if int(requests.offsets.min()) < 0 or int(ends.max()) > self.n_bytes:
            bad = int(np.argmax((requests.offsets < 0) | (ends > self.n_bytes)))
            raise StoreError(
                f"{self.path}: {requests.sizes[bad]} bytes at offset {requests.offsets[bad]} lie outside the file, "
                f"which has {self.n_bytes} bytes"
            )

    def _explain(self, requests: Requests, failed: ReadFailed) -> StoreError | MeasureError:
        wanted, offset = int(requests.sizes[failed.index]), int(requests.offsets[failed.index])
        where = f"{self.path}: reading {wanted} bytes at offset {offset}"
        if failed.result >= 0:
            return StoreError(f"{where} gave only {failed.result}: the file was cut short while it was read")
        return MeasureError(f"{where} failed: {os.strerror(-failed.result)}")

    def close(self) -> None:
        """Wait for what is in flight and close the file; may be called twice."""
        with self._one_at_a_time:
            if not self._closed:
                self._closed = True
                self._engine.close()
                os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked_concurrency(concurrency: int) -> int:
    if not 1 <= concurrency <= MAX_DEPTH:
        raise ConfigError(f"a reader keeps 1 to {MAX_DEPTH} requests in flight, not {concurrency}")
    return concurrency


def _as_int64(values: Any, name: str) -> npt.NDArray[np.int64]:
    array = np.ascontiguousarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ConfigError(f"{name} must be a flat array of integers, not {array.dtype}{list(array.shape)}")
    return array.astype(np.int64, copy=False)


def _check_aligned(path: Path, name: str, values: npt.NDArray[np.int64]) -> None:
    if int(np.bitwise_or.reduce(values)) % ALIGNMENT:
        bad = int(values[np.argmax(values % ALIGNMENT != 0)])
        raise ConfigError(
            f"{path}: direct I/O needs every {name} to be a multiple of {ALIGNMENT} bytes, and {bad} is not: "
            "pad the records, take memory from buffers.aligned_empty, or open with direct=False"
        )


def _engine(fd: int, backend: Backend, direct: bool) -> AioEngine | ThreadEngine:
    # through the page cache, native AIO silently turns into one blocking read after another
    if backend == "threads" or (backend == "auto" and not direct):
        return ThreadEngine(fd)
    try:
        return AioEngine(fd)
    except NoDevice:
        if backend == "aio":
            raise
        return ThreadEngine(fd)


def _open(path: Path, direct: bool) -> tuple[int, bool]:
    """Open for reading; return the descriptor and whether it bypasses the page cache."""
    if direct:
        fd = _open_direct(path)
        if fd is not None:
            return fd, True
        warnings.warn(
            f"{path}: the file system refuses direct I/O, so reads go through the page cache and may be faster "
            "than the device; put the file on a disk to measure it",
            DirectIOUnavailable,
            stacklevel=3,
        )
    fd = _os_open(path, 0)
    if direct:
        _advise(fd, "POSIX_FADV_RANDOM")
    return fd, False


def _open_direct(path: Path) -> int | None:
    if sys.platform == "darwin":
        return _open_uncached(path)
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return None
    try:
        fd = _os_open(path, flag)
    except OSError:  # tmpfs before Linux 6.6, some network file systems: EINVAL
        return None
    try:  # others accept the flag and refuse the first read
        os.preadv(fd, [buffers.aligned_empty(ALIGNMENT, np.uint8).data], 0)
    except OSError:
        os.close(fd)
        return None
    return fd


def _open_uncached(path: Path) -> int | None:
    import fcntl

    fd = _os_open(path, 0)
    try:
        fcntl.fcntl(fd, getattr(fcntl, "F_NOCACHE", 48), 1)
    except OSError:
        os.close(fd)
        return None
    return fd


def _os_open(path: Path, flag: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | flag)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error


def _advise(fd: int, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # advice only
            os.posix_fadvise(fd, 0, 0, getattr(os, advice))
