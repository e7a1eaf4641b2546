"""Run a dense model for real: its matrices in memory or read from their file, products on the types they are stored as.

As in `sandtable_workloads.flash.runner`, the weights are random: what the model says means nothing, while bytes,
requests and arithmetic do not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.workload.seam import Execution
from sandtable_kernels.files.blocks import BLOCKS
from sandtable_kernels.files.buffers import address, aligned_empty
from sandtable_kernels.files.dtypes import decode, encode, storage_dtype
from sandtable_kernels.files.reader import FlashReader
from sandtable_kernels.operations.activation import activated
from sandtable_kernels.operations.attention import attend
from sandtable_kernels.operations.elementwise import NormWeights, add_norm, norm
from sandtable_kernels.operations.gemm import gemm
from sandtable_kernels.operations.gemv import gemv
from sandtable_workloads.flash.dense.dense_choice import DenseSetup
from sandtable_workloads.flash.dense.dense_files import open_dense
from sandtable_workloads.flash.dense.dense_layout import Matrix
from sandtable_workloads.flash.dense.weight_types import row_bytes
from sandtable_workloads.flash.flash_parameters import FlashInference
from sandtable_workloads.flash.runner import Stopwatch
from sandtable_workloads.flash.small import SmallWeights

F32 = npt.NDArray[np.float32]
Array = np.ndarray[Any, Any]


class DenseModel:
    """A loaded model: what its setup keeps in memory, and a reader and one buffer for the rest."""

    def __init__(self, parameters: FlashInference, setup: DenseSetup, folder: Path, n_threads: int) -> None:
        self.parameters, self.setup, self.n_threads = parameters, setup, n_threads
        self.shape, self.layout = parameters.shape, setup.layout
        self.watch, self.small = Stopwatch(), SmallWeights(self.shape)
        self.blob = open_dense(self.layout, folder, lambda _: None)
        self.reader = FlashReader(self.blob.path, concurrency=parameters.stream_concurrency)
        kv = (self.shape.n_layers, parameters.n_positions, self.shape.n_kv_heads, self.shape.head_dim)
        self.keys: Array = aligned_empty(kv, storage_dtype(parameters.kv_dtype))
        self.values: Array = aligned_empty(kv, storage_dtype(parameters.kv_dtype))
        self.position, self.next_token = 0, 0
        ends = {self.layout.embedding.offset: self.layout.embedding, self.layout.head.offset: self.layout.head}
        self.ends = [self._loaded([matrix]) for matrix in ends.values()]
        pairs = list(zip(setup.places, self.layout.layers, strict=True))
        self.attention_kept = [self._loaded(layer.attention) for place, layer in pairs if place.keeps_attention]
        self.ffn_kept = [self._loaded(layer.ffn) for place, layer in pairs if place.keeps_ffn]
        most = max(place.streamed_bytes(layer) for place, layer in pairs)
        self.buffer: Array = aligned_empty((most,), np.uint8)
        # where each matrix is: those of layers that are not kept are put here when they are read
        self.where: dict[int, Array] = {}
        for kept in (*self.ends, *self.attention_kept, *self.ffn_kept):
            self.where |= kept[1]

    def close(self) -> None:
        """Close the file."""
        self.reader.close()

    def memory_bytes(self) -> dict[str, float]:
        """Return the bytes of the arrays held, by kind; results that live for one call are left out."""
        held = {
            "embeddings": sum(array.nbytes for array, _ in self.ends),
            "attention": sum(array.nbytes for array, _ in self.attention_kept),
            "feed-forward": sum(array.nbytes for array, _ in self.ffn_kept),
            "keys and values": self.keys.nbytes + self.values.nbytes,
            "biases and norms": self.small.flat.nbytes,
            "layer buffer": self.buffer.nbytes,
        }
        return {kind: float(size) for kind, size in held.items() if size}

    # --- weights ---

    def _loaded(self, matrices: Sequence[Matrix]) -> tuple[Array, dict[int, Array]]:
        """Read matrices that lie side by side into an array of their own; return it, and the part of each."""
        into: Array = aligned_empty((matrices[-1].end - matrices[0].offset,), np.uint8)
        self._read(matrices, into)
        return into, _parts(matrices, into)

    def _read(self, matrices: Sequence[Matrix], into: Array) -> Any:
        return self.reader.read_sequential(
            self.blob.data_offset + matrices[0].offset,
            into.nbytes,
            address(into),
            chunk_bytes=int(self.parameters.stream_chunk_bytes),
            concurrency=self.parameters.stream_concurrency,
        )

    def _stream(self, matrices: Sequence[Matrix], start: int, name: str) -> int:
        """Read matrices into the buffer from byte ``start`` on; return where they end."""
        into = self.buffer[start : start + matrices[-1].end - matrices[0].offset]
        with self.watch.on("io", name):
            stats = self._read(matrices, into)
        self.watch.counters["bytes_read"] += stats.n_bytes
        self.watch.counters["n_requests"] += stats.n_requests
        self.where |= _parts(matrices, into)
        return start + into.nbytes

    def _fetch(self, layer: int) -> None:
        """Read what is not kept of a layer."""
        place, matrices = self.setup.places[layer], self.layout.layers[layer]
        end = 0
        if not place.keeps_attention:
            end = self._stream(matrices.attention, 0, "attention weights")
        if not place.keeps_ffn:
            self._stream(matrices.ffn, end, "feed-forward weights")

    def product(self, matrix: Matrix, x: F32) -> F32:
        """Return a matrix times one token [columns], or times several [n, columns]."""
        weights = stored_matrix(matrix, self.where[matrix.offset])
        if x.ndim == 1:
            return gemv(weights, x, dtype=matrix.dtype, n_threads=self.n_threads)
        return gemm(weights, x, dtype=matrix.dtype)

    # --- layers ---

    def embed(self, token: int, position: int) -> F32:
        """Return what enters the first layer, float32 [d_model]."""
        matrix = self.layout.embedding
        row = stored_matrix(matrix, self.where[matrix.offset])[token % self.shape.vocabulary]
        wide, positions = decode(row, matrix.dtype), self.small.positions
        return wide + positions[position % len(positions)] if len(positions) else wide

    def attention(self, layer: int, normed: F32, position: int) -> F32:
        """Return attention's output, of one token or several from ``position`` on; they join the cache."""
        *into, output = self.layout.layers[layer].attention
        with self.watch.on("compute", "attention"):
            joined = np.concatenate([self.product(matrix, normed) for matrix in into], axis=-1)
            bias = self.small.qkv_bias[layer]
            joined = joined if bias is None else joined + bias
            rows = joined.reshape(-1, joined.shape[-1])
            heads = np.stack([self._attend(layer, row, position + i) for i, row in enumerate(rows)])
            return self.product(output, heads.reshape(*normed.shape[:-1], -1))

    def _attend(self, layer: int, joined: F32, position: int) -> F32:
        shape, dtype = self.shape, self.parameters.kv_dtype
        n_query, n_kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        parts = joined[n_query:].reshape(2, shape.n_kv_heads, shape.head_dim)
        assert parts.size == 2 * n_kv
        self.keys[layer, position], self.values[layer, position] = encode(parts, dtype)
        query = joined[:n_query].reshape(shape.n_heads, shape.head_dim)
        keys, values = self.keys[layer], self.values[layer]
        return attend(query, keys, values, position + 1, dtype=dtype, n_threads=self.n_threads).reshape(-1)

    def feed_forward(self, layer: int, normed: F32) -> F32:
        """Return the feed-forward output, of one token or several."""
        *into, down = self.layout.layers[layer].ffn
        with self.watch.on("compute", "feed-forward"):
            first, *gate = (self.product(matrix, normed) for matrix in into)
            before, bias = gate[0] if gate else first, self.small.ffn_bias[layer]
            before = before if bias is None else before + bias
            hidden = activated(before, first if gate else None, self.shape.activation)
            return self.product(down, hidden)

    def _add_norm(self, x: F32, y: F32, weights: NormWeights) -> tuple[F32, F32]:
        with self.watch.on("compute", "residual and norm"):
            return add_norm(x, y, weights)

    def step(self, x: F32, phase: str, name: str) -> None:
        """Pass one token [d_model], or a prompt [n, d_model], through the model and choose the token that follows."""
        normed = norm(x, self.small.first)
        for layer in range(self.shape.n_layers):
            self._fetch(layer)
            x, normed = self._add_norm(
                x, self.attention(layer, normed, self.position), self.small.after_attention[layer]
            )
            x, normed = self._add_norm(x, self.feed_forward(layer, normed), self.small.after_ffn[layer])
        with self.watch.on("compute", "output"):
            logits = self.product(self.layout.head, normed if normed.ndim == 1 else normed[-1])
            bias = self.small.head_bias
            self.next_token = int(np.argmax(logits if bias is None else logits + bias))
        self.position += 1 if x.ndim == 1 else len(x)
        self.watch.step(phase, name)


