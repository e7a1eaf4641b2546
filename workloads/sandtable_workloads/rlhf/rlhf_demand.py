"""What the models of an iteration demand of their devices: passes that train, passes that score, steps that decode.

Passes are those of `sandtable_workloads.training`, or of `finetuning` with an adapter, over a whole model: the demands
of its layers with their number, and its ends. One device stands for its equals. Decoding takes the same products for
one token of each row, and reads the keys and values of all tokens before it.

An engine of its own (vLLM, SGLang) replays graphs of fused kernels: a stack file says which work it does less of,
under ``efficiency.memory_bound.decode <name>``, and what its host does between two steps, under
``efficiency.host.decode_step``.
Without that, every kernel of a step is issued from Python as in training. Where software has to know in each layer
what only the device knows, ``efficiency.host.decode_wait``, its host cannot issue ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator_shapes import CollectiveShape, Number
from sandtable.hardware import DTYPE_BYTES, Machine
from sandtable.model.cost_model import CostModel
from sandtable_workloads.finetuning import finetuning_demand
from sandtable_workloads.finetuning.finetuning_memory import ITEM, layer_weights, trainable_params
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning
from sandtable_workloads.rlhf.rlhf_parameters import SCALAR, Rlhf, Role
from sandtable_workloads.training import layout, step_demand
from sandtable_workloads.training.closed_form import Timer
from sandtable_workloads.training.states.offloading import Moves, is_offloaded, moves, shares
from sandtable_workloads.training.step_demand import TENSORS_PER_LAYER, Demand, LayerKind, Software, held_params
from sandtable_workloads.training.step_numbers import SHARDING, Configuration, configuration_of
from sandtable_workloads.training.step_parts import FULL, GRAD_OP, ZERO_1, StepParts, layer_kinds, parts_of

ENGINE = "memory_bound.decode "
DECODE_STEP, SYNC_TENSOR, SYNC_GATHERED = "host.decode_step", "host.sync_tensor", "host.sync_gathered_tensor"
CPU_OPTIMIZER = "host.optimizer"
DECODE_WAIT = "host.decode_wait"
# keys and values of all tokens: joined with the new ones, repeated for each query head, taken out of the padding; and
# the new ones alone
CACHE_COPY, CACHE_REPEAT, CACHE_UNPAD, CACHE_APPEND = "cache copy", "cache repeat", "cache unpad", "cache append"
VIEWS = "views"
# bytes of host memory per parameter that DeepSpeed's step moves beside Adam's: gradients clipped in place, new weights
# rounded to two bytes (runtime/zero/stage_1_and_2.py, `step`; stage3.py, `unscale_and_clip_grads` and
# `_reassign_or_swap_out_partitioned_parameters`)
CLIPPED_BYTES, ROUNDED_BYTES = 8.0, 6.0
# tensors of weights beside the layers': embedding, last norm and head
TENSORS_BESIDE = 3


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What one device does with one micro-batch, and once per optimiser step, by what goes on beside each other.

    ``sent_*`` are collectives of the data-parallel group; ``between`` adds a further micro-batch's gradients, and takes
    ``between_s`` where these lie in the host's memory.
    """

    n_micro: int
    forward: list[Demand]
    backward: list[Demand]
    between: list[Demand]
    optimizer: list[Demand]
    sent_forward: list[Demand] = field(default_factory=list)
    sent_backward: list[Demand] = field(default_factory=list)
    sent_step: list[Demand] = field(default_factory=list)
    moved: Moves | None = None
    between_s: float = 0.0
    overlaps: bool = True
    sharing: int = 1


def configuration(
    p: Rlhf, machine: Machine, role: Role, *, batch: int, tokens: int, devices: int | None = None
) -> Configuration:
    """Return the numbers of a role's passes over ``batch`` sequences a step."""
    run = p.training(role, batch=batch, tokens=tokens, devices=devices)
    per_machine = layout.devices_per_machine(machine, run.devices)
    widened = layout.is_widened(run, machine)
    on_host, joined = machine.accelerator is None, layout.is_joined(machine)
    c = configuration_of(run, p.shape_of(role), per_machine, on_host=on_host, widened=widened, joined=joined)
    return replace(c, vocabulary=1) if role in SCALAR else c


