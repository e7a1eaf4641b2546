"""What a user may choose about fine-tuning a model, and what follows from it by counting alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sandtable.hardware import Frozen
from sandtable.units import Count
from sandtable_workloads.training.states.optimizers import ELEMENTWISE
from sandtable_workloads.training.training_parameters import Optimizer, Precision, SlmTraining
from sandtable_workloads.transformer.presets import shape_for
from sandtable_workloads.transformer.shapes import ModelShape

Adapter = Literal["none", "lora", "adapter", "adapter_v2"]
Quantization = Literal["none", "nf4", "nf4_dq"]
LoraTarget = Literal["query", "key", "value", "output", "up", "down"]
# those that are one product with three parts
JOINED: tuple[LoraTarget, ...] = ("query", "key", "value")


# parameters that training has as well, under the same names
_SHARED = ("model", "micro_batch", "grad_accumulation", "sequence_tokens", "devices", "sharding", "checkpointing")


class Finetuning(Frozen):
    """Parameters of one fine-tuning run.

    Attributes:
        model: As of `sandtable_workloads.training.training_parameters.SlmTraining`.
        adapter: Weights that are trained beside frozen ones: ``lora`` on the products that ``lora_targets`` names,
            prompts in front of attention (LLaMA-Adapter), or those with scales and biases (its second version);
            ``none`` trains all weights.
        lora_rank: Rank of LoRA's products.
        lora_targets: Products that LoRA is added to; ``up`` is the gate too.
        quantization: How frozen weights are packed: not, in four bits, or with packed scales too.
        sequence_tokens: Tokens per sequence, padding included.
        micro_batch: Sequences that one device processes at once.
        grad_accumulation: Micro-batches per step and device.
        devices: Devices in all, each with its own data.
        sharding: ``ddp`` keeps everything on every device; ``fsdp_full`` shards the weights and gathers each layer.
        attention: ``flash`` keeps scores on chip, the only one that is described.
        checkpointing: ``full`` keeps only the input of each layer and computes the rest again.
        precision: Of weights and activations; adapters are described in pure ``bfloat16`` only.
        optimizer: As of `SlmTraining`; adapters are trained with those that treat every weight alike.
        optimizer_dtype: Type of the optimiser's moments; the weights' if not given, float32 with mixed precision.
        steps: Steps that are reported.
        warmup_steps: Steps before those.
        total_tokens: Tokens of the whole fine-tuning, for its time and price; none leaves them out.
    """

    also_called: ClassVar[Mapping[str, str]] = {
        **{name: own for name, own in SlmTraining.also_called.items() if own in _SHARED},
        "rank": "lora_rank",
        "r": "lora_rank",
        "target_modules": "lora_targets",
        "load_in_4bit": "quantization",
        "quantize": "quantization",
        "peft": "adapter",
        "lora": "adapter",
    }

    model: str = "llama_2_7b"
    adapter: Adapter = "lora"
    lora_rank: int = Field(default=8, ge=1, le=1 << 20)
    lora_targets: tuple[LoraTarget, ...] = Field(default=("query", "value"), min_length=1)
    quantization: Quantization = "none"
    sequence_tokens: int = Field(default=512, ge=8, le=1 << 24)
    micro_batch: int = Field(default=1, ge=1, le=1 << 20)
    grad_accumulation: int = Field(default=1, ge=1, le=2048)
    devices: int = Field(default=1, ge=1, le=1 << 20)
    sharding: Literal["ddp", "fsdp_full"] = "ddp"
    attention: Literal["flash"] = "flash"
    checkpointing: Literal["none", "full"] = "none"
    precision: Precision = "bfloat16"
    optimizer: Optimizer = "adamw"
    optimizer_dtype: Literal["float32", "bfloat16"] | None = None
    steps: int = Field(default=10, ge=1, le=1_000_000)
    warmup_steps: int = Field(default=1, ge=0, le=1_000_000)
    total_tokens: Count | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _packed_is_frozen(self) -> Finetuning:
        if self.quantization != "none" and self.adapter == "none":
            raise ValueError("packed weights cannot be trained: choose an adapter, or quantization none")
        if self.adapter != "none" and self.optimizer not in ELEMENTWISE:
            raise ValueError(f"adapters are trained with optimizer {', '.join(ELEMENTWISE)}, not {self.optimizer}")
        return self

    @property
    def shape(self) -> ModelShape:
        """The shape of the model, with as many learned positions as a sequence has tokens."""
        return shape_for(self.model, self.sequence_tokens)

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimiser step, on all devices."""
        return self.micro_batch * self.grad_accumulation * self.devices * self.sequence_tokens

    @property
    def joined_targets(self) -> tuple[LoraTarget, ...]:
        """Which parts of the joined projection LoRA is added to."""
        return tuple(target for target in JOINED if target in self.lora_targets) if self.adapter == "lora" else ()

    def as_training(self) -> SlmTraining:
        """Return the training of all weights on the same sequences."""
        own = SlmTraining.model_fields.keys() & type(self).model_fields.keys()
        return SlmTraining(**{name: getattr(self, name) for name in own})
