"""Memory that training holds on one device, by kind, at the moment when it holds most.

Activations are counted tensor by tensor, as autograd keeps them: with Megatron's masks and fused softmax the sums are
those of Korthikanti et al. (arXiv 2205.05198), Table 2, such as ``s b h (34 + 5 a s / h)`` for a layer. What a piece of
software keeps beyond the least is in its stack file under ``saved``. Numbers may be arrays, one entry per
configuration; letters are those of `sandtable_workloads.training.step_demand`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sandtable.demand.operator_shapes import Number
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine, Stack
from sandtable.units import format_bytes
from sandtable.workload.seam import Verdict
from sandtable_workloads.training.states.offloading import LAYERS_HELD
from sandtable_workloads.training.states.saved import Saved
from sandtable_workloads.training.states.stages import Held, Place, held_by, places, stage_place
from sandtable_workloads.training.step_demand import LayerKind, neurons_used, norm_split, stage_params
from sandtable_workloads.training.step_numbers import CHECKPOINTING, EVERY_SECOND, SHARDING, Configuration
from sandtable_workloads.training.step_parts import layer_kinds
from sandtable_workloads.training.training_parameters import SlmTraining

# a fused attention keeps the logarithm of each query's sum in float32
STATISTIC_BYTES = 4.0
# units of weights gathered at once: the one that is computed and the next, fetched ahead
GATHERED_UNITS = 2.0
# units of gradients that are whole at once: the one that is computed and the one that is being scattered
WHOLE_GRADIENTS = 2.0
KINDS = (
    "weights",
    "master weights",
    "optimizer",
    "gradients",
    "weight-gradient placeholders",
    "gathered weights",
    "communication buffers",
    "optimizer work",
    "activations",
    "attention scores",
    "logits and loss",
    "recomputed layer",
    "reserved",
)
# kinds that a step makes and drops
COME_AND_GO = ("activations", "attention scores", "logits and loss", "recomputed layer")


# --- states ----------------------------------------------------------------------------------------------------


def states(p: SlmTraining, c: Configuration, n: Held) -> dict[str, Number]:
    """Return weights, master weights, optimiser states and gradients of the parameters of one device."""
    mixed = p.precision.startswith("mixed")
    # with sharded weights the float32 ones are the only ones that stay; narrow ones exist while they are gathered
    narrow = np.where(np.asarray(c.sharding) >= SHARDING["fsdp_grad_op"], 0.0, 1.0) if _gathers_anew(p) else 1.0
    return {
        "weights": n.split(c, SHARDING["fsdp_full"]) * p.weight_bytes * narrow,
        "master weights": n.split(c, SHARDING["zero_1"]) * (4.0 if mixed else 0.0),
        "optimizer": n.split(c, SHARDING["zero_1"]) * c.held_state_bytes,
        "gradients": n.split(c, SHARDING["fsdp_grad_op"]) * p.gradient_bytes,
    }


def _unsharded(p: SlmTraining, c: Configuration, n: Held, place: Place) -> tuple[Number, Number]:
    """Return gathered weights and whole gradients of sharded runs: a few layers, or all weights (``fsdp_grad_op``).

    Embedding and head are a unit of their own, which stays gathered from the forward to the backward pass.
    """
    level, several = np.asarray(c.sharding), np.asarray(c.replicas) > 1
    layer = stage_params(c) / (c.n_layers / c.pipeline) / c.tensor
    outer = place.outer_params / c.tensor
    few = np.minimum(GATHERED_UNITS * layer + outer, n.all)
    gathered = np.where(
        level == SHARDING["fsdp_full"], few, np.where(level == SHARDING["fsdp_grad_op"], n.all, 0.0)
    )
    sharded = several & (level >= SHARDING["fsdp_grad_op"])
    whole = np.minimum(WHOLE_GRADIENTS * layer + outer, n.all) * p.reduce_bytes
    # weights that are sharded in the type that they are computed in are gathered beside the shard; whole ones are not
    held = np.where((level == SHARDING["fsdp_grad_op"]) & (not _gathers_anew(p)), 0.0, gathered * p.weight_bytes)
    return np.where(several, held, gathered * p.weight_bytes * _gathers_anew(p)), whole * sharded


def _gathers_anew(p: SlmTraining) -> bool:
    """Whether narrow weights exist only while they are gathered: float32 ones are all that stays where they are shards.

    With gradients in bfloat16, as DeepSpeed keeps them, the narrow weights stay too.
    """
    return p.precision.startswith("mixed") and p.gradient_dtype != "bfloat16"


# --- activations -------------------------------------------------------------------------------------------------


def layer_activations(c: Configuration, kind: LayerKind, saved: Saved) -> tuple[Number, Number]:
    """Return what one layer keeps of a micro-batch: bytes without the scores of attention, and those of the scores."""
    outside = c.tokens * c.d_model * (c.norms * (saved.norm + c.item_bytes) + 2 * saved.dropout) / norm_split(c)
    inner = c.tokens * (_attention_kept(c, saved) + _ffn_kept(c, kind, saved)) / c.tensor
    scores = 0.0 if c.flash else c.batch * c.n_heads * c.sequence * c.sequence / c.context / c.tensor
    return outside + inner, scores * saved.score


def _attention_kept(c: Configuration, saved: Saved) -> Number:
    """Return the bytes that attention keeps of a token, scores left out: queries, keys, values and its output.

    Latent attention keeps its latents before and after their norms, and the parts of the keys that no position turns
    where they lie in one tensor with the values.
    """
    b = c.item_bytes
    keys = c.n_heads if c.latent else np.maximum(c.n_kv_heads, np.minimum(c.tensor, c.n_heads))
    # a plain product needs every query head's keys and values in memory
    repeated = keys if c.flash else c.n_heads
    kept = c.n_heads * c.head_dim * b + repeated * (c.head_dim + c.value_dim) * b + c.n_heads * c.value_dim * b
    if c.flash:
        kept = kept + c.n_heads * STATISTIC_BYTES
    if c.latent is not None:
        q_rank, kv_rank, nope, rope, _ = c.latent
        kept = kept + c.n_heads * nope * saved.nope + (2 * (q_rank + kv_rank) + rope) * c.tensor * b
    if c.rotary:
        kept = kept + (c.n_heads + c.n_kv_heads) * c.head_dim * saved.rope
    return kept


def _ffn_kept(c: Configuration, kind: LayerKind, saved: Saved) -> Number:
    """Return the bytes that an FFN keeps of a token, before tensor parallelism.

    A gate keeps its input and output, the value beside it and their product; without one, input and output. Experts
    keep a routed copy of the token for each that it goes to, and what comes back of each, which the router's weights
    are multiplied with.
    """
    kept = neurons_used(c, kind) * np.where(
        np.asarray(c.n_vectors) == 3, 3 * c.item_bytes + saved.gate, 2 * c.item_bytes
    )
    return kept + (2 * c.top_k * c.d_model * c.item_bytes * c.tensor if kind.experts else 0.0)


def _ffn_gradients(c: Configuration, kind: LayerKind) -> Number:
    """Return the gradients that are there at once while a layer's FFN is passed backward, and the residual stream's.

    At a gate: what came in and the two that go out, where the last product's input has gone. Without one: that of the
    last product's input, or what the activation makes of it.
    """
    inner = c.tokens * neurons_used(c, kind) * (c.n_vectors - 1) * c.item_bytes / c.tensor
    return inner + c.tokens * c.d_model * c.item_bytes / norm_split(c)


def activations(c: Configuration, saved: Saved, place: Place) -> dict[str, Number]:
    """Return the bytes kept for the backward pass when the last layer's forward pass has ended.

    ``recomputed layer`` is what one layer makes anew in the backward pass where activations are checkpointed, and the
    scores in work where they are not. Of a layer that is computed again whole, only its input is kept. Where every
    second layer is, the first one is, and the last one of an even number has gone before another is computed again.
    """
    level = np.asarray(c.recompute)
    entry = c.tokens * c.d_model * saved.stream / norm_split(c)
    second, odd = level == CHECKPOINTING["alternate"], np.asarray(place.layers) % 2
    share_of_seconds = EVERY_SECOND * (1 + odd / np.maximum(place.layers, 1))
    again = 1.0 * (level == CHECKPOINTING["full"]) + share_of_seconds * second
    core = level == CHECKPOINTING["selective"]
    kept: Number = 0.0
    scores: Number = 0.0
    work: Number = 0.0
    for kind, count in layer_kinds(c).items():
        rest, core_bytes = layer_activations(c, kind, saved)
        here = place.with_experts(c) if kind.experts else place.layers - place.with_experts(c)
        alike = c.n_moe_layers if kind.experts else c.n_layers - c.n_moe_layers
        share = count * here / np.maximum(alike, 1) * place.in_flight
        kept = kept + share * (again * entry + (1 - again) * rest)
        scores = scores + share * (1 - again) * np.where(core, 0.0, core_bytes)
        anew = np.where((again > 0) & ~(second & (odd == 0)), rest + core_bytes, np.where(core, core_bytes, 0.0))
        in_work = core_bytes * saved.score_work / saved.score
        work = np.maximum(work, anew + np.maximum(in_work, _ffn_gradients(c, kind)))
    return {"activations": kept, "attention scores": scores, "recomputed layer": work}


# --- the peak ------------------------------------------------------------------------------------------------------


def memory_of_configuration(
    p: SlmTraining, c: Configuration, stack: Stack | None, *, on_accelerator: bool, logits_frac: float = 1.0
) -> dict[str, Number]:
    """Return bytes by kind of the fullest device, at its peak; kinds of no bytes are left out.

    Args:
        p: Any run of those in ``c``: its precision is theirs.
        c: One configuration, or many stacked.
        stack: What the software keeps, and takes for itself.
        on_accelerator: Whether the software's own memory lies on the device that computes.
        logits_frac: Share of the tokens that logits are made of.
    """
    saved = Saved.of(stack, c)
    saved = replace(saved, logit=saved.logit * logits_frac)
    return _at_peak(p, c, stack if on_accelerator else None, saved, places(c))


def _at_peak(
    p: SlmTraining, c: Configuration, reserving: Stack | None, saved: Saved, among: Sequence[Place]
) -> dict[str, Number]:
    """Return bytes by kind at the fullest place's peak, with what ``reserving`` software takes for itself."""
    moments = [moment for place in among for moment in _moments(p, c, saved, place)]
    if reserving is not None:
        moments = [moment | {"reserved": _reserved(moment, reserving)} for moment in moments]
    kinds = _fullest(moments)
    return {kind: size for kind, size in kinds.items() if np.any(np.asarray(size) > 0)}


