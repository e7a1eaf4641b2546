"""Run a model whose feed-forward weights stay in flash: real files, real reads, real arithmetic.

The weights are random, so what the model says means nothing; bytes, requests, memory traffic and arithmetic do not
depend on it. Which neurons are active comes from the trace, since random weights have no structure to predict; the
low-rank predictor is computed all the same, because its time counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.engine.recorder import LATENCY, Recorder
from sandtable.results import TraceRow
from sandtable.workload.seam import Execution
from sandtable_kernels.files.buffers import address, aligned_empty
from sandtable_kernels.files.dtypes import decode, storage_dtype
from sandtable_kernels.files.reader import FlashReader
from sandtable_kernels.files.store import Blob, NeuronStore
from sandtable_kernels.files.weights import fill
from sandtable_kernels.neurons.neuron_cache import NeuronCache, WindowIndex
from sandtable_kernels.operations.attention import attend
from sandtable_kernels.operations.elementwise import NormWeights, add_norm, norm
from sandtable_kernels.operations.ffn import sparse_ffn
from sandtable_kernels.operations.ffn_batch import dense_ffn_batch
from sandtable_kernels.operations.gemm import gemm
from sandtable_kernels.operations.gemv import gemv
from sandtable_kernels.operations.predictor import LowRankPredictor
from sandtable_workloads.flash.flash_parameters import FlashInference, Sizes
from sandtable_workloads.flash.model_files import Segment, WeightMap, open_files
from sandtable_workloads.flash.neuron_traces import predictor_ranks, trace_of
from sandtable_workloads.flash.small import SmallWeights
from sandtable_workloads.flash.token_demand import LayerDemand, hit_frac, n_tokens, replay, streamed_neurons
from sandtable_workloads.transformer.shapes import ModelShape

F32 = npt.NDArray[np.float32]
Array = np.ndarray[Any, Any]
RESOURCES = {"io": "storage", "memory": "memory", "compute": "compute"}


class Stopwatch:
    """Books wall-clock time to accounts, and keeps a timeline row for each stretch."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.rows: list[TraceRow] = []
        self.recorder = Recorder()
        self.reset()

    def reset(self) -> None:
        """Start a new step."""
        self.start = time.perf_counter()
        self.by_account = dict.fromkeys(RESOURCES, 0.0)
        self.counters = {"bytes_read": 0.0, "n_requests": 0.0}

    @contextmanager
    def on(self, account: str, name: str) -> Iterator[None]:
        """Book what happens inside to ``account``."""
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        self.by_account[account] += end - start
        row = TraceRow.model_construct(
            track=RESOURCES[account], name=name, start_s=start - self.begin, end_s=end - self.begin, step=0
        )
        self.rows.append(row)

    def step(self, phase: str, name: str, counters: dict[str, float] | None = None) -> None:
        """Record the step. What no account claims is the interpreter's own time: ``overhead_s``."""
        end = time.perf_counter()
        total = end - self.start
        overhead = total - sum(self.by_account.values())
        timed = {LATENCY: total, **{f"{account}_s": value for account, value in self.by_account.items()}}
        self.recorder.record(
            phase,
            {**timed, **self.counters, **(counters or {}), "overhead_s": overhead},
            name=name,
            start_s=self.start - self.begin,
        )


