"""Neurons on disk, laid out for reading few of them at a time, and flat files of weights beside them.

A neuron of a feed-forward layer owns two vectors of d_model elements, its row of the up- and its column of the
down-projection, or three with a gate. "Bundled" keeps them in one record, read with one request ("LLM in a flash",
arXiv 2312.11514, section 3.2); "unbundled" keeps each matrix by itself, as a checkpoint does. Records are padded to
the alignment of direct I/O. The weights depend on the seed alone, not on the layout: see
`sandtable_kernels.files.weights`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError, StoreError
from sandtable_kernels.files import container, dtypes, weights
from sandtable_kernels.files.container import Bytes, Header, Progress, Verify, round_up
from sandtable_kernels.files.reader import Backend, FlashReader

Layout = Literal["bundled", "unbundled"]
LAYOUTS: Final = ("bundled", "unbundled")
DEFAULT_SCALE: Final = 0.02
_NEURONS: Final = "neurons"
_BLOB: Final = "blob"
_BLOB_BLOCK_BYTES: Final = 64 << 20
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreGeometry:
    """Shape of a neuron store.

    Attributes:
        n_layers: Feed-forward layers.
        n_neurons: Neurons per layer.
        d_model: Elements per vector.
        n_vectors: 2 (up, down) or 3 (up, gate, down), in this order.
        dtype: "float32", "bfloat16" or "float16".
        layout: "bundled" or "unbundled".
        alignment: Records start at, and are padded to, multiples of this many bytes.
    """

    n_layers: int
    n_neurons: int
    d_model: int
    n_vectors: int = 2
    dtype: str = "float16"
    layout: Layout = "bundled"
    alignment: int = _PAGE

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_neurons", "d_model"):
            if getattr(self, name) < 1:
                raise ConfigError(f"a store needs {name} of at least 1, not {getattr(self, name)}")
        if self.n_vectors not in (2, 3):
            raise ConfigError(f"a neuron has 2 vectors (up, down) or 3 (up, gate, down), not {self.n_vectors}")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"the layout of a store is 'bundled' or 'unbundled', not {self.layout!r}")
        if self.alignment < 512 or self.alignment & (self.alignment - 1):
            raise ConfigError(f"an alignment is a power of two of at least 512 bytes, not {self.alignment}")
        dtypes.storage_dtype(self.dtype)

    @property
    def vector_bytes(self) -> int:
        """Bytes of one vector, without padding."""
        return self.d_model * dtypes.itemsize(self.dtype)

    @property
    def n_records_per_neuron(self) -> int:
        """Requests that it takes to read one neuron."""
        return 1 if self.layout == "bundled" else self.n_vectors

    @property
    def record_items(self) -> int:
        """Elements in one record, without padding."""
        return self.d_model * (self.n_vectors if self.layout == "bundled" else 1)

    @property
    def record_bytes(self) -> int:
        """Bytes of one record, padding included."""
        return round_up(self.record_items * dtypes.itemsize(self.dtype), self.alignment)

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer, padding included."""
        return self.n_neurons * self.n_records_per_neuron * self.record_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of all layers; the file has a header besides."""
        return self.n_layers * self.layer_bytes

    def record_offsets(self, layer: int, neurons: npt.ArrayLike, vector: int | None) -> npt.NDArray[np.int64]:
        """Return where the records of ``neurons`` [n] start, in bytes from the first layer.

        Args:
            layer: 0 to n_layers - 1.
            neurons: Integers, 0 to n_neurons - 1.
            vector: None if bundled; otherwise 0 for up, then (gate,) down.

        Raises:
            ConfigError: an index outside the geometry, or a vector of a bundled record.
        """
        index = np.asarray(neurons, np.int64)
        if not 0 <= layer < self.n_layers:
            raise ConfigError(f"the store has layers 0 to {self.n_layers - 1}, not {layer}")
        if index.size and (int(index.min()) < 0 or int(index.max()) >= self.n_neurons):
            raise ConfigError(f"the store has neurons 0 to {self.n_neurons - 1} in each layer")
        if self.layout == "bundled" and vector is not None:
            raise ConfigError("a bundled store is read by whole records: vector must be None")
        if self.layout == "unbundled" and (vector is None or not 0 <= vector < self.n_vectors):
            raise ConfigError(f"an unbundled store needs a vector of 0 to {self.n_vectors - 1}, not {vector}")
        row = index + (vector or 0) * self.n_neurons  # all up records, then all gate, then all down
        return layer * self.layer_bytes + row * self.record_bytes


class NeuronStore:
    """An open neuron store: where each neuron is, and what it holds. Reads nothing until asked.

    Attributes:
        path: The file.
        geometry: Its shape.
        seed, scale: What its weights were made from.
        data_offset: Byte at which the first layer starts.
    """

    def __init__(self, path: Path, header: Header, geometry: StoreGeometry) -> None:
        self.path = path
        self.geometry = geometry
        self.seed = int(header.meta["seed"])
        self.scale = float(header.meta["scale"])
        self.data_offset = header.header_bytes
        self.n_bytes = header.file_bytes

    @classmethod
    def open(cls, path: str | Path, expect: StoreGeometry | None = None, verify: Verify = "auto") -> NeuronStore:
        """Open a store after checking its header, its size and its checksums.

        Args:
            path: The file.
            expect: The geometry that it must have.
            verify: "always" reads all of it; "auto" does so unless this very file has passed before (it is
                recognised by size, time, inode and header); "never" checks the header and size only.

        Raises:
            StoreError: no store, another version, truncated, altered, or of another geometry; says which.
            ConfigError: a file that cannot be read.
        """
        where = Path(path)
        header = _header(where, _NEURONS)
        try:
            geometry = StoreGeometry(**header.meta["geometry"])
        except (TypeError, KeyError) as error:
            raise StoreError(f"its geometry cannot be understood: {error}", file=str(where)) from error
        if expect is not None:
            _check_same(where, geometry, expect)
        container.verify(where, header, verify, "layer")
        return cls(where, header, geometry)

    def reader(self, *, concurrency: int = 1, direct: bool = True, backend: Backend = "auto") -> FlashReader:
        """Return a reader of this file; see `FlashReader`."""
        return FlashReader(self.path, concurrency=concurrency, direct=direct, backend=backend)

    def offsets(self, layer: int, neurons: npt.ArrayLike, vector: int | None = None) -> npt.NDArray[np.int64]:
        """Return the byte offsets in the file of the records of ``neurons`` [n]: int64[n].

        Raises:
            ConfigError: as `StoreGeometry.record_offsets`.
        """
        return self.data_offset + self.geometry.record_offsets(layer, neurons, vector)

    def layer_span(self, layer: int) -> tuple[int, int]:
        """Return the byte offset in the file, and the bytes, of one layer."""
        if not 0 <= layer < self.geometry.n_layers:
            raise ConfigError(f"the store has layers 0 to {self.geometry.n_layers - 1}, not {layer}")
        return self.data_offset + layer * self.geometry.layer_bytes, self.geometry.layer_bytes

    def read_neurons_reference(self, layer: int, neurons: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Read neurons one by one through the page cache: float32 [n, n_vectors, d_model]."""
        shape = self.geometry
        index = np.asarray(neurons, np.int64)
        parts: list[int | None] = [None] if shape.layout == "bundled" else list(range(shape.n_vectors))
        starts = np.stack([self.offsets(layer, index, part) for part in parts], axis=1)
        stored = np.empty((len(index), len(parts), shape.record_items), dtypes.storage_dtype(shape.dtype))
        with self.path.open("rb", buffering=0) as file:
            for row, part in itertools.product(range(len(index)), range(len(parts))):
                got = os.preadv(file.fileno(), [stored[row, part].data], int(starts[row, part]))
                if got != stored[row, part].nbytes:
                    raise StoreError("the file was cut short while it was read", file=str(self.path))
        return dtypes.decode(stored.reshape(len(index), shape.n_vectors, shape.d_model), shape.dtype)

    def expected_neurons(self, layer: int, neurons: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Compute the same from the seed, without the file: float32 [n, n_vectors, d_model]."""
        shape = self.geometry
        index = np.asarray(neurons, np.int64)
        stored = np.empty((len(index), shape.n_vectors * shape.d_model), dtypes.storage_dtype(shape.dtype))
        for row, neuron in enumerate(index):
            weights.fill(
                stored[row],
                shape.dtype,
                self.seed,
                element_index(shape, layer, int(neuron), 0),
                self.scale,
                n_threads=1,
            )
        return dtypes.decode(stored.reshape(len(index), shape.n_vectors, shape.d_model), shape.dtype)


def element_index(geometry: StoreGeometry, layer: int, neuron: int, vector: int) -> int:
    """Return the index, for `weights.fill`, of the first element of a vector; the same in every layout."""
    row = (layer * geometry.n_neurons + neuron) * geometry.n_vectors + vector
    return row * geometry.d_model


def create_store(
    path: str | Path,
    geometry: StoreGeometry,
    *,
    seed: int,
    scale: float = DEFAULT_SCALE,
    replace: bool = False,
    progress: Progress | None = None,
) -> NeuronStore:
    """Write a store of generated weights; it appears under its name only when it is whole.

    Args:
        path: The file.
        geometry: Its shape.
        seed: As `weights.fill`.
        scale: As `weights.fill`.
        replace: Replace an older store; a file of another kind is never replaced.
        progress: Called with bytes done and bytes in all.

    Raises:
        DoesNotFit: the disk is too small; says what is needed and what is free.
        ConfigError: the file exists, or its folder cannot be written.
        MeasureError: the disk failed.
    """

    def fill(layer: int, start: int, out: Bytes) -> None:
        _fill_records(geometry, seed, scale, layer, start, out)

    where = Path(path)
    meta = _meta(seed, scale) | {"geometry": dataclasses.asdict(geometry)}
    empty = Header(_NEURONS, geometry.n_layers, geometry.layer_bytes, meta, geometry.alignment)
    header = container.write(
        where, empty, fill, row_bytes=geometry.record_bytes, replace=replace, progress=progress
    )
    return NeuronStore(where, header, geometry)


def _fill_records(geometry: StoreGeometry, seed: int, scale: float, layer: int, start: int, out: Bytes) -> None:
    """Fill whole records of a layer, from byte ``start`` of it on."""
    records = out.reshape(-1, geometry.record_bytes).view(dtypes.storage_dtype(geometry.dtype))
    records[:, geometry.record_items :] = 0
    row, done = start // geometry.record_bytes, 0
    stride = geometry.n_vectors * geometry.d_model
    while done < len(records):  # one turn per vector; a bundled layer is a single one
        vector, neuron = divmod(row + done, geometry.n_neurons)
        n = min(len(records) - done, geometry.n_neurons - neuron)
        part = records[done : done + n, : geometry.record_items]
        first = element_index(geometry, layer, neuron, vector)
        weights.fill(part, geometry.dtype, seed, first, scale, row_stride=stride)
        done += n


# --- flat files --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blob:
    """A flat file of weights, for what is read whole: attention, embeddings.

    Attributes:
        path: The file.
        n_bytes: Bytes of weights, as asked for.
        data_offset: Byte at which they start, a multiple of 4096. The file is padded to whole pages behind them.
        dtype, seed, scale: What they are.
    """

    path: Path
    n_bytes: int
    data_offset: int
    dtype: str
    seed: int
    scale: float

    @property
    def padded_bytes(self) -> int:
        """Bytes that direct I/O can read from `data_offset` on, in whole pages."""
        return round_up(self.n_bytes, _PAGE)

    @classmethod
    def open(cls, path: str | Path, n_bytes: int | None = None, verify: Verify = "auto") -> Self:
        """Open a flat file after the same checks as `NeuronStore.open`.

        Raises:
            StoreError: not such a file, altered, truncated, or not of ``n_bytes``.
        """
        where = Path(path)
        header = _header(where, _BLOB)
        blob = cls._of(where, header)
        if n_bytes is not None and blob.n_bytes != n_bytes:
            raise StoreError(f"has {blob.n_bytes} bytes of weights, {n_bytes} were asked", file=str(where))
        container.verify(where, header, verify, "block")
        return blob

    @classmethod
    def _of(cls, path: Path, header: Header) -> Self:
        meta = header.meta
        return cls(
            path, meta["n_bytes"], header.header_bytes, meta["dtype"], int(meta["seed"]), float(meta["scale"])
        )

    def reader(self, *, concurrency: int = 1, direct: bool = True, backend: Backend = "auto") -> FlashReader:
        """Return a reader of this file; see `FlashReader`."""
        return FlashReader(self.path, concurrency=concurrency, direct=direct, backend=backend)


def create_blob(
    path: str | Path,
    n_bytes: int,
    *,
    seed: int,
    dtype: str = "float16",
    scale: float = DEFAULT_SCALE,
    replace: bool = False,
    progress: Progress | None = None,
    content: Callable[[int, Bytes], None] | None = None,
) -> Blob:
    """Write ``n_bytes`` of generated weights; element i is that of `weights.fill` at index i.

    ``content`` fills the bytes from a given one on instead, of whatever ``dtype`` names.

    Raises:
        DoesNotFit, ConfigError, MeasureError: as `create_store`.
    """
    size = 1 if content is not None else dtypes.itemsize(dtype)
    if n_bytes < 1 or n_bytes % size:
        raise ConfigError(f"a flat file holds whole {dtype} elements of {size} bytes, not {n_bytes} bytes")
    n_blocks = -(-n_bytes // _BLOB_BLOCK_BYTES)
    block_bytes = round_up(-(-n_bytes // n_blocks), _PAGE)

    def fill(block: int, start: int, out: Bytes) -> None:
        first = block * block_bytes + start
        if content is not None:
            content(first, out)
        else:
            weights.fill(out.view(dtypes.storage_dtype(dtype)), dtype, seed, first // size, scale)

    where = Path(path)
    meta = _meta(seed, scale) | {"n_bytes": n_bytes, "dtype": dtype}
    empty = Header(_BLOB, n_blocks, block_bytes, meta)
    header = container.write(where, empty, fill, row_bytes=_PAGE, replace=replace, progress=progress)
    return Blob._of(where, header)


def _meta(seed: int, scale: float) -> dict[str, Any]:
    return {"seed": seed, "scale": scale, "generator": weights.GENERATOR}


def _header(path: Path, kind: str) -> Header:
    header = Header.read(path)
    if header.kind != kind:
        raise StoreError(f"holds {header.kind!r} where {kind!r} is needed", file=str(path))
    if header.meta.get("generator") != weights.GENERATOR:
        raise StoreError(
            f"its weights come from generator {header.meta.get('generator')!r}, this program has "
            f"{weights.GENERATOR!r}: create it again",
            file=str(path),
        )
    return header


def _check_same(path: Path, has: StoreGeometry, asked: StoreGeometry) -> None:
    names = [field.name for field in dataclasses.fields(has)]
    differ = [name for name in names if getattr(has, name) != getattr(asked, name)]
    if differ:
        said = "; ".join(f"has {name} {getattr(has, name)}, {getattr(asked, name)} was asked" for name in differ)
        raise StoreError(f"{said}: create another store or ask for this one", file=str(path))
