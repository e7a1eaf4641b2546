"""Where everything of a soup lies: tensors in new files, and files cut into blocks that are made one by one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sandtable_workloads.rlhf.soups.checkpoint_files import FLOATS, ITEM_BYTES, Checkpoint, StoredTensor, header_of


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of the soup: that of each model, its type, and its first byte among the new file's tensors."""

    sources: tuple[StoredTensor, ...]
    dtype: str
    at: int

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.at + self.sources[0].n_items * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements that follow each other in every model and in the soup; ``at`` is their first byte within the block.

    ``sources`` are file and byte of each model.
    """

    at: int
    n_items: int
    in_dtype: str
    out_dtype: str
    sources: tuple[tuple[Path, int], ...]

    @property
    def end(self) -> int:
        """The byte behind it, within the block."""
        return self.at + self.out_bytes

    @property
    def in_bytes(self) -> int:
        """Bytes that are read of each model."""
        return self.n_items * ITEM_BYTES[self.in_dtype]

    @property
    def out_bytes(self) -> int:
        """Bytes that are written."""
        return self.n_items * ITEM_BYTES[self.out_dtype]


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of a new file: its first byte among the tensors, its length, and what it is made of."""

    start: int
    n_bytes: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class SoupFile:
    """A file of the soup, with as many tensors as the first model's file of that name."""

    name: str
    header: bytes
    tensors: tuple[Placed, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of its tensors."""
        return self.tensors[-1].end if self.tensors else 0

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + self.data_bytes

    def within(self, start: int, end: int) -> Iterator[Placed]:
        """Yield the tensors that have elements in a stretch of bytes."""
        first = max(0, bisect_right(self.tensors, start, key=lambda each: each.at) - 1)
        for placed in self.tensors[first:]:
            if placed.at >= end:
                return
            if placed.end > start and placed.end > placed.at:
                yield placed

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        """Yield the file in blocks, each but the last of ``block_bytes``, a multiple of eight."""
        for start in range(0, self.data_bytes, block_bytes):
            end = min(start + block_bytes, self.data_bytes)
            pieces = [_cut(placed, start, end) for placed in self.within(start, end)]
            yield Block(start, end - start, tuple(_joined(pieces)))


def laid_out(models: Sequence[Checkpoint], dtype: str | None) -> list[SoupFile]:
    """Return the files of the soup: as those of the first model, floating tensors in ``dtype``, theirs for None."""
    return [_soup_file(models, file, found, dtype) for file, found in models[0].metadata.items()]


def _soup_file(
    models: Sequence[Checkpoint], file: Path, metadata: Mapping[str, str], dtype: str | None
) -> SoupFile:
    typed = [
        (tensor, dtype if dtype and tensor.dtype in FLOATS else tensor.dtype) for tensor in models[0].of_file(file)
    ]
    # wide elements first, so that each lies at a multiple of its size
    typed.sort(key=lambda each: -ITEM_BYTES[each[1]])
    placed, at = [], 0
    for tensor, kind in typed:
        placed.append(Placed(tuple(model.tensors[tensor.name] for model in models), kind, at))
        at = placed[-1].end
    # transformers loads files that say of which library they are
    header = header_of(
        ((tensor.name, kind, tensor.shape) for tensor, kind in typed), {"format": "pt"} | dict(metadata)
    )
    return SoupFile(file.name, header, tuple(placed))


def _cut(placed: Placed, start: int, end: int) -> Piece:
    """Return the elements of a tensor that a block from ``start`` to ``end`` holds."""
    low, high = max(start, placed.at), min(end, placed.end)
    size, first = ITEM_BYTES[placed.dtype], placed.sources[0]
    skipped = (low - placed.at) // size * ITEM_BYTES[first.dtype]
    sources = tuple((source.file, source.offset + skipped) for source in placed.sources)
    return Piece(low - start, (high - low) // size, first.dtype, placed.dtype, sources)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Return pieces with those made one that follow each other everywhere."""
    found: list[Piece] = []
    for piece in pieces:
        if found and _follows(found[-1], piece):
            found[-1] = replace(found[-1], n_items=found[-1].n_items + piece.n_items)
        else:
            found.append(piece)
    return found


def _follows(before: Piece, piece: Piece) -> bool:
    types = (before.in_dtype, before.out_dtype) == (piece.in_dtype, piece.out_dtype)
    return (
        types
        and before.end == piece.at
        and all(
            file == other and offset + before.in_bytes == begin
            for (file, offset), (other, begin) in zip(before.sources, piece.sources, strict=True)
        )
    )
