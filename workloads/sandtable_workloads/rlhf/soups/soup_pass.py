"""One pass over checkpoints: blocks are read from all of them, averaged and written, several at a time.

What is resident are the buffers of the blocks on their way, however large models and tensors are.
"""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError, MeasureError
from sandtable.units import format_bytes
from sandtable_kernels.files import buffers, container
from sandtable_kernels.files.container import LargeFile, round_up
from sandtable_kernels.files.reader import ALIGNMENT, DirectIOUnavailable, FlashReader
from sandtable_workloads.rlhf.soups import soup_arithmetic
from sandtable_workloads.rlhf.soups.checkpoint_files import FLOATS, ITEM_BYTES
from sandtable_workloads.rlhf.soups.soup_demand import IN_FLIGHT, PIECE_BYTES
from sandtable_workloads.rlhf.soups.soup_layout import Block, Piece, Placed, SoupFile

Bytes = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
# blocks on their way at the same time: one is read, one averaged, one written, and one waits
WORKERS: Final = 4
LARGEST_BLOCK_BYTES: Final = 8 << 20
SMALLEST_BLOCK_BYTES: Final = 64 << 10
# what is shorter is read through the page cache, without the pages around it
_SHORT_BYTES: Final = 64 << 10
_SAMPLES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging:
    """How models are averaged: a weight for each; whether infinities and NaNs are taken, with a note."""

    weights: tuple[float, ...]
    allow_nonfinite: bool = False


@dataclass(slots=True)
class PassStats:
    """What passes over files took: bytes of checkpoints and of the soup, and what was odd."""

    bytes_read: int = 0
    bytes_written: int = 0
    notes: dict[str, int] = field(default_factory=dict)


class Slots:
    """Buffers of blocks on their way: for each its bytes of every model, and those of the result.

    Blocks are as long as ``memory_bytes`` allows for all buffers together, and no longer than is of use.

    Raises:
        ConfigError: too little memory for the shortest blocks.
    """

    def __init__(self, files: Sequence[SoupFile], n_models: int, memory_bytes: float) -> None:
        self.size = LARGEST_BLOCK_BYTES
        while (needed := _Needed.of(files, n_models, self.size)).n_bytes > memory_bytes:
            if self.size <= SMALLEST_BLOCK_BYTES:
                raise ConfigError(
                    f"buffers for {n_models} models need {format_bytes(needed.n_bytes)} and may take "
                    f"{format_bytes(max(0.0, memory_bytes))}: give more memory"
                )
            self.size = max(SMALLEST_BLOCK_BYTES, self.size * 3 // 4 // ALIGNMENT * ALIGNMENT)
        self.n_bytes = needed.n_bytes
        self._free: queue.SimpleQueue[tuple[Bytes, Bytes]] = queue.SimpleQueue()
        for _ in range(needed.n_slots):
            inputs = buffers.aligned_empty((n_models, needed.room), np.uint8)
            self._free.put((inputs, buffers.aligned_empty((needed.longest,), np.uint8)))

    @contextmanager
    def one(self) -> Iterator[tuple[Bytes, Bytes]]:
        """Lend the buffers of one block."""
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)


def warm_up(files: Sequence[SoupFile]) -> None:
    """Load what is compiled for a pass: sums of the types at hand, and a read."""
    placed = [placed for file in files for placed in file.tensors if placed.dtype in FLOATS]
    for in_dtype, out_dtype in {(each.sources[0].dtype, each.dtype) for each in placed}:
        soup_arithmetic.warm_up(in_dtype, out_dtype)
    if placed:
        with _Readers() as readers:
            first = placed[0].sources[0]
            page = buffers.aligned_empty((ALIGNMENT,), np.uint8)
            readers.warm_up(first.file, page)


class _Needed(NamedTuple):
    """Buffers that blocks need: how many, and bytes of each, those of every model and of the result."""

    n_slots: int
    n_models: int
    room: int
    longest: int

    @classmethod
    def of(cls, files: Sequence[SoupFile], n_models: int, size: int) -> _Needed:
        """Return what blocks of ``size`` bytes need."""
        blocks = [block for file in files for block in file.blocks(size)]
        room = max((sum(map(_room, block.pieces)) for block in blocks), default=0)
        longest = max((block.n_bytes for block in blocks), default=0)
        return cls(min(WORKERS, len(blocks)), n_models, room, longest)

    @property
    def n_bytes(self) -> int:
        """Bytes of all of them."""
        return self.n_slots * (self.n_models * self.room + self.longest)