def _reserved(moment: Mapping[str, Number], stack: Stack) -> Number:
    """Return what the software takes for itself, and what its allocator holds between tensors.

    Gaps open between tensors of different sizes that come and go. At the optimiser's step activations have gone, whole
    segments are free, and the allocator gives those back before it fails (PyTorch, CUDACachingAllocator.cpp,
    ``release_cached_blocks``): what is left has segments of its own.
    """
    share = 0.0 if moment.keys().isdisjoint(COME_AND_GO) else stack.datasheet.fragmented_frac
    return stack.datasheet.reserved_bytes + sum(moment.values()) * share / (1 - share)


def _fullest(moments: Sequence[Mapping[str, Number]]) -> dict[str, Number]:
    """Return bytes by kind of the moment with the highest sum, for each configuration on its own."""
    totals = np.stack(np.broadcast_arrays(*(sum(moment.values()) for moment in moments)))
    most = np.argmax(totals, axis=0)
    found: dict[str, Number] = {}
    for kind in KINDS:
        sizes = [np.broadcast_to(np.asarray(moment.get(kind, 0.0), np.float64), most.shape) for moment in moments]
        found[kind] = np.asarray(np.choose(most, sizes), dtype=np.float64)
    return found


def _moments(p: SlmTraining, c: Configuration, saved: Saved, place: Place) -> Iterator[dict[str, Number]]:
    """Yield bytes by kind at the moments of a step of which one is the peak of a place.

    The loss; the head's backward pass; the last layer computed backward while the head has its gradient; the end of
    the backward pass; the optimiser's step.
    """
    n = held_by(c, place, place.outer_params)
    held = states(p, c, n)
    gathered, whole = _unsharded(p, c, n, place)
    kept = activations(c, saved, place)
    work = kept.pop("recomputed layer")
    held["weights"] = held["weights"] - _never_cast(c, saved, place)
    gathered, buffered = _elsewhere(p, c, held, gathered, n, place)
    stays, buffers = _gradients(c, saved, held["gradients"], n)
    buffers = buffers + buffered
    head = place.head * c.vocabulary * c.d_model / c.tensor * p.gradient_bytes
    always = {kind: held[kind] for kind in ("weights", "master weights", "optimizer")} | {
        "gathered weights": gathered,
        "communication buffers": buffers,
        "gradients": stays,
        "weight-gradient placeholders": _placeholders(c, saved, place),
    }
    missing = held["gradients"] - stays
    own = float(c.offload_optimizer == "none")
    of_head = place.head * c.tokens * c.d_model * (saved.norm + c.item_bytes) / norm_split(c)
    # a device of a group that splits the stream needs all of it for its part of the logits
    of_head = of_head + np.where(norm_split(c) > 1, place.head * c.tokens * c.d_model * c.item_bytes, 0.0)
    yield (
        always
        | kept
        | {
            "activations": kept["activations"] + of_head,
            "logits and loss": place.head * c.tokens * c.vocabulary / c.tensor * saved.logit,
        }
    )
    if np.any(np.asarray(saved.weight_gradient) > 0):
        yield _head_backward(c, saved, place, always | kept, of_head)
    yield (
        always
        | kept
        | {
            "recomputed layer": work,
            "gradients": stays + np.where(missing > 0, np.minimum(head, missing), 0.0),
            "communication buffers": buffers + whole,
        }
    )
    yield always | {"gradients": held["gradients"]}
    yield (
        always
        | {"gradients": held["gradients"], "gathered weights": np.minimum(gathered, place.outer_params / c.tensor)}
        | {"optimizer work": n.split(c, SHARDING["zero_1"]) * saved.optimizer_work * c.copied_bytes * own}
    )


