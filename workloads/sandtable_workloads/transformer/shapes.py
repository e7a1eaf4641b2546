"""What a decoder-only transformer is made of, and everything that follows by counting: parameters, flops, bytes.

Counts equal those of the published checkpoints; a golden test holds each preset to its own. Letters in formulas:
L layers, D width, I neurons, H query heads, E head dimension, V vocabulary, T tokens of context.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from sandtable.hardware import DTYPE_BYTES, Frozen

Activation = Literal["relu", "relu2", "silu", "gelu"]
Norm = Literal["rms", "layer", "layer_no_bias", "layer_bare"]
Positions = Literal["rotary", "learned", "alibi", "none"]
QkNorm = Literal["none", "per_head", "all_heads", "each_head"]
# no model has more of anything, layers aside: what is beyond is a slip of the pen, and no loop is as long
MOST = 1 << 28
MOST_LAYERS = 10_000


class StoredWeights(Frozen):
    """How the files of a model hold its weights, where these are packed.

    Attributes:
        method: Name of the format, such as ``awq`` or ``fp8``.
        bits: Of a weight; None where the file does not say.
        group_size: Weights that share a scale; None where that is a whole row, or not said.
    """

    method: str
    bits: int | None = Field(default=None, ge=1, le=32)
    group_size: int | None = Field(default=None, ge=1)


class LatentAttention(Frozen):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 section 2.1).

    Keys and values of all heads are made from one latent vector per token, which is all that is cached, together
    with one rotary key that the heads share.

    Attributes:
        q_lora_rank: Width of the latent that queries are made from; None makes them from the residual stream.
        kv_lora_rank: Width of the latent of keys and values.
        qk_nope_head_dim, qk_rope_head_dim: Parts of a query and a key without and with a rotary position.
        v_head_dim: Width of one head's values.
    """

    q_lora_rank: int | None = Field(default=None, ge=1)
    kv_lora_rank: int = Field(ge=1)
    qk_nope_head_dim: int = Field(ge=1)
    qk_rope_head_dim: int = Field(ge=1)
    v_head_dim: int = Field(ge=1)

    def weights(self, d_model: int, n_heads: int) -> int:
        """Return the weights of one layer's projections: down to the latents, up to the heads, output."""
        heads = n_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        query = d_model * heads if self.q_lora_rank is None else self.q_lora_rank * (d_model + heads)
        down = d_model * (self.kv_lora_rank + self.qk_rope_head_dim)
        up = self.kv_lora_rank * n_heads * (self.qk_nope_head_dim + self.v_head_dim)
        return query + down + up + n_heads * self.v_head_dim * d_model

    @property
    def bias_params(self) -> int:
        """Biases of one layer's projections down to the latents, where these carry any."""
        return (self.q_lora_rank or 0) + self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def norm_params(self) -> int:
        """Gains of the norms behind the latents of one layer."""
        return (self.q_lora_rank or 0) + self.kv_lora_rank


class Moe(Frozen):
    """A feed-forward of many experts, of which each token uses ``top_k``.

    Layer ``i`` has experts where ``i >= first_dense`` and ``(i + 1) % every == 0``; the others are dense.

    Attributes:
        n_experts, top_k: Routed experts of a layer, and how many of them a token uses.
        expert_neurons: Neurons of one routed expert.
        shared_neurons: Neurons of all shared experts together, which every token uses; 0 for none.
        shared_gate: The shared experts' output is scaled by a gate of its own (Qwen MoE): D weights.
        first_dense: How many of the first layers are dense.
        every: Every how many layers one has experts.
        router_bias: One number per expert is added to the router's scores.
        expert_bias: The experts' linear layers carry biases.
    """

    n_experts: int = Field(ge=2)
    top_k: int = Field(ge=1)
    expert_neurons: int = Field(ge=1)
    shared_neurons: int = Field(default=0, ge=0)
    shared_gate: bool = False
    first_dense: int = Field(default=0, ge=0)
    every: int = Field(default=1, ge=1)
    router_bias: bool = False
    expert_bias: bool = False

    @model_validator(mode="after")
    def _enough_experts(self) -> Moe:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k {self.top_k} is more than n_experts {self.n_experts}")
        return self

    def has_experts(self, layer: int) -> bool:
        """Whether ``layer``, counted from 0, has experts."""
        return layer >= self.first_dense and (layer + 1) % self.every == 0


