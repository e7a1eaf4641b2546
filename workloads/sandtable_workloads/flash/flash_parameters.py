"""What a user may choose about flash-resident inference, and the sizes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from sandtable.errors import ConfigError
from sandtable.hardware import DTYPE_BYTES, Frozen
from sandtable.units import Bytes, Fraction
from sandtable_workloads.flash.dense.weight_types import FLOATS, USUAL, WeightType, weight_type
from sandtable_workloads.flash.known_sparsity import has_known_sparsity
from sandtable_workloads.transformer.presets import shape_for
from sandtable_workloads.transformer.shapes import ModelShape

Rung = Literal["naive", "hybrid", "predictor", "window", "bundling", "resident", "auto"]
SPARSE = ("predictor", "window", "bundling")
# records are padded to this, so that direct I/O can read any of them
ALIGNMENT_BYTES = 4096
# names that these parameters had before
_FORMER = {"geometry": "model", "dtype": "weights"}


def _known_model(name: object) -> object:
    if isinstance(name, str):
        try:
            shape = shape_for(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if not shape.causal:
            raise ValueError(f"{name} is an encoder, which decodes no tokens: name a decoder, such as llama_2_7b")
    return name


def is_plain(shape: ModelShape) -> bool:
    """Whether a model has one dense feed-forward block per layer and nothing unusual about its attention or ends."""
    odd = shape.latent or shape.moe or shape.embedding_dim or shape.embedding_norm or shape.attention_sinks
    return not odd


class FlashInference(Frozen):
    """Parameters of one run of decode with batch 1.

    Attributes:
        model: A preset such as ``llama_2_7b``, a name on the Hugging Face Hub, or the path of a ``config.json``.
        layers: Only so many first layers of the model, each as large as ever; none means all.
        weights: Type of the stored weights: f32, f16, bf16, or one of llama.cpp's, such as q8_0, q4_0 or q4_K_M.
            None means f16 on the rungs of the paper, and q4_K_M where the rung is chosen.
        rung: What stays in memory. ``auto`` takes ``bundling`` for a model with a ReLU whose sparsity is published, or
            whose ``active`` share is given; any other model is dense, with all weights in memory where they fit, and
            with the rest read from storage for every token where they do not. ``resident`` keeps all;
            ``hybrid`` keeps ``resident`` of the model. The rungs of the paper, each on top of the one
            before: ``naive`` reads the whole model for every token; ``hybrid``; ``predictor`` keeps attention and
            embeddings and reads only the FFN neurons predicted to be active; ``window`` keeps those of the last
            tokens; ``bundling`` stores a neuron's vectors side by side. The last three need a model with a ReLU.
        window: Tokens whose neurons stay in memory.
        tokens: Measured tokens, in the steady state.
        cold_tokens: Tokens before those, while the window fills; reported on their own.
        prompt_tokens: Tokens of the prompt, processed at once.
        context: Tokens that keys and values have room for; none means those of the prompt and the answer.
        kv: Type of keys and values; none means float16 on dense rungs that are chosen or resident, float32 on others.
        concurrency: Reads in flight.
        stream_chunk, stream_concurrency: Request size and reads in flight of sequential reading.
        resident: Share of the model that ``hybrid`` keeps in memory.
        reserve: Memory that the system and other programs keep; none means by size, see `machine_memory`.
        memory_budget: Most that the neuron cache may take; none means what the window needs.
        active: Mean share of FFN neurons predicted active; none means the model's own (paper, Fig. 9).
        reuse: Exponent a of the aggregated use of k tokens, s(k) = active * k^a; none means the model's own.
        trace: A recorded trace file instead of the synthetic one.
        compute_rows: Feed-forward over the ``active`` neurons, or over all that are ``cached`` (as the paper does).
    """

    also_called: ClassVar[Mapping[str, str]] = {
        "quantization": "weights",
        "quant": "weights",
        "precision": "weights",
        "bits": "weights",
        "ctx": "context",
        "ctx_size": "context",
        "context_length": "context",
        "max_tokens": "tokens",
        "max_new_tokens": "tokens",
        "n_predict": "tokens",
        "prompt": "prompt_tokens",
        "prompt_length": "prompt_tokens",
        "sparsity": "active",
        "queue_depth": "concurrency",
        "iodepth": "concurrency",
        "kv_cache": "kv",
        "cache_type": "kv",
        "n_layers": "layers",
        "memory": "memory_budget",
    }

    model: Annotated[str, BeforeValidator(_known_model)] = Field(
        default="opt_6_7b", validation_alias=AliasChoices("model", "geometry")
    )
    layers: int | None = Field(default=None, ge=1)
    weights: Annotated[WeightType, BeforeValidator(weight_type)] = Field(
        default="float16", validation_alias=AliasChoices("weights", "dtype")
    )
    rung: Rung = "auto"
    window: int = Field(default=4, ge=1)
    tokens: int = Field(default=32, ge=1, le=16_384)
    cold_tokens: int = Field(default=8, ge=0, le=16_384)
    prompt_tokens: int = Field(default=16, ge=1, le=1 << 24)
    context: int | None = Field(default=None, ge=1)
    kv: Literal["float32", "float16"] | None = None
    concurrency: int = Field(default=32, ge=1, le=64)
    stream_chunk_bytes: Bytes = Field(default=float(8 << 20), ge=4096)
    stream_concurrency: int = Field(default=4, ge=1, le=64)
    resident_frac: Fraction = Field(default=0.5, gt=0, lt=1)
    reserve_bytes: Bytes | None = Field(default=None, ge=0)
    memory_budget_bytes: Bytes | None = Field(default=None, gt=0)
    active_frac: Fraction | None = Field(default=None, gt=0, le=1)
    reuse: float | None = Field(default=None, ge=0, le=1)
    trace: str | None = None
    compute_rows: Literal["active", "cached"] = "active"

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Take former names, the last one given where a file has one and a setting the other; choose what is open."""
        if not isinstance(data, Mapping):
            return data
        given = dict(data)
        for pair in _FORMER.items():
            if all(name in given for name in pair):
                del given[min(pair, key=list(data).index)]
        if given.get("rung", "auto") == "auto" and _is_sparse_by_itself(given):
            given["rung"] = "bundling"
        if _given(given, "weights") is None:
            given.pop("dtype", None)
            given["weights"] = USUAL if given.get("rung", "auto") == "auto" else "float16"
        return given

    @model_validator(mode="after")
    def _consistent(self) -> FlashInference:
        if self.stream_chunk_bytes % ALIGNMENT_BYTES:
            raise ValueError(f"stream_chunk must be a multiple of {ALIGNMENT_BYTES} B, for direct I/O")
        if self.layers is not None and self.layers > self._whole.n_layers:
            raise ValueError(f"layers: {self.model} has {self._whole.n_layers}")
        if self.context is not None and self.context < self.prompt_tokens + self.tokens:
            raise ValueError(
                f"context must hold the prompt and the answer, {self.prompt_tokens + self.tokens} tokens"
            )
        if self.rung in _NEURONS and self.weights in FLOATS and not is_plain(self.shape):
            raise ValueError(
                f"rung: {self.model} has experts, latent attention, attention sinks or an embedding of its own width "
                f"or norm, which rung {self.rung} does not run: take rung=auto"
            )
        if self.is_sparse:
            self._check_sparse()
        elif self.rung == "naive" and self.weights not in FLOATS:
            raise ValueError(f"rung naive reads f32, f16 or bf16 weights, not {self.weights}: take rung=hybrid")
        return self

    def _check_sparse(self) -> None:
        if self.weights not in FLOATS:
            raise ValueError(
                f"rung {self.rung} reads single neurons, stored as f32, f16 or bf16: set weights=f16, or rung=auto"
            )
        if self.trace is None and not has_known_sparsity(self.shape):
            given = {"active": self.active_frac, "reuse": self.reuse}
            missing = [name for name, value in given.items() if value is None]
            if missing:
                raise ValueError(
                    f"rung: {self.rung} skips neurons, and {self.model} has no published sparsity: set "
                    f"{' and '.join(missing)} of its version with a ReLU, or rung=auto, which runs it as it is"
                )

    @property
    def _whole(self) -> ModelShape:
        return shape_for(self.model)

    @property
    def shape(self) -> ModelShape:
        """Shape of the model, or of its first layers."""
        return self._whole if self.layers is None else self._whole.with_layers(self.layers)

    @property
    def dtype(self) -> str:
        """The type of the weights, where all have the same."""
        return self.weights

    @property
    def is_sparse(self) -> bool:
        """Whether only predicted neurons are read."""
        return self.rung in SPARSE

    @property
    def by_neurons(self) -> bool:
        """Whether the feed-forward weights lie on disk as neurons, which all rungs of the paper share."""
        return self.rung in _NEURONS and self.weights in FLOATS

    @property
    def kv_dtype(self) -> str:
        """Type of keys and values."""
        return self.kv or ("float32" if self.by_neurons else "float16")

    @property
    def n_positions(self) -> int:
        """Tokens that keys and values have room for."""
        cold = self.cold_tokens if self.is_sparse or self.by_neurons else 0
        return max(self.context or 0, self.prompt_tokens + cold + self.tokens)

    @property
    def layout(self) -> Literal["bundled", "unbundled"]:
        """How neurons lie in the store. Streaming rungs read all of it in order, so theirs does not matter."""
        return "unbundled" if self.rung in ("predictor", "window") else "bundled"


_NEURONS = ("naive", "hybrid", *SPARSE)


def _given(given: Mapping[str, Any], name: str) -> Any:
    """Return a parameter under its name or its former one."""
    former = next((old for old, new in _FORMER.items() if new == name), name)
    return given.get(name, given.get(former))


def _is_sparse_by_itself(given: Mapping[str, Any]) -> bool:
    """Whether parameters ask for a sparse rung without naming one."""
    asked = any(given.get(name) is not None for name in ("active", "active_frac", "trace"))
    try:
        shape = shape_for(str(_given(given, "model") or FlashInference.model_fields["model"].default))
    except ConfigError:
        return False
    relu = shape.activation in ("relu", "relu2")
    return asked or (relu and is_plain(shape) and has_known_sparsity(shape) and _in_float(given))


def _in_float(given: Mapping[str, Any]) -> bool:
    weights = _given(given, "weights")
    try:
        return weights is None or weight_type(weights) in FLOATS
    except ValueError:
        return False


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
