"""What training demands of a device, operator by operator: one description for a single run and for many at once.

Numbers may be arrays with one entry per configuration, see `sandtable_workloads.training.step_numbers`.

Letters: t tokens of a micro-batch on one device, D width, I neurons, H query heads, K key/value heads, E head
dimension, V vocabulary, b bytes of an element. Bytes are those that an operator has to move at least; what the
software moves beyond that, and in how many kernels, is in its stack file under ``efficiency.memory_bound.<name>``.

Sources: layers and their backward passes as in Korthikanti et al. (arXiv 2205.05198), sections 2 and 4; the
five products of a fused attention's backward pass in Dao (arXiv 2307.08691), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sandtable.demand import operator_shapes
from sandtable.demand.operator import Operator, operator_named
from sandtable.demand.operator_shapes import BACKWARD_PASSES, Number, aligned
from sandtable.hardware import DTYPE_BYTES, OpEfficiency, Stack
from sandtable_workloads.training.states import optimizers
from sandtable_workloads.training.step_numbers import CHECKPOINTING, EVERY_SECOND, SHARDING, Configuration

AS_COUNTED = OpEfficiency()  # of work that a stack file says nothing of
# bytes of an element of a type that is widened
NARROW_BYTES = 2.0
# steps of the iteration that makes a matrix orthogonal
ITERATIONS = 5
# tensors of weights of one layer, of which each is a kernel or a message where none are joined: of seven products and
# two norms
TENSORS_PER_LAYER = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One operator: the columns that its law reads, and how often it runs; a collective names its group.

    ``name`` is for reports; ``times`` counts executions in a row. ``hidden_by`` is what runs at the same time as a
    collective and hides it, as long as that goes.
    """

    name: str
    operator: str
    shape: Any
    dtype: str
    times: Number = 1.0
    hidden_by: Demand | None = None

    @property
    def law(self) -> Operator[Any]:
        """What says how it is served."""
        return operator_named(self.operator)

    @property
    def communicates(self) -> bool:
        """Whether it is a collective."""
        return self.law.resource == "network"


class Software:
    """How a stack carries out element-wise work: how often it moves each byte, and in how many kernels."""

    def __init__(self, stack: Stack | None) -> None:
        self.table = {} if stack is None else stack.datasheet.efficiency
        self.host_call_s = 0.0 if stack is None else stack.datasheet.host_call_s
        # whether attention through memory masks and normalises its scores in one kernel, and whether it drops some
        fused, dropout = ("attention.fused_softmax" in self.table, "attention.dropout" in self.table)
        self.scores = (float(fused), float(dropout))

    def memory_bound(self, name: str, n_bytes: Number, c: Configuration, n_kernels: Number = 1.0) -> Demand:
        """Return element-wise work that has to move ``n_bytes`` at least, in ``n_kernels`` kernels at least."""
        found = self._counted(name, c) or AS_COUNTED
        special = found.special * n_bytes / c.item_bytes
        layers = c.n_layers / c.pipeline
        calls = n_kernels * found.calls + layers * found.calls_per_layer
        shape = operator_shapes.MemoryBoundShape(n_bytes * found.traffic, calls, special)
        return Demand(name=name, operator="memory_bound", shape=shape, dtype=c.dtype)

    def stated(self, name: str, n_bytes: Number, c: Configuration, n_kernels: Number = 1.0) -> list[Demand]:
        """Return work that only software does whose file counts it."""
        return [self.memory_bound(name, n_bytes, c, n_kernels)] if self._counted(name, c) else []

    @property
    def waits(self) -> bool:
        """Whether each section of a step is waited for, so that the host runs ahead within a section alone."""
        return "host.update" in self.table

    def host_s(self, section: str, c: Configuration) -> Number:
        """Return the host's time for calls that start no kernel: views and modules, or an optimiser's tensors."""
        found = self.table.get(f"host.{section}")
        if found is None:
            return 0.0
        return (found.calls + c.n_layers * found.calls_per_layer) * self.host_call_s

    def _counted(self, name: str, c: Configuration) -> OpEfficiency | None:
        """Return what the file says of a composite in this run's types, or in any."""
        own, types = f"memory_bound.{name}", "autocast" if c.autocast else c.dtype
        return self.table.get(f"{own}.{types}", self.table.get(own))