def training_passes(
    p: Rlhf,
    machine: Machine,
    role: Role,
    *,
    batch: int,
    tokens: int,
    devices: int | None = None,
    answer_frac: float = 1.0,
) -> Passes:
    """Return the passes that train a role's model on a step of ``batch`` sequences.

    Logits are made of ``answer_frac`` of the tokens; with an adapter of all.
    """
    c = configuration(p, machine, role, batch=batch, tokens=tokens, devices=devices)
    n_micro = int(c.accumulation)
    software = Software(machine.stack)
    if p.adapter == "lora":
        run = p.finetuning(role, batch=batch, tokens=tokens, devices=devices)
        return _adapted(run, p, role, c.computed(), software)
    offloaded, between_s = _elsewhere(c, machine) if is_offloaded(c) else (None, 0.0)
    c = c.computed()
    parts = parts_of(c, software)
    head, head_backward = _heads(c, parts, software, answer_frac)
    before, after, once = _sent(c, parts, stays=p.gradient_dtype == "bfloat16")
    return Passes(
        n_micro=n_micro,
        forward=[*_times_layers(parts, backward=False), *parts.embedding_forward, *head],
        backward=[*head_backward, *_times_layers(parts, backward=True), *parts.embedding_backward],
        between=parts.between,
        optimizer=parts.optimizer,
        sent_forward=before,
        sent_backward=after,
        sent_step=once,
        moved=offloaded,
        between_s=between_s,
        overlaps=bool(c.overlaps > 0),
        sharing=c.sharing,
    )


def _heads(
    c: Configuration, parts: StepParts, software: Software, answer_frac: float
) -> tuple[list[Demand], list[Demand]]:
    """Return what makes logits and their loss of a part of the tokens; the last norm is of all."""
    if answer_frac == 1:
        return parts.head_forward, parts.head_backward
    few = replace(c, batch=c.batch * answer_frac)
    made = step_demand.head_forward(few, software), step_demand.head_backward(few, software)
    both = zip((parts.head_forward, parts.head_backward), made, strict=True)
    ahead, back = (
        [of_all if of_all.name.startswith("norm") else of_some for of_all, of_some in zip(*each, strict=True)]
        for each in both
    )
    return ahead, back


def _elsewhere(c: Configuration, machine: Machine) -> tuple[Moves, float]:
    """Return what is moved where the optimiser is on the host, and the time of adding a further micro-batch there.

    DeepSpeed adds on the device: what the host has comes, and the sum goes back, between two kernels
    (runtime/zero/stage_1_and_2.py, ``async_accumulate_grad_in_cpu_via_gpu``). The step clips gradients, updates and
    rounds, one after the other, before weights go back. Where a stack says what one rank's optimiser moves, it has that
    rate instead of a share of the host's: Ray gives a worker one thread unless asked.
    """
    found = moves(c, CostModel(machine), held_params(c))
    states, _ = shares(c, held_params(c))
    own = None if machine.stack is None else machine.stack.datasheet.efficiency.get(CPU_OPTIMIZER)
    beside = 1 + (CLIPPED_BYTES + ROUNDED_BYTES) / c.state_bytes
    if own is not None and own.bandwidth_bytes_per_s is not None:
        found = replace(found, optimizer_s=states * c.state_bytes / own.bandwidth_bytes_per_s)
    found = replace(found, optimizer_s=found.optimizer_s * beside)
    back = Op(
        name="gradients",
        operator="transfer",
        account="communication",
        bytes_read=float(states * c.item_bytes),
        on="accelerator",
    )
    return found, 2 * CostModel(machine).time(back).seconds


def _times_layers(parts: StepParts, *, backward: bool) -> list[Demand]:
    return [
        replace(demand, times=demand.times * layer.count)
        for layer in parts.layers
        for demand in (layer.backward if backward else layer.forward)
    ]


