"""Memory of a campaign's PPO on the fullest device, by model and kind, at the moment when it holds most.

A device holds the states of every model that it has throughout; what a pass needs comes and goes. Moments are: the
update of each model that is trained, the generation with keys and values of all sequences at once, and each model's
forward passes, whose logits count. The generating engine holds a copy of the policy where it has devices of its own,
and on the same devices where the policy's own weights are sharded.

With mixed precision and gradients of two bytes the states of policy and critic take 16 bytes a parameter each,
reference and reward model 2 each: 36 in all, 20 with a value head on the policy's trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sandtable.errors import DoesNotFit, PlanError
from sandtable.hardware import Machine
from sandtable.units import format_bytes, format_count
from sandtable.workload.seam import Verdict
from sandtable_workloads.finetuning import finetuning_memory
from sandtable_workloads.rlhf.answer_lengths import drawn, most_cached
from sandtable_workloads.rlhf.rlhf_demand import cache_bytes_per_token, configuration
from sandtable_workloads.rlhf.rlhf_parameters import OWN_DEVICES, SCALAR, Rlhf, Role
from sandtable_workloads.training import layout, training_memory
from sandtable_workloads.training.step_demand import held_params
from sandtable_workloads.training.training_memory import COME_AND_GO, capacity_bytes

TRAINED: tuple[Role, ...] = ("policy", "critic")
# kinds of a model that are there from beginning to end; all others belong to one of its passes
STATES = ("weights", "master weights", "optimizer")
RESERVED = "reserved"
# float32 logits and their logarithms, in a forward pass that keeps nothing
SCORED_LOGIT_BYTES = 8.0
# changes that make a campaign smaller, the mildest first
SMALLER: tuple[Mapping[str, Any], ...] = (
    {"checkpointing": "full"},
    {"generation_batch": 32},
    {"micro_batch": 1},
    {"checkpointing": "full", "micro_batch": 1},
    {"offload_scoring": True},
    {"sharding": "fsdp_full", "checkpointing": "full"},
    {"sharding": "fsdp_full", "checkpointing": "full", "micro_batch": 1, "scoring_micro_batch": 1},
    {"critic": "shared", "critic_devices": 0},
    {"offload_optimizer": "host", "sharding": "fsdp_full", "checkpointing": "full"},
    {"adapter": "lora", "precision": "bfloat16"},
    {
        "adapter": "lora",
        "precision": "bfloat16",
        "checkpointing": "full",
        "micro_batch": 1,
        "scoring_micro_batch": 1,
    },
)
FACTORS, MOST_CHANGES = (2, 4, 8), 2


def memory_of(p: Rlhf, machine: Machine, seed: int = 0) -> dict[str, float]:
    """Return the bytes of the fullest device by model and kind, the software's own among them."""
    pools = [held for pool in _pools(p) if (held := _pool_memory(p, machine, pool, seed))]
    return max(pools, key=lambda kinds: sum(kinds.values()))


def _pools(p: Rlhf) -> Iterator[tuple[Role, ...]]:
    """Yield the roles that share devices."""
    held: tuple[Role, ...] = ("generation", *p.roles)
    yield tuple(role for role in held if not p.is_apart(role))
    for role in OWN_DEVICES:
        if role in held and p.is_apart(role):
            alone: tuple[Role, ...] = (role,)
            yield alone


def _pool_memory(p: Rlhf, machine: Machine, pool: tuple[Role, ...], seed: int) -> dict[str, float]:
    held = {f"{role} {kind}": size for role in pool for kind, size in states_of(p, machine, role).items()}
    moments = [
        held | moment | _reserved(held, moment, machine, trains=trains)
        for role in pool
        for moment, trains in _moments(p, machine, role, seed)
    ]
    fullest = max(moments, key=lambda kinds: sum(kinds.values()))
    return {kind: size for kind, size in fullest.items() if size > 0}


def _reserved(
    held: Mapping[str, float], moment: Mapping[str, float], machine: Machine, *, trains: bool
) -> dict[str, float]:
    """Return what the software takes for itself, and the gaps that its allocator leaves between what comes and goes.

    While a model is trained its states are among that, as they were taken one by one between activations; weights
    that are only read were loaded before anything else.
    """
    stack = machine.stack
    if stack is None or machine.accelerator is None:
        return {}
    share = stack.datasheet.fragmented_frac if any(kind.endswith(COME_AND_GO) for kind in moment) else 0.0
    spread = sum(moment.values()) + (sum(held.values()) if trains else 0.0)
    return {RESERVED: stack.datasheet.reserved_bytes + spread * share / (1 - share)}