def gemm(
    name: str, c: Configuration, m: Number, n: Number, k: Number, *, batch: Number = 1.0, narrow: bool = True
) -> Demand:
    """Return a product; only those of ``narrow`` ones run in the narrow type of mixed fp8, on inputs cast before."""
    dtype = c.gemm_dtype if narrow else c.dtype
    shape = operator_shapes.GemmShape(m, n, k, batch, narrowed=float(dtype == "fp8"))
    return Demand(name=name, operator="gemm", shape=shape, dtype=dtype)


def casts(products: Sequence[Demand], c: Configuration, software: Software, *, backward: bool) -> list[Demand]:
    """Return what makes the inputs of products narrow, if they are: read in two bytes, written in one, twice.

    Emulated types are made wide instead: read in two bytes, written in four.

    Inputs and weights forward, and the gradient of each result backward; the two products of a backward pass share
    that, and find the others as the forward pass left them. An operand is kept in both layouts, since narrow products
    take one only, or scale along their depth (NVIDIA Transformer Engine user guide, "Using FP8 with Transformer
    Engine" and "MXFP8").
    """
    per_element = c.item_bytes + NARROW_BYTES if c.widened else c.item_bytes + 2 * DTYPE_BYTES["fp8"]
    found: list[Demand] = []
    for product in (product for product in products if product.dtype == "fp8" or c.widened):
        p = product.shape
        elements = p.batch * (p.m * p.n if backward else p.m * p.k + p.k * p.n)
        cast = software.memory_bound("cast", per_element * elements, c)
        found.append(replace(cast, times=product.times))
    return found


def backward_of(product: Demand) -> Iterator[Demand]:
    """Yield the gradients of a product with respect to its input and to its weights."""
    p: operator_shapes.GemmShape = product.shape
    yield replace(product, shape=p._replace(n=p.k, k=p.n))
    # weights lie as they do in the forward pass: k rows of n, summed over the m tokens. Rows of both operands are read,
    # and laws look at those of n
    kept = aligned(p.k, NARROW_BYTES)
    rows, columns = (np.where(kept, one, other) for one, other in ((p.k, p.n), (p.n, p.k)))
    yield replace(product, shape=p._replace(m=rows, n=columns, k=p.m))


# --- one layer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What sets a layer apart from others of its model: experts instead of one FFN, a window instead of all."""

    experts: bool = False
    windowed: bool = False


def attention_products(c: Configuration) -> list[Demand]:
    """Return the projections of one layer's attention: the joined query, key and value, and the output."""
    heads, t = c.n_heads / c.tensor, c.tokens
    output = gemm("attention output", c, t, c.d_model, heads * c.value_dim)
    if c.latent is None:
        kv_heads = np.maximum(c.n_kv_heads / c.tensor, 1.0)
        return [gemm("qkv", c, t, (heads + 2 * kv_heads) * c.head_dim, c.d_model), output]
    q_rank, kv_rank, nope, rope, value = c.latent
    queries = heads * (nope + rope)
    first = gemm("latents", c, t, (q_rank or queries) + kv_rank + rope, c.d_model)
    keys = gemm("keys and values", c, t, heads * (nope + value), kv_rank)
    return [first, *([gemm("queries", c, t, queries, q_rank)] if q_rank else []), keys, output]


def ffn_products(c: Configuration, kind: LayerKind) -> list[Demand]:
    """Return the products of one layer's FFN, or those around its experts: router and shared experts."""
    t = c.tokens
    neurons = c.shared_neurons if kind.experts else c.n_neurons
    together, apart = (c.n_vectors - 1, 1.0) if c.joined else (1.0, c.n_vectors - 1)
    up = replace(gemm("ffn up", c, t, together * neurons / c.tensor, c.d_model), times=apart)
    down = gemm("ffn down", c, t, c.d_model, neurons / c.tensor)
    if not kind.experts:
        return [up, down]
    router = gemm("router", c, t / norm_split(c), c.n_experts, c.d_model, narrow=False)
    return [router, *([up, down] if np.any(np.asarray(neurons) > 0) else [])]