def _parts(matrices: Sequence[Matrix], array: Array) -> dict[int, Array]:
    first = matrices[0].offset
    return {m.offset: array[m.offset - first : m.offset - first + m.one_bytes] for m in matrices}


def stored_matrix(matrix: Matrix, data: Array) -> Array:
    """View the bytes of a matrix as its kernels take them: elements [rows, columns], or bytes of blocks."""
    if matrix.dtype in BLOCKS:
        return data.reshape(matrix.rows, row_bytes(matrix.dtype, matrix.columns))
    return data.view(storage_dtype(matrix.dtype)).reshape(matrix.rows, matrix.columns)


def run_dense(parameters: FlashInference, setup: DenseSetup, folder: Path, n_threads: int) -> Execution:
    """Load the model, process the prompt, decode all tokens, and count the memory held."""
    model = DenseModel(parameters, setup, folder, n_threads)
    try:
        _warm_up(model)
        model.watch.reset()
        n = parameters.prompt_tokens
        model.step(np.stack([model.embed(token, token) for token in range(n)]), "prefill", "prompt")
        begun = time.perf_counter()
        for _ in range(parameters.tokens):
            model.watch.reset()
            model.step(model.embed(model.next_token, model.position), "decode", "token")
        ended = time.perf_counter()
    finally:
        model.close()
    validity = [] if model.reader.direct else ["the file system refused direct I/O: reads went through its cache"]
    return Execution(
        recorder=model.watch.recorder,
        memory_bytes=model.memory_bytes(),
        main_s=(begun, ended),
        trace=model.watch.rows,
        validity=validity,
    )


def _warm_up(model: DenseModel) -> None:
    """Compile every kernel on little data, so that no step pays for it."""
    for dtype in {matrix.dtype for matrix in model.layout.matrices()}:
        x: F32 = np.zeros(256, np.float32)
        weights = encode(np.zeros((8, 256), np.float32), dtype)
        gemv(weights, x, dtype=dtype, n_threads=model.n_threads)
        gemm(weights, x[None], dtype=dtype)
    heads: F32 = np.zeros((model.shape.n_heads, model.shape.head_dim), np.float32)
    kv_dtype = model.parameters.kv_dtype
    attend(heads, model.keys[0], model.values[0], 1, dtype=kv_dtype, n_threads=model.n_threads)