def states_of(p: Rlhf, machine: Machine, role: Role) -> dict[str, float]:
    """Return what a role's model holds on a device throughout: weights, and the optimiser's states of a trained one."""
    if role == "generation":
        return _engine_weights(p, machine)
    if role in TRAINED:
        kinds = trained_of(p, machine, role)
        # gradients of one model wait for nothing while another is trained: they are dropped after its step
        return {kind: kinds[kind] for kind in STATES if kinds.get(kind)}
    if p.offload_scoring or (role == "reference" and not p.frozen_reference):
        return {}
    return {"weights": _weight_bytes(p, machine, role)}


def _weight_bytes(p: Rlhf, machine: Machine, role: Role) -> float:
    """Return the bytes of frozen weights on a device, sharded as those of trained models."""
    if p.quantization != "none":
        return finetuning_memory.base_bytes(p.finetuning(role, batch=1, tokens=8), p.shape_of(role))
    c = configuration(p, machine, role, batch=p.ranks_of(role), tokens=8)
    shards = float(np.asarray(c.replicas)) if p.sharding == "fsdp_full" else 1.0
    return float(np.asarray(held_params(c))) * c.item_bytes / shards


def _engine_weights(p: Rlhf, machine: Machine) -> dict[str, float]:
    """Return the engine's copy of the policy; on the policy's own devices only where those have shards of it."""
    if not p.is_apart("generation") and p.sharding != "fsdp_full":
        return {}
    item = 4.0 if p.precision == "float32" else 2.0
    return {"weights": p.shape.n_params * item / p.generation_tensor_parallel}


def trained_of(p: Rlhf, machine: Machine, role: Role) -> dict[str, float]:
    """Return all kinds of bytes of a model at the peak of its update, the software's own left out."""
    batch = 2 * p.train_batch if p.method == "dpo" else p.train_batch
    if p.adapter == "lora":
        adapted = p.finetuning(role, batch=batch, tokens=p.sequence_tokens)
        return _adapted(finetuning_memory.memory_of(adapted, p.shape_of(role)), role)
    run = p.training(role, batch=batch, tokens=p.sequence_tokens)
    c = configuration(p, machine, role, batch=batch, tokens=p.sequence_tokens)
    found = training_memory.memory_of_configuration(
        run, c, machine.stack, on_accelerator=False, logits_frac=_logits_frac(p)
    )
    return {kind: float(np.asarray(size)) for kind, size in found.items()}


def _logits_frac(p: Rlhf, seed: int = 0) -> float:
    """Return the share of the tokens that logits are made of: of answers as long as drawn, or of all."""
    if p.logits != "answers":
        return 1.0
    return min(1.0, float(drawn(p, seed).answers.mean()) / p.sequence_tokens)


def _adapted(found: dict[str, float], role: Role) -> dict[str, float]:
    if role in SCALAR:
        found = {kind: size for kind, size in found.items() if kind != "loss"}
    return {("logits and loss" if kind == "loss" else kind): size for kind, size in found.items()}


def _moments(p: Rlhf, machine: Machine, role: Role, seed: int) -> Iterator[tuple[dict[str, float], bool]]:
    """Yield what a role's model holds beyond states at the moments of which one may be the peak; and if it trains."""
    if role == "generation":
        yield {"KV cache": most_cached(p, drawn(p, seed)) * cache_bytes_per_token(p)}, False
        return
    if role in TRAINED:
        passing = {kind: size for kind, size in trained_of(p, machine, role).items() if kind not in STATES}
        yield {f"{role} {kind}": size for kind, size in passing.items()}, True
    yield {f"{role} {kind}": size for kind, size in _scoring(p, machine, role).items()}, False


def _scoring(p: Rlhf, machine: Machine, role: Role) -> dict[str, float]:
    """Return what a forward pass that keeps nothing holds: one layer's work, and logits; weights that come for it."""
    micro = p.rollout_micro_batch or p.scoring_micro_batch or p.micro_batch
    tokens = float(min(micro, p.rollout_batch) * p.sequence_tokens)
    shape = p.shape_of(role)
    item = 4.0 if p.precision == "float32" else 2.0
    wide = max(shape.n_neurons * shape.n_vectors, shape.qkv_rows + shape.d_model)
    found = {"activations": tokens * (2 * shape.d_model + wide) * item / p.tensor_parallel}
    if role not in SCALAR:
        logits = tokens * _logits_frac(p) * shape.vocabulary
        found["logits and loss"] = logits * SCORED_LOGIT_BYTES / p.tensor_parallel
    if p.offload_scoring and role not in TRAINED:
        found["weights"] = _weight_bytes(p.model_copy(update={"offload_scoring": False}), machine, role)
    return found