def attention(c: Configuration, kind: LayerKind, passes: float, software: Software | None = None) -> Demand:
    """Return the core of one layer's attention; each device of a context group has its share of the queries."""
    seen = np.minimum(c.sequence, c.window) if kind.windowed else c.sequence
    # a window narrower than the sequence is seen whole by nearly all tokens
    causal = np.where(np.asarray(seen) < c.sequence, 0.0, 1.0) if c.causal else 0.0
    fused, dropout = (0.0, 0.0) if software is None else software.scores
    shape = operator_shapes.AttentionShape(
        batch=c.batch,
        query_tokens=c.sequence / c.context,
        kv_tokens=seen,
        n_heads=c.n_heads / c.tensor,
        n_kv_heads=np.maximum((c.n_heads if c.latent else c.n_kv_heads) / c.tensor, 1.0),
        head_dim=c.head_dim,
        value_dim=c.value_dim,
        causal=causal,
        kv_item_bytes=c.item_bytes,
        flash=float(c.flash),
        passes=passes,
        fused_softmax=fused,
        dropout=dropout,
    )
    return Demand(name="attention", operator="attention", shape=shape, dtype=c.dtype)


def expert_products(c: Configuration) -> list[Demand]:
    """Return the products of one layer's routed experts: those that this device holds, as one batch each.

    The tokens of an expert-parallel group are spread over all experts evenly, as balancing losses and benchmarks have
    it; each expert takes its share as rows of a product of its own, gate and up joined (Gale et al., "MegaBlocks",
    arXiv 2211.15841, section 2.3).
    """
    local = c.n_experts / c.expert
    rows, neurons = c.tokens * c.top_k / local, c.expert_neurons / c.tensor
    return [
        gemm("experts up", c, rows, 2 * neurons, c.d_model, batch=local),
        gemm("experts down", c, rows, c.d_model, neurons, batch=local),
    ]


def _routing(c: Configuration, software: Software) -> Demand:
    """Return the sorting of tokens by expert and back, a copy for each expert that they go to; alike backward."""
    return software.memory_bound("routing", 4 * c.tokens * c.top_k * c.d_model * c.item_bytes, c, 2.0)


def norm_split(c: Configuration) -> Number:
    """Return over how many devices norms and residuals are split."""
    return 1 + c.sequence_parallel * (c.tensor - 1)


def forward_streams(c: Configuration, kind: LayerKind, software: Software) -> list[Demand]:
    """Return one layer's element-wise work in the forward pass."""
    b, wide = c.item_bytes, c.tokens * c.d_model / norm_split(c)
    used = neurons_used(c, kind)
    found = [
        software.memory_bound("norm", c.norms * 2 * wide * b, c, c.norms),
        *software.stated("casts", c.norms * 2 * wide * b, c, c.norms),
        software.memory_bound("residual", 2 * 3 * wide * b, c, 2.0),
        software.memory_bound("activation", c.tokens * used * c.n_vectors * b / c.tensor, c),
    ]
    if c.rotary:
        turned = c.tokens * (c.n_heads + c.n_kv_heads) * c.head_dim / c.tensor
        found.append(software.memory_bound("rope", 2 * turned * b, c))
    return found


