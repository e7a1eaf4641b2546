"""Shapes of decoder-only transformers, and the parameter counts that follow from them.

Counts equal those of the published checkpoints; a test holds each preset to its own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sandtable.errors import UnknownName
from sandtable.spec import DTYPE_BYTES, Frozen

Activation = Literal["relu", "relu2"]


class Shape(Frozen):
    """A decoder-only transformer.

    Attributes:
        n_layers, d_model, n_neurons: Depth, width, and FFN neurons per layer.
        n_vectors: Weight vectors per neuron: 2 (up, down) or 3 (up, gate, down).
        n_heads, n_kv_heads, head_dim: Attention heads; fewer key/value heads share them (GQA, MQA).
        vocabulary: Rows of the embedding.
        tied: The output projection is the embedding itself.
        attention_bias, ffn_bias, head_bias: Which linear layers carry biases.
        n_positions: Learned position rows; 0 for rotary or relative positions.
        norm_params: Normalisation parameters of one layer, in units of d_model.
        qk_norm_params: Parameters of per-head query and key normalisation in one layer.
        final_norm_params: Parameters of the last normalisation, in units of d_model.
        activation: What makes the FFN sparse.
    """

    name: str
    n_layers: int = Field(ge=1)
    d_model: int = Field(ge=8)
    n_neurons: int = Field(ge=8)
    n_vectors: Literal[2, 3] = 2
    n_heads: int = Field(ge=1)
    n_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    tied: bool = True
    attention_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False
    n_positions: int = Field(default=0, ge=0)
    norm_params: int = Field(default=2, ge=0)
    qk_norm_params: int = Field(default=0, ge=0)
    final_norm_params: int = Field(default=1, ge=0)
    activation: Activation = "relu"

    @model_validator(mode="after")
    def _heads_divide(self) -> Shape:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} must divide n_heads {self.n_heads}")
        return self

    @property
    def qkv_rows(self) -> int:
        """Rows of the joined query, key and value projection."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    @property
    def attention_params(self) -> int:
        """Weights of one layer's four attention projections, biases not counted."""
        return self.d_model * (self.qkv_rows + self.n_heads * self.head_dim)

    @property
    def ffn_params(self) -> int:
        """Weights of one layer's FFN, biases not counted."""
        return self.n_vectors * self.d_model * self.n_neurons

    @property
    def embedding_params(self) -> int:
        """Weights of the token embedding, and of the output projection unless tied."""
        return self.vocabulary * self.d_model * (1 if self.tied else 2)

    @property
    def small_params(self) -> int:
        """Biases, norms and positions of the whole model."""
        attention = (self.qkv_rows + self.d_model) if self.attention_bias else 0
        ffn = ((self.n_vectors - 1) * self.n_neurons + self.d_model) if self.ffn_bias else 0
        norms = self.norm_params * self.d_model + self.qk_norm_params
        rest = (self.n_positions + self.final_norm_params) * self.d_model + (
            self.vocabulary if self.head_bias else 0
        )
        return self.n_layers * (attention + ffn + norms) + rest

    @property
    def n_params(self) -> int:
        """Parameters of the model."""
        return self.n_layers * (self.attention_params + self.ffn_params) + self.embedding_params + self.small_params

    def kv_bytes(self, n_tokens: int, dtype: str) -> float:
        """Return the bytes of keys and values of ``n_tokens``, all layers."""
        return 2 * self.n_layers * n_tokens * self.n_kv_heads * self.head_dim * DTYPE_BYTES[dtype]

    def with_layers(self, n_layers: int) -> Shape:
        """Return the same shape, shallower: every layer still demands exactly what it did."""
        name = self.name if n_layers == self.n_layers else f"{self.name}_{n_layers}l"
        return self.model_copy(update={"n_layers": n_layers, "name": name})


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        # Hugging Face config of facebook/opt-6.7b; layer norms carry weight and bias
        Shape(
            name="opt_6_7b",
            n_layers=32,
            d_model=4096,
            n_neurons=16384,
            n_heads=32,
            n_kv_heads=32,
            head_dim=128,
            vocabulary=50272,
            tied=True,
            attention_bias=True,
            ffn_bias=True,
            n_positions=2050,
            norm_params=4,
            final_norm_params=2,
        ),
        # tiiuae/falcon-7b: one shared norm per layer, one key/value head
        Shape(
            name="falcon_7b",
            n_layers=32,
            d_model=4544,
            n_neurons=18176,
            n_heads=71,
            n_kv_heads=1,
            head_dim=64,
            vocabulary=65024,
            tied=True,
            norm_params=2,
            final_norm_params=2,
        ),
        # adept/persimmon-8b-base: squared ReLU, query and key norms, untied 262 144-token vocabulary
        Shape(
            name="persimmon_8b",
            n_layers=36,
            d_model=4096,
            n_neurons=16384,
            n_heads=64,
            n_kv_heads=64,
            head_dim=64,
            vocabulary=262144,
            tied=False,
            attention_bias=True,
            ffn_bias=True,
            norm_params=4,
            qk_norm_params=256,
            final_norm_params=2,
            activation="relu2",
        ),
        # microsoft/phi-2: one shared norm per layer, biases everywhere
        Shape(
            name="phi_2",
            n_layers=32,
            d_model=2560,
            n_neurons=10240,
            n_heads=32,
            n_kv_heads=32,
            head_dim=80,
            vocabulary=51200,
            tied=False,
            attention_bias=True,
            ffn_bias=True,
            head_bias=True,
            norm_params=2,
            final_norm_params=2,
        ),
        # meta-llama/Llama-2-7b: gated FFN, RMS norms
        Shape(
            name="llama_2_7b",
            n_layers=32,
            d_model=4096,
            n_neurons=11008,
            n_vectors=3,
            n_heads=32,
            n_kv_heads=32,
            head_dim=128,
            vocabulary=32000,
            tied=False,
            norm_params=2,
            final_norm_params=1,
        ),
        # a small OPT-like shape, so that tests and demonstrations write little to disk
        Shape(
            name="opt_mini",
            n_layers=4,
            d_model=1024,
            n_neurons=4096,
            n_heads=16,
            n_kv_heads=16,
            head_dim=64,
            vocabulary=8192,
            tied=True,
            attention_bias=True,
            ffn_bias=True,
            n_positions=2050,
            norm_params=4,
            final_norm_params=2,
        ),
    )
}


def shape_named(name: str) -> Shape:
    """Return a preset; ``opt_6_7b_8l`` is the first eight layers of ``opt_6_7b``.

    Raises:
        UnknownName: with the nearest presets.
    """
    if name in SHAPES:
        return SHAPES[name]
    base, _, tail = name.rpartition("_")
    if (
        base in SHAPES
        and tail.endswith("l")
        and tail[:-1].isdigit()
        and 0 < int(tail[:-1]) <= SHAPES[base].n_layers
    ):
        return SHAPES[base].with_layers(int(tail[:-1]))
    raise UnknownName("geometry", name, SHAPES)
