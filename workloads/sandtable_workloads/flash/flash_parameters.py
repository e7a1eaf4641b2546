"""What a user may choose about flash-resident inference, and the sizes that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from sandtable.errors import ConfigError
from sandtable.hardware import DTYPE_BYTES, Frozen
from sandtable.units import Bytes, Fraction
from sandtable_workloads.transformer.presets import shape_named
from sandtable_workloads.transformer.shapes import ModelShape

Rung = Literal["naive", "hybrid", "predictor", "window", "bundling"]
WeightType = Literal["float32", "bfloat16", "float16"]
# records are padded to this, so that direct I/O can read any of them
ALIGNMENT_BYTES = 4096


def _known_geometry(name: object) -> object:
    if isinstance(name, str):
        try:
            shape = shape_named(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        odd = shape.latent or shape.moe or shape.embedding_dim or shape.embedding_norm or shape.attention_sinks
        if odd:
            raise ValueError(
                f"{name} has experts, latent attention, attention sinks or an embedding of its own width or norm: "
                "flash inference runs plain dense models, such as opt_6_7b"
            )
    return name


class FlashInference(Frozen):
    """Parameters of one run of decode with batch 1.

    Attributes:
        geometry: Shape of the model, such as ``opt_6_7b``; ``opt_6_7b_8l`` is its first eight layers.
        dtype: Type of the stored weights.
        rung: How much of the paper's method is used, each rung on top of the one before: ``naive`` reads the whole
            model for every token; ``hybrid`` keeps ``resident`` of it in memory; ``predictor`` keeps attention and
            embeddings and reads only the FFN neurons predicted to be active; ``window`` keeps those of the last
            tokens; ``bundling`` stores a neuron's vectors side by side.
        window: Tokens whose neurons stay in memory.
        tokens: Measured tokens, in the steady state.
        cold_tokens: Tokens before those, while the window fills; reported on their own.
        prompt_tokens: Tokens of the prompt, processed at once.
        concurrency: Reads in flight.
        stream_chunk, stream_concurrency: Request size and reads in flight of sequential reading.
        resident: Share of the model that ``hybrid`` keeps in memory.
        memory_budget: Most that the neuron cache may take; none means what the window needs.
        active: Mean share of FFN neurons predicted active; none means the model's own (paper, Fig. 9).
        reuse: Exponent a of the aggregated use of k tokens, s(k) = active * k^a; none means the model's own.
        trace: A recorded trace file instead of the synthetic one.
        compute_rows: Feed-forward over the ``active`` neurons, or over all that are ``cached`` (as the paper does).
    """

    geometry: Annotated[str, BeforeValidator(_known_geometry)] = "opt_6_7b"
    dtype: WeightType = "float16"
    rung: Rung = "bundling"
    window: int = Field(default=4, ge=1)
    tokens: int = Field(default=32, ge=1)
    cold_tokens: int = Field(default=8, ge=0)
    prompt_tokens: int = Field(default=16, ge=1)
    concurrency: int = Field(default=32, ge=1, le=64)
    stream_chunk_bytes: Bytes = Field(default=float(8 << 20), ge=4096)
    stream_concurrency: int = Field(default=4, ge=1, le=64)
    resident_frac: Fraction = Field(default=0.5, gt=0, lt=1)
    memory_budget_bytes: Bytes | None = Field(default=None, gt=0)
    active_frac: Fraction | None = Field(default=None, gt=0, le=1)
    reuse: float | None = Field(default=None, ge=0, le=1)
    trace: str | None = None
    compute_rows: Literal["active", "cached"] = "active"

    @model_validator(mode="after")
    def _pages(self) -> FlashInference:
        if self.stream_chunk_bytes % ALIGNMENT_BYTES:
            raise ValueError(f"stream_chunk must be a multiple of {ALIGNMENT_BYTES} B, for direct I/O")
        return self

    @property
    def shape(self) -> ModelShape:
        """Shape of the model."""
        return shape_named(self.geometry)

    @property
    def is_sparse(self) -> bool:
        """Whether only predicted neurons are read."""
        return self.rung in ("predictor", "window", "bundling")

    @property
    def layout(self) -> Literal["bundled", "unbundled"]:
        """How neurons lie in the store. Streaming rungs read all of it in order, so theirs does not matter."""
        return "unbundled" if self.rung in ("predictor", "window") else "bundled"


@dataclass(frozen=True)
class Sizes:
    """Bytes that follow from shape, dtype and layout."""

    shape: ModelShape
    item_bytes: float
    bundled: bool

    @classmethod
    def of(cls, parameters: FlashInference) -> Sizes:
        """Return the sizes for these parameters."""
        return cls(parameters.shape, DTYPE_BYTES[parameters.dtype], parameters.layout == "bundled")

    @property
    def vector_bytes(self) -> int:
        """One weight vector of a neuron."""
        return round(self.shape.d_model * self.item_bytes)

    @property
    def record_bytes(self) -> int:
        """One record of the store, padded: a neuron when bundled, one of its vectors otherwise."""
        payload = self.vector_bytes * (self.shape.n_vectors if self.bundled else 1)
        return -(-payload // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def records_per_neuron(self) -> int:
        """Reads that one neuron takes."""
        return 1 if self.bundled else self.shape.n_vectors

    @property
    def row_bytes(self) -> int:
        """One neuron's row in the memory cache: its vectors side by side, padded."""
        return -(-self.neuron_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def neuron_bytes(self) -> int:
        """A neuron's weights without padding: what the computation reads."""
        return self.vector_bytes * self.shape.n_vectors

    @property
    def reads_in_place(self) -> bool:
        """Whether a record can be read straight into its row; if not, it is read beside and copied in."""
        return self.bundled or self.vector_bytes % ALIGNMENT_BYTES == 0

    @property
    def layer_store_bytes(self) -> int:
        """One layer's neurons on disk."""
        return self.record_bytes * self.records_per_neuron * self.shape.n_neurons

    @property
    def store_bytes(self) -> int:
        """All neurons on disk."""
        return self.layer_store_bytes * self.shape.n_layers

    @property
    def attention_bytes(self) -> float:
        """One layer's attention weights."""
        return self.shape.attention_params * self.item_bytes

    @property
    def embedding_bytes(self) -> float:
        """Token embedding and output projection."""
        return self.shape.embedding_params * self.item_bytes

    @property
    def head_bytes(self) -> float:
        """The output projection, read once per token."""
        return self.shape.vocabulary * self.shape.d_model * self.item_bytes

    @property
    def model_bytes(self) -> float:
        """All weights, biases and norms left out."""
        layers = self.shape.n_layers * (self.attention_bytes + self.shape.ffn_params * self.item_bytes)
        return layers + self.embedding_bytes

    def resident_neurons(self, resident_frac: float) -> int:
        """Return how many neurons per layer `hybrid` keeps, so that ``resident_frac`` of the model is in memory.

        Attention and embeddings come first; what is left of the share goes to the FFN, equally in all layers.
        """
        fixed = self.shape.n_layers * self.attention_bytes + self.embedding_bytes
        left = resident_frac * self.model_bytes - fixed
        per_layer = left / (self.shape.n_layers * self.neuron_bytes)
        return max(0, min(self.shape.n_neurons, int(per_layer)))
