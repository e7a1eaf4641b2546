"""The file of a dense model: every matrix where its layout says, random but of the right size, type and range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from sandtable.errors import ConfigError
from sandtable_kernels.files.blocks import BLOCKS, random_blocks
from sandtable_kernels.files.dtypes import DTYPES, storage_dtype
from sandtable_kernels.files.store import Blob, create_blob
from sandtable_kernels.files.weights import fill
from sandtable_workloads.flash.dense.dense_layout import DenseLayout, Matrix, layout_of
from sandtable_workloads.flash.flash_parameters import FlashInference, is_plain
from sandtable_workloads.flash.model_files import WEIGHT_SEED

Array = np.ndarray[Any, Any]
EXECUTED: Final = (*DTYPES, *BLOCKS)
# bytes that are whole elements and blocks of every type: the least common multiple of 4, 34, 18, 144 and 210
_STEP_BYTES: Final = 85680
# random weights; matrices repeat them, each from another place on
_TILE_BYTES: Final = 97 * _STEP_BYTES


def check_executed(parameters: FlashInference) -> None:
    """Refuse what no kernel here does.

    Raises:
        ConfigError: a model with unusual parts, or weights of a type that no kernel reads.
    """
    shape, layout = parameters.shape, layout_of(parameters.shape, parameters.weights)
    if not is_plain(shape):
        raise ConfigError(
            f"{shape.name} has experts, latent attention, attention sinks or an embedding of its own width or norm, "
            "which are predicted only: to run one, take a plain dense model, such as llama_2_7b"
        )
    others = sorted({matrix.dtype for matrix in layout.matrices()} - set(EXECUTED))
    if others:
        raise ConfigError(
            f"{shape.name} as {layout.mixture} has matrices of {', '.join(others)}, which are predicted only: to run "
            "it, set weights to f16, q8_0, q4_0 or q4_K_M, and take a model whose rows are whole blocks"
        )


def dense_path(layout: DenseLayout, folder: Path) -> Path:
    """Return where the file of a model lies."""
    return folder / f"{layout.shape.name}-{layout.mixture}.dense"


def open_dense(layout: DenseLayout, folder: Path, progress: Callable[[str], None]) -> Blob:
    """Open the file of a model, and make it if it is missing.

    Raises:
        StoreError: a file that is truncated, altered, or of another size.
        DoesNotFit: no room on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = dense_path(layout, folder)
    if path.exists():
        return Blob.open(path, layout.n_bytes)
    progress(f"writing {path.name}, {layout.n_bytes / 1e9:.1f} GB")
    scale = float(1 / np.sqrt(layout.shape.d_model))
    content = _Content(layout, scale).fill
    return create_blob(path, layout.n_bytes, seed=WEIGHT_SEED, dtype=layout.mixture, scale=scale, content=content)


class _Content:
    """What stands at each byte of the file."""

    def __init__(self, layout: DenseLayout, scale: float) -> None:
        self.matrices = sorted(layout.matrices(), key=lambda matrix: matrix.offset)
        self.starts = [matrix.offset for matrix in self.matrices]
        self.scale = scale
        self.tiles: dict[str, Array] = {}

    def fill(self, start: int, out: Array) -> None:
        """Fill the bytes ``out`` from byte ``start`` of the file on; zero between matrices and behind the last."""
        out[:] = 0
        first = max(0, int(np.searchsorted(self.starts, start, side="right")) - 1)
        for number, matrix in enumerate(self.matrices[first:], first):
            low, high = max(start, matrix.offset), min(start + len(out), matrix.offset + matrix.one_bytes)
            if matrix.offset >= start + len(out):
                return
            if low < high:
                self._copy(matrix, number, low - matrix.offset, out[low - start : high - start])

    def _copy(self, matrix: Matrix, number: int, position: int, out: Array) -> None:
        tile = self._tile(matrix.dtype)
        # from another block on, so that equal matrices differ
        position += number * _STEP_BYTES
        done = 0
        while done < len(out):
            at = (position + done) % len(tile)
            n = min(len(out) - done, len(tile) - at)
            out[done : done + n] = tile[at : at + n]
            done += n

    def _tile(self, dtype: str) -> Array:
        if dtype not in self.tiles:
            self.tiles[dtype] = self._made(dtype)
        return self.tiles[dtype]

    def _made(self, dtype: str) -> Array:
        if dtype in BLOCKS:
            return random_blocks(_TILE_BYTES, dtype, WEIGHT_SEED, self.scale)
        stored: Array = np.empty(_TILE_BYTES // storage_dtype(dtype).itemsize, storage_dtype(dtype))
        fill(stored, dtype, WEIGHT_SEED, 0, self.scale)
        return stored.view(np.uint8)
