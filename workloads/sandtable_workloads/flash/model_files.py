"""The files of a flash-resident model: the neuron store, and one file of everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sandtable_kernels.files.dtypes import storage_dtype
from sandtable_kernels.files.store import Blob, NeuronStore, StoreGeometry, create_blob, create_store
from sandtable_workloads.flash.flash_parameters import ALIGNMENT_BYTES, FlashInference, Sizes
from sandtable_workloads.transformer.shapes import ModelShape

# the weights do not depend on a scenario's seed, so that scenarios share files
WEIGHT_SEED = 0


@dataclass(frozen=True)
class Segment:
    """One matrix inside the file of resident weights: where it starts (bytes, page-aligned), and its shape."""

    offset: int
    rows: int
    columns: int
    n_bytes: int


class WeightMap:
    """Where each matrix lies in the file of resident weights: by layer qkv and output, then embedding and head."""

    def __init__(self, shape: ModelShape, dtype: str) -> None:
        self.item_bytes = storage_dtype(dtype).itemsize
        self.end = 0
        heads = shape.n_heads * shape.head_dim
        self.qkv: list[Segment] = []
        self.output: list[Segment] = []
        for _ in range(shape.n_layers):
            self.qkv.append(self._add(shape.qkv_rows, shape.d_model))
            self.output.append(self._add(shape.d_model, heads))
        self.embedding = self._add(shape.vocabulary, shape.d_model)
        self.head = self.embedding if shape.tied else self._add(shape.vocabulary, shape.d_model)

    def _add(self, rows: int, columns: int) -> Segment:
        n_bytes = rows * columns * self.item_bytes
        segment = Segment(self.end, rows, columns, n_bytes)
        self.end += -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return segment

    def layer_span(self, layer: int) -> tuple[int, int]:
        """Return offset and length, padded, of one layer's attention weights; they lie side by side."""
        start, last = self.qkv[layer].offset, self.output[layer]
        return start, last.offset + -(-last.n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES - start


def store_geometry(parameters: FlashInference) -> StoreGeometry:
    """Return the geometry of the neuron store for these parameters."""
    shape = parameters.shape
    return StoreGeometry(
        n_layers=shape.n_layers,
        n_neurons=shape.n_neurons,
        d_model=shape.d_model,
        n_vectors=shape.n_vectors,
        dtype=parameters.dtype,
        layout=parameters.layout,
        alignment=ALIGNMENT_BYTES,
    )


def store_path(parameters: FlashInference, folder: Path) -> Path:
    """Return where the neuron store of these parameters lies."""
    return folder / f"{parameters.shape.name}-{parameters.dtype}-{parameters.layout}.neurons"


def blob_path(parameters: FlashInference, folder: Path) -> Path:
    """Return where the resident weights of these parameters lie."""
    return folder / f"{parameters.shape.name}-{parameters.dtype}.weights"


def blob_bytes(parameters: FlashInference) -> int:
    """Return the size of the file of resident weights, its header not counted."""
    return WeightMap(parameters.shape, parameters.dtype).end


def open_files(
    parameters: FlashInference, folder: Path, progress: Callable[[str], None]
) -> tuple[NeuronStore, Blob]:
    """Open both files, making those that are missing.

    Raises:
        StoreError: a file that is truncated, altered, or of another geometry.
        DoesNotFit: no room on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    geometry = store_geometry(parameters)
    scale = float(1 / np.sqrt(parameters.shape.d_model))
    path = store_path(parameters, folder)
    if path.exists():
        store = NeuronStore.open(path, expect=geometry)
    else:
        progress(f"writing {path.name}, {geometry.total_bytes / 1e9:.1f} GB")
        store = create_store(path, geometry, seed=WEIGHT_SEED, scale=scale)
    path = blob_path(parameters, folder)
    n_bytes = blob_bytes(parameters)
    if path.exists():
        blob = Blob.open(path, n_bytes)
    else:
        progress(f"writing {path.name}, {n_bytes / 1e9:.1f} GB")
        blob = create_blob(path, n_bytes, seed=WEIGHT_SEED, dtype=parameters.dtype, scale=scale)
    return store, blob


def disk_bytes(parameters: FlashInference) -> float:
    """Return what both files take on disk."""
    return float(Sizes.of(parameters).store_bytes + blob_bytes(parameters))


def missing_bytes(parameters: FlashInference, folder: Path) -> float:
    """Return what is still to be written of both files."""
    sizes = Sizes.of(parameters)
    store = 0 if store_path(parameters, folder).exists() else sizes.store_bytes
    blob = 0 if blob_path(parameters, folder).exists() else blob_bytes(parameters)
    return float(store + blob)
