"""What a user may choose about an RLHF campaign, and what follows from it by counting alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sandtable.hardware import Frozen
from sandtable.units import Count
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning, LoraTarget, Quantization
from sandtable_workloads.training.states.optimizers import ELEMENTWISE
from sandtable_workloads.training.training_parameters import Attention, Optimizer, Precision, Sharding, SlmTraining
from sandtable_workloads.transformer.presets import shape_for
from sandtable_workloads.transformer.shapes import ModelShape

Role = Literal["policy", "critic", "reference", "reward", "generation"]
Placement = Literal["colocated", "separate", "async"]
# models that end in one number instead of a vocabulary
SCALAR: tuple[Role, ...] = ("critic", "reward")
# roles with devices of their own, where they have any
OWN_DEVICES: tuple[Role, ...] = ("generation", "critic", "reference", "reward")


class Rlhf(Frozen):
    """Parameters of a campaign: supervised fine-tuning, reward model, reference, and PPO (or DPO in their place).

    Attributes:
        method: ``ppo``, or ``dpo``, which trains on the preference pairs and needs no reward model.
        model: Of the policy: a preset, a published name, or the path of a ``config.json``.
        critic: A model of its own (``own``), or a value head on the policy's trunk (``shared``).
        critic_model, reward_model: Their models; the policy's if not given.
        reference: Whose distribution the policy is kept near: the SFT model (``sft``), or the average of several
            (``soup``, arXiv 2411.01798), whose weights are no other model's.
        n_sft: Supervised fine-tunings; two for a soup, one otherwise, if not given.
        soup_weight: Of the first model in a soup of two.
        sft_samples, sft_epochs, sft_batch, sft_tokens: Samples, passes over them, sequences of a step, and tokens of a
            sequence, prompt and answer if not given; no samples, no fine-tuning.
        reward_pairs, reward_epochs, reward_batch: Preference pairs, passes over them, and pairs of a step.
        total_prompts: Prompts of the campaign, each pass over them counted; those of one iteration if not given.
        rollout_batch: Prompts of an iteration, one answer each.
        train_batch: Sequences of an optimiser step; an iteration has as many steps as its rollouts fill.
        ppo_epochs: Passes over an iteration's rollouts.
        prompt_tokens, answer_tokens: The most tokens of a prompt, and of an answer.
        prompt_mean_tokens, answer_mean_tokens: Their means; all have the most if not given.
        lengths: How lengths are distributed around the mean, up to the most.
        length_spread: Standard deviation of the logarithm of ``lognormal`` lengths.
        packing: Sequences are joined end to end instead of padded to the longest of their micro-batch.
        padding: Where they are padded: before the prompt and after the answer (``both``), or after the answer alone.
        micro_batch: Sequences that one device (or tensor-parallel group) trains on at once.
        scoring_micro_batch: Sequences of a forward pass that scores; as many as are trained on if not given.
        rollout_micro_batch: Sequences that a training rank has generated and scored before the next ones begin; all of
            an iteration if not given.
        generation_batch: The most sequences that an engine decodes at once.
        batching: Who ends makes room for the next prompt (``continuous``, as in vLLM and SGLang); or prompts padded to
            the longest begin together and end with the longest answer (``static``, as in Transformers), rows that have
            ended taken out meanwhile (``shrinking``).
        logits: Made of all tokens, or of the ``answers`` alone, when PPO trains and scores.
        devices: Devices of all pools together.
        placement: All models on the same devices (``colocated``), generation on devices of its own (``separate``), or
            that and the next rollouts generated while the policy is trained (``async``).
        generation_devices, critic_devices, reference_devices, reward_devices: Devices of their own; the policy has
            what is left, and whatever has none of its own.
        generation_tensor_parallel: Devices of one generating engine.
        tensor_parallel, sharding, attention, checkpointing, precision, optimizer, offload_optimizer: Of training, as
            of `SlmTraining`.
        gradient_dtype: Type in which gradients are kept: bfloat16, as DeepSpeed does, or float32.
        offload_scoring: Reference and reward model lie in the host's memory and come for their forward passes.
        adapter: ``lora`` trains products beside frozen weights, of policy and critic; ``none`` all weights.
        lora_rank, lora_targets, quantization: As of `Finetuning`.
        learning_rate, critic_learning_rate, sft_learning_rate: Of the optimisers.
        kl_coefficient: Weight of the divergence from the reference in the reward.
        kl_target: Divergence that the coefficient is adapted to; fixed if not given.
        clip_range, value_clip_range, value_coefficient, discount, gae_lambda: Of PPO.
        temperature, top_p: Of sampling.
    """

    also_called: ClassVar[Mapping[str, str]] = {
        **{
            name: own
            for name, own in SlmTraining.also_called.items()
            if own in ("micro_batch", "devices", "sharding")
        },
        "tp": "tensor_parallel",
        "gradient_checkpointing": "checkpointing",
        "bf16": "precision",
        "pretrain": "model",
        "model_name": "model",
        "model_name_or_path": "model",
        "sft_model_path": "model",
        "reward_pretrain": "reward_model",
        "reward_model_path": "reward_model",
        "critic_pretrain": "critic_model",
        "ref_model": "reference",
        "batch_size": "rollout_batch",
        "rollout_batch_size": "rollout_batch",
        "local_rollout_forward_batch_size": "scoring_micro_batch",
        "micro_rollout_batch_size": "rollout_micro_batch",
        "micro_train_batch_size": "micro_batch",
        "train_batch_size": "train_batch",
        "mini_batch_size": "train_batch",
        "num_ppo_epochs": "ppo_epochs",
        "max_epochs": "ppo_epochs",
        "total_episodes": "total_prompts",
        "max_samples": "total_prompts",
        "prompt_max_len": "prompt_tokens",
        "max_prompt_length": "prompt_tokens",
        "generate_max_len": "answer_tokens",
        "response_length": "answer_tokens",
        "max_new_tokens": "answer_tokens",
        "max_num_seqs": "generation_batch",
        "actor_num_gpus_per_node": "devices",
        "critic_num_gpus_per_node": "critic_devices",
        "ref_num_gpus_per_node": "reference_devices",
        "reward_num_gpus_per_node": "reward_devices",
        "vllm_num_engines": "generation_devices",
        "vllm_tensor_parallel_size": "generation_tensor_parallel",
        "zero_stage": "sharding",
        "adam_offload": "offload_optimizer",
        "ref_reward_offload": "offload_scoring",
        "packing_samples": "packing",
        "grad_accum_dtype": "gradient_dtype",
        "kl_coef": "kl_coefficient",
        "init_kl_coef": "kl_coefficient",
        "target": "kl_target",
        "cliprange": "clip_range",
        "cliprange_value": "value_clip_range",
        "vf_coef": "value_coefficient",
        "gamma": "discount",
        "lam": "gae_lambda",
        "alpha": "soup_weight",
    }

    method: Literal["ppo", "dpo"] = "ppo"
    model: str = "llama_2_7b"
    critic: Literal["own", "shared"] = "own"
    critic_model: str | None = None
    reward_model: str | None = None
    reference: Literal["sft", "soup"] = "sft"
    n_sft: int | None = Field(default=None, ge=1, le=64)
    soup_weight: float = Field(default=0.5, ge=0, le=1)
    sft_samples: Count = Field(default=0.0, ge=0)
    sft_epochs: int = Field(default=1, ge=1, le=1000)
    sft_batch: int = Field(default=128, ge=1, le=1 << 20)
    sft_tokens: int | None = Field(default=None, ge=8, le=1 << 20)
    reward_pairs: Count = Field(default=0.0, ge=0)
    reward_epochs: int = Field(default=1, ge=1, le=1000)
    reward_batch: int = Field(default=64, ge=1, le=1 << 20)
    total_prompts: Count | None = Field(default=None, gt=0)
    rollout_batch: int = Field(default=1024, ge=1, le=1 << 20)
    train_batch: int = Field(default=128, ge=1, le=1 << 20)
    ppo_epochs: int = Field(default=1, ge=1, le=1000)
    prompt_tokens: int = Field(default=1024, ge=1, le=1 << 20)
    answer_tokens: int = Field(default=1024, ge=1, le=1 << 20)
    prompt_mean_tokens: float | None = Field(default=None, ge=1)
    answer_mean_tokens: float | None = Field(default=None, ge=1)
    lengths: Literal["lognormal", "geometric"] = "lognormal"
    length_spread: float = Field(default=0.8, ge=0, le=3)
    packing: bool = False
    padding: Literal["both", "end"] = "both"
    micro_batch: int = Field(default=8, ge=1, le=1 << 20)
    scoring_micro_batch: int | None = Field(default=None, ge=1, le=1 << 20)
    rollout_micro_batch: int | None = Field(default=None, ge=1, le=1 << 20)
    generation_batch: int = Field(default=256, ge=1, le=1 << 20)
    batching: Literal["continuous", "static", "shrinking"] = "continuous"
    logits: Literal["all", "answers"] = "all"
    devices: int = Field(default=1, ge=1, le=1 << 20)
    placement: Placement = "colocated"
    generation_devices: int = Field(default=0, ge=0, le=1 << 20)
    critic_devices: int = Field(default=0, ge=0, le=1 << 20)
    reference_devices: int = Field(default=0, ge=0, le=1 << 20)
    reward_devices: int = Field(default=0, ge=0, le=1 << 20)
    generation_tensor_parallel: int = Field(default=1, ge=1, le=1 << 10)
    tensor_parallel: int = Field(default=1, ge=1, le=1 << 10)
    sharding: Sharding = "ddp"
    attention: Attention = "flash"
    checkpointing: Literal["none", "full"] = "none"
    precision: Precision = "mixed_bfloat16"
    gradient_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    optimizer: Optimizer = "adamw"
    offload_optimizer: Literal["none", "host"] = "none"
    offload_scoring: bool = False
    adapter: Literal["none", "lora"] = "none"
    lora_rank: int = Field(default=16, ge=1, le=1 << 16)
    lora_targets: tuple[LoraTarget, ...] = Field(default=("query", "value"), min_length=1)
    quantization: Quantization = "none"
    learning_rate: float = Field(default=3e-6, gt=0)
    critic_learning_rate: float = Field(default=9e-6, gt=0)
    sft_learning_rate: float = Field(default=1e-5, gt=0)
    kl_coefficient: float = Field(default=0.05, ge=0)
    kl_target: float | None = Field(default=None, gt=0)
    clip_range: float = Field(default=0.2, gt=0)
    value_clip_range: float = Field(default=0.2, gt=0)
    value_coefficient: float = Field(default=0.1, ge=0)
    discount: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    temperature: float = Field(default=0.7, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _pools_fit(self) -> Rlhf:
        if (self.placement == "colocated") != (self.generation_devices == 0):
            raise ValueError(
                f"placement {self.placement} with generation_devices {self.generation_devices}: devices that only "
                "generate go with placement separate or async, and colocated has none"
            )
        taken = sum(self._own_devices(role) for role in OWN_DEVICES)
        if taken >= self.devices:
            raise ValueError(f"devices {self.devices} leave the policy none beside {taken} for others: add devices")
        groups: dict[Role, int] = {
            "policy": self.tensor_parallel,
            "generation": self.generation_tensor_parallel,
        }
        for role, group in groups.items():
            if self.devices_of(role) % group:
                raise ValueError(
                    f"the {self.devices_of(role)} devices of {role} are no multiple of its groups of {group}"
                )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Rlhf:
        if self.train_batch > self.rollout_batch and self.method == "ppo":
            raise ValueError(f"train_batch {self.train_batch} is more than the rollout_batch {self.rollout_batch}")
        for mean, most in (("prompt_mean_tokens", "prompt_tokens"), ("answer_mean_tokens", "answer_tokens")):
            if (getattr(self, mean) or 0) > getattr(self, most):
                raise ValueError(f"{mean} {getattr(self, mean):g} is more than {most} {getattr(self, most)}")
        if self.reference == "sft" and (self.n_sft or 1) > 1 and self.method == "ppo":
            raise ValueError(f"n_sft {self.n_sft} needs reference soup: one model is no average")
        if self.reference == "soup" and self.n_sft == 1 and self.method == "ppo":
            raise ValueError("n_sft 1 gives no soup: leave it out for two models, or set reference to sft")
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> Rlhf:
        if self.quantization != "none" and self.adapter == "none":
            raise ValueError("packed weights cannot be trained: set adapter lora, or quantization none")
        if self.adapter != "none" and not self.suits_adapters:
            raise ValueError(
                f"adapters are trained with optimizer {', '.join(ELEMENTWISE)}, without tensor_parallel and "
                "offload_optimizer"
            )
        if self.critic == "shared" and self.critic_devices:
            raise ValueError(
                "a value head on the policy's trunk has no devices of its own: set critic_devices to 0"
            )
        return self

    @property
    def suits_adapters(self) -> bool:
        """Whether LoRA is described with the other choices."""
        return self.optimizer in ELEMENTWISE and self.tensor_parallel == 1 and self.offload_optimizer == "none"

    # --- models ------------------------------------------------------------------------------------------------

    def model_of(self, role: Role) -> str:
        """Return the name of a role's model."""
        return {"critic": self.critic_model, "reward": self.reward_model}.get(role) or self.model

    def shape_of(self, role: Role) -> ModelShape:
        """Return the shape of a role's model; those that end in one number have no output projection."""
        shape = shape_for(self.model_of(role), self.sequence_tokens)
        return shape.changed(tied=True) if role in SCALAR else shape

    @property
    def shape(self) -> ModelShape:
        """The policy's shape."""
        return self.shape_of("policy")

    @property
    def roles(self) -> tuple[Role, ...]:
        """The models that an iteration needs, the generating policy left out."""
        if self.method == "dpo":
            return ("policy", "reference")
        critic: tuple[Role, ...] = ("critic",) if self.critic == "own" else ()
        return ("policy", *critic, "reference", "reward")

    @property
    def frozen_reference(self) -> bool:
        """Whether the reference has weights of its own: not where it is the policy without its adapter."""
        return self.adapter == "none" or self.reference == "soup"

    # --- devices -----------------------------------------------------------------------------------------------

    def _own_devices(self, role: Role) -> int:
        return int(getattr(self, f"{role}_devices"))

    def devices_of(self, role: Role) -> int:
        """Return the devices that a role's model is on."""
        if role != "policy" and self._own_devices(role):
            return self._own_devices(role)
        return self.devices - sum(self._own_devices(other) for other in OWN_DEVICES)

    def is_apart(self, role: Role) -> bool:
        """Whether a role has devices of its own."""
        return role != "policy" and self._own_devices(role) > 0

    def ranks_of(self, role: Role) -> int:
        """Return the groups of devices that work on different sequences of a role."""
        group = self.generation_tensor_parallel if role == "generation" else self.tensor_parallel
        return max(1, self.devices_of(role) // group)

    # --- work --------------------------------------------------------------------------------------------------

    @property
    def n_finetunings(self) -> int:
        """Supervised fine-tunings of the campaign."""
        return self.n_sft or (2 if self.reference == "soup" and self.method == "ppo" else 1)

    @property
    def sequence_tokens(self) -> int:
        """The most tokens of a sequence."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def sft_steps(self) -> int:
        """Optimiser steps of one supervised fine-tuning."""
        return math.ceil(self.sft_samples * self.sft_epochs / self.sft_batch)

    @property
    def reward_steps(self) -> int:
        """Optimiser steps of the reward model; DPO has none."""
        return 0 if self.method == "dpo" else math.ceil(self.reward_pairs * self.reward_epochs / self.reward_batch)

    @property
    def n_iterations(self) -> int:
        """Iterations of the campaign: rollouts of PPO, or optimiser steps of DPO over the preference pairs."""
        if self.method == "dpo":
            return max(1, math.ceil(self.reward_pairs * self.reward_epochs / self.train_batch))
        return 1 if self.total_prompts is None else max(1, math.ceil(self.total_prompts / self.rollout_batch))

    @property
    def updates(self) -> int:
        """Optimiser steps of an iteration."""
        return 1 if self.method == "dpo" else self.ppo_epochs * math.ceil(self.rollout_batch / self.train_batch)

    def training(self, role: Role, *, batch: int, tokens: int, devices: int | None = None) -> SlmTraining:
        """Return the training of a role's model on steps of ``batch`` sequences of ``tokens`` each, padding included.

        A device takes as many sequences at once as `micro_batch` says, fewer where a step has no more for it.
        """
        on = self.devices_of(role) if devices is None else devices
        each = math.ceil(batch / max(1, on // self.tensor_parallel))
        micro = min(self.micro_batch, each)
        return SlmTraining(
            model=self.model_of(role),
            sequence_tokens=max(8, tokens),
            micro_batch=micro,
            grad_accumulation=math.ceil(each / micro),
            devices=on,
            tensor_parallel=self.tensor_parallel,
            sharding=self.sharding,
            attention=self.attention,
            checkpointing=self.checkpointing,
            precision=self.precision,
            gradient_dtype=self.gradient_dtype if self.precision.startswith("mixed") else None,
            optimizer=self.optimizer,
            offload_optimizer=self.offload_optimizer,
        )

    def finetuning(self, role: Role, *, batch: int, tokens: int, devices: int | None = None) -> Finetuning:
        """Return the same with LoRA."""
        plain = self.training(role, batch=batch, tokens=tokens, devices=devices)
        return Finetuning(
            model=self.model_of(role),
            adapter="lora",
            lora_rank=self.lora_rank,
            lora_targets=self.lora_targets,
            quantization=self.quantization,
            sequence_tokens=plain.sequence_tokens,
            micro_batch=plain.micro_batch,
            grad_accumulation=plain.grad_accumulation,
            devices=plain.devices,
            sharding="fsdp_full" if self.sharding == "fsdp_full" else "ddp",
            checkpointing=self.checkpointing,
            precision="bfloat16",
            optimizer=self.optimizer,
        )