class FlashModel:
    """A loaded model: resident weights in memory, the rest behind a reader."""

    def __init__(self, parameters: FlashInference, seed: int, folder: Path, n_threads: int) -> None:
        self.parameters, self.seed, self.n_threads = parameters, seed, n_threads
        self.shape, self.sizes = parameters.shape, Sizes.of(parameters)
        self.watch = Stopwatch()
        self.store: NeuronStore
        self.blob: Blob
        self.store, self.blob = open_files(parameters, folder, lambda _: None)
        self.map = WeightMap(self.shape, parameters.dtype)
        self.storage = storage_dtype(parameters.dtype)
        self.reader = FlashReader(self.store.path, concurrency=parameters.concurrency)
        self.blob_reader = FlashReader(self.blob.path, concurrency=parameters.stream_concurrency)
        shape, n_positions = self.shape, parameters.prompt_tokens + n_tokens(parameters)
        kv = (shape.n_layers, n_positions, shape.n_kv_heads, shape.head_dim)
        self.keys: F32 = aligned_empty(kv, np.float32)
        self.values: F32 = aligned_empty(kv, np.float32)
        self.position = 0
        self.small = SmallWeights(self.shape)
        self.resident = self._load_resident() if parameters.rung != "naive" else None
        self.kept = self._load_neurons()
        self.layer_buffer = self._layer_buffer()

    def close(self) -> None:
        """Close the files."""
        self.reader.close()
        self.blob_reader.close()

    def memory_bytes(self) -> dict[str, float]:
        """Return the bytes of the arrays held, by kind; what a `SparseDecoder` adds, it counts itself.

        Left out are results that live for one call, a few megabytes.
        """
        held = {
            "keys and values": self.keys.nbytes + self.values.nbytes,
            "biases and norms": self.small.flat.nbytes,
            "layer buffer": self.layer_buffer.nbytes,
        }
        if self.resident is not None:
            attention = self.map.embedding.offset
            held |= {"attention": attention, "embeddings": self.resident.nbytes - attention}
        if self.parameters.rung == "hybrid":
            held["resident neurons"] = self.kept.nbytes
        return {kind: float(size) for kind, size in held.items()}

    # --- weights ---

    def _load_resident(self) -> Array:
        buffer: Array = aligned_empty((self.map.end,), np.uint8)
        self.blob_reader.read_sequential(
            self.blob.data_offset,
            self.map.end,
            address(buffer),
            chunk_bytes=int(self.parameters.stream_chunk_bytes),
        )
        return buffer

    def _layer_buffer(self) -> Array:
        """Room for what passes through: one layer's neurons, and for `naive` attention and output weights too."""
        rows = self.shape.n_neurons if self.parameters.is_sparse else streamed_neurons(self.parameters, self.sizes)
        rows = max(rows, streamed_neurons(self.parameters, self.sizes)) if not self.parameters.is_sparse else rows
        need = rows * self.sizes.record_bytes * self.sizes.records_per_neuron
        if self.parameters.rung == "naive":
            need = max(need, self.map.layer_span(0)[1], -(-self.map.head.n_bytes // 4096) * 4096)
        buffer: Array = aligned_empty((need,), np.uint8)
        return buffer

    def _matrix(self, segment: Segment, buffer: Array, start: int) -> Array:
        data = buffer[segment.offset - start : segment.offset - start + segment.n_bytes]
        return data.view(self.storage).reshape(segment.rows, segment.columns)

    def _weights(self, segment: Segment) -> Array:
        """Return a matrix of the resident weights."""
        assert self.resident is not None
        return self._matrix(segment, self.resident, 0)

    def _stream(self, reader: FlashReader, offset: int, n_bytes: int, name: str) -> None:
        with self.watch.on("io", name):
            stats = reader.read_sequential(
                offset,
                n_bytes,
                address(self.layer_buffer),
                chunk_bytes=int(self.parameters.stream_chunk_bytes),
                concurrency=self.parameters.stream_concurrency,
            )
        self.watch.counters["bytes_read"] += stats.n_bytes
        self.watch.counters["n_requests"] += stats.n_requests

    # --- attention ---

    def attention_weights(self, layer: int) -> tuple[Array, Array]:
        """Return the joined query-key-value projection and the output projection of a layer, read if need be."""
        qkv, output = self.map.qkv[layer], self.map.output[layer]
        if self.resident is not None:
            return self._weights(qkv), self._weights(output)
        start, length = self.map.layer_span(layer)
        self._stream(self.blob_reader, self.blob.data_offset + start, length, "attention weights")
        return self._matrix(qkv, self.layer_buffer, start), self._matrix(output, self.layer_buffer, start)

    def attention(self, layer: int, normed: F32) -> F32:
        """Return attention's output for one token, float32 [d_model]; its keys and values join the cache."""
        qkv_weights, output_weights = self.attention_weights(layer)
        with self.watch.on("compute", "attention"):
            joined = self._biased(self._gemv(qkv_weights, normed), self.small.qkv_bias[layer])
            heads = self._attend(layer, joined, self.position)
            return self._gemv(output_weights, heads)

    def _attend(self, layer: int, joined: F32, position: int) -> F32:
        shape = self.shape
        n_query, n_kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        query = joined[:n_query].reshape(shape.n_heads, shape.head_dim)
        self.keys[layer, position] = joined[n_query : n_query + n_kv].reshape(shape.n_kv_heads, shape.head_dim)
        self.values[layer, position] = joined[n_query + n_kv :].reshape(shape.n_kv_heads, shape.head_dim)
        out = attend(query, self.keys[layer], self.values[layer], position + 1, n_threads=self.n_threads)
        return out.reshape(-1)

    def _gemv(self, weights: Array, x: F32) -> F32:
        return gemv(weights, x, dtype=self.parameters.dtype, n_threads=self.n_threads)

    @staticmethod
    def _biased(x: F32, bias: F32 | None) -> F32:
        if bias is not None:
            x += bias
        return x

    # --- embedding and output ---

    def embed(self, token: int, position: int) -> F32:
        """Return what enters the first layer, float32 [d_model]: a token's embedding and its position's.

        `naive` keeps no table of embeddings and starts from a fixed vector.
        """
        if self.resident is None:
            row: F32 = np.full(self.shape.d_model, 1.0 / (1 + token % 7), dtype=np.float32)
        else:
            table = self._weights(self.map.embedding)
            row = decode(table[token % self.shape.vocabulary], self.parameters.dtype)
        positions = self.small.positions
        return row + positions[position % len(positions)] if len(positions) else row

    def add_norm(self, x: F32, y: F32, weights: NormWeights) -> tuple[F32, F32]:
        """Add a block's output to the residual stream; return it, and its norm for the next block."""
        with self.watch.on("compute", "residual and norm"):
            return add_norm(x, y, weights)

    def head(self, normed: F32) -> int:
        """Return the most likely next token."""
        if self.resident is None:
            offset = self.blob.data_offset + self.map.head.offset
            self._stream(self.blob_reader, offset, -(-self.map.head.n_bytes // 4096) * 4096, "output weights")
            weights = self._matrix(self.map.head, self.layer_buffer, self.map.head.offset)
        else:
            weights = self._weights(self.map.head)
        with self.watch.on("compute", "output"):
            return int(np.argmax(self._biased(self._gemv(weights, normed), self.small.head_bias)))

    # --- prefill ---

    def prefill(self) -> None:
        """Process the prompt at once, every layer's neurons read whole and in order."""
        self.watch.reset()
        n = self.parameters.prompt_tokens
        x: F32 = np.stack([self.embed(token, token) for token in range(n)])
        normed = norm(x, self.small.first)
        for layer in range(self.shape.n_layers):
            x, normed = self.add_norm(x, self._prefill_attention(layer, normed), self.small.after_attention[layer])
            x, normed = self.add_norm(x, self.dense_ffn(layer, normed), self.small.after_ffn[layer])
        self.position = n
        self.next_token = self.head(normed[-1])
        self.watch.step("prefill", "prompt")

    def _prefill_attention(self, layer: int, normed: F32) -> F32:
        qkv_weights, output_weights = self.attention_weights(layer)
        with self.watch.on("compute", "attention"):
            joined = gemm(qkv_weights, normed, dtype=self.parameters.dtype)
            joined = self._biased(joined, self.small.qkv_bias[layer])
            heads = np.stack([self._attend(layer, row, position) for position, row in enumerate(joined)])
            return gemm(output_weights, heads, dtype=self.parameters.dtype)

    def dense_ffn(self, layer: int, x: F32) -> F32:
        """Return the feed-forward output of all neurons, for one token [d_model] or several [n, d_model]."""
        first, bias = self._resident_neurons(), self.small.ffn_bias[layer]
        head, tail = (None, None) if bias is None else (bias[:first], bias[first:])
        y = np.zeros_like(x)
        if first:
            y = self._ffn_over(self.kept[layer].view(self.storage), x, head, bundled=True)
        offset, length = self.store.layer_span(layer)
        skipped = first * self.sizes.record_bytes
        self._stream(self.reader, offset + skipped, length - skipped, "neurons")
        n = self.shape.n_neurons - first
        rows = (
            self.layer_buffer[: length - skipped].view(self.storage).reshape(self.sizes.records_per_neuron * n, -1)
        )
        return y + self._ffn_over(rows, x, tail, bundled=self.sizes.bundled)

    def _ffn_over(self, rows: Array, x: F32, bias: F32 | None, *, bundled: bool) -> F32:
        gated = self.shape.n_vectors == 3
        options: dict[str, Any] = {
            "dtype": self.parameters.dtype,
            "activation": self.shape.sparse_activation,
            "gated": gated,
            "bias": bias,
        }
        with self.watch.on("compute", "feed-forward"):
            if x.ndim == 1:
                return sparse_ffn(x, rows, n_threads=self.n_threads, **options)
            return dense_ffn_batch(x, rows, bundled=bundled, **options)

    def _resident_neurons(self) -> int:
        if self.parameters.rung != "hybrid":
            return 0
        return self.shape.n_neurons - streamed_neurons(self.parameters, self.sizes)

    def _load_neurons(self) -> Array:
        """Return the neurons that `hybrid` keeps in memory, bytes [layer, neuron, record]; none on other rungs."""
        n, record = self._resident_neurons(), self.sizes.record_bytes
        kept: Array = aligned_empty((self.shape.n_layers, n, record), np.uint8)
        for layer in range(self.shape.n_layers if n else 0):
            start, _ = self.store.layer_span(layer)
            chunk_bytes = int(self.parameters.stream_chunk_bytes)
            self.reader.read_sequential(start, n * record, address(kept[layer]), chunk_bytes=chunk_bytes)
        return kept

    # --- decode ---

    def decode_dense(self, name: str) -> None:
        """Decode one token on a rung that computes all neurons."""
        self.watch.reset()
        x = self.embed(self.next_token, self.position)
        normed = norm(x, self.small.first)
        for layer in range(self.shape.n_layers):
            x, normed = self.add_norm(x, self.attention(layer, normed), self.small.after_attention[layer])
            x, normed = self.add_norm(x, self.dense_ffn(layer, normed), self.small.after_ffn[layer])
        self.next_token = self.head(normed)
        self.position += 1
        self.watch.step("decode", name)


class SparseDecoder:
    """Decodes tokens with predicted neurons only, kept in one cache per layer (or one for all without a window)."""

    def __init__(self, model: FlashModel) -> None:
        self.model = model
        parameters, shape, sizes = model.parameters, model.shape, model.sizes
        played = replay(parameters, model.seed)
        rows = played.rows_by_layer
        if parameters.rung == "predictor":
            self.caches = [self._cache(max(rows), 0, None)] * shape.n_layers
        else:
            self.caches = [self._cache(n, parameters.window, layer) for layer, n in enumerate(rows)]
        self.predictors = [
            random_predictor(rank, shape, parameters.dtype, layer)
            for layer, rank in enumerate(predictor_ranks(shape))
        ]
        self.staging: Array | None = None
        if not sizes.reads_in_place:
            most = played.most_missing * sizes.records_per_neuron
            self.staging = aligned_empty((most, sizes.record_bytes), np.uint8)

    def _cache(self, capacity: int, window: int, layer: int | None) -> NeuronCache:
        shape = self.model.shape
        return NeuronCache(
            WindowIndex(shape.n_neurons, capacity, window, layer=layer),
            d_model=shape.d_model,
            n_vectors=shape.n_vectors,
            dtype=self.model.parameters.dtype,
            row_bytes=self.model.sizes.row_bytes,
        )

    def memory_bytes(self) -> dict[str, float]:
        """Return the bytes of the arrays held, by kind."""
        caches = {id(cache): cache for cache in self.caches}.values()
        held = {
            "neuron cache": sum(cache.nbytes + cache.index.nbytes for cache in caches),
            "predictor": sum(p.reduce.nbytes + p.expand.nbytes for p in self.predictors),
        }
        if self.staging is not None:
            held["staging"] = self.staging.nbytes
        return {kind: float(size) for kind, size in held.items()}

    def token(self, number: int, phase: str, active_by_layer: Sequence[npt.NDArray[np.int64]]) -> None:
        """Decode one token with the given active neurons."""
        model = self.model
        model.watch.reset()
        x = model.embed(model.next_token, model.position)
        normed = norm(x, model.small.first)
        demands = []
        for layer, active in enumerate(active_by_layer):
            x, normed = model.add_norm(x, model.attention(layer, normed), model.small.after_attention[layer])
            with model.watch.on("compute", "predictor"):
                self.predictors[layer].predict(normed, n_threads=model.n_threads)
            demands.append(self._load(layer, active, number))
            x, normed = model.add_norm(x, self._ffn(layer, active, normed), model.small.after_ffn[layer])
        model.next_token = model.head(normed)
        model.position += 1
        model.watch.step(phase, f"token {number}", {"hit_frac": hit_frac(demands)})

    def _load(self, layer: int, active: npt.NDArray[np.int64], number: int) -> LayerDemand:
        """Make room, and read the active neurons that are missing, straight into their rows where that can be."""
        model, cache = self.model, self.caches[layer]
        with model.watch.on("memory", "cache update"):
            delta = cache.index.update(active, number)
            cache.apply_moves(delta, n_threads=model.n_threads)
            bias = model.small.ffn_bias[layer]
            if bias is not None:
                cache.set_bias(delta, bias)
            offsets, addresses = self._requests(layer, delta.missing, delta.rows)
        with model.watch.on("io", "neurons"):
            stats = model.reader.read_batch(offsets, model.sizes.record_bytes, addresses)
        if self.staging is not None:
            with model.watch.on("memory", "insert"):
                self._insert(cache, delta.rows)
        model.watch.counters["bytes_read"] += stats.n_bytes
        model.watch.counters["n_requests"] += stats.n_requests
        return LayerDemand(len(active), len(delta.missing), len(delta.moves_src), cache.index.n_used)

    def _insert(self, cache: NeuronCache, rows: npt.NDArray[np.int64]) -> None:
        """Copy vectors that were read beside their rows, because a padded record cannot land in its place."""
        assert self.staging is not None
        model, n = self.model, len(rows)
        read = self.staging.view(model.storage)[:, : model.shape.d_model]
        for vector in range(model.shape.n_vectors):
            cache.insert_copy(rows, read[vector * n : (vector + 1) * n], vector=vector, n_threads=model.n_threads)

    def _requests(
        self, layer: int, neurons: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        model, cache = self.model, self.caches[layer]
        if model.sizes.bundled:
            offsets = model.store.offsets(layer, neurons)
            return offsets, cache.row_addresses(rows)
        vectors = range(model.shape.n_vectors)
        offsets = np.concatenate([model.store.offsets(layer, neurons, vector) for vector in vectors])
        if self.staging is not None:
            places = np.arange(len(offsets), dtype=np.int64) * model.sizes.record_bytes
            return offsets, address(self.staging) + places
        step = model.sizes.vector_bytes
        return offsets, np.concatenate([cache.row_addresses(rows) + vector * step for vector in vectors])

    def _ffn(self, layer: int, active: npt.NDArray[np.int64], x: F32) -> F32:
        model, cache = self.model, self.caches[layer]
        with model.watch.on("compute", "feed-forward"):
            index = cache.index.rows_of(active) if model.parameters.compute_rows == "active" else None
            return sparse_ffn(
                x,
                cache.used_matrix(),
                dtype=model.parameters.dtype,
                activation=model.shape.sparse_activation,
                gated=model.shape.n_vectors == 3,
                bias=cache.used_bias(),
                row_index=index,
                n_threads=model.n_threads,
            )


def random_predictor(rank: int, shape: ModelShape, dtype: str, seed: int) -> LowRankPredictor:
    """Return a predictor of the right size with random weights."""
    parts = []
    for rows, columns in ((rank, shape.d_model), (shape.n_neurons, rank)):
        stored: Array = aligned_empty((rows, columns), storage_dtype(dtype))
        fill(stored.reshape(-1), dtype, seed, 0, float(1 / np.sqrt(columns)))
        parts.append(stored)
    return LowRankPredictor(reduce=parts[0], expand=parts[1], dtype=dtype)


def run_flash(parameters: FlashInference, seed: int, folder: Path, n_threads: int) -> Execution:
    """Load the model, process the prompt, decode all tokens, and count the memory held at the end, when it is most."""
    model = FlashModel(parameters, seed, folder, n_threads)
    memory: dict[str, float] = {}
    try:
        warm_up(model)
        model.prefill()
        begun = time.perf_counter()
        if parameters.is_sparse:
            decoder = SparseDecoder(model)
            tokens = trace_of(parameters, seed).tokens(n_tokens(parameters))
            for number, active_by_layer in enumerate(tokens):
                phase = "cold" if number < parameters.cold_tokens else "decode"
                begun = time.perf_counter() if number == parameters.cold_tokens else begun
                decoder.token(number, phase, active_by_layer)
            memory = decoder.memory_bytes()
        else:
            for _ in range(parameters.tokens):
                model.decode_dense("token")
        ended = time.perf_counter()
    finally:
        model.close()
    validity = [] if model.reader.direct else ["the file system refused direct I/O: reads went through its cache"]
    return Execution(
        recorder=model.watch.recorder,
        memory_bytes=model.memory_bytes() | memory,
        main_s=(begun, ended),
        trace=model.watch.rows,
        validity=validity,
    )


def warm_up(model: FlashModel) -> None:
    """Compile every kernel on tiny data, so that no step pays for it."""
    d, dtype = model.shape.d_model, model.parameters.dtype
    gated = model.shape.n_vectors == 3
    weights: Array = np.zeros((8, d), model.storage)
    rows: Array = np.zeros((8, d * model.shape.n_vectors), model.storage)
    x: F32 = np.zeros(d, np.float32)
    options: dict[str, Any] = {"dtype": dtype, "activation": model.shape.sparse_activation, "gated": gated}
    gemv(weights, x, dtype=dtype, n_threads=model.n_threads)
    gemm(weights, x[None], dtype=dtype)
    sparse_ffn(x, rows, n_threads=model.n_threads, **options)
    sparse_ffn(x, rows, row_index=np.arange(2), n_threads=model.n_threads, **options)
    dense_ffn_batch(x[None], rows, bundled=True, **options)
    cache = NeuronCache(WindowIndex(8, 4, 1), d_model=d, n_vectors=model.shape.n_vectors, dtype=dtype)
    for token, active in enumerate(([0, 1, 2], [2, 3])):
        delta = cache.index.update(np.array(active), token)
        cache.apply_moves(delta, n_threads=model.n_threads)
        cache.insert_copy(delta.rows, weights[: len(delta.rows)], vector=0, n_threads=model.n_threads)
    heads: F32 = np.zeros((model.shape.n_heads, model.shape.head_dim), np.float32)
    attend(heads, model.keys[0], model.values[0], 1, n_threads=model.n_threads)
