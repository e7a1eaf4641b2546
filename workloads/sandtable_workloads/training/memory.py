"""Memory that training holds on one device, by kind, at the moment when it holds most.

Activations are counted tensor by tensor, as autograd keeps them: with Megatron's masks and fused softmax the sums are
those of Korthikanti et al. (arXiv 2205.05198), Table 2, such as ``s b h (34 + 5 a s / h)`` for a layer. What a piece of
software keeps beyond the least is in its stack file under ``saved``. Numbers may be arrays, one entry per
configuration; letters are those of `sandtable_workloads.training.demand`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sandtable.errors import DoesNotFit
from sandtable.spec import Machine, Stack
from sandtable.units import format_bytes
from sandtable_workloads.training.demand import (
    CHECKPOINTING,
    SHARDING,
    Configuration,
    LayerKind,
    Number,
    held_params,
    stage_params,
)
from sandtable_workloads.training.parameters import SlmTraining
from sandtable_workloads.training.units import layer_kinds

# a fused attention keeps the logarithm of each query's sum in float32
STATISTIC_BYTES = 4.0
# AdamW's two moments
MOMENTS = 2
# units of weights gathered at once: the one that is computed and the next, fetched ahead
GATHERED_UNITS = 2.0
# units of gradients that are whole at once: the one that is computed and the one that is being scattered
WHOLE_GRADIENTS = 2.0
KINDS = (
    "weights",
    "master weights",
    "optimizer",
    "gradients",
    "gathered weights",
    "activations",
    "attention scores",
    "logits and loss",
    "recomputed layer",
    "reserved",
)


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes that software keeps of one element of a composite for the backward pass.

    Attributes:
        norm: Of a norm's input; its output is the input of the product after it and counted there.
        rope: Of a query or key before it is turned, which stays where it shares its storage with the values.
        dropout: Of the mask on what attention and FFN add to the residual.
        score: Of one attention score, where scores go through memory.
        score_work: Of one score beyond that, while one layer's gradients are computed and its FFN's are gone.
        logit: Of one logit at the peak around the loss.
    """

    norm: float
    rope: float
    dropout: float
    score: float
    score_work: float
    logit: float

    @classmethod
    def of(cls, stack: Stack | None, item_bytes: float) -> Saved:
        """Return the least that PyTorch keeps, changed by what the stack file says.

        Scores: float32 probabilities, and a copy in the narrow type for the product after them. Logits: float32
        log-probabilities and two gradients of theirs.
        """
        narrow = item_bytes if item_bytes < 4 else 0.0
        table = {} if stack is None else stack.datasheet.saved_bytes
        return cls(
            norm=table.get("norm", item_bytes),
            rope=table.get("rope", 0.0),
            dropout=table.get("dropout", 0.0),
            score=table.get("score", 4 + narrow),
            score_work=table.get("score_work", 4.0),
            logit=table.get("logit", 12.0),
        )


# --- states ----------------------------------------------------------------------------------------------------


def states(p: SlmTraining, c: Configuration, n_params: Number) -> dict[str, Number]:
    """Return weights, master weights, optimiser states and gradients of ``n_params`` parameters of one device."""
    level = np.asarray(c.sharding)
    replicas = np.asarray(c.replicas)

    def split(from_level: int) -> Number:
        return np.where(level >= from_level, replicas, 1.0)

    mixed = p.precision.startswith("mixed")
    moments = MOMENTS * (2.0 if p.precision == "bfloat16" else 4.0)
    # with sharded weights the float32 ones are the only ones that stay; narrow ones exist while they are gathered
    whole = np.where(level >= SHARDING["fsdp_grad_op"], 0.0, 1.0) if mixed else 1.0
    return {
        "weights": n_params * p.weight_bytes * whole / split(SHARDING["fsdp_full"]),
        "master weights": n_params * (4.0 if mixed else 0.0) / split(SHARDING["zero_1"]),
        "optimizer": n_params * moments / split(SHARDING["zero_1"]),
        "gradients": n_params * p.gradient_bytes / split(SHARDING["fsdp_grad_op"]),
    }