def _head_backward(
    c: Configuration, saved: Saved, place: Place, moment: Mapping[str, Number], of_head: Number
) -> dict[str, Number]:
    """Return the moment when the head's products have been passed backward, where something stands for its gradient.

    Then there are the logits' gradients, narrow, that of the head's whole input, and that tensor.
    """
    stands = place.head * c.vocabulary * c.d_model / c.tensor * saved.weight_gradient
    stream = place.head * c.tokens * c.d_model * c.item_bytes
    return {
        **moment,
        "activations": moment["activations"] + of_head + stream,
        "logits and loss": place.head * c.tokens * c.vocabulary / c.tensor * c.item_bytes,
        "weight-gradient placeholders": moment["weight-gradient placeholders"] + stands,
    }


def _placeholders(c: Configuration, saved: Saved, place: Place) -> Number:
    """Return the tensors that stand for weight gradients: one of each product's shape, shared by a place's layers.

    Experts whose products are one call have none that stays.
    """
    ffn, shared = (c.n_vectors * c.d_model * neurons for neurons in (c.n_neurons, c.shared_neurons))
    routed = np.asarray(place.with_experts(c))
    dense = np.asarray(place.layers) - routed > 0
    weights = (c.layer_params - ffn) * (np.asarray(place.layers) > 0) + ffn * dense + shared * (routed > 0)
    return np.asarray(weights / c.tensor * saved.weight_gradient, dtype=np.float64)