class ModelShape(Frozen):
    """A decoder-only transformer (or an encoder, with ``causal`` off).

    Attributes:
        n_layers, d_model, n_neurons: Depth, width, and FFN neurons of a layer without experts.
        n_vectors: Weight vectors per neuron: 2 (up, down) or 3 (up, gate, down).
        activation: Of the FFN; with 3 vectors it is applied to the gate (silu: SwiGLU, gelu: GeGLU).
        n_heads, n_kv_heads, head_dim: Attention heads; fewer key/value heads share them (GQA, MQA). With latent
            attention ``head_dim`` is that of queries and keys.
        latent: Latent attention in place of separate key/value projections.
        moe: Experts in place of the FFN, in some or all layers.
        vocabulary: Rows of the embedding.
        tied: The output projection is the embedding itself.
        embedding_dim: Width of the embedding where it is not ``d_model``; projections lead in and out (OPT-350M).
        attention_bias, output_bias, ffn_bias, head_bias: Whether the query/key/value projections, attention's
            output, the FFN and the output projection carry biases.
        attention_sinks: One learned logit per head (gpt-oss).
        norm: Root-mean-square (a gain), layer norm (gain and bias), without bias, or with neither (OLMo).
        norms_per_layer: 2 before attention and FFN; 1 where both share it; 4 where outputs are normed too.
        embedding_norm, final_norm: A norm behind the embedding; one before the output projection.
        qk_norm: Norms of queries and keys: over each head (one gain for all heads), over all heads together, or over
            each head with gains of its own and no bias (Cohere, StableLM 2).
        positions: How positions enter; ``n_positions`` are the rows of learned ones, 0 otherwise.
        sliding_window: Tokens that a windowed layer looks back on; None where every layer sees all.
        full_attention_every: With a window, every how many layers one sees all; 0 for none.
        causal: Tokens see only those before them.
        other_params: Parameters outside the forward pass of a token, such as BERT's pooler or a vision tower.
        title: What people call it; empty takes the name.
        stored: How its files hold the weights, where these are packed; shapes count weights, whatever their type.
        notes: Sentences on what its configuration says and this shape leaves out or only holds.
    """

    name: str
    n_layers: int = Field(ge=1, le=MOST_LAYERS)
    d_model: int = Field(ge=8, le=MOST)
    n_neurons: int = Field(ge=8, le=MOST)
    n_vectors: Literal[2, 3] = 2
    activation: Activation = "silu"
    n_heads: int = Field(ge=1, le=MOST)
    n_kv_heads: int = Field(ge=1, le=MOST)
    head_dim: int = Field(ge=1, le=MOST)
    latent: LatentAttention | None = None
    moe: Moe | None = None
    vocabulary: int = Field(ge=1, le=MOST)
    tied: bool = True
    embedding_dim: int | None = Field(default=None, ge=1)
    attention_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False
    attention_sinks: bool = False
    norm: Norm = "rms"
    norms_per_layer: int = Field(default=2, ge=0)
    embedding_norm: bool = False
    final_norm: bool = True
    qk_norm: QkNorm = "none"
    positions: Positions = "rotary"
    n_positions: int = Field(default=0, ge=0)
    sliding_window: int | None = Field(default=None, ge=1)
    full_attention_every: int = Field(default=0, ge=0)
    causal: bool = True
    other_params: int = Field(default=0, ge=0)
    title: str = ""
    stored: StoredWeights | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ModelShape:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} must divide n_heads {self.n_heads}")
        if (self.n_positions > 0) != (self.positions == "learned"):
            raise ValueError("n_positions are the rows of learned positions: give both, or neither")
        wanted = self.latent and self.latent.qk_nope_head_dim + self.latent.qk_rope_head_dim
        if wanted and wanted != self.head_dim:
            raise ValueError(f"head_dim of latent attention is qk_nope_head_dim + qk_rope_head_dim: write {wanted}")
        return self

    # --- one layer ---------------------------------------------------------------------------------------------

    @property
    def value_dim(self) -> int:
        """Width of one head's values."""
        return self.head_dim if self.latent is None else self.latent.v_head_dim

    @property
    def qkv_rows(self) -> int:
        """Rows of the joined query, key and value projection; latent attention has none, see `latent`."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    @property
    def attention_params(self) -> int:
        """Weights of one layer's attention projections, biases not counted."""
        if self.latent is not None:
            return self.latent.weights(self.d_model, self.n_heads)
        return self.d_model * (self.qkv_rows + self.n_heads * self.head_dim)

    @property
    def ffn_params(self) -> int:
        """Weights of the FFN of one layer without experts, biases not counted."""
        return self.n_vectors * self.d_model * self.n_neurons

    @property
    def expert_params(self) -> int:
        """Weights of one routed expert, biases not counted; 0 without experts."""
        return 0 if self.moe is None else self.n_vectors * self.d_model * self.moe.expert_neurons

    @property
    def shared_expert_params(self) -> int:
        """Weights of one layer's shared experts and their gate; 0 without."""
        if self.moe is None:
            return 0
        gate = self.d_model if self.moe.shared_gate else 0
        return self.n_vectors * self.d_model * self.moe.shared_neurons + gate

    @property
    def router_params(self) -> int:
        """Weights of one layer's router; 0 without experts."""
        return 0 if self.moe is None else self.d_model * self.moe.n_experts

    @property
    def norm_params(self) -> int:
        """Parameters of one layer's norms of the residual stream, in units of d_model."""
        return self.norms_per_layer * self._per_norm

    @property
    def final_norm_params(self) -> int:
        """Parameters of the last norm, in units of d_model."""
        return self._per_norm if self.final_norm else 0

    @property
    def qk_norm_params(self) -> int:
        """Parameters of one layer's norms of queries, keys and latents."""
        latent = 0 if self.latent is None else self.latent.norm_params
        all_heads = (self.n_heads + self.n_kv_heads) * self.head_dim
        own = {
            "none": 0,
            "per_head": 2 * self.head_dim * self._per_norm,
            "all_heads": all_heads * self._per_norm,
            "each_head": all_heads,
        }[self.qk_norm]
        return latent + own

    @property
    def _per_norm(self) -> int:
        return {"rms": 1, "layer": 2, "layer_no_bias": 1, "layer_bare": 0}[self.norm]

    # --- which layers are what -----------------------------------------------------------------------------------

    def has_experts(self, layer: int) -> bool:
        """Whether ``layer``, counted from 0, has experts."""
        return self.moe is not None and self.moe.has_experts(layer)

    @cached_property
    def n_moe_layers(self) -> int:
        """Layers with experts."""
        return sum(self.has_experts(layer) for layer in range(self.n_layers))

    def is_windowed(self, layer: int) -> bool:
        """Whether ``layer``, counted from 0, sees only the last ``sliding_window`` tokens."""
        every = self.full_attention_every
        return self.sliding_window is not None and (every == 0 or (layer + 1) % every != 0)

    @cached_property
    def n_windowed_layers(self) -> int:
        """Layers that see only a window."""
        return sum(self.is_windowed(layer) for layer in range(self.n_layers))

    @property
    def is_dense(self) -> bool:
        """No layer has experts."""
        return self.n_moe_layers == 0

    # --- parameters of the model ---------------------------------------------------------------------------------

    @property
    def embedding_params(self) -> int:
        """Weights of the token embedding, and of the output projection unless tied."""
        return self._embedding_rows * (1 if self.tied else 2)

    @property
    def _embedding_rows(self) -> int:
        return self.vocabulary * (self.embedding_dim or self.d_model)

    @property
    def _all_ffn_weights(self) -> int:
        dense = (self.n_layers - self.n_moe_layers) * self.ffn_params
        if self.moe is None:
            return dense
        layer = self.moe.n_experts * self.expert_params + self.shared_expert_params + self.router_params
        return dense + self.n_moe_layers * layer

    @property
    def _attention_small(self) -> int:
        """Biases and sinks of one layer's attention."""
        bias = (self.qkv_rows if self.latent is None else self.latent.bias_params) if self.attention_bias else 0
        output = self.d_model if self.output_bias else 0
        return bias + output + (self.n_heads if self.attention_sinks else 0)

    @property
    def _ffn_small(self) -> int:
        """Biases of the FFN of one layer without experts."""
        return (self.n_vectors - 1) * self.n_neurons + self.d_model if self.ffn_bias else 0

    @property
    def _expert_small(self) -> int:
        """Biases of one expert, and of its row of the router."""
        if self.moe is None:
            return 0
        bias = (self.n_vectors - 1) * self.moe.expert_neurons + self.d_model if self.moe.expert_bias else 0
        return bias + (1 if self.moe.router_bias else 0)

    @property
    def _all_ffn_small(self) -> int:
        """Biases of all FFNs, experts and routers."""
        experts = 0 if self.moe is None else self.n_moe_layers * self.moe.n_experts * self._expert_small
        return (self.n_layers - self.n_moe_layers) * self._ffn_small + experts

    def layer_params(self, *, experts: bool, shards: int = 1) -> float:
        """Return the parameters of one layer with or without experts; these are split over ``shards`` devices."""
        common = (
            self.attention_params + self._attention_small + self.norm_params * self.d_model + self.qk_norm_params
        )
        if self.moe is None or not experts:
            return common + self.ffn_params + self._ffn_small
        all_experts = self.moe.n_experts * (self.expert_params + self._expert_small)
        return common + self.router_params + self.shared_expert_params + all_experts / shards

    @property
    def outer_params(self) -> int:
        """Parameters outside the layers: embedding, output projection, last norm, and what is only held."""
        parts = self.parts
        layers_norms = self.n_layers * (self.norm_params * self.d_model + self.qk_norm_params)
        return parts["embedding"] + parts["head"] + parts["norms"] - layers_norms + self.other_params

    @property
    def parts(self) -> dict[str, int]:
        """Parameters by part of the model; they add up to `n_params`."""
        d, layers = self.d_model, self.n_layers
        projection = 0 if self.embedding_dim is None else d * self.embedding_dim
        rest = (self._per_norm if self.embedding_norm else 0) + self.final_norm_params
        parts = {
            "embedding": self._embedding_rows + self.n_positions * d + projection,
            "attention": layers * (self.attention_params + self._attention_small),
            "ffn": self._all_ffn_weights + self._all_ffn_small,
            "norms": layers * (self.norm_params * d + self.qk_norm_params) + rest * d,
            "head": (0 if self.tied else self._embedding_rows)
            + projection
            + (self.vocabulary if self.head_bias else 0),
        }
        return parts | ({"other": self.other_params} if self.other_params else {})

    @cached_property
    def n_params(self) -> int:
        """Parameters of the model."""
        return sum(self.parts.values())

    @property
    def n_active_params(self) -> int:
        """Parameters that one token meets: all but the experts that it is not sent to, and what is only held."""
        return self.n_params - self._unused_expert_params - self.other_params

    @property
    def _unused_expert_params(self) -> int:
        if self.moe is None:
            return 0
        expert = self.expert_params
        if self.moe.expert_bias:
            expert += (self.n_vectors - 1) * self.moe.expert_neurons + self.d_model
        return self.n_moe_layers * (self.moe.n_experts - self.moe.top_k) * expert

    @property
    def small_params(self) -> int:
        """Parameters that are no matrix of a product: biases, norms, positions, projections of the embedding."""
        matrices = self.embedding_params + self.n_layers * self.attention_params + self._all_ffn_weights
        return self.n_params - matrices - self.other_params

    # --- demands -------------------------------------------------------------------------------------------------

    @property
    def matmul_params(self) -> int:
        """Weights that one token is multiplied with: projections, FFN or its experts, output projection."""
        layers = self.n_layers * self.attention_params + self._all_ffn_weights
        unused = 0
        if self.moe is not None:
            unused = self.n_moe_layers * (self.moe.n_experts - self.moe.top_k) * self.expert_params
        width = self.embedding_dim or self.d_model
        projections = 0 if self.embedding_dim is None else 2 * width * self.d_model
        return layers - unused + self.vocabulary * width + projections

    @property
    def flops_per_token(self) -> int:
        """Forward flops of one token in products with weights: two for each weight used, scores not counted."""
        return 2 * self.matmul_params

    def score_flops_per_token(self, context: int) -> float:
        """Return the forward flops of one token's scores and their product with values.

        The mean over a sequence of ``context`` tokens: ``4 L H E T``, half of it where tokens see only those
        before them, less in windowed layers.
        """
        windowed = self.n_windowed_layers
        seen = (self.n_layers - windowed) * self._mean_seen(context, context)
        if self.sliding_window is not None:
            seen += windowed * self._mean_seen(context, min(self.sliding_window, context))
        return 2 * self.n_heads * (self.head_dim + self.value_dim) * seen

    def _mean_seen(self, context: int, window: int) -> float:
        """Tokens that one token sees in a layer, in the mean: the integral of min(t, window) over the context."""
        return window - window * window / (2 * context) if self.causal else float(window)

    def forward_flops_per_token(self, context: int) -> float:
        """Return the forward flops of one token in a sequence of ``context`` tokens, scores included."""
        return self.flops_per_token + self.score_flops_per_token(context)

    @property
    def kv_items_per_token(self) -> int:
        """Numbers that one token leaves in the key/value cache, all layers."""
        if self.latent is not None:
            return self.n_layers * (self.latent.kv_lora_rank + self.latent.qk_rope_head_dim)
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim

    def kv_bytes(self, n_tokens: int, dtype: str) -> float:
        """Return the bytes of keys and values of ``n_tokens``, all layers, nothing dropped behind a window."""
        return n_tokens * self.kv_items_per_token * DTYPE_BYTES[dtype]

    @property
    def sparse_activation(self) -> Literal["relu", "relu2"]:
        """What makes the FFN sparse: its own activation, or the ReLU that a sparse variant puts in its place."""
        return "relu2" if self.activation == "relu2" else "relu"

    # --- variants ------------------------------------------------------------------------------------------------

    def with_layers(self, n_layers: int) -> ModelShape:
        """Return the same shape, shallower: every layer still demands exactly what it did."""
        if n_layers == self.n_layers:
            return self
        title = f"{self.title or self.name}, {n_layers} of its {self.n_layers} layers"
        return self.changed(n_layers=n_layers, name=f"{self.name}_{n_layers}l", title=title)

    def with_positions(self, n_positions: int) -> ModelShape:
        """Return the same shape with so many learned positions; unchanged where positions are not learned."""
        return self.changed(n_positions=n_positions) if self.positions == "learned" else self

    def changed(self, **fields: object) -> ModelShape:
        """Return a copy with some fields changed, checked again.

        Raises:
            ValueError: the fields do not fit together.
        """
        known = {name: getattr(self, name) for name in type(self).model_fields}
        return ModelShape.model_validate(known | fields)