# --- verdict --------------------------------------------------------------------------------------------------------


def verdict_of(p: Rlhf, machine: Machine) -> Verdict:
    """Return whether the fullest device holds it, and which kind passes the limit; what is its own comes first."""
    held, there = memory_of(p, machine), capacity_bytes(machine, p.devices)
    needed, total, breaks = sum(held.values()), 0.0, None
    for kind in sorted(held, key=lambda kind: (kind != RESERVED, not kind.endswith(STATES))):
        total += held[kind]
        breaks = breaks or (kind if total > there else None)
    return Verdict(needed_bytes=needed, has_bytes=there, largest=max(held, key=held.__getitem__), breaks=breaks)


def fault_of(p: Rlhf, machine: Machine) -> str:
    """Return why a campaign cannot be laid out; empty if it can."""
    roles: list[Role] = ["policy", *(role for role in OWN_DEVICES if p.is_apart(role))]
    for role in roles:
        run = p.training(role, batch=p.train_batch, tokens=p.sequence_tokens)
        if role == "generation":
            own = {"sharding": "ddp", "offload_optimizer": "none", "tensor_parallel": p.generation_tensor_parallel}
            run = run.model_copy(update=own)
        if fault := next(layout.faults(run, p.shape_of(role), machine), ""):
            return fault if role == "policy" else f"{role}: {fault}"
    try:
        if p.adapter == "lora":
            finetuning_memory.check(p.finetuning("policy", batch=p.train_batch, tokens=p.sequence_tokens), p.shape)
    except PlanError as error:
        return str(error)
    per_machine = layout.devices_per_machine(machine, p.devices)
    if p.devices > per_machine and machine.network is None:
        return f"devices {p.devices} need several machines, and 'network' names no link between them"
    return ""


def what_fits(p: Rlhf, machine: Machine) -> list[str]:
    """Return changes in a few words with which it fits: the mildest settings, then more devices."""
    found = []
    for changes in SMALLER:
        is_new = all(getattr(p, name) != value for name, value in changes.items())
        if is_new and _fits(p, machine, changes):
            found.append(", ".join(f"{name}={value}" for name, value in changes.items()))
        if len(found) == MOST_CHANGES:
            break
    for factor in FACTORS:
        more = {
            name: size * factor
            for name in ("devices", *(f"{role}_devices" for role in OWN_DEVICES))
            if (size := getattr(p, name))
        }
        if _fits(p, machine, more | {"sharding": "fsdp_full"}):
            return [*found, f"devices={p.devices * factor}, sharding=fsdp_full"]
    return found


def _fits(p: Rlhf, machine: Machine, changes: Mapping[str, Any]) -> bool:
    smaller = p.model_copy(update=dict(changes))
    undescribed = smaller.adapter == "lora" and not smaller.suits_adapters
    return not undescribed and not fault_of(smaller, machine) and verdict_of(smaller, machine).fits


def check(p: Rlhf, machine: Machine, seed: int) -> dict[str, float]:
    """Return the bytes by model and kind, or refuse the campaign.

    Raises:
        PlanError: it cannot be laid out.
        DoesNotFit: with what it needs, and what near it would fit.
    """
    if fault := fault_of(p, machine):
        raise PlanError(f"{p.shape.name} on {machine.name}: {fault}")
    held, judged = memory_of(p, machine, seed), verdict_of(p, machine)
    if judged.fits:
        return held
    kinds = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in sorted(held.items(), key=lambda i: -i[1]))
    fitting = "; ".join(what_fits(p, machine)) or "a device with more memory"
    raise DoesNotFit(
        f"RLHF of {p.shape.name} ({format_count(p.shape.n_params)} parameters) needs "
        f"{format_bytes(judged.needed_bytes)} on its fullest device and {machine.name} has "
        f"{format_bytes(judged.has_bytes)}; {judged.breaks} pass the limit ({kinds}); this would fit: {fitting}"
    )