def _unsharded(p: SlmTraining, c: Configuration, n_params: Number) -> tuple[Number, Number]:
    """Return gathered weights and whole gradients of sharded runs: a few layers, or all weights (``fsdp_grad_op``).

    Embedding and head are a unit of their own, which stays gathered from the forward to the backward pass.
    """
    level, several = np.asarray(c.sharding), np.asarray(c.replicas) > 1
    layer = stage_params(c) / (c.n_layers / c.pipeline) / c.tensor
    outer = c.outer_params / c.tensor
    few = np.minimum(GATHERED_UNITS * layer + outer, n_params)
    gathered = np.where(
        level == SHARDING["fsdp_full"], few, np.where(level == SHARDING["fsdp_grad_op"], n_params, 0.0)
    )
    sharded = several & (level >= SHARDING["fsdp_grad_op"])
    whole = np.minimum(WHOLE_GRADIENTS * layer + outer, n_params) * p.reduce_bytes
    # weights that are sharded in the type that they are computed in are gathered beside the shard; whole ones are not
    held = np.where(
        (level == SHARDING["fsdp_grad_op"]) & (not p.precision.startswith("mixed")), 0.0, gathered * p.weight_bytes
    )
    return np.where(several, held, gathered * p.weight_bytes * p.precision.startswith("mixed")), whole * sharded


# --- activations -------------------------------------------------------------------------------------------------


def layer_activations(c: Configuration, kind: LayerKind, saved: Saved) -> tuple[Number, Number]:
    """Return what one layer keeps of a micro-batch: bytes without the scores of attention, and those of the scores."""
    b, t = c.item_bytes, c.tokens
    split = 1 + c.sequence_parallel * (c.tensor - 1)
    outside = t * c.d_model * (c.norms * (saved.norm + b) + 2 * saved.dropout) / split
    keys = c.n_heads if c.latent else np.maximum(c.n_kv_heads, np.minimum(c.tensor, c.n_heads))
    # a plain product needs every query head's keys and values in memory
    repeated = keys if c.flash else c.n_heads
    inside = c.n_heads * c.head_dim * b + repeated * (c.head_dim + c.value_dim) * b + c.n_heads * c.value_dim * b
    if c.flash:
        inside = inside + c.n_heads * STATISTIC_BYTES
    if c.rotary:
        inside = inside + (c.n_heads + c.n_kv_heads) * c.head_dim * saved.rope
    neurons = c.expert_neurons * c.top_k + c.shared_neurons if kind.experts else c.n_neurons
    # a gate keeps its input and output, the value beside it and their product; without one, input and output
    ffn = neurons * np.where(np.asarray(c.n_vectors) == 3, 4.0, 2.0) * b
    if kind.experts:
        # routed copies of each token, one for each expert that it goes to
        ffn = ffn + c.top_k * c.d_model * b * c.tensor
    inner = t * (inside + ffn) / c.tensor
    scores = 0.0 if c.flash else c.batch * c.n_heads * c.sequence * c.sequence / c.context / c.tensor
    return outside + inner, scores * saved.score


def _ffn_gradients(c: Configuration, kind: LayerKind) -> Number:
    """Return the gradients that are there at once while a layer's FFN is passed backward: of its products' outputs."""
    neurons = c.expert_neurons * c.top_k + c.shared_neurons if kind.experts else c.n_neurons
    return c.tokens * neurons * (c.n_vectors - 1) * c.item_bytes / c.tensor


