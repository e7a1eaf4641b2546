r"""Files of weights: a header, then blocks of equal size, each with a checksum.

Layout, all integers little-endian::

    0    8 bytes  magic "SANDTBL\n"
    8    u32      format version
    12   u32      bytes of the header region; the first block starts there
    16   u32      bytes of the JSON text
    20   u32      CRC-32 of the header region with this field zero
    24   JSON     {"kind", "n_blocks", "block_bytes", "alignment", "meta": {...}}
    ...  u32 each CRC-32 of every block, right after the JSON

A file is written beside its final name, with the header last, and renamed when it is safely on the disk: a name
that exists is a file that was finished. One process at a time writes it. Beside it, ``NAME.verified`` remembers that a
full check has passed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError, DoesNotFit, MeasureError, SandtableError, StoreError
from sandtable.system import atomic_files, locks
from sandtable.units import format_bytes
from sandtable_kernels.files import buffers

Bytes = npt.NDArray[np.uint8]
Fill = Callable[[int, int, Bytes], None]
Progress = Callable[[int, int], None]
Verify = Literal["auto", "always", "never"]

MAGIC: Final = b"SANDTBL\n"
FORMAT_VERSION: Final = 1
_PREFIX: Final = struct.Struct("<8sIIII")
_CRC_AT: Final = 20
_PAGE: Final = 4096
_PIECE_BYTES: Final = 16 << 20
_FREE_MARGIN_BYTES: Final = 64 << 20
_DISK_FULL: Final = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a file says.

    Attributes:
        kind: What the file holds.
        n_blocks, block_bytes: Its data.
        meta: Whatever describes the data; JSON.
        alignment: The first block starts at a multiple of this many bytes.
        checksums: CRC-32 of each block.
    """

    kind: str
    n_blocks: int
    block_bytes: int
    meta: Mapping[str, Any]
    alignment: int = _PAGE
    checksums: tuple[int, ...] = ()

    @property
    def header_bytes(self) -> int:
        """Size of the header region, and the offset of the first block."""
        return round_up(_PREFIX.size + len(self._json()) + 4 * self.n_blocks, self.alignment)

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.header_bytes + self.n_blocks * self.block_bytes

    def _json(self) -> bytes:
        names = ("kind", "n_blocks", "block_bytes", "alignment")
        fields = {name: getattr(self, name) for name in names} | {"meta": dict(self.meta)}
        return json.dumps(fields, sort_keys=True).encode()

    def pack(self) -> bytes:
        """Return the header region."""
        text = self._json()
        prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, self.header_bytes, len(text), 0)
        table = np.asarray(self.checksums, "<u4").tobytes()
        region = bytearray((prefix + text + table).ljust(self.header_bytes, b"\0"))
        struct.pack_into("<I", region, _CRC_AT, zlib.crc32(region))
        return bytes(region)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check the header of ``path``, and the size of the file.

        Raises:
            ConfigError: the file cannot be opened.
            StoreError: not a file of weights, an unknown version, an altered header, or a truncated file.
        """
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                region = _read_region(path, file.read(_PREFIX.size), file.read, size)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error
        _, _, _, json_bytes, stated = _PREFIX.unpack_from(region)
        struct.pack_into("<I", region, _CRC_AT, 0)
        if zlib.crc32(region) != stated:
            raise StoreError("the header was altered: its checksum does not match", file=str(path))
        fields = json.loads(region[_PREFIX.size : _PREFIX.size + json_bytes])
        table = np.frombuffer(region, "<u4", fields["n_blocks"], _PREFIX.size + json_bytes)
        header = cls(**fields, checksums=tuple(int(value) for value in table))
        if size != header.file_bytes:
            raise StoreError(
                f"the file has {size} bytes where {header.file_bytes} are needed: "
                f"it was {'truncated' if size < header.file_bytes else 'appended to'}",
                file=str(path),
            )
        return header


def _read_region(path: Path, prefix: bytes, read: Callable[[int], bytes], size: int) -> bytearray:
    if prefix[:8] != MAGIC:
        raise StoreError("this is not a file of weights: its first bytes are not those of one", file=str(path))
    if len(prefix) < _PREFIX.size:
        raise StoreError(f"the file was truncated to {size} bytes, inside its header", file=str(path))
    _, version, header_bytes, json_bytes, _ = _PREFIX.unpack(prefix)
    if version != FORMAT_VERSION:
        raise StoreError(
            f"the file has format version {version}, this program reads {FORMAT_VERSION}: create it again",
            file=str(path),
        )
    if not _PREFIX.size <= _PREFIX.size + json_bytes <= header_bytes:
        raise StoreError("the header was altered: its lengths contradict each other", file=str(path))
    if size < header_bytes:
        raise StoreError(f"the file was truncated to {size} bytes, inside its header", file=str(path))
    return bytearray(prefix + read(header_bytes - _PREFIX.size))


def write(
    path: Path, header: Header, fill: Fill, *, row_bytes: int, replace: bool, progress: Progress | None
) -> Header:
    """Write a file of weights; return its header with the checksums.

    Args:
        path: Final name.
        header: Without checksums.
        fill: ``fill(block, start, out)`` fills ``out`` with the bytes of a block from ``start`` on.
        row_bytes: ``start`` and the length of ``out`` are multiples of this.
        replace: Replace an older file of weights; any other file is never replaced.
        progress: Called with bytes done and bytes in all.

    Raises:
        ConfigError: the file exists, or the folder cannot be written.
        InUse: another process is writing it.
        DoesNotFit: the disk is too small. Whatever is raised, no new file is left behind.
    """
    _check_replaceable(path, replace)
    with replacing(path, header.file_bytes) as file:
        _check_replaceable(path, replace)  # another process may have been quicker
        forget(path)
        sums = _write_blocks(file, header, fill, row_bytes, progress)
        full = dataclasses.replace(header, checksums=tuple(sums))
        file.write_at(0, np.frombuffer(full.pack(), np.uint8))
    remember(path, full)
    return full


def _write_blocks(
    file: LargeFile, header: Header, fill: Fill, row_bytes: int, progress: Progress | None
) -> list[int]:
    piece_bytes = max(1, _PIECE_BYTES // row_bytes) * row_bytes
    ring = [buffers.aligned_empty((min(piece_bytes, header.block_bytes),), np.uint8) for _ in range(2)]
    sums, total, turn = [], header.n_blocks * header.block_bytes, 0
    pending: Future[None] | None = None
    # the disk writes one piece while the next is made; leaving the `with` waits for the one in flight
    with ThreadPoolExecutor(1) as disk:
        for block in range(header.n_blocks):
            crc, base = 0, header.header_bytes + block * header.block_bytes
            for start, n in _pieces(header.block_bytes, piece_bytes):
                piece = ring[turn % 2][:n]
                turn += 1
                fill(block, start, piece)
                crc = zlib.crc32(piece.data, crc)
                if pending is not None:
                    pending.result()
                pending = disk.submit(file.write_at, base + start, piece)
                if progress is not None:
                    progress(block * header.block_bytes + start + n, total)
            sums.append(crc)
        if pending is not None:
            pending.result()
    return sums


def _pieces(n_bytes: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n_bytes, piece_bytes):
        yield start, min(piece_bytes, n_bytes - start)


def verify(path: Path, header: Header, how: Verify, block_name: str) -> None:
    """Compare the checksum of every block with the header, unless a stamp says that it was done.

    Args:
        path: The file.
        header: Its header.
        how: "always", "never", or "auto": unless ``NAME.verified`` matches the file.
        block_name: What a block is called in the error.

    Raises:
        ConfigError: ``how`` is none of these.
        StoreError: a checksum that does not match; names the block.
    """
    if how not in ("auto", "always", "never"):
        raise ConfigError(f"verify is 'auto', 'always' or 'never', not {how!r}")
    if how == "never" or (how == "auto" and _stamp_matches(path, header)):
        return
    with path.open("rb", buffering=0) as file:
        for block in range(header.n_blocks):
            start = header.header_bytes + block * header.block_bytes
            if _checksum(file.fileno(), start, header.block_bytes) != header.checksums[block]:
                raise StoreError(
                    f"{block_name} {block} was altered: its checksum does not match; create the file again",
                    file=str(path),
                )
    remember(path, header)


def _checksum(fd: int, start: int, n_bytes: int) -> int:
    ring = [np.empty(min(_PIECE_BYTES, n_bytes), np.uint8) for _ in range(2)]
    crc: Future[int] | None = None
    with ThreadPoolExecutor(1) as pool:  # sum up one piece while the next is read
        for turn, (at, n) in enumerate(_pieces(n_bytes, _PIECE_BYTES)):
            piece = ring[turn % 2][:n]
            got = os.preadv(fd, [piece.data], start + at)
            piece[got:] = 0
            crc = pool.submit(zlib.crc32, piece.data, crc.result() if crc is not None else 0)
        result = crc.result() if crc is not None else 0
    if hasattr(os, "posix_fadvise"):  # checking must not fill the page cache
        os.posix_fadvise(fd, start, n_bytes, os.POSIX_FADV_DONTNEED)
    return result


# --- stamps ------------------------------------------------------------------------------------------------


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _identity(path: Path, header: Header) -> dict[str, int]:
    status = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
        "header_crc": zlib.crc32(header.pack()),
    }


def _stamp_matches(path: Path, header: Header) -> bool:
    try:
        stamp = json.loads(_stamp_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(stamp == _identity(path, header))


def remember(path: Path, header: Header) -> None:
    """Note that the checksums of ``path`` hold; where the folder is read-only, the next opening checks again."""
    with contextlib.suppress(OSError):
        _stamp_path(path).write_text(json.dumps(_identity(path, header)), encoding="utf-8")


def forget(path: Path) -> None:
    """Drop the note."""
    with contextlib.suppress(OSError):
        _stamp_path(path).unlink()


# --- large files -------------------------------------------------------------------------------------------


class LargeFile:
    """A file beside ``path``, open for writing in large pieces, past the page cache where the file system allows it."""

    def __init__(self, path: Path) -> None:
        self._direct = True
        try:
            self.path, self._fd = atomic_files.create_part(path, getattr(os, "O_DIRECT", 0))
        except OSError:
            self._direct = False
            self.path, self._fd = atomic_files.create_part(path)

    def write_at(self, offset: int, piece: Bytes) -> None:
        """Write all bytes of ``piece`` at ``offset``; pieces of whole pages bypass the cache."""
        if self._direct and not buffers.is_aligned(piece):
            aligned = buffers.aligned_empty(piece.shape, np.uint8)
            aligned[:] = piece
            piece = aligned
        done = 0
        while done < len(piece):
            try:
                done += os.pwrite(self._fd, piece[done:].data, offset + done)
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._to_buffered()

    def _to_buffered(self) -> None:
        import fcntl

        self._direct = False
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~getattr(os, "O_DIRECT", 0))

    def finish(self) -> None:
        """Wait until all is on the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