def _never_cast(c: Configuration, saved: Saved, place: Place) -> Number:
    """Return the bytes that narrow copies of weights lack: a table of the embedding alone is read as it is."""
    table = c.vocabulary * c.d_model
    own = (np.asarray(saved.stream) > c.item_bytes) & (np.asarray(place.outer_params) >= 2 * table)
    return np.where(own, table * c.item_bytes / c.tensor, 0.0)


def _elsewhere(
    p: SlmTraining, c: Configuration, held: dict[str, Number], gathered: Number, n: Held, place: Place
) -> tuple[Number, Number]:
    """Take what is offloaded out of ``held``; return gathered weights and the gradients that wait to leave."""
    layer = stage_params(c) / (c.n_layers / c.pipeline) / c.tensor
    few = np.minimum(LAYERS_HELD * layer + place.outer_params / c.tensor, n.all)
    if c.offload_parameters != "none":
        held["weights"] = 0.0
        gathered = few * p.weight_bytes
    if c.offload_optimizer == "none":
        return gathered, 0.0
    for kind in ("master weights", "optimizer", "gradients"):
        held[kind] = 0.0
    alone = np.asarray(c.replicas) <= 1
    return gathered, np.where(alone, few * c.item_bytes, 0.0)


def _gradients(c: Configuration, saved: Saved, all_of_them: Number, n: Held) -> tuple[Number, Number]:
    """Return the gradients that are there throughout a step, and the buckets beside them.

    Gradients stay where they lie in buckets or in shards, or where earlier micro-batches left some. Where buckets are
    copies, they stay, and the gradients come anew in each backward pass.
    """
    spread, again = np.asarray(c.replicas) > 1, np.asarray(c.accumulation) > 1
    copies = spread & (np.asarray(c.sharding) < SHARDING["fsdp_grad_op"]) & (saved.bucket > 0)
    stays = (spread & ~copies) | again | (np.asarray(c.pipeline) > 1)
    return np.where(stays, all_of_them, 0.0), np.where(copies, n.all * saved.bucket, 0.0)