def in_flight(c: Configuration) -> Number:
    """Return for how many micro-batches the first stage keeps activations, in units of a whole stage.

    1F1B: as many as there are stages. Interleaved: ``1 + (p - 1) / (p v)`` times that (arXiv 2205.05198, 4.2.3).
    """
    p, chunks = np.asarray(c.pipeline, dtype=float), np.asarray(c.chunks, dtype=float)
    more = np.where(chunks > 1, 1 + (p - 1) / (p * chunks), 1.0)
    started = np.where(p > 1, np.maximum(c.accumulation, 1.0) * more, 1.0)
    return np.asarray(np.minimum(p * more, started), dtype=np.float64)


def activations(c: Configuration, saved: Saved) -> dict[str, Number]:
    """Return the bytes kept for the backward pass when the last layer's forward pass has ended.

    ``recomputed layer`` is what one layer makes anew in the backward pass where activations are checkpointed, and the
    scores in work where they are not.
    """
    b = c.item_bytes
    split = 1 + c.sequence_parallel * (c.tensor - 1)
    entry = c.tokens * c.d_model * b / np.where(np.asarray(c.recompute) == CHECKPOINTING["full"], 1.0, split)
    core = np.asarray(c.recompute) >= CHECKPOINTING["selective"]
    full = np.asarray(c.recompute) == CHECKPOINTING["full"]
    kept: Number = 0.0
    scores: Number = 0.0
    work: Number = 0.0
    times = in_flight(c)
    for kind, count in layer_kinds(c).items():
        rest, core_bytes = layer_activations(c, kind, saved)
        share = count / c.pipeline * times
        kept = kept + share * np.where(full, entry, rest)
        scores = scores + share * np.where(core, 0.0, core_bytes)
        in_work = core_bytes * saved.score_work / saved.score
        layer = np.where(full, rest + core_bytes, np.where(core, core_bytes, 0.0)) + np.maximum(
            in_work, _ffn_gradients(c, kind)
        )
        work = np.maximum(work, layer)
    return {"activations": kept, "attention scores": scores, "recomputed layer": work}


def logits(c: Configuration, saved: Saved) -> Number:
    """Return the bytes around the loss at its peak; only the last pipeline stage has them."""
    return c.tokens * c.vocabulary / c.tensor * saved.logit


# --- the peak ------------------------------------------------------------------------------------------------------


def memory_of_configuration(
    p: SlmTraining, c: Configuration, stack: Stack | None, *, on_accelerator: bool
) -> dict[str, Number]:
    """Return bytes by kind of the fullest device, at its peak; kinds of no bytes are left out.

    Args:
        p: Any run of those in ``c``: its precision is theirs.
        c: One configuration, or many stacked.
        stack: What the software keeps, and takes for itself.
        on_accelerator: Whether the software's own memory lies on the device that computes.
    """
    saved = Saved.of(stack, c.item_bytes)
    n_params = held_params(c)
    held = states(p, c, n_params)
    gathered, whole = _unsharded(p, c, n_params)
    found = activations(c, saved)
    loss = np.where(np.asarray(c.pipeline) > 1, 0.0, logits(c, saved))
    head = np.where(np.asarray(c.pipeline) > 1, 0.0, c.vocabulary * c.d_model / c.tensor * p.gradient_bytes)
    persistent = _gradients_stay(c)
    # three moments: the loss; the last layer computed again while the head has its gradient; the end of backward
    kept = found["activations"] + found["attention scores"]
    moments: list[dict[str, Number]] = [
        {"logits and loss": loss, "new": 0.0, "kept": 1.0, "work": 0.0},
        {"logits and loss": 0.0, "new": head, "kept": 1.0, "work": 1.0},
        {"logits and loss": 0.0, "new": held["gradients"], "kept": 0.0, "work": 0.0},
    ]
    whole_too = np.where(persistent, held["gradients"], 0.0)
    totals = [
        m["logits and loss"]
        + m["kept"] * kept
        + m["work"] * found["recomputed layer"]
        + np.where(persistent, whole * m["work"], m["new"])
        for m in moments
    ]
    most = np.argmax(np.stack(np.broadcast_arrays(*totals)), axis=0)

    def at(name: str) -> Number:
        choices = np.broadcast_arrays(*(np.asarray(m[name], dtype=np.float64) + 0 * totals[0] for m in moments))
        return np.asarray(np.choose(most, choices), dtype=np.float64)

    reserved = 0.0 if stack is None or not on_accelerator else stack.datasheet.reserved_bytes
    kinds: dict[str, Number] = {
        "weights": held["weights"],
        "master weights": held["master weights"],
        "optimizer": held["optimizer"],
        "gradients": whole_too + np.where(persistent, whole * at("work"), at("new")),
        "gathered weights": gathered,
        "activations": found["activations"] * at("kept"),
        "attention scores": found["attention scores"] * at("kept"),
        "logits and loss": at("logits and loss"),
        "recomputed layer": found["recomputed layer"] * at("work"),
        "reserved": reserved,
    }
    kinds["reserved"] = reserved + _gaps(kinds, stack, on_accelerator=on_accelerator)
    return {kind: size for kind, size in kinds.items() if np.any(np.asarray(size) > 0)}


