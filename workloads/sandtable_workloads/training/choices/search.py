"""All configurations of a training run worth considering: devices, groups, sharding, micro-batches, checkpointing.

The model, the sequence length and the sequences per step stay: another batch would be another training. What cannot be
laid out or does not fit into memory is dropped under a reason, the rest is timed by the closed form.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.units import format_bytes
from sandtable.workload.seam import Choice, Choices, Goal
from sandtable_workloads.training import layout, metrics, training_memory
from sandtable_workloads.training.choices.scaling_law import Bought, Law, law_named
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

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
NO_PRICE = "no price"
ManyBytes = Callable[[Sequence[SlmTraining], Machine], list[dict[str, float]]]
ManyTimes = Callable[[Sequence[SlmTraining], Machine], list[dict[str, float]]]


@dataclass(slots=True)
class Dropped:
    """What was dropped, counted by reason, and the one that misses the memory of its device by the least."""

    reasons: Counter[str] = field(default_factory=Counter)
    nearest: str = ""
    excess: float = math.inf

    def too_large(self, p: SlmTraining, machine: Machine, judged: training_memory.Verdict) -> None:
        """Count a configuration that does not fit."""
        self.reasons[f"does not fit: {judged.breaks}"] += 1
        excess = judged.needed_bytes / judged.has_bytes
        if excess < self.excess:
            self.excess = excess
            settings = ", ".join(f"{name} {getattr(p, name)}" for name in SETTINGS)
            needed, there = format_bytes(judged.needed_bytes), format_bytes(judged.has_bytes)
            self.nearest = f"{settings} needs {needed} of the {there} of a device of {machine.name}"


def choices(
    parameters: SlmTraining,
    shape: ModelShape,
    machines: Sequence[Machine],
    goal: Goal,
    *,
    memories: ManyBytes,
    estimate: ManyTimes,
) -> Choices:
    """Return every configuration that fits, with time and dollars until the goal, and what was dropped why.

    Args:
        parameters: What stays: model, sequence length, sequences per step, precision, attention.
        shape: The model's.
        machines: Kinds of machine to look at.
        goal: Tokens or a loss to reach, and the most devices to use.
        memories: Bytes by kind of many runs on a machine.
        estimate: Step times of many runs on a machine.

    Raises:
        ConfigError: a goal that is neither tokens nor loss, or a loss out of reach.
    """
    tokens, law = tokens_until(parameters, shape, goal), law_named(parameters.scaling_law)
    dropped = Dropped()
    found: list[Choice] = []
    considered = 0
    for machine in machines:
        candidates = list(candidates_on(parameters, machine, goal.most_devices))
        considered += len(candidates)
        if machine.price is None:
            dropped.reasons[f"{NO_PRICE} for {machine.name}"] += len(candidates)
            continue
        fitting = _fitting(candidates, shape, machine, memories, dropped)
        for p, times in zip(fitting, estimate(fitting, machine), strict=True):
            found.append(_choice(p, times, machine, tokens, parts=goal.parts))
    if law.covers(shape, tokens):
        found = [_with_gain(choice, law, law.params_of(shape), tokens) for choice in found]
    return Choices(
        goal=_words(parameters, shape, goal, tokens),
        considered=considered,
        dropped=dict(dropped.reasons),
        choices=found,
        nearest=dropped.nearest,
    )


def tokens_until(parameters: SlmTraining, shape: ModelShape, goal: Goal) -> float:
    """Return the tokens of the goal: given, those to a loss by the scaling law, or those of the parameters.

    Raises:
        ConfigError: an unknown goal, more than one, or a loss out of reach.
    """
    unknown = [name for name in goal.until if name not in GOALS]
    if unknown or len(goal.until) > 1:
        raise ConfigError(f"slm_training trains until one of {', '.join(GOALS)}, not {', '.join(goal.until)}")
    if "loss" in goal.until:
        law = law_named(parameters.scaling_law)
        tokens = law.tokens_for(law.params_of(shape), goal.until["loss"])
        if not law.covers(shape, tokens):
            raise ConfigError(
                f"the law {parameters.scaling_law!r} was fitted to {law.range()}, and says nothing of {tokens:.3g} "
                f"tokens and {law.params_of(shape):.3g} parameters: take another with parameters.scaling_law"
            )
        return tokens
    tokens = goal.until.get("tokens", metrics.total_tokens(parameters, shape))
    if tokens <= 0:
        raise ConfigError(f"tokens must be more than 0, not {tokens:g}")
    return tokens


def _words(parameters: SlmTraining, shape: ModelShape, goal: Goal, tokens: float) -> str:
    law = law_named(parameters.scaling_law)
    words = [f"{shape.name}, {tokens:.4g} tokens"]
    if law.covers(shape, tokens):
        words.append(f"loss {law.loss(law.params_of(shape), tokens):.3f} by the law {parameters.scaling_law!r}")
    batch = f"{parameters.global_batch} sequences of {parameters.sequence_tokens} tokens per step"
    return f"{', '.join(words)}; {batch}"


# --- candidates --------------------------------------------------------------------------------------------------


def candidates_on(parameters: SlmTraining, machine: Machine, most_devices: int) -> Iterator[SlmTraining]:
    """Yield the configurations on one kind of machine, with the sequences per step that ``parameters`` have."""
    batch = parameters.global_batch
    for devices in device_counts(machine, most_devices):
        for tensor, pipeline in itertools.product(GROUP_SIZES, GROUP_SIZES):
            replicas, rest = divmod(devices, tensor * pipeline * parameters.context_parallel)
            if rest or not replicas or batch % replicas or tensor > layout.devices_per_machine(machine, devices):
                continue
            for micro_batch, sharding in itertools.product(
                _divisors(batch // replicas), _shardings(replicas, pipeline)
            ):
                for checkpointing in _checkpointing(parameters):
                    yield parameters.model_copy(
                        update={
                            "devices": devices,
                            "tensor_parallel": tensor,
                            "pipeline_parallel": pipeline,
                            "virtual_stages": 1,
                            "sequence_parallel": tensor > 1,
                            "micro_batch": micro_batch,
                            "grad_accumulation": batch // replicas // micro_batch,
                            "sharding": sharding,
                            "checkpointing": checkpointing,
                        }
                    )


def device_counts(machine: Machine, most: int) -> list[int]:
    """Return numbers of devices: halves of one machine, then whole machines where a network joins them."""
    one = layout.devices_per_machine(machine, 1)
    counts = [one >> shift for shift in range(one.bit_length() - 1, -1, -1)]
    if machine.network is not None:
        counts += [one * 2**power for power in range(1, most.bit_length())]
    return sorted({count for count in counts if 0 < count <= most})


def _divisors(batch: int) -> list[int]:
    """Return the powers of two that divide a batch, and the batch itself where it is one device's whole step."""
    powers = [1 << shift for shift in range(batch.bit_length())]
    return [size for size in powers if batch % size == 0]


