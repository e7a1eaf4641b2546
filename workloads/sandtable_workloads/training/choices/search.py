"""All configurations of a training run worth considering: devices, groups, sharding, micro-batches, checkpointing.

The model, the sequence length and the sequences per step stay: another batch would be another training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.studies.cheapest import Goal, Search
from sandtable_workloads.training import layout, metrics
from sandtable_workloads.training.choices.scaling_law import law_named
from sandtable_workloads.training.training_parameters import SlmTraining

SETTINGS = (
    "devices",
    "sharding",
    "micro_batch",
    "grad_accumulation",
    "checkpointing",
    "tensor_parallel",
    "sequence_parallel",
    "pipeline_parallel",
    "virtual_stages",
)
GROUP_SIZES = (1, 2, 4, 8, 16)
SHARDINGS = ("ddp", "zero_1", "fsdp_grad_op", "fsdp_full")
GOALS = ("tokens", "loss")


class TrainingSearch(Search[SlmTraining]):
    """Other ways to train the same model on the same batches, until a number of tokens or a loss."""

    name: ClassVar[str] = "slm_training"
    settings: ClassVar[tuple[str, ...]] = SETTINGS

    def goal(self, parameters: SlmTraining, until: Mapping[str, float]) -> Goal:
        """Return the tokens to train on: given, those to a loss by the scaling law, or those of the parameters.

        Raises:
            ConfigError: a goal that is neither tokens nor a loss, or a loss out of reach.
        """
        tokens, law = tokens_until(parameters, until), law_named(parameters.scaling_law)
        n_params = law.params_of(parameters.shape)
        words, gain = [f"train {parameters.shape.name} on {units.format_count(tokens)} tokens"], {}
        if law.covers(parameters.shape, tokens):
            words.append(f"loss {law.loss(n_params, tokens):.3f} by the law {parameters.scaling_law!r}")
            gain["loss"] = law.gain_per_token(n_params, tokens)
        batch = f"{parameters.global_batch} sequences of {parameters.sequence_tokens} tokens a step"
        goodput = metrics.goodput_of(parameters)[1]
        batch += f"; goodput {goodput:.0%}"
        return Goal(
            words=f"{', '.join(words)}; {batch}", amount=tokens, unit="tokens", gain=gain, goodput_frac=goodput
        )

    def cases(self, parameters: SlmTraining, machine: Machine, most_devices: int) -> Iterator[dict[str, Any]]:
        """Yield devices and groups, each with the micro-batches, shardings and recomputations that go with them."""
        batch = parameters.global_batch
        for devices in device_counts(machine, most_devices):
            for tensor, pipeline in itertools.product(GROUP_SIZES, GROUP_SIZES):
                replicas, rest = divmod(devices, tensor * pipeline * parameters.context_parallel)
                if (
                    rest
                    or not replicas
                    or batch % replicas
                    or tensor > layout.devices_per_machine(machine, devices)
                ):
                    continue
                own = batch // replicas
                yield {
                    "devices": devices,
                    "tensor_parallel": tensor,
                    "pipeline_parallel": pipeline,
                    "virtual_stages": 1,
                    "sequence_parallel": tensor > 1,
                    "micro_batch": {n: {"micro_batch": n, "grad_accumulation": own // n} for n in divisors(own)},
                    "sharding": _shardings(replicas, pipeline),
                    "checkpointing": _checkpointing(parameters),
                }

    def amount_per_step(self, parameters: SlmTraining) -> float:
        """Return the tokens of a step."""
        return parameters.tokens_per_step

    def n_machines(self, parameters: SlmTraining, machine: Machine) -> float:
        """Return how many machines the devices of a run take."""
        return metrics.n_machines(parameters, machine)


def tokens_until(parameters: SlmTraining, until: Mapping[str, float]) -> float:
    """Return the tokens of a goal: given, those to a loss by the scaling law, or those of the parameters.

    Raises:
        ConfigError: an unknown goal, more than one, or a loss out of reach.
    """
    shape = parameters.shape
    unknown = [name for name in until if name not in GOALS]
    if unknown or len(until) > 1:
        raise ConfigError(f"slm_training trains until one of {', '.join(GOALS)}, not {', '.join(until)}")
    if "loss" in until:
        law = law_named(parameters.scaling_law)
        tokens = law.tokens_for(law.params_of(shape), until["loss"])
        if not law.covers(shape, tokens):
            raise ConfigError(
                f"the law {parameters.scaling_law!r} was fitted to {law.range()}, and says nothing of {tokens:.3g} "
                f"tokens and {law.params_of(shape):.3g} parameters: take another with parameters.scaling_law"
            )
        return tokens
    tokens = until.get("tokens", metrics.total_tokens(parameters, shape))
    if tokens <= 0:
        raise ConfigError(f"tokens must be more than 0, not {tokens:g}")
    return tokens


def device_counts(machine: Machine, most: int) -> list[int]:
    """Return numbers of devices: halves of one machine, then whole machines where a network joins them."""
    if machine.group_link is None:
        return [1]
    one = layout.devices_per_machine(machine, 1)
    counts = [one >> shift for shift in range(one.bit_length() - 1, -1, -1)]
    if machine.network is not None:
        counts += [one * 2**power for power in range(1, most.bit_length())]
    return sorted({count for count in counts if 0 < count <= most})


def divisors(batch: int) -> list[int]:
    """Return the powers of two that divide a batch, and the batch itself where it is one device's whole step."""
    powers = [1 << shift for shift in range(batch.bit_length())]
    return [size for size in powers if batch % size == 0]


def _shardings(replicas: int, pipeline: int) -> tuple[str, ...]:
    # alone there is nothing to shard; sharded weights would be gathered again for every micro-batch of a pipeline
    return ("ddp",) if replicas == 1 else SHARDINGS[:2] if pipeline > 1 else SHARDINGS


def _checkpointing(parameters: SlmTraining) -> tuple[str, ...]:
    # what "selective" computes again, attention on chip never keeps
    return ("none", "selective", "full") if parameters.attention == "vanilla" else ("none", "full")