def write_file(
    path: Path, file: SoupFile, averaging: Averaging, slots: Slots, stats: PassStats, done: Callable[[int], None]
) -> None:
    """Average the tensors of one file and write it; it takes its name when it is whole.

    Args:
        path: The new file.
        file: What it holds.
        averaging: Weights.
        slots: Buffers, which several files may use one after the other.
        stats: Added to.
        done: Told how many bytes were written, after each block.

    Raises:
        ConfigError: values that are not finite, or whole numbers that differ.
        DoesNotFit, MeasureError: the disk is full, or failed. Nothing is left behind then.
    """
    blocks = list(file.blocks(slots.size))
    with ExitStack() as stack:
        readers = stack.enter_context(_Readers())
        target = stack.enter_context(container.replacing(path, file.n_bytes))
        target.write_at(0, np.frombuffer(file.header, np.uint8))
        work = _Work(file, averaging, readers, target, slots)
        for block, notes in _mapped(work, blocks):
            stats.bytes_read += sum(len(piece.sources) * piece.in_bytes for piece in block.pieces)
            for note, count in notes.items():
                stats.notes[note] = stats.notes.get(note, 0) + count
            done(block.n_bytes)
    stats.bytes_written += file.n_bytes


def _mapped(work: _Work, blocks: Sequence[Block]) -> Iterator[tuple[Block, dict[str, int]]]:
    """Yield every block with its notes once it is written; what fails first ends the others."""
    if len(blocks) == 1:
        yield blocks[0], work(blocks[0])
        return
    pool = ThreadPoolExecutor(WORKERS)
    try:
        waiting: list[Future[dict[str, int]]] = [pool.submit(work, block) for block in blocks]
        for block, made in zip(blocks, waiting, strict=True):
            yield block, made.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Readers:
    """The files that are read, each opened once."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._opened: dict[Path, tuple[FlashReader, int]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, source: tuple[Path, int], n_bytes: int, room: Bytes) -> int:
        """Read to the start of ``room``, which has pages to spare around it; return the byte at which it begins."""
        (file, offset), (reader, handle) = source, self._open(source[0])
        if n_bytes < _SHORT_BYTES:
            _read_fully(file, handle, room[:n_bytes], offset)
            return 0
        first, end = offset // ALIGNMENT * ALIGNMENT, offset + n_bytes
        whole = min(round_up(end, ALIGNMENT), reader.n_bytes // ALIGNMENT * ALIGNMENT) - first
        reader.read_sequential(first, whole, buffers.address(room), chunk_bytes=PIECE_BYTES)
        if first + whole < end:  # the last page of the file is not whole
            _read_fully(file, handle, room[whole : end - first], first + whole)
        return offset - first

    def warm_up(self, file: Path, page: Bytes) -> None:
        """Read the first page of a file, if it has a whole one."""
        reader, _ = self._open(file)
        if reader.n_bytes >= len(page):
            reader.read_sequential(0, len(page), buffers.address(page), chunk_bytes=len(page))

    def _open(self, file: Path) -> tuple[FlashReader, int]:
        with self._lock:
            if file not in self._opened:
                handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                self._stack.callback(os.close, handle)
                with warnings.catch_warnings():
                    # what is measured here is the soup, not the device
                    warnings.simplefilter("ignore", DirectIOUnavailable)
                    reader = FlashReader(file, concurrency=IN_FLIGHT, direct=not _is_cached(handle))
                self._opened[file] = self._stack.enter_context(reader), handle
            return self._opened[file]


def _read_fully(file: Path, handle: int, room: Bytes, offset: int) -> None:
    done = 0
    while done < len(room):
        try:
            got = os.preadv(handle, [room[done:].data], offset + done)
        except OSError as error:
            raise MeasureError(f"reading {file} failed: {error.strerror}") from error
        if not got:
            raise ConfigError("was cut short while it was read", file=str(file))
        done += got


def _is_cached(handle: int) -> bool:
    """Whether most of a file is in the page cache, from which it is read faster than from its device."""
    flag = getattr(os, "RWF_NOWAIT", None)
    size = os.fstat(handle).st_size
    if flag is None or not size:
        return False
    byte, found = bytearray(1), 0
    for place in range(_SAMPLES):
        try:
            found += os.preadv(handle, [byte], (size - 1) * place // max(1, _SAMPLES - 1), flag)
        except OSError:  # not there, or a file system that does not tell
            continue
    return found > 0.9 * _SAMPLES


class _Work:
    """Makes blocks of one file, each in buffers of its own."""

    def __init__(
        self, file: SoupFile, averaging: Averaging, readers: _Readers, target: LargeFile, slots: Slots
    ) -> None:
        self.file, self.averaging, self.readers, self.target, self.slots = file, averaging, readers, target, slots

    def __call__(self, block: Block) -> dict[str, int]:
        """Read, average and write one block; return what was odd, with how many elements."""
        with self.slots.one() as (inputs, out):
            return self._make(block, inputs, out)

    def _make(self, block: Block, inputs: Bytes, out: Bytes) -> dict[str, int]:
        notes: dict[str, int] = {}
        at = 0
        for piece in block.pieces:
            stored = [
                self._stored(piece, source, room[at : at + _room(piece)])
                for source, room in zip(piece.sources, inputs, strict=True)
            ]
            if not self._average(piece, stored, out[piece.at : piece.end]):
                for note, count in self._odd(block, piece, stored):
                    notes[note] = notes.get(note, 0) + count
            at += _room(piece)
        self.target.write_at(len(self.file.header) + block.start, out[: block.n_bytes])
        return notes

    def _stored(self, piece: Piece, source: tuple[Path, int], room: Bytes) -> np.ndarray[Any, Any]:
        begin = self.readers.read(source, piece.in_bytes, room)
        if piece.in_dtype not in FLOATS:
            return room[begin : begin + piece.in_bytes]
        kind = soup_arithmetic.stored_dtype(piece.in_dtype)
        if begin % kind.itemsize:  # a header of odd length
            room[: piece.in_bytes] = room[begin : begin + piece.in_bytes].copy()
            begin = 0
        return room[begin : begin + piece.in_bytes].view(kind)

    def _average(self, piece: Piece, stored: Sequence[np.ndarray[Any, Any]], out: Bytes) -> bool:
        """Average a piece; return whether all is well."""
        if piece.in_dtype not in FLOATS:
            out[:] = stored[0]
            return all(np.array_equal(stored[0], other) for other in stored[1:])
        target = out.view(soup_arithmetic.stored_dtype(piece.out_dtype))
        return soup_arithmetic.average(target, stored, self.averaging.weights, piece.in_dtype, piece.out_dtype)

    def _odd(self, block: Block, piece: Piece, stored: Sequence[np.ndarray[Any, Any]]) -> Iterator[tuple[str, int]]:
        """Find which tensors of a piece are not finite, or differ where they must not.

        Raises:
            ConfigError: they do, and that is not allowed.
        """
        start = block.start + piece.at
        for placed in self.file.within(start, start + piece.out_bytes):
            low, high = ((byte - start) // ITEM_BYTES[placed.dtype] for byte in (placed.at, placed.end))
            span = slice(max(0, low), min(piece.n_items, high))
            if piece.in_dtype not in FLOATS:
                _refuse_differing(placed, stored, span)
                continue
            counts = [_n_nonfinite(each[span], piece.in_dtype) for each in stored]
            for source, count in zip(placed.sources, counts, strict=True):
                if count:
                    yield self._note(source.file, source.name, count), count
            if not any(counts):
                yield from self._overflow(placed, stored, span)

    def _overflow(
        self, placed: Placed, stored: Sequence[np.ndarray[Any, Any]], span: slice
    ) -> Iterator[tuple[str, int]]:
        out = np.empty(span.stop - span.start, soup_arithmetic.stored_dtype(placed.dtype))
        kind = placed.sources[0].dtype
        soup_arithmetic.average(out, [each[span] for each in stored], self.averaging.weights, kind, placed.dtype)
        count = _n_nonfinite(out, placed.dtype)
        if count:
            told = f"{placed.sources[0].name!r} of the soup is beyond what {placed.dtype} can hold"
            if not self.averaging.allow_nonfinite:
                raise ConfigError(f"{told}: write it in a wider type (--dtype)")
            yield told, count

    def _note(self, file: Path, name: str, count: int) -> str:
        told = f"{name!r} holds values that are infinite or no numbers"
        if not self.averaging.allow_nonfinite:
            raise ConfigError(f"{told}, at least {count}: pass --allow-nonfinite to average them", file=str(file))
        return f"{file}: {told}"


def _refuse_differing(placed: Placed, stored: Sequence[np.ndarray[Any, Any]], span: slice) -> None:
    size = ITEM_BYTES[placed.dtype]
    for source, each in zip(placed.sources, stored, strict=True):
        there = slice(span.start * size, span.stop * size)
        if not np.array_equal(each[there], stored[0][there]):
            raise ConfigError(
                f"{source.name!r} holds whole numbers, and not those of {placed.sources[0].file}",
                file=str(source.file),
            )


def _n_nonfinite(stored: np.ndarray[Any, Any], dtype: str) -> int:
    return int(np.count_nonzero(~np.isfinite(soup_arithmetic.widened(stored, dtype))))


def _room(piece: Piece) -> int:
    """Return the bytes of a buffer that reading a piece needs, with the pages around it."""
    return round_up(piece.in_bytes, ALIGNMENT) + (2 * ALIGNMENT if piece.in_bytes >= _SHORT_BYTES else 0)