def memory_of(p: SlmTraining, c: Configuration, machine: Machine) -> dict[str, float]:
    """Return bytes by kind of the fullest device of one run, at its peak.

    Processes of one CPU share its memory: theirs are added up.
    """
    found = memory_of_configuration(p, c, machine.stack, on_accelerator=machine.accelerator is not None)
    return {kind: float(np.asarray(size)) for kind, size in found.items()}


def memory_of_stage(p: SlmTraining, c: Configuration, machine: Machine, stage: int) -> dict[str, float]:
    """Return bytes by kind of a device of one stage of one run's pipeline, counted from 0, at its own peak."""
    reserving = machine.stack if machine.accelerator is not None else None
    found = _at_peak(p, c, reserving, Saved.of(machine.stack, c), [stage_place(c, stage)])
    return {kind: float(np.asarray(size)) for kind, size in found.items()}


def layer_memory(p: SlmTraining, c: Configuration, stack: Stack | None) -> dict[str, float]:
    """Return the bytes of the first stage's layers: weights, gradients and optimiser states; activations kept."""
    first = places(c)[0]
    held = states(p, c, held_by(c, first, 0.0))
    kept = activations(c, Saved.of(stack, c), first)
    return {
        "states": sum(float(np.asarray(size)) for size in held.values()),
        "activations": float(np.asarray(kept["activations"] + kept["attention scores"])),
    }


# --- verdict --------------------------------------------------------------------------------------------------------


def capacity_bytes(machine: Machine, n_devices: int) -> float:
    """Return the memory of one device: the accelerator's, or the share of one of ``n_devices`` processes of a CPU."""
    if machine.accelerator is not None:
        return float(machine.accelerator.memory.datasheet.capacity_bytes)
    return float(machine.memory.datasheet.capacity_bytes) / n_devices


