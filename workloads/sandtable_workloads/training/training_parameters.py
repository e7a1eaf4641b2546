"""What a user may choose about a training run, and what follows from it by counting alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from sandtable.hardware import Frozen
from sandtable.units import Bytes, Count, Fraction
from sandtable_workloads.transformer.presets import shape_for
from sandtable_workloads.transformer.shapes import ModelShape

Sharding = Literal["ddp", "zero_1", "fsdp_grad_op", "fsdp_full"]
Attention = Literal["vanilla", "flash"]
Checkpointing = Literal["none", "selective", "alternate", "full"]
Precision = Literal["float32", "bfloat16", "mixed_bfloat16", "mixed_float16", "mixed_fp8"]
Place = Literal["none", "host", "nvme"]
Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "lion", "muon", "sgd"]
# parameters of the workload that trains a few weights beside frozen ones
OF_FINETUNING = frozenset({"adapter", "lora_rank", "lora_targets", "quantization"})


class SlmTraining(Frozen):
    """Parameters of one training run.

    Attributes:
        model: A preset of `sandtable_workloads.transformer`, such as ``slm_100m``, the published name of one, such as
            ``gpt2``, or the path of a Hugging Face ``config.json``.
        sequence_tokens: Tokens per sequence.
        micro_batch: Sequences that one device (or one tensor-parallel group) processes at once.
        grad_accumulation: Micro-batches per step and data-parallel rank. With pipeline stages, these fill the pipe.
        devices: Devices (accelerators, or CPU processes) in all. What tensor, pipeline and context parallelism
            leave is data parallel.
        tensor_parallel, pipeline_parallel, context_parallel, expert_parallel: Sizes of those groups.
        virtual_stages: Model chunks per pipeline stage; above 1 the schedule is interleaved 1F1B.
        sequence_parallel: Split norms and residuals over the tensor-parallel group too.
        sharding: ``ddp`` keeps everything on every device; ``zero_1`` shards the optimiser's states;
            ``fsdp_grad_op`` shards gradients and optimiser, weights stay gathered between forward and backward;
            ``fsdp_full`` shards the weights too and gathers each layer twice.
        attention: ``vanilla`` writes the scores to memory; ``flash`` keeps them on chip.
        checkpointing: Which activations are computed again in the backward pass: none, those of attention's core,
            those of every second layer, or all but the input of each layer.
        precision: Pure ``bfloat16`` or ``float32`` throughout; ``mixed_*`` keeps float32 weights for the optimiser.
        bucket_bytes: Gradients that ``ddp`` reduces in one call.
        reduce_dtype: Type in which gradients are reduced; float32 with mixed precision, and the weights' type
            otherwise, if not given.
        optimizer: ``adamw``; ``adamw_8bit`` with states of one byte; ``adafactor`` with factored second moments;
            ``lion`` or ``sgd`` with one moment; ``muon`` for the matrices of layers and AdamW for the rest.
        optimizer_dtype: Type of the optimiser's moments; float32 with mixed precision, and the weights' type otherwise,
            if not given.
        gradient_dtype: Type in which gradients are kept with mixed precision: float32 if not given. In bfloat16 it is
            DeepSpeed's way, which also keeps the narrow weights beside shards of float32 ones.
        offload_optimizer: Where the optimiser's states, float32 weights among them, and gradients lie if not on the
            device: in the host's memory, which also updates them, or the states on its drive (``nvme``).
        offload_parameters: Where weights lie until their layer's turn comes; gathered layer by layer from there.
        overlap_tensor: Send within the tensor-parallel group piece by piece, beside the product that makes or takes it;
            only the first piece is waited for.
        overlap_input_gradients: Sum a product's input gradients over the tensor-parallel group while its weights'
            gradients are computed, as Megatron-LM does since 2022.
        overlap_gradients: Reduce gradients while the backward pass goes on; else after it.
        steps: Measured steps.
        warmup_steps: Steps before those, not measured.
        text: Text file to train on; the text that ships with the package if none.
        tokenizer: ``byte`` or ``bpe`` (trained on the text).
        learning_rate: Of the optimiser.
        total_tokens: Tokens of the whole training that the measured steps are a part of; 20 per parameter if not given
            (arXiv 2203.15556); ``20B`` is twenty billion.
        goodput_frac: Share of a whole training's time in which steps are done that count; the rest are restarts,
            steps done again, checkpoints and evaluation. 90 % (85 to 97 %) if not given, see
            `sandtable_workloads.training.metrics.GOODPUT`; 1 leaves it out.
        scaling_law: How the loss falls with parameters and tokens: a name in ``scaling_laws.yaml``, the path
            of a file like it, or folders of executed runs (with commas between) whose losses it is fitted to.
    """

    also_called: ClassVar[Mapping[str, str]] = {
        "batch_size": "micro_batch",
        "per_device_train_batch_size": "micro_batch",
        "micro_batch_size": "micro_batch",
        "mbs": "micro_batch",
        "gradient_accumulation": "grad_accumulation",
        "gradient_accumulation_steps": "grad_accumulation",
        "seq_len": "sequence_tokens",
        "seq_length": "sequence_tokens",
        "sequence_length": "sequence_tokens",
        "max_seq_length": "sequence_tokens",
        "context_length": "sequence_tokens",
        "gpus": "devices",
        "n_gpus": "devices",
        "num_gpus": "devices",
        "world_size": "devices",
        "tp": "tensor_parallel",
        "pp": "pipeline_parallel",
        "cp": "context_parallel",
        "ep": "expert_parallel",
        "zero_stage": "sharding",
        "fsdp": "sharding",
        "zero": "sharding",
        "dtype": "precision",
        "bf16": "precision",
        "fp16": "precision",
        "gradient_checkpointing": "checkpointing",
        "activation_checkpointing": "checkpointing",
        "recompute": "checkpointing",
        "lr": "learning_rate",
        "tokens": "total_tokens",
        "max_steps": "steps",
        "model_name": "model",
        "geometry": "model",
    }

    model: str = "slm_100m"
    sequence_tokens: int = Field(default=1024, ge=8, le=1 << 24)
    micro_batch: int = Field(default=4, ge=1, le=1 << 20)
    grad_accumulation: int = Field(default=1, ge=1, le=2048)
    devices: int = Field(default=1, ge=1, le=1 << 20)
    tensor_parallel: int = Field(default=1, ge=1, le=1 << 20)
    pipeline_parallel: int = Field(default=1, ge=1, le=1 << 20)
    context_parallel: int = Field(default=1, ge=1, le=1 << 20)
    expert_parallel: int = Field(default=1, ge=1, le=1 << 20)
    virtual_stages: int = Field(default=1, ge=1, le=1 << 20)
    sequence_parallel: bool = False
    sharding: Sharding = "ddp"
    attention: Attention = "flash"
    checkpointing: Checkpointing = "none"
    precision: Precision = "bfloat16"
    bucket_bytes: Bytes = Field(default=float(25 << 20), gt=0)
    reduce_dtype: Literal["float32", "bfloat16"] | None = None
    optimizer: Optimizer = "adamw"
    optimizer_dtype: Literal["float32", "bfloat16"] | None = None
    gradient_dtype: Literal["float32", "bfloat16"] | None = None
    offload_optimizer: Place = "none"
    offload_parameters: Place = "none"
    overlap_gradients: bool = True
    overlap_tensor: bool = False
    overlap_input_gradients: bool = False
    steps: int = Field(default=10, ge=1, le=1_000_000)
    warmup_steps: int = Field(default=3, ge=0, le=1_000_000)
    text: str | None = None
    tokenizer: Literal["byte", "bpe"] = "byte"
    learning_rate: float = Field(default=3e-4, gt=0)
    total_tokens: Count | None = Field(default=None, gt=0)
    goodput_frac: Annotated[Fraction | None, Field(default=None, gt=0, le=1, alias="goodput")] = None
    scaling_law: str = "chinchilla"

    @model_validator(mode="before")
    @classmethod
    def _trains_all_weights(cls, values: Any) -> Any:
        found = sorted(OF_FINETUNING.intersection(values)) if isinstance(values, Mapping) else []
        if found:
            raise ValueError(f"{', '.join(found)}: slm_training trains all weights; write 'workload: finetuning'")
        return values

    @model_validator(mode="after")
    def _groups_divide(self) -> SlmTraining:
        group = self.tensor_parallel * self.pipeline_parallel * self.context_parallel
        if self.devices % group:
            raise ValueError(
                f"devices {self.devices} must be a multiple of tensor_parallel x pipeline_parallel x "
                f"context_parallel = {group}: write {group * max(1, self.devices // group)}"
            )
        return self

    @model_validator(mode="after")
    def _states_have_one_type(self) -> SlmTraining:
        if self.gradient_dtype is not None and not self.precision.startswith("mixed"):
            raise ValueError(f"gradients have the type of {self.precision} weights: leave gradient_dtype out")
        if self.optimizer_dtype is not None and self.optimizer in ("adamw_8bit", "adafactor"):
            raise ValueError(f"{self.optimizer} says itself how wide its states are: leave optimizer_dtype out")
        return self

    @property
    def shape(self) -> ModelShape:
        """The shape of the model, with as many learned positions as a sequence has tokens."""
        return shape_for(self.model, self.sequence_tokens)

    @property
    def data_parallel(self) -> int:
        """Replicas of the model that see different data."""
        return self.devices // (self.tensor_parallel * self.pipeline_parallel * self.context_parallel)

    @property
    def global_batch(self) -> int:
        """Sequences per optimiser step."""
        return self.micro_batch * self.grad_accumulation * self.data_parallel

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimiser step."""
        return self.global_batch * self.sequence_tokens

    @property
    def weight_bytes(self) -> float:
        """Bytes of a weight as layers compute with it, and as it is gathered."""
        return 4.0 if self.precision == "float32" else 2.0

    @property
    def gradient_bytes(self) -> float:
        """Bytes of a gradient as it is accumulated, and as the optimiser reads it."""
        narrow = self.precision == "bfloat16" or self.gradient_dtype == "bfloat16"
        return 2.0 if narrow else 4.0

    @property
    def moment_bytes(self) -> float:
        """Bytes of each moment of a parameter, where the optimiser does not say itself."""
        if self.optimizer_dtype is None:
            return 2.0 if self.precision == "bfloat16" else 4.0
        return 4.0 if self.optimizer_dtype == "float32" else 2.0

    @property
    def reduce_bytes(self) -> float:
        """Bytes of a gradient as it is sent."""
        if self.reduce_dtype is None:
            return self.gradient_bytes
        return 4.0 if self.reduce_dtype == "float32" else 2.0