def backward_streams(c: Configuration, kind: LayerKind, software: Software) -> list[Demand]:
    """Return one layer's element-wise work in the backward pass: each reads its inputs and the gradient again."""
    b, wide = c.item_bytes, c.tokens * c.d_model / norm_split(c)
    used = neurons_used(c, kind)
    found = [
        software.memory_bound("norm backward", c.norms * 3 * wide * b, c, c.norms),
        *software.stated("casts backward", c.norms * 2 * wide * b, c, c.norms),
        software.memory_bound("residual backward", 2 * 3 * wide * b, c, 2.0),
        software.memory_bound("activation backward", c.tokens * used * (2 * c.n_vectors - 1) * b / c.tensor, c),
    ]
    joined = c.tokens * (c.n_heads + 2 * c.n_kv_heads) * c.head_dim / c.tensor
    found.append(software.memory_bound("qkv backward", 2 * joined * b, c))
    if c.rotary:
        turned = c.tokens * (c.n_heads + c.n_kv_heads) * c.head_dim / c.tensor
        found.append(software.memory_bound("rope backward", 2 * turned * b, c))
    if np.any(np.asarray(c.biased) > 0):
        outputs = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim / c.tensor + used / c.tensor + 2 * c.d_model
        found.append(software.memory_bound("bias gradient", c.biased * c.tokens * outputs * b, c, 4 * c.biased))
    return found


def neurons_used(c: Configuration, kind: LayerKind) -> Number:
    """Return the neurons that a token meets in a layer's FFN or its experts."""
    return c.expert_neurons * c.top_k + c.shared_neurons if kind.experts else c.n_neurons


def layer_forward(c: Configuration, kind: LayerKind, software: Software) -> list[Demand]:
    """Return everything that one layer does in the forward pass, communication within it included."""
    products = layer_products(c, kind)
    routing = [_routing(c, software)] if kind.experts else []
    streams = [*casts(products, c, software, backward=False), *routing, *forward_streams(c, kind, software)]
    streams += software.stated("weights", _weights(products) * c.item_bytes, c)
    sent = layer_communication(c, kind, backward=False)
    return [*products, attention(c, kind, 1.0, software), *streams, *sent]


def _weights(products: Sequence[Demand]) -> Number:
    """Return the elements of the weights that products are with."""
    found: Number = sum(p.times * p.shape.batch * p.shape.n * p.shape.k for p in products)
    return found


def layer_products(c: Configuration, kind: LayerKind) -> list[Demand]:
    """Return the products of one layer forward, those of its routed experts included."""
    return [*attention_products(c), *ffn_products(c, kind), *(expert_products(c) if kind.experts else [])]


def layer_backward(c: Configuration, kind: LayerKind, software: Software) -> list[Demand]:
    """Return everything that one layer does in the backward pass, what it recomputes left out."""
    forward = layer_products(c, kind)
    products = [gradient for product in forward for gradient in backward_of(product)]
    products += casts(forward, c, software, backward=True)
    if kind.experts:
        products.append(_routing(c, software))
    core = attention(c, kind, BACKWARD_PASSES, software)
    products.append(_gradient_copy(c, kind, software))
    products += software.stated("weights backward", _weights(forward) * c.item_bytes, c)
    return [*products, core, *backward_streams(c, kind, software), *layer_communication(c, kind, backward=True)]


def _gradient_copy(c: Configuration, kind: LayerKind, software: Software) -> Demand:
    """Return the copy of a layer's gradients into the flat buffer that is scattered, in the type it is sent in."""
    held = (c.moe_layer_params if kind.experts else c.layer_params) / c.tensor
    sharded = np.where((np.asarray(c.sharding) >= SHARDING["fsdp_grad_op"]) & (np.asarray(c.devices) > 1), 1.0, 0.0)
    return software.memory_bound("gradient copy", sharded * held * (c.item_bytes + c.reduce_bytes), c, sharded)


def layer_recompute(c: Configuration, kind: LayerKind, software: Software) -> list[Demand]:
    """Return what one layer computes again, in the mean: attention's core if selective, all of it if full."""
    core = np.asarray(c.recompute) == CHECKPOINTING["selective"]
    full = 1.0 * (np.asarray(c.recompute) == CHECKPOINTING["full"])
    full = full + EVERY_SECOND * (np.asarray(c.recompute) == CHECKPOINTING["alternate"])
    found: list[Demand] = []
    if np.any(full > 0):
        found += [replace(d, times=d.times * full) for d in layer_forward(c, kind, software)]
    if core.any() and not c.flash:
        # a fused attention never stored what this would make again
        again = attention(c, kind, 1.0, software)
        found.append(replace(again, times=again.times * core))
    return found


# --- communication within a layer ------------------------------------------------------------------------------