def _sent(c: Configuration, parts: StepParts, *, stays: bool) -> tuple[list[Demand], list[Demand], list[Demand]]:
    """Return what the data-parallel group sends in a forward pass, in a backward pass, and once per step.

    Where gradients are sharded but whole weights ``stays`` on every device, these are gathered after the optimiser's
    step alone (DeepSpeed's ZeRO-2).
    """
    level, layers = int(c.sharding), c.n_layers
    gathers_anew = level >= FULL or (level == GRAD_OP and not stays)
    reduced = [_often(parts.reduce, layers / parts.layers_per_reduce), parts.reduce_outer]
    gathered = [_often(parts.gather, layers), parts.gather_outer]
    if level >= GRAD_OP:
        before, again = (gathered if gathers_anew else [], gathered if level >= FULL else [])
        return before, [*again, *reduced], [] if gathers_anew else [parts.gather_all]
    return [], [], [*reduced, *([parts.gather_all] if level == ZERO_1 else [])]


def _often(demand: Demand, times: Number) -> Demand:
    return replace(demand, times=demand.times * times)


def _adapted(run: Finetuning, p: Rlhf, role: Role, c: Configuration, software: Software) -> Passes:
    """Return the passes with LoRA, whose few weights alone are reduced."""
    shape = p.shape_of(role)
    ahead = [_often(d, shape.n_layers) for d in finetuning_demand.forward(run, shape, c, software)]
    back = [_often(d, shape.n_layers) for d in finetuning_demand.backward(run, shape, c, software)]
    head, head_backward = ([], []) if role in SCALAR else finetuning_demand.ends(c, software)
    trained, several = trainable_params(run, shape), run.devices > 1
    gather = _often(_over_all(c, "all_gather", layer_weights(shape) * ITEM), shape.n_layers)
    whole = run.sharding == "fsdp_full"
    return Passes(
        n_micro=run.grad_accumulation,
        forward=[*ahead, *head],
        backward=[*head_backward, *(ahead if run.checkpointing == "full" else []), *back],
        between=[],
        optimizer=[software.memory_bound("optimizer", trained / (run.devices if whole else 1) * c.state_bytes, c)],
        sent_forward=[gather] if whole and several else [],
        sent_backward=[gather] if whole and several else [],
        sent_step=[_over_all(c, "all_reduce", trained * ITEM)] if several else [],
        sharing=c.sharing,
    )


def _over_all(c: Configuration, kind: str, n_bytes: float) -> Demand:
    return step_demand.collective(kind.replace("_", "-"), c, kind, n_bytes, float(c.replicas), float(c.tensor))