def _shardings(replicas: int, pipeline: int) -> tuple[str, ...]:
    # alone there is nothing to shard; sharded weights would be gathered again for every micro-batch of a pipeline
    return ("ddp",) if replicas == 1 else SHARDINGS[:2] if pipeline > 1 else SHARDINGS


def _checkpointing(parameters: SlmTraining) -> tuple[str, ...]:
    # what "selective" computes again, attention on chip never keeps
    return ("none", "selective", "full") if parameters.attention == "vanilla" else ("none", "full")


# --- what is dropped, what is kept -------------------------------------------------------------------------------


def _fitting(
    candidates: Sequence[SlmTraining],
    shape: ModelShape,
    machine: Machine,
    memories: ManyBytes,
    dropped: Dropped,
) -> list[SlmTraining]:
    laid_out = []
    for p in candidates:
        fault = next(layout.faults(p, shape, machine), None)
        if fault is None:
            laid_out.append(p)
        else:
            dropped.reasons["cannot be laid out: " + fault.partition(" ")[0]] += 1
    fitting = []
    for p, held in zip(laid_out, memories(laid_out, machine), strict=True):
        judged = training_memory.verdict(held, training_memory.capacity_bytes(machine, p.devices))
        if judged.breaks is None:
            fitting.append(p)
        else:
            dropped.too_large(p, machine, judged)
    return fitting


def _choice(p: SlmTraining, times: dict[str, float], machine: Machine, tokens: float, *, parts: bool) -> Choice:
    assert machine.price is not None
    steps = tokens / p.tokens_per_step
    used = metrics.n_machines(p, machine)
    usd_per_h = machine.price.usd_per_h * (used if parts else math.ceil(used))
    seconds = times["step_s"] * steps
    settings: dict[str, Any] = {name: getattr(p, name) for name in SETTINGS}
    return Choice(
        machine=machine.name,
        settings=settings,
        seconds=seconds,
        low_s=times["low_s"] * steps,
        high_s=times["high_s"] * steps,
        usd=usd_per_h * seconds / metrics.SECONDS_PER_HOUR,
        facts={"tokens_per_s": p.tokens_per_step / times["step_s"]},
    )


def _with_gain(choice: Choice, law: Law, n_params: float, tokens: float) -> Choice:
    """Add what a further dollar takes off the loss at the goal; of a machine that costs nothing there is none."""
    if not choice.usd:
        return choice
    bought = Bought(law=law, n_params=n_params, tokens_per_usd=tokens / choice.usd)
    return replace(choice, facts={**choice.facts, "loss_per_usd": bought.loss_per_usd(tokens)})
