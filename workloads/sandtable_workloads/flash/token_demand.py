"""What flash-resident inference demands: the ops of one token on each rung, and the memory it holds.

Counts follow "LLM in a flash" (arXiv 2312.11514): section 3.1 for what stays in memory, 3.2 for what is read, 3.3
for the memory structure. Which neurons are read comes from replaying the trace through the same bookkeeping that the
execution uses, so bytes and requests are counted, not estimated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from sandtable.demand.op import Op, random_read
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine
from sandtable.units import format_bytes
from sandtable_kernels.neurons.neuron_cache import WindowIndex, overhead_bytes
from sandtable_kernels.operations.ffn import SparseFfn
from sandtable_kernels.operations.ffn_batch import DenseFfnBatch
from sandtable_kernels.operations.memory_moves import CacheUpdate, Insert
from sandtable_kernels.operations.predictor import parameter_count
from sandtable_workloads.flash.flash_parameters import FlashInference, Sizes
from sandtable_workloads.flash.layer_ops import Placement, add_norm_op, attend_op, gemm_op, gemv_op, stream_op
from sandtable_workloads.flash.neuron_traces import predictor_ranks, trace_of
from sandtable_workloads.transformer.shapes import ModelShape

# ops that attend to a prompt, at most: each prompt token is one of its own up to there
MOST_ATTENDING = 128

SPARSE_FFN, FFN_BATCH, CACHE_UPDATE, INSERT = SparseFfn(), DenseFfnBatch(), CacheUpdate(), Insert()


@dataclass(slots=True)
class LayerDemand:
    """What one layer does to the neuron cache for one token."""

    n_active: int
    n_missing: int
    n_moved: int
    n_used: int


@dataclass(slots=True)
class Replay:
    """The trace run through the cache's bookkeeping: demands by token and layer, and the rows to reserve."""

    tokens: list[list[LayerDemand]] = field(default_factory=list)
    rows_by_layer: list[int] = field(default_factory=list)

    @property
    def most_missing(self) -> int:
        """Most neurons that any layer loads for one token."""
        return max(demand.n_missing for demands in self.tokens for demand in demands)


def replay(parameters: FlashInference, seed: int) -> Replay:
    """Run the trace of all tokens through one `WindowIndex` per layer; the result is shared, do not alter it.

    Raises:
        DoesNotFit: the memory budget is smaller than the neurons that one token needs of one layer.
    """
    if parameters.trace is not None:  # a file, which may have changed since
        return _replay(parameters, seed)
    return _replayed(parameters, seed)  # pyright: ignore[reportArgumentType]  (frozen models have a hash)


# a suite plans all its cases, then prepares and runs each of them several times
@lru_cache(maxsize=64)
def _replayed(parameters: FlashInference, seed: int) -> Replay:
    return _replay(parameters, seed)


def _replay(parameters: FlashInference, seed: int) -> Replay:
    shape = parameters.shape
    window = 0 if parameters.rung == "predictor" else parameters.window
    capacity = row_budget(parameters)
    indices = [WindowIndex(shape.n_neurons, capacity, window, layer=layer) for layer in range(shape.n_layers)]
    result = Replay(rows_by_layer=[0] * shape.n_layers)
    for token, active_by_layer in enumerate(trace_of(parameters, seed).tokens(n_tokens(parameters))):
        demands = []
        for layer, (index, active) in enumerate(zip(indices, active_by_layer, strict=True)):
            delta = index.update(active, token)
            demands.append(LayerDemand(len(active), len(delta.missing), len(delta.moves_src), index.n_used))
            result.rows_by_layer[layer] = max(result.rows_by_layer[layer], index.n_used)
        result.tokens.append(demands)
    return result


def n_tokens(parameters: FlashInference) -> int:
    """Return how many tokens are decoded, the cold ones included."""
    return parameters.cold_tokens + parameters.tokens