def _gaps(kinds: Mapping[str, Number], stack: Stack | None, *, on_accelerator: bool) -> Number:
    """Return the bytes that the accelerator's allocator holds between tensors, ``reserved`` ones left out."""
    if stack is None or not on_accelerator:
        return 0.0
    share = stack.datasheet.fragmented_frac
    tensors = sum(size for kind, size in kinds.items() if kind != "reserved")
    return tensors * share / (1 - share)


def _gradients_stay(c: Configuration) -> npt.NDArray[np.bool_]:
    """Whether gradients are there throughout: buckets, shards, or those of earlier micro-batches."""
    spread = np.asarray(c.replicas) > 1
    return np.asarray(spread | (np.asarray(c.accumulation) > 1) | (np.asarray(c.pipeline) > 1))


def memory_of(p: SlmTraining, c: Configuration, machine: Machine) -> dict[str, float]:
    """Return bytes by kind of the fullest device of one run, at its peak.

    Processes of one CPU share its memory: theirs are added up.
    """
    found = memory_of_configuration(p, c, machine.stack, on_accelerator=machine.accelerator is not None)
    return {kind: float(np.asarray(size)) for kind, size in found.items()}


def layer_memory(p: SlmTraining, c: Configuration, stack: Stack | None) -> dict[str, float]:
    """Return the bytes of the first stage's layers: weights, gradients and optimiser states; activations kept."""
    held = states(p, c, stage_params(c) / c.tensor)
    kept = activations(c, Saved.of(stack, c.item_bytes))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a run fits: bytes needed and there, the largest kind, and the kind that passes the limit.

    ``breaks`` is the first kind, states before activations, with which the sum passes what there is; None if it fits.
    """

    needed_bytes: float
    has_bytes: float
    largest: str
    breaks: str | None

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.breaks is None


def verdict(held: Mapping[str, float], has_bytes: float) -> Verdict:
    """Judge bytes by kind against what one device has."""
    total, breaks = 0.0, None
    for kind in sorted(held, key=_order):
        total += held[kind]
        if breaks is None and total > has_bytes:
            breaks = kind
    largest = max(held, key=lambda kind: held[kind], default="")
    return Verdict(needed_bytes=total, has_bytes=has_bytes, largest=largest, breaks=breaks)


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
    for checkpointing in _after(("none", "selective", "full"), p.checkpointing):
        yield {"checkpointing": checkpointing}
    if p.data_parallel > 1:
        for sharding in _after(("ddp", "zero_1", "fsdp_grad_op", "fsdp_full"), p.sharding):
            yield {"sharding": sharding}
    for factor in (2, 4, 8):
        yield {"devices": p.devices * factor, "sharding": "fsdp_full"}


def _after(values: Sequence[str], current: str) -> Sequence[str]:
    return values[values.index(current) + 1 :]