def collective(
    name: str, c: Configuration, operator: str, n_bytes: Number, n_ranks: Number, stride: Number
) -> Demand:
    """Return a collective over ranks that lie ``stride`` devices apart."""
    local = np.clip(c.per_machine / stride, 1.0, n_ranks)
    beside = np.minimum(stride, c.per_machine)
    return Demand(
        name=name,
        operator=operator,
        shape=operator_shapes.CollectiveShape(n_bytes, n_ranks, local, beside),
        dtype=c.dtype,
    )


def layer_communication(c: Configuration, kind: LayerKind, *, backward: bool) -> list[Demand]:
    """Return what one layer sends in one direction: over tensor, context and expert groups."""
    found: list[Demand] = []
    wide = c.tokens * c.d_model * c.item_bytes
    if np.any(np.asarray(c.tensor) > 1):
        found += _tensor_communication(c, kind, wide, backward=backward)
    if np.any(np.asarray(c.context) > 1):
        kv = c.batch * c.sequence * c.n_kv_heads * (c.head_dim + c.value_dim) / c.tensor * c.item_bytes
        if kind.windowed:
            kv = kv * np.minimum(1.0, c.window / c.sequence)
        ring = collective("context all-gather", c, "all_gather", kv, c.context, c.tensor)
        back = collective("context reduce-scatter", c, "reduce_scatter", kv, c.context, c.tensor)
        found += [ring, back] if backward else [ring]
    if kind.experts and np.any(np.asarray(c.expert) > 1):
        sent = wide * c.top_k
        one_way = collective("expert all-to-all", c, "all_to_all", sent, c.expert, c.tensor)
        found.append(replace(one_way, times=2.0))
    return found


def _tensor_communication(c: Configuration, kind: LayerKind, wide: Number, *, backward: bool) -> list[Demand]:
    """Two all-reduces a layer and direction, or as many pairs of reduce-scatter and all-gather.

    With sequence parallelism the backward pass gathers each input once more for the weights' gradients
    (arXiv 2205.05198, section 4.2.2); that one overlaps with the product before it and is left out. Where collectives
    are cut into pieces that run beside their products, one piece is left to wait for (Wang et al., "Overlap
    Communication with Dependent Computation via Decomposition", ASPLOS 2023). Where the backward pass sums a product's
    input gradients behind the product of its weights' gradients, only what takes longer than that is.
    """
    split = c.sequence_parallel
    whole = collective("tensor all-reduce", c, "all_reduce", wide / c.pieces, c.tensor, 1.0)
    gather = collective("tensor all-gather", c, "all_gather", wide / c.pieces, c.tensor, 1.0)
    scatter = collective("tensor reduce-scatter", c, "reduce_scatter", wide / c.pieces, c.tensor, 1.0)
    gathers = replace(gather, times=2 * split)
    hiding = _weight_gradients(c, kind) if backward and c.behind_weights else []
    if not hiding:
        return [replace(whole, times=2 * (1 - split)), gathers, replace(scatter, times=2 * split)]
    summed = [
        replace(one, times=share, hidden_by=product)
        for product in hiding
        for one, share in ((whole, 1 - split), (scatter, split))
    ]
    return [gathers, *summed]


def _weight_gradients(c: Configuration, kind: LayerKind) -> list[Demand]:
    """Return the products that the two sums of a layer's input gradients may hide behind: those of qkv and FFN."""
    if kind.experts or c.latent is not None:
        return []
    first, up = attention_products(c)[0], ffn_products(c, kind)[0]
    return [list(backward_of(product))[1] for product in (first, up)]


# --- ends of the model and of the step --------------------------------------------------------------------------


def embedding_forward(c: Configuration, software: Software) -> list[Demand]:
    """Return the lookup of a micro-batch's tokens."""
    return [software.memory_bound("embedding", 2 * c.tokens * c.d_model * c.item_bytes, c)]


def embedding_backward(c: Configuration, software: Software) -> list[Demand]:
    """Return the scatter of gradients into the embedding's, which is cleared first."""
    rows = c.vocabulary * c.d_model / c.tensor
    n_bytes = (2 * c.tokens * c.d_model + rows) * c.item_bytes
    return [software.memory_bound("embedding backward", n_bytes, c)]