def scoring_passes(
    p: Rlhf, machine: Machine, role: Role, *, sequences: int, micro: int, tokens: int, answer_frac: float = 1.0
) -> Passes:
    """Return the forward passes of a role's model over ``sequences``, ``micro`` of them at a time on each rank."""
    each = -(-sequences // p.ranks_of(role))
    scored = p.model_copy(update={"micro_batch": min(micro, each)})
    passes = training_passes(scored, machine, role, batch=sequences, tokens=tokens, answer_frac=answer_frac)
    coming = _coming_s(p, machine, role)
    held = None if coming == 0 else Moves(forward_s=coming, backward_s=0.0, optimizer_s=0.0)
    return replace(passes, backward=[], between=[], optimizer=[], sent_backward=[], sent_step=[], moved=held)


def _coming_s(p: Rlhf, machine: Machine, role: Role) -> float:
    """Return the time in which weights that lie in the host's memory come to a device for their passes."""
    if not p.offload_scoring or role not in ("reference", "reward") or machine.accelerator is None:
        return 0.0
    c = configuration(p, machine, role, batch=1, tokens=8)
    held = float(np.asarray(held_params(c))) * c.item_bytes
    return held / machine.accelerator.link.datasheet.bandwidth_bytes_per_s


def advantages(p: Rlhf, machine: Machine, longest: int) -> list[Demand]:
    """Return the estimation of advantages: a loop over the tokens of the longest answer, backwards, for all at once."""
    c = configuration(p, machine, "policy", batch=p.rollout_batch, tokens=8).computed()
    rows = p.rollout_batch / p.ranks_of("policy")
    n_bytes = 2 * rows * longest * DTYPE_BYTES["float32"]
    return [Software(machine.stack).memory_bound("advantages", n_bytes, c, float(longest))]


# --- generation ------------------------------------------------------------------------------------------------


class Engine:
    """The generating engine on one device: passes over prompts, and steps that decode.

    ``between_s`` is what its host does between two steps while the device waits; none where kernels are issued one by
    one, see `issue_s`.
    """

    def __init__(self, p: Rlhf, machine: Machine) -> None:
        self.p, self.shape = p, p.shape
        own = {
            "tensor_parallel": p.generation_tensor_parallel,
            "sharding": "ddp",
            "checkpointing": "none",
            "offload_optimizer": "none",
        }
        alone = p.model_copy(update=own)
        self.c = configuration(
            alone, machine, "generation", batch=1, tokens=8, devices=p.generation_tensor_parallel
        )
        self.c = self.c.computed()
        self.software = Software(machine.stack)
        table = self.software.table
        renamed = {
            key.replace(ENGINE, "memory_bound."): found for key, found in table.items() if key.startswith(ENGINE)
        }
        self.software.table = table | renamed
        self.step = table.get(DECODE_STEP)
        self.timer = Timer(CostModel(machine), 1)

    def between_s(self, rows: float) -> float:
        """Return what the host of an engine does between two steps."""
        return 0.0 if self.step is None else self.step.overhead_s + rows * self.step.per_item_s

    def issue_s(self, demands: Sequence[Demand]) -> float:
        """Return the host's time to issue these demands one by one; none where graphs are replayed."""
        return 0.0 if self.step is not None else float(np.asarray(self.timer.issue(demands)).reshape(-1)[0])

    def waits_s(self, rows: float, context: float) -> float:
        """Return by how much a step takes longer than its device, or than its host, as each waits for the other.

        In every layer, before padding is taken out, the host waits for all that it has issued. From there to the next
        layer's wait each kernel begins when it is issued and the one before it has ended.
        """
        if DECODE_WAIT not in self.software.table:
            return 0.0
        c = replace(self.c, batch=rows, sequence=1.0)
        demands = self._attending(self._layers(c, context), c, rows * context)
        first = next((at for at, demand in enumerate(demands) if demand.name == CACHE_UNPAD), 0)
        demands = [*demands[first:], *demands[:first]]
        timer = Timer(self.timer.costs, 1)
        timed = [float(seconds[0]) for seconds in timer.seconds([[demand] for demand in demands])]
        issued = [float(np.asarray(timer.issue([demand])).reshape(-1)[0]) for demand in demands]
        host = device = 0.0
        for works, issue in zip(timed, issued, strict=True):
            host += issue
            device = max(device, host) + works
        return device - max(sum(timed), sum(issued))

    def prompts(self, batch: float, tokens: float) -> list[Demand]:
        """Return a pass over ``batch`` prompts of ``tokens`` each, of which only the last token's logits are made."""
        c = replace(self.c, batch=batch, sequence=tokens)
        return [*self._layers(c, None), *step_demand.embedding_forward(c, self.software), *self._head(c, batch)]

    def decode(self, rows: float, context: float) -> list[Demand]:
        """Return a step that makes one token of each row, which look back on ``context`` tokens."""
        c = replace(self.c, batch=rows, sequence=1.0)
        ends = [*step_demand.embedding_forward(c, self.software), *self._head(c, rows)]
        layers = self._attending(self._layers(c, context), c, rows * context)
        return [*layers, *self._moved(c, CACHE_APPEND, rows), *self._moved(c, VIEWS, rows), *ends]

    def _attending(self, layers: list[Demand], c: Configuration, tokens: float) -> list[Demand]:
        """Return layers with what is done to keys and values of all tokens before they are attended to."""
        first = next((at for at, demand in enumerate(layers) if demand.operator == "attention"), len(layers))
        groups = self.shape.n_heads / self.shape.n_kv_heads
        moved = [*self._moved(c, CACHE_COPY, tokens), *self._moved(c, CACHE_UNPAD, tokens)]
        moved += self._moved(c, CACHE_REPEAT, tokens * groups) if groups > 1 else []
        return [*layers[:first], *moved, *layers[first:]]

    def _moved(self, c: Configuration, name: str, tokens: float) -> list[Demand]:
        """Return what a kernel of its own does to keys and values of so many tokens, in software that says it does.

        To copy all of them at every step, where the cache grows by a new tensor; to take padding out of them; or to put
        the new ones into it. Where the host computes, views and calls of modules, which move nothing, take their time
        as well.
        """
        if f"memory_bound.{name}" not in self.software.table:
            return []
        n_bytes = tokens * cache_bytes_per_token(self.p) / c.n_layers
        return [_often(self.software.memory_bound(name, n_bytes, c), c.n_layers)]

    def _layers(self, c: Configuration, context: float | None) -> list[Demand]:
        layers: list[tuple[list[Demand], LayerKind, Number]] = []
        if self.p.adapter == "lora":
            run = self.p.finetuning("policy", batch=1, tokens=8)
            layer = finetuning_demand.forward(run, self.shape, c, self.software)
            layers.append((layer, LayerKind(), self.shape.n_layers))
        else:
            for kind, count in layer_kinds(c).items():
                layers.append((step_demand.layer_forward(c, kind, self.software), kind, count))
        return [_often(_looking_back(d, c, kind, context), n) for layer, kind, n in layers for d in layer]

    def _head(self, c: Configuration, rows: float) -> list[Demand]:
        """Return the last norm, the logits of one token of each row, and drawing from them."""
        vocabulary = c.vocabulary / c.tensor
        head = step_demand.gemm("head", c, rows, vocabulary, c.d_model, narrow=False)
        norm = self.software.memory_bound("norm", 2 * rows * c.d_model * c.item_bytes, c)
        drawn = self.software.memory_bound("sampling", rows * vocabulary * DTYPE_BYTES["float32"], c)
        return [norm, head, drawn]


def _looking_back(demand: Demand, c: Configuration, kind: LayerKind, context: float | None) -> Demand:
    """Return attention with all tokens before it; everything else, and a prompt's own, as it is."""
    if context is None or demand.operator != "attention":
        return demand
    seen = np.minimum(context, c.window) if kind.windowed else context
    return replace(
        demand, shape=demand.shape._replace(query_tokens=1.0, kv_tokens=float(seen), causal=0.0, cached=1.0)
    )


def cache_bytes_per_token(p: Rlhf) -> float:
    """Return the bytes of keys and values of one token on one device of an engine."""
    shape, dtype = p.shape, "float32" if p.precision == "float32" else "bfloat16"
    heads = max(1.0, shape.n_kv_heads / p.generation_tensor_parallel) / shape.n_kv_heads
    return float(shape.kv_bytes(1, dtype)) * heads


# --- weights of the policy to the engine -------------------------------------------------------------------------


def weight_sync(p: Rlhf, machine: Machine) -> tuple[list[Demand], float]:
    """Return what brings the policy's weights to the engine, and what the software adds, in seconds.

    To devices of its own all weights are sent once, tensor by tensor; on the same devices they are gathered where they
    are sharded.
    """
    c = configuration(p, machine, "policy", batch=p.train_batch, tokens=8).computed()
    n_bytes = p.shape.n_params * c.item_bytes
    sharded = int(c.sharding) >= SHARDING["fsdp_full"] and c.replicas > 1
    gather = [_over_all(c, "all_gather", n_bytes)] if sharded else []
    if not p.is_apart("generation"):
        return gather, 0.0
    near = 2.0 if p.devices <= layout.devices_per_machine(machine, p.devices) else 1.0
    sent = Demand(name="weights", operator="send_recv", shape=CollectiveShape(n_bytes, 2.0, near), dtype=c.dtype)
    found = (
        None
        if machine.stack is None
        else machine.stack.datasheet.efficiency.get(SYNC_GATHERED if sharded else SYNC_TENSOR)
    )
    n_tensors = TENSORS_PER_LAYER * p.shape.n_layers + TENSORS_BESIDE
    return [*gather, sent], 0.0 if found is None else found.overhead_s * n_tensors