def verdict(held: Mapping[str, float], has_bytes: float) -> Verdict:
    """Judge bytes by kind against what one device has; states are taken before activations."""
    needed = sum(held.values())
    ordered = sorted(held, key=_order) if needed > has_bytes else []
    totals = itertools.accumulate(held[kind] for kind in ordered)
    passing = (kind for kind, total in zip(ordered, totals, strict=True) if total > has_bytes)
    breaks = next(passing, ordered[-1]) if ordered else None
    largest = max(held, key=lambda kind: held[kind], default="")
    return Verdict(needed_bytes=needed, has_bytes=has_bytes, largest=largest, breaks=breaks)


def _order(kind: str) -> int:
    # what the software takes for itself is there before anything else
    return -1 if kind == "reserved" else KINDS.index(kind) if kind in KINDS else len(KINDS)


def check(
    p: SlmTraining, machine: Machine, name: str, measure: Callable[[SlmTraining], Mapping[str, float] | None]
) -> dict[str, float]:
    """Return the bytes of a run by kind, or refuse it with the table of what it needs and what near it would fit.

    Args:
        p: The run.
        machine: Where.
        name: Of the model, for the message.
        measure: Bytes by kind of a run, None where it cannot be laid out.

    Raises:
        DoesNotFit: one device has less than that.
    """
    held = dict(measure(p) or {})
    judged = verdict(held, capacity_bytes(machine, p.devices))
    if judged.fits:
        return held
    kinds = ", ".join(
        f"{kind} {format_bytes(size)}" for kind, size in sorted(held.items(), key=lambda i: -i[1]) if size > 0
    )
    fitting = "; ".join(what_fits(p, machine, measure))
    advice = f"this would fit: {fitting}" if fitting else "nothing near it fits: take a device with more memory"
    raise DoesNotFit(
        f"{name} needs {format_bytes(judged.needed_bytes)} on its fullest device and {machine.name} has "
        f"{format_bytes(judged.has_bytes)}; {judged.breaks} pass the limit ({kinds}); {advice}"
    )


def what_fits(
    p: SlmTraining, machine: Machine, measure: Callable[[SlmTraining], Mapping[str, float] | None]
) -> list[str]:
    """Return the changes, one setting each and then in pairs, that make a run fit; the mildest of each kind."""
    found: list[str] = []
    changes = list(_changes(p))
    pairs = [[one] for one in changes] + [[a, b] for i, a in enumerate(changes) for b in changes[i + 1 :]]
    for combination in pairs:
        update = {key: value for change in combination for key, value in change.items()}
        if len(update) < len(combination) or (len(combination) > 1 and found):
            continue
        keys = sorted(update)
        if any(all(f"{key} " in sentence for key in keys) for sentence in found):
            continue
        if _fits(p.model_copy(update=update), machine, measure):
            found.append(" with ".join(f"{key} {update[key]}" for key in keys))
    return found[:4]


def _fits(p: SlmTraining, machine: Machine, measure: Callable[[SlmTraining], Mapping[str, float] | None]) -> bool:
    held = measure(p)
    return held is not None and verdict(held, capacity_bytes(machine, p.devices)).fits


def _changes(p: SlmTraining) -> Iterator[dict[str, object]]:
    """Yield milder settings, the mildest of each kind first."""
    half = p.micro_batch // 2
    while half:
        yield {"micro_batch": half}
        half //= 2
    if p.attention == "vanilla":
        yield {"attention": "flash"}
    for checkpointing in _after(("none", "selective", "alternate", "full"), p.checkpointing):
        yield {"checkpointing": checkpointing}
    if p.data_parallel > 1:
        for sharding in _after(("ddp", "zero_1", "fsdp_grad_op", "fsdp_full"), p.sharding):
            yield {"sharding": sharding}
    for factor in (2, 4, 8):
        yield {"devices": p.devices * factor, "sharding": "fsdp_full"}


def _after(values: Sequence[str], current: str) -> Sequence[str]:
    return values[values.index(current) + 1 :]