def _head(c: Configuration) -> Demand:
    return gemm("head", c, c.tokens, c.vocabulary / c.tensor, c.d_model, narrow=False)


def head_forward(c: Configuration, software: Software) -> list[Demand]:
    """Return the output projection and the loss of a micro-batch."""
    logits = c.tokens * c.vocabulary / c.tensor
    norm = software.memory_bound("norm", 2 * c.tokens * c.d_model * c.item_bytes, c)
    head = _head(c)
    cast = software.stated("weights", _weights([head]) * c.item_bytes, c)
    return [norm, *cast, head, software.memory_bound("loss", logits * c.item_bytes, c)]


def head_backward(c: Configuration, software: Software) -> list[Demand]:
    """Return the backward pass of loss and output projection."""
    logits = c.tokens * c.vocabulary / c.tensor
    norm = software.memory_bound("norm backward", 3 * c.tokens * c.d_model * c.item_bytes, c)
    head = _head(c)
    cast = software.stated("weights backward", _weights([head]) * c.item_bytes, c)
    loss = software.memory_bound("loss backward", 2 * logits * c.item_bytes, c)
    return [loss, *backward_of(head), *cast, norm]


def held_params(c: Configuration) -> Number:
    """Return the parameters of one device of the stage that holds most, before data-parallel sharding."""
    return (stage_params(c) + c.outer_params) / c.tensor


def stage_params(c: Configuration) -> Number:
    """Return the parameters of the layers of one pipeline stage, before tensor parallelism."""
    dense = (c.n_layers - c.n_moe_layers) * c.layer_params
    return (dense + c.n_moe_layers * c.moe_layer_params) / c.pipeline


def optimizer(c: Configuration, software: Software) -> list[Demand]:
    """Return the optimiser's step on one device's share of the states, and the norm of the gradients before it."""
    n_params = held_params(c) / np.where(np.asarray(c.sharding) > 0, c.replicas, 1.0)
    fused = c.optimizer in optimizers.FUSED
    calls = TENSORS_PER_LAYER * c.n_layers / c.pipeline if fused else 1.0
    return [
        software.memory_bound("gradient norm", n_params * c.reduce_bytes, c),
        software.memory_bound("fused optimizer" if fused else "optimizer", n_params * c.state_bytes, c, calls),
    ]


def orthogonalised(c: Configuration, product: Demand, n_layers: Number) -> list[Demand]:
    """Return what Muon does to the weights of one product in so many layers: five Newton-Schulz iterations.

    Each makes ``X Xᵀ`` of a matrix, its square, and their sum times X, in 16 bits (Jordan et al., 2024; Liu et al.,
    "Muon is scalable for LLM training", arXiv 2502.16982, section 2). A device does its share of the matrices
    where states are sharded, whole ones then; those split by tensor parallelism are taken as matrices of their own.
    """
    p: operator_shapes.GemmShape = product.shape
    short, long = np.minimum(p.n, p.k), np.maximum(p.n, p.k)
    shares = np.where(np.asarray(c.sharding) > 0, c.replicas, 1.0)
    batch = p.batch * product.times * n_layers * ITERATIONS / c.pipeline / shares
    dtype = c.dtype if c.widened else "bfloat16"
    shapes = ((short, short, long), (short, short, short), (short, long, short))
    return [replace(gemm("orthogonalise", c, *mnk, batch=batch, narrow=False), dtype=dtype) for mnk in shapes]


def whole_matrices(c: Configuration) -> Demand:
    """Return how shards of matrices come to the device that makes them orthogonal, or back: all to all, in 16 bits."""
    sharded = np.where(np.asarray(c.sharding) >= SHARDING["fsdp_grad_op"], 1.0, 0.0)
    one_way = collective(
        "matrices all-to-all", c, "all_to_all", 2 * held_params(c) / c.replicas, c.replicas, c.tensor
    )
    return replace(one_way, times=2 * sharded)
