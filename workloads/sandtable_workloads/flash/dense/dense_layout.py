"""The matrices of a dense model, layer by layer: their types, their bytes, and where each lies in its file.

A file holds the embedding, the layers in order (attention, then feed-forward), and the output projection, each matrix
from a page of its own on, so that direct I/O can read any run of them. Norms and biases are no part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sandtable_workloads.flash.dense.weight_types import matrix_type, row_bytes
from sandtable_workloads.flash.flash_parameters import ALIGNMENT_BYTES
from sandtable_workloads.transformer.shapes import ModelShape


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix, or the same one of several experts, of which a token uses ``used``.

    Attributes:
        role: What it is for; see `matrix_type`.
        part: "attention", "feed-forward", "embedding" or "output": the part of the model that it belongs to.
        rows, columns: Its shape; a row is a vector that the input is multiplied with.
        dtype: How its elements are stored.
        offset: Where it starts in the file, in bytes.
        count, used: How many there are, and how many of them a token is multiplied with.
    """

    role: str
    part: str
    rows: int
    columns: int
    dtype: str
    offset: int = 0
    count: int = 1
    used: int = 1

    @property
    def one_bytes(self) -> int:
        """Bytes of one of them."""
        return self.rows * row_bytes(self.dtype, self.columns)

    @property
    def n_bytes(self) -> int:
        """Bytes of all of them in the file, padded to whole pages."""
        return -(-self.count * self.one_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def end(self) -> int:
        """Where the next one starts."""
        return self.offset + self.n_bytes


@dataclass(frozen=True)
class LayerMatrices:
    """The matrices of one layer, in the order of the file."""

    attention: tuple[Matrix, ...]
    ffn: tuple[Matrix, ...]

    @property
    def attention_bytes(self) -> int:
        """Bytes of the attention, in the file and in memory."""
        return sum(matrix.n_bytes for matrix in self.attention)

    @property
    def ffn_bytes(self) -> int:
        """Bytes of the feed-forward block, or of all its experts."""
        return sum(matrix.n_bytes for matrix in self.ffn)

    @property
    def n_bytes(self) -> int:
        """Bytes of both."""
        return self.attention_bytes + self.ffn_bytes


@dataclass(frozen=True)
class DenseLayout:
    """All matrices of a model; a tied output projection is the embedding itself."""

    shape: ModelShape
    mixture: str
    embedding: Matrix
    layers: tuple[LayerMatrices, ...]
    head: Matrix

    @property
    def n_bytes(self) -> int:
        """Bytes of the file, its header not counted."""
        return max(self.head.end, self.layers[-1].ffn[-1].end)

    @property
    def ends_bytes(self) -> int:
        """Bytes of the embedding and the output projection; once if they are the same."""
        return self.embedding.n_bytes + (0 if self.head is self.embedding else self.head.n_bytes)

    @property
    def small_bytes(self) -> float:
        """Bytes of norms, biases and learned positions, which are kept as float32."""
        return self.shape.small_params * 4.0

    def matrices(self) -> Iterator[Matrix]:
        """Yield every matrix once."""
        yield self.embedding
        for layer in self.layers:
            yield from (*layer.attention, *layer.ffn)
        if self.head is not self.embedding:
            yield self.head


def layout_of(shape: ModelShape, mixture: str) -> DenseLayout:
    """Return the matrices of a model with weights of one of the `WeightType` mixtures."""
    return _layout(shape, mixture)  # pyright: ignore[reportArgumentType]  (frozen models have a hash)


@lru_cache(maxsize=32)
def _layout(shape: ModelShape, mixture: str) -> DenseLayout:
    width = shape.embedding_dim or shape.d_model
    end = 0

    def placed(drafts: Sequence[tuple[str, str, int, int, int, int]], layer: int) -> tuple[Matrix, ...]:
        nonlocal end
        found = []
        for role, part, rows, columns, count, used in drafts:
            # a router is too small to be worth narrowing, and llama.cpp leaves it alone as well
            dtype = "float32" if role == "router" else matrix_type(mixture, role, layer, columns, shape)
            found.append(Matrix(role, part, rows, columns, dtype, end, count, used))
            end = found[-1].end
        return tuple(found)

    embedding = placed([("embedding", "embedding", shape.vocabulary, width, 1, 1)], -1)[0]
    layers = tuple(
        LayerMatrices(placed(_attention(shape), layer), placed(_feed_forward(shape, layer), layer))
        for layer in range(shape.n_layers)
    )
    head = embedding if shape.tied else placed([("head", "output", shape.vocabulary, width, 1, 1)], -1)[0]
    return DenseLayout(shape, mixture, embedding, layers, head)


Draft = tuple[str, str, int, int, int, int]


def _attention(shape: ModelShape) -> list[Draft]:
    """Return the projections of one layer: query, key, value, output; or those to and from latents."""
    d, heads = shape.d_model, shape.n_heads
    if shape.latent is None:
        n_kv = shape.n_kv_heads * shape.head_dim
        sizes = [("q", heads * shape.head_dim, d), ("k", n_kv, d), ("v", n_kv, d)]
    else:
        latent = shape.latent
        queries, rank = heads * shape.head_dim, latent.q_lora_rank
        sizes = [("other", queries, d)] if rank is None else [("other", rank, d), ("other", queries, rank)]
        sizes.append(("other", latent.kv_lora_rank + latent.qk_rope_head_dim, d))
        sizes.append(("other", heads * (latent.qk_nope_head_dim + latent.v_head_dim), latent.kv_lora_rank))
    sizes.append(("output", d, heads * shape.value_dim))
    return [(role, "attention", rows, columns, 1, 1) for role, rows, columns in sizes]


def _feed_forward(shape: ModelShape, layer: int) -> list[Draft]:
    """Return the feed-forward matrices of one layer, experts after their router."""
    if not shape.has_experts(layer):
        return _block(shape, shape.n_neurons, 1, 1)
    moe = shape.moe
    assert moe is not None
    drafts: list[Draft] = [("router", "feed-forward", moe.n_experts, shape.d_model, 1, 1)]
    drafts += _block(shape, moe.expert_neurons, moe.n_experts, moe.top_k)
    return drafts + (_block(shape, moe.shared_neurons, 1, 1) if moe.shared_neurons else [])


def _block(shape: ModelShape, neurons: int, count: int, used: int) -> list[Draft]:
    roles = ("up", "gate") if shape.n_vectors == 3 else ("up",)
    into: list[Draft] = [(role, "feed-forward", neurons, shape.d_model, count, used) for role in roles]
    return [*into, ("down", "feed-forward", shape.d_model, neurons, count, used)]