@contextlib.contextmanager
def replacing(path: Path, n_bytes: int) -> Iterator[LargeFile]:
    """Give a file to write, beside ``path``, that takes this name once it is whole and on the disk.

    Raises:
        ConfigError: the folder cannot be written.
        InUse: another process is writing this file.
        DoesNotFit: less than ``n_bytes`` are free, before or while writing.
        MeasureError: the disk answered with an error. On any exception, the unfinished file is removed.
    """
    atomic_files.sweep(path.parent)
    check_free(path, n_bytes)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.claimed(path, "is writing this file"))
            file = LargeFile(path)
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", file=str(path)) from error
        stack.callback(file.close)
        try:
            yield file
            file.finish()
            file.path.replace(path)
        except BaseException as error:
            file.path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise explained(path, n_bytes, error) from error
            raise
    _sync_folder(path.parent)


def check_free(path: Path, n_bytes: int) -> None:
    """Check that the disk of ``path`` has room for ``n_bytes`` and a little more.

    Raises:
        ConfigError: the folder does not exist.
        DoesNotFit: it has not.
    """
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise ConfigError(f"its folder cannot be used: {error.strerror}", file=str(path)) from error
    if free < n_bytes + _FREE_MARGIN_BYTES:
        raise _too_small(path, n_bytes, free)


def _too_small(path: Path, n_bytes: int, free: int) -> DoesNotFit:
    return DoesNotFit(
        f"{path} needs {format_bytes(n_bytes)} of disk and {format_bytes(free)} are free: "
        "delete something, choose a folder on a larger disk, or scale the model down"
    )


def explained(path: Path, n_bytes: int, error: OSError) -> SandtableError:
    """Return what to raise where writing ``path``, of ``n_bytes``, failed."""
    if error.errno in _DISK_FULL:
        return _too_small(path, n_bytes, shutil.disk_usage(path.parent).free)
    return MeasureError(f"writing {path} failed: {error.strerror}")


def _check_replaceable(path: Path, replace: bool) -> None:
    if not path.exists():
        return
    with path.open("rb") as file:
        ours = file.read(len(MAGIC)) == MAGIC
    if not ours:
        raise ConfigError(
            "this file is not a file of weights, and is not replaced: choose another name", file=str(path)
        )
    if not replace:
        raise ConfigError("exists already: open it, delete it, or pass replace=True", file=str(path))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``n``."""
    return -(-n // multiple) * multiple