def row_budget(parameters: FlashInference) -> int:
    """Return the most neurons per layer that the memory budget allows.

    Raises:
        DoesNotFit: not even one neuron per layer.
    """
    shape, sizes = parameters.shape, Sizes.of(parameters)
    if parameters.memory_budget_bytes is None:
        return shape.n_neurons
    # without a window one buffer serves all layers in turn
    n_caches = 1 if parameters.rung == "predictor" else shape.n_layers
    rows = int(parameters.memory_budget_bytes // (n_caches * sizes.row_bytes))
    if rows < 1:
        raise DoesNotFit(
            f"a memory budget of {format_bytes(parameters.memory_budget_bytes)} holds no neuron per layer: "
            f"{n_caches} layers of {format_bytes(sizes.row_bytes)} per neuron need at least "
            f"{format_bytes(n_caches * sizes.row_bytes)}"
        )
    return min(rows, shape.n_neurons)


def plan_of(parameters: FlashInference, machine: Machine, seed: int) -> Plan:
    """Return the whole plan: prefill, cold tokens, decode."""
    where = Placement.of(machine)
    sizes = Sizes.of(parameters)
    prefill = Phase(name="prefill", steps=(Step(name="prompt", ops=tuple(prefill_ops(parameters, sizes, where))),))
    if not parameters.is_sparse:
        ops = tuple(dense_token(parameters, sizes, where))
        decode = Phase(name="decode", steps=(Step(name="token", ops=ops, repeat=parameters.tokens),))
        phases: tuple[Phase, ...] = (prefill, decode)
        return _plan(parameters, phases, dense_memory(parameters, sizes))
    played = replay(parameters, seed)
    steps = tuple(
        Step(
            name=f"token {number}",
            ops=tuple(sparse_token(parameters, sizes, where, demands, number)),
            counters={"hit_frac": hit_frac(demands)},
        )
        for number, demands in enumerate(played.tokens)
    )
    cold = (Phase(name="cold", steps=steps[: parameters.cold_tokens]),) if parameters.cold_tokens else ()
    phases = (prefill, *cold, Phase(name="decode", steps=steps[parameters.cold_tokens :]))
    return _plan(parameters, phases, sparse_memory(parameters, sizes, played))


def memory_of(parameters: FlashInference, seed: int) -> dict[str, float]:
    """Return the bytes held by kind, on any rung of the paper."""
    sizes = Sizes.of(parameters)
    if parameters.is_sparse:
        return sparse_memory(parameters, sizes, replay(parameters, seed))
    return dense_memory(parameters, sizes)


def _plan(parameters: FlashInference, phases: tuple[Phase, ...], memory: dict[str, float]) -> Plan:
    return Plan(
        workload="flash_inference",
        phases=phases,
        main_phase="decode",
        memory_bytes=memory,
        work_unit="token",
        sums={"ttft_s": ("prefill", phases[1].name)},
        notes=parameters.shape.notes,
    )


# --- parts of a layer ---------------------------------------------------------------------------------------


def heads(shape: ModelShape) -> tuple[int, int, int]:
    """Return query heads, key-value heads and their width."""
    return shape.n_heads, shape.n_kv_heads, shape.head_dim


def _attention(parameters: FlashInference, where: Placement, context: int) -> Iterator[Op]:
    """Projections and attention of one layer and one token; ``context`` tokens of keys and values."""
    shape = parameters.shape
    yield gemv_op("attention", shape.qkv_rows, shape.d_model, parameters.dtype, where.on)
    yield attend_op(heads(shape), parameters.kv_dtype, where.on, context)
    yield gemv_op("attention", shape.d_model, shape.n_heads * shape.head_dim, parameters.dtype, where.on)


def _head(parameters: FlashInference, where: Placement) -> Op:
    return gemv_op("output", parameters.shape.vocabulary, parameters.shape.d_model, parameters.dtype, where.on)


def _ffn(parameters: FlashInference, where: Placement, n_rows: int, *, dynamic: bool) -> Op:
    shape = parameters.shape
    dims = {"n_rows": n_rows, "d_model": shape.d_model, "n_vectors": shape.n_vectors, "dtype": parameters.dtype}
    return replace(SPARSE_FFN.cost(dims), name="feed-forward", on=where.on, dynamic=dynamic)


# --- sparse rungs ------------------------------------------------------------------------------------------


def sparse_token(
    parameters: FlashInference, sizes: Sizes, where: Placement, demands: Sequence[LayerDemand], number: int
) -> Iterator[Op]:
    """Yield the ops of one decoded token: per layer attention, predictor, memory update, reads, feed-forward."""
    shape = parameters.shape
    context = parameters.prompt_tokens + number + 1
    ranks = predictor_ranks(shape)
    for layer, demand in enumerate(demands):
        yield from _attention(parameters, where, context)
        yield add_norm_op(shape.d_model, where.on)
        yield gemv_op("predictor", ranks[layer], shape.d_model, parameters.dtype, where.on)
        yield gemv_op("predictor", shape.n_neurons, ranks[layer], parameters.dtype, where.on)
        yield from _cache_ops(sizes, demand, where)
        yield random_read(
            "neurons",
            n_chunks=demand.n_missing * sizes.records_per_neuron,
            chunk_bytes=sizes.record_bytes,
            concurrency=parameters.concurrency,
        )
        n_bytes = demand.n_missing * sizes.neuron_bytes
        if not sizes.reads_in_place:
            n_vectors = demand.n_missing * sizes.shape.n_vectors
            yield INSERT.cost({"n_rows": n_vectors, "row_bytes": sizes.vector_bytes})
        if where.transfers:
            yield Op(name="transfer", operator="transfer", account="memory", bytes_read=n_bytes, on="accelerator")
        rows = demand.n_used if parameters.compute_rows == "cached" else demand.n_active
        yield _ffn(parameters, where, rows, dynamic=True)
        yield add_norm_op(shape.d_model, where.on)
    yield _head(parameters, where)


def hit_frac(demands: Sequence[LayerDemand]) -> float:
    """Return the share of the active neurons that were in memory already."""
    return 1 - sum(d.n_missing for d in demands) / max(1, sum(d.n_active for d in demands))


def _cache_ops(sizes: Sizes, demand: LayerDemand, where: Placement) -> Iterator[Op]:
    """Delete by moving the last rows into the gaps (section 3.3); inserts are read straight into place."""
    dims = {"n_active": demand.n_active, "n_new": demand.n_moved, "row_bytes": sizes.row_bytes}
    yield replace(CACHE_UPDATE.cost(dims), on=where.on if where.transfers else "host")


def sparse_memory(parameters: FlashInference, sizes: Sizes, played: Replay) -> dict[str, float]:
    """Return resident bytes by kind for the sparse rungs.

    The prompt uses nearly all neurons, so that one layer of the store passes through a buffer of that size.
    """
    shape, rows = parameters.shape, played.rows_by_layer
    caches = [max(rows)] if parameters.rung == "predictor" else rows
    cached = sum(n * sizes.row_bytes + overhead_bytes(shape.n_neurons, n) for n in caches)
    predictor = sum(parameter_count(rank, shape.d_model, shape.n_neurons) for rank in predictor_ranks(shape))
    memory = _common_memory(parameters, sizes) | {
        "attention": shape.n_layers * sizes.attention_bytes,
        "predictor": predictor * sizes.item_bytes,
        "neuron cache": float(cached),
        "layer buffer": float(sizes.layer_store_bytes),
    }
    if not sizes.reads_in_place:
        memory["staging"] = float(played.most_missing * sizes.records_per_neuron * sizes.record_bytes)
    return memory


def _common_memory(parameters: FlashInference, sizes: Sizes) -> dict[str, float]:
    """Every rung keeps embeddings, keys and values, and the biases, norms and positions that are no matrix."""
    shape = parameters.shape
    return {
        "embeddings": sizes.embedding_bytes,
        "keys and values": shape.kv_bytes(parameters.n_positions, parameters.kv_dtype),
        "biases and norms": shape.small_params * 4.0,
    }


# --- dense rungs and prefill -------------------------------------------------------------------------------


def streamed_neurons(parameters: FlashInference, sizes: Sizes) -> int:
    """Return the neurons per layer that a dense rung reads for every token."""
    if parameters.rung == "naive":
        return sizes.shape.n_neurons
    return sizes.shape.n_neurons - sizes.resident_neurons(parameters.resident_frac)


def dense_token(parameters: FlashInference, sizes: Sizes, where: Placement) -> Iterator[Op]:
    """Yield the ops of one token that computes all neurons, reading what is not resident in order."""
    shape = parameters.shape
    context = parameters.prompt_tokens + max(1, parameters.tokens // 2)
    streamed = streamed_neurons(parameters, sizes)
    for _ in range(shape.n_layers):
        if parameters.rung == "naive":
            yield stream_op(parameters, "attention weights", sizes.attention_bytes)
        yield from _attention(parameters, where, context)
        yield add_norm_op(shape.d_model, where.on)
        yield stream_op(parameters, "neurons", streamed * sizes.row_bytes)
        resident = shape.n_neurons - streamed
        if resident:
            yield _ffn(parameters, where, resident, dynamic=False)
        yield _ffn(parameters, where, streamed, dynamic=False)
        yield add_norm_op(shape.d_model, where.on)
    if parameters.rung == "naive":
        yield stream_op(parameters, "output weights", sizes.head_bytes)
    yield _head(parameters, where)


def dense_memory(parameters: FlashInference, sizes: Sizes) -> dict[str, float]:
    """Return resident bytes by kind for the dense rungs; each layer passes through one buffer."""
    shape = parameters.shape
    streamed = streamed_neurons(parameters, sizes)
    memory = _common_memory(parameters, sizes)
    if parameters.rung == "naive":
        del memory["embeddings"]
        biggest = max(sizes.attention_bytes, sizes.head_bytes, streamed * sizes.row_bytes)
        return memory | {"layer buffer": float(biggest)}
    return memory | {
        "attention": shape.n_layers * sizes.attention_bytes,
        "resident neurons": float(shape.n_layers * (shape.n_neurons - streamed) * sizes.row_bytes),
        "layer buffer": float(streamed * sizes.row_bytes),
    }


def _attended(parameters: FlashInference, where: Placement) -> Iterator[Op]:
    """Yield what the tokens of a prompt attend to: each to those before it and itself.

    Of a long prompt, neighbours are one op each with their mean context: time is linear in it, so the sum stays.
    """
    n = parameters.prompt_tokens
    size = -(-n // MOST_ATTENDING)
    for first in range(0, n, size):
        last = min(first + size, n)
        op = attend_op(heads(parameters.shape), parameters.kv_dtype, where.on, (first + last + 1) // 2)
        yield op if last - first == 1 else replace(op, repeat=last - first)


def prefill_ops(parameters: FlashInference, sizes: Sizes, where: Placement) -> Iterator[Op]:
    """Yield the ops of the prompt: together its tokens use nearly all neurons, so layers are read whole, in order."""
    shape, n = parameters.shape, parameters.prompt_tokens
    streamed = shape.n_neurons if parameters.is_sparse else streamed_neurons(parameters, sizes)
    attended = tuple(_attended(parameters, where))
    for _ in range(shape.n_layers):
        if parameters.rung == "naive":
            yield stream_op(parameters, "attention weights", sizes.attention_bytes)
        yield gemm_op("attention", shape.qkv_rows, shape.d_model, n, parameters.dtype, where.on)
        yield from attended
        yield gemm_op("attention", shape.d_model, shape.n_heads * shape.head_dim, n, parameters.dtype, where.on)
        yield add_norm_op(shape.d_model, where.on, n)
        yield stream_op(parameters, "neurons", streamed / shape.n_neurons * sizes.layer_store_bytes)
        dims = {"n": n, "n_rows": shape.n_neurons, "d_model": shape.d_model, "n_vectors": shape.n_vectors}
        yield replace(FFN_BATCH.cost({**dims, "dtype": parameters.dtype}), on=where.on)
        yield add_norm_op(shape.d_model, where.on, n)
    if parameters.rung == "naive":
        yield stream_op(parameters, "output weights", sizes.head_bytes)
    yield _head(parameters, where)
