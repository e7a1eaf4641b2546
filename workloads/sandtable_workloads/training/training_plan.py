"""The plan of a training step for the engine: ops, what each waits for, and on which device it runs.

One device stands for its data-parallel, tensor-parallel and context-parallel equals, which all do the same at the
same time; pipeline stages differ, and each is a device of its own. Gradients are reduced on a queue of their own, as
a communicator has; so are the sends between stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sandtable.demand.op import Op, Where
from sandtable.demand.operator_shapes import Number
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable_workloads.training.schedule import Task, needed, ordered
from sandtable_workloads.training.states.offloading import Moves, is_offloaded, moves
from sandtable_workloads.training.states.stages import layers_at
from sandtable_workloads.training.step_demand import Demand, LayerKind, Software, held_params
from sandtable_workloads.training.step_numbers import CHECKPOINTING, Configuration
from sandtable_workloads.training.step_parts import FULL, GRAD_OP, ZERO_1, Both, StepParts, exposed_s, parts_of
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

SECTIONS = FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
# the operator of what stands between products, whose every kind software may do at its own pace
STREAMS = "memory_bound"


def op_of(demand: Demand, on: Where, section: str, sharing: int = 1, part: str | None = None) -> Op | None:
    """Return a demand as an op, None if it asks for nothing.

    ``part`` is that of a training step, which software may have constants of its own for, where ``section`` is not.
    """
    part = section if part is None else part
    shape = type(demand.shape)(*(float(number) for number in demand.shape))
    times, whole = float(demand.times), max(1, round(float(demand.times)))
    if times == 0 or demand.law.is_empty(shape):
        return None
    return Op(
        name=demand.name,
        operator=demand.operator,
        account="communication" if demand.communicates else "compute",
        dtype=demand.dtype,
        flops=float(demand.law.flops(shape)),
        shape=shape,
        role=f"{part}.{demand.name}" if demand.operator == STREAMS and part in SECTIONS else "",
        sharing=1 if demand.communicates else sharing,
        sustained=True,
        on=on,
        section=section,
        hidden_by=None if demand.hidden_by is None else op_of(demand.hidden_by, on, section, sharing),
        repeat=whole,
    )


@dataclass
class Builder:
    """Ops of one step as they are added; `add` returns an op's index, for others to wait for."""

    ops: list[Op] = field(default_factory=list)

    def add(self, op: Op, after: Sequence[int | None]) -> int:
        """Add an op that waits for ``after``."""
        waits = tuple(sorted({index for index in after if index is not None}))
        self.ops.append(replace(op, after=waits))
        return len(self.ops) - 1


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The sequences of ops that a step consists of; equal ones are one object, and are costed once.

    ``waits`` are the seconds that the device waits for the host in each section, where sections are waited for.
    """

    forward: dict[LayerKind, Op]
    backward: tuple[dict[LayerKind, Op], ...]
    embedding_forward: Op
    embedding_backward: Op
    head_forward: Op
    head_backward: Op
    optimizer: Op
    between: Op | None
    gather: Op | None
    reduce: Op | None
    gather_outer: Op | None
    reduce_outer: Op | None
    gather_all: Op | None
    send: Op | None
    moved: Moves | None = None
    waits: dict[str, float] = field(default_factory=dict)

    def is_layer(self, op: Op) -> bool:
        """Whether an op is a layer's backward pass, and not one of the model's ends."""
        return any(op is layer for by_kind in self.backward for layer in by_kind.values())


def blocks_of(parts: StepParts, on: Where, sharing: int = 1) -> Blocks:
    """Return the sequences of a step's parts."""

    def block(name: str, demands: Sequence[Demand], section: str) -> Op:
        ops = tuple(op for op in (op_of(demand, on, section, sharing) for demand in demands) if op is not None)
        return Op(name=name, operator="sequence", account="compute", parts=ops, on=on, section=section)

    def sent(demand: Demand, section: str, stream: str) -> Op | None:
        op = op_of(demand, on, section)
        return None if op is None else replace(op, stream=stream)

    kinds = {layer.kind: layer for layer in parts.layers}
    between = block("gradient sum", parts.between, BACKWARD)
    return Blocks(
        forward={kind: block("layer forward", layer.forward, FORWARD) for kind, layer in kinds.items()},
        backward=({kind: block("layer backward", layer.backward, BACKWARD) for kind, layer in kinds.items()},),
        embedding_forward=block("embedding forward", parts.embedding_forward, FORWARD),
        embedding_backward=block("embedding backward", parts.embedding_backward, BACKWARD),
        head_forward=block("head forward", parts.head_forward, FORWARD),
        head_backward=block("head backward", parts.head_backward, BACKWARD),
        optimizer=block("optimizer", parts.optimizer, OPTIMIZER),
        between=between if between.parts else None,
        gather=sent(parts.gather, FORWARD, "data"),
        reduce=sent(parts.reduce, BACKWARD, "data"),
        gather_outer=sent(parts.gather_outer, FORWARD, "data"),
        reduce_outer=sent(parts.reduce_outer, BACKWARD, "data"),
        gather_all=sent(parts.gather_all, OPTIMIZER, "data"),
        send=sent(parts.send, FORWARD, "pipeline"),
    )


def layers_of(shape: ModelShape) -> list[LayerKind]:
    """Return the kind of each layer in order."""
    return [
        LayerKind(experts=shape.has_experts(layer), windowed=shape.is_windowed(layer))
        for layer in range(shape.n_layers)
    ]


def step_of(c: Configuration, shape: ModelShape, machine: Machine) -> Step:
    """Return one optimiser step; its counters are filled by the engine."""
    on: Where = "host" if machine.accelerator is None else "accelerator"
    c = c.computed()
    software = Software(machine.stack)
    parts = parts_of(c, software)
    blocks, kinds = blocks_of(parts, on, c.sharing), layers_of(shape)
    if is_offloaded(c):
        blocks = replace(blocks, moved=moves(c, CostModel(machine), held_params(c)))
    if c.recompute == CHECKPOINTING["alternate"]:
        blocks = _alternating(c, machine, blocks, on)
    waits = software.waits and c.pipeline == 1
    if waits:
        blocks = replace(blocks, waits=_waits(c, blocks, kinds, CostModel(machine), software))
    builder = _Pipeline(c, blocks, kinds, parts) if c.pipeline > 1 else _Single(c, blocks, kinds, parts)
    return Step(name="step", ops=tuple(builder.ops()), host_stated=waits)


def _waits(
    c: Configuration, blocks: Blocks, kinds: Sequence[LayerKind], costs: CostModel, software: Software
) -> dict[str, float]:
    """Return how long the device waits for the host in each section; see `step_parts.exposed_s`."""

    def both(*ops: Op) -> Both:
        times = [costs.time(op) for op in ops]
        return sum(time.seconds for time in times), sum(time.host_s for time in times)

    def layers(section: str, ops: Sequence[Op]) -> Both:
        device, host = both(*ops)
        return device, host + software.host_s(section, c)

    back = blocks.backward
    backward = layers(BACKWARD, [back[i % len(back)][kind] for i, kind in enumerate(reversed(kinds))])
    forward = layers(FORWARD, [blocks.forward[kind] for kind in kinds])
    sections = {
        FORWARD: (both(blocks.embedding_forward), forward, both(blocks.head_forward)),
        BACKWARD: (both(blocks.head_backward), backward, both(blocks.embedding_backward)),
    }
    found = {section: float(np.asarray(exposed_s(parts))) for section, parts in sections.items()}
    return found | {OPTIMIZER: float(np.asarray(software.host_s("update", c)))}


def _alternating(c: Configuration, machine: Machine, blocks: Blocks, on: Where) -> Blocks:
    """Return blocks whose layers are computed again in turn: one is, the next is not."""
    software = Software(machine.stack)
    variants = [
        blocks_of(parts_of(replace(c, recompute=CHECKPOINTING[name]), software), on, c.sharing).backward[0]
        for name in ("full", "none")
    ]
    return replace(blocks, backward=tuple(variants))


def _moving(name: str, seconds: Number, section: str) -> Op:
    """Return what is moved between the device and the host, or done there, in so many seconds."""
    return Op(
        name=name,
        operator="startup",
        account="communication",
        seconds=float(np.asarray(seconds)),
        on="accelerator",
        stream="offload",
        section=section,
    )


class _Single:
    """All layers on one device."""

    def __init__(self, c: Configuration, blocks: Blocks, kinds: Sequence[LayerKind], parts: StepParts) -> None:
        self.c, self.blocks, self.kinds = c, blocks, kinds
        self.per_reduce = int(parts.layers_per_reduce)
        self.builder = Builder()
        self.last: int | None = None
        self.sent: int | None = None
        self.sharding = int(c.sharding)
        self.moving: dict[str, int] = {}

    def ops(self) -> list[Op]:
        """Return the ops of the step."""
        for micro in range(int(self.c.accumulation)):
            is_last = micro == self.c.accumulation - 1
            self._beside(FORWARD)
            if self.sharding >= GRAD_OP:
                self._sharded()
            else:
                self._replicated(reduces=is_last)
            if not is_last and self.blocks.between is not None:
                self._compute(self.blocks.between)
        moved = self.blocks.moved
        optimizer = self.blocks.optimizer
        if moved is not None and self.c.offload_optimizer != "none":
            optimizer = _moving("update elsewhere", moved.optimizer_s, OPTIMIZER)
        self._wait(OPTIMIZER)
        self.last = self.builder.add(optimizer, [self.last, self.sent])
        if self.sharding == ZERO_1 and self.blocks.gather_all is not None:
            self.builder.add(self.blocks.gather_all, [self.last])
        return self.builder.ops

    def _beside(self, section: str) -> list[int | None]:
        """Begin what comes and goes beside a pass, and return what that pass waits for: the end of the one before."""
        moved, before = self.blocks.moved, self._waited(FORWARD if section == BACKWARD else BACKWARD)
        if moved is not None:
            seconds = moved.forward_s if section == FORWARD else moved.backward_s
            op = _moving("moved beside", seconds, section)
            self.moving[section] = self.builder.add(op, [self.last, *before])
        return before

    def _waited(self, section: str) -> list[int | None]:
        return [self.moving[section]] if section in self.moving else []

    def _wait(self, section: str) -> None:
        """Let the device wait for the host, for as long as it does in this section."""
        seconds = self.blocks.waits.get(section, 0.0)
        if seconds > 0:
            op = self.blocks.optimizer
            waiting = Op(
                name="host", operator="startup", account="compute", seconds=seconds, on=op.on, section=section
            )
            self._compute(waiting)

    def _compute(self, op: Op, *after: int | None) -> int:
        self.last = self.builder.add(op, [self.last, *after])
        return self.last

    def _send(self, op: Op | None, *after: int | None, section: str = "") -> int | None:
        if op is not None:
            op = replace(op, section=section or op.section)
            self.sent = self.builder.add(op, [*after])
        return self.sent

    def _replicated(self, *, reduces: bool) -> None:
        """Every device keeps all weights: gradients are reduced once, in buckets or at the end."""
        blocks, overlaps = self.blocks, self.c.overlaps > 0
        self._compute(blocks.embedding_forward)
        for kind in self.kinds:
            self._compute(blocks.forward[kind])
        self._compute(blocks.head_forward)
        self._wait(FORWARD)
        self._compute(blocks.head_backward, *self._beside(BACKWARD))
        backward: list[int] = []
        for index, kind in enumerate(reversed(self.kinds)):
            backward.append(self._compute(blocks.backward[index % len(blocks.backward)][kind]))
            if reduces and overlaps and ((index + 1) % self.per_reduce == 0 or index == len(self.kinds) - 1):
                self._send(blocks.reduce, backward[-1])
        self._compute(blocks.embedding_backward, *self._waited(BACKWARD))
        self._wait(BACKWARD)
        if reduces:
            late = 0 if overlaps else -(-len(self.kinds) // self.per_reduce)
            for _ in range(late):
                self._send(blocks.reduce, self.last)
            self._send(blocks.reduce_outer, self.last)

    def _sharded(self) -> None:
        """Each layer's weights are gathered one layer ahead, and its gradients scattered behind it."""
        if not self.c.overlaps:
            self._sharded_in_turn()
            return
        blocks, kinds = self.blocks, self.kinds
        started: list[int | None] = [self.last]
        root = self._send(blocks.gather_outer, self.last, self.sent)
        started.append(self._compute(blocks.embedding_forward, root))
        for kind in kinds:
            # at most two layers are gathered and not yet used
            gathered = self._send(blocks.gather, started[-2], root)
            started.append(self._compute(blocks.forward[kind], gathered))
        began = self._compute(blocks.head_forward)
        self._wait(FORWARD)
        self._compute(blocks.head_backward, *self._beside(BACKWARD))
        ahead, regathers = began, self.sharding >= FULL
        for index, kind in enumerate(reversed(kinds)):
            gathered = self._send(blocks.gather, ahead, section=BACKWARD) if regathers else None
            ahead = self.last if self.last is not None else began
            done = self._compute(blocks.backward[index % len(blocks.backward)][kind], gathered)
            self._send(blocks.reduce, done)
        self._compute(blocks.embedding_backward, *self._waited(BACKWARD))
        self._wait(BACKWARD)
        self._send(blocks.reduce_outer, self.last)

    def _sharded_in_turn(self) -> None:
        """Computing and sending take turns."""
        blocks = self.blocks

        def send(op: Op | None, section: str = "") -> None:
            self.last = self._send(op, self.last, section=section) if op is not None else self.last

        send(blocks.gather_outer)
        self._compute(blocks.embedding_forward)
        for kind in self.kinds:
            send(blocks.gather)
            self._compute(blocks.forward[kind])
        self._compute(blocks.head_forward)
        self._wait(FORWARD)
        self._compute(blocks.head_backward, *self._beside(BACKWARD))
        for index, kind in enumerate(reversed(self.kinds)):
            if self.sharding >= FULL:
                send(blocks.gather, BACKWARD)
            self._compute(blocks.backward[index % len(blocks.backward)][kind])
            send(blocks.reduce)
        self._compute(blocks.embedding_backward, *self._waited(BACKWARD))
        self._wait(BACKWARD)
        send(blocks.reduce_outer)


class _Pipeline:
    """Layers spread over stages, each a place; see `sandtable_workloads.training.schedule`."""

    def __init__(self, c: Configuration, blocks: Blocks, kinds: Sequence[LayerKind], parts: StepParts) -> None:
        self.c, self.blocks, self.kinds = c, blocks, kinds
        self.n_stages, self.n_chunks = int(c.pipeline), int(c.chunks)
        self.per_reduce = int(parts.layers_per_reduce)
        self.builder = Builder()
        self.chunks: dict[tuple[int, bool], Op] = {}
        self.sent: dict[int, int] = {}

    def ops(self) -> list[Op]:
        """Return the ops of the step."""
        last: list[int | None] = [None] * self.n_stages
        done: dict[Task, int] = {}
        for task in ordered(self.n_stages, int(self.c.accumulation), self.n_chunks):
            wait = needed(task, self.n_stages, self.n_chunks)
            came = None if wait is None else done[wait]
            if wait is not None and wait.stage != task.stage and self.blocks.send is not None:
                section = FORWARD if task.forward else BACKWARD
                stream = f"pipeline {task.stage} {section}"
                send = replace(self.blocks.send, device=wait.stage, stream=stream, section=section)
                came = self.builder.add(send, [came])
            if not task.forward and task.micro == self.c.accumulation - 1 and self.c.overlaps > 0:
                index = self._last_backward(task, [last[task.stage], came])
            else:
                index = self.builder.add(self._chunk(task), [last[task.stage], came])
            last[task.stage] = done[task] = index
        for stage in range(self.n_stages):
            self._finish(stage, last[stage])
        return self.builder.ops

    def _last_backward(self, task: Task, after: Sequence[int | None]) -> int:
        """Add the last micro-batch's backward layer by layer, so that gradients are reduced behind it."""
        index, waits, n_layers = -1, after, 0
        for part in self._chunk(task).parts:
            index = self.builder.add(replace(part, device=task.stage), waits)
            waits = [index]
            if not self.blocks.is_layer(part):
                continue
            n_layers += 1
            if self.blocks.reduce is not None and n_layers % self.per_reduce == 0:
                self.sent[task.stage] = self.builder.add(replace(self.blocks.reduce, device=task.stage), [index])
        return index

    def _chunk(self, task: Task) -> Op:
        """Return the layers of one chunk in one direction, with the model's ends where they belong."""
        position = task.chunk * self.n_stages + task.stage
        key = (position, task.forward)
        if key not in self.chunks:
            self.chunks[key] = self._made(position, forward=task.forward)
        return replace(self.chunks[key], device=task.stage)

    def _made(self, position: int, *, forward: bool) -> Op:
        blocks, n_positions = self.blocks, self.n_stages * self.n_chunks
        first, last = layers_at(position, len(self.kinds), n_positions)
        kinds = self.kinds[first:last]
        if forward:
            ops = [blocks.forward[kind] for kind in kinds]
        else:
            ops = [blocks.backward[i % len(blocks.backward)][kind] for i, kind in enumerate(reversed(kinds))]
        if position == 0:
            ops = [blocks.embedding_forward, *ops] if forward else [*ops, blocks.embedding_backward]
        if position == n_positions - 1:
            ops = [*ops, blocks.head_forward] if forward else [blocks.head_backward, *ops]
        section = FORWARD if forward else BACKWARD
        return Op(
            name=f"chunk {section}",
            operator="sequence",
            account="compute",
            parts=tuple(ops),
            on=blocks.optimizer.on,
            section=section,
        )

    def _finish(self, stage: int, last: int | None) -> None:
        """Reduce a stage's gradients and update its weights; the first and the last hold the model's ends."""
        blocks, per = self.blocks, -(-len(self.kinds) // self.n_stages)
        sent = last
        overlaps, n_units = self.c.overlaps > 0, -(-per // self.per_reduce)
        if int(self.c.sharding) >= GRAD_OP and blocks.gather_all is not None:
            sent = self.builder.add(replace(blocks.gather_all, device=stage, section=FORWARD), [sent])
        for _ in range(0 if overlaps else n_units):
            if blocks.reduce is not None:
                sent = self.builder.add(replace(blocks.reduce, device=stage), [sent])
        if blocks.reduce_outer is not None and stage in (0, self.n_stages - 1):
            sent = self.builder.add(replace(blocks.reduce_outer, device=stage), [sent])
        optimizer = self.builder.add(replace(blocks.optimizer, device=stage), [last, sent, self.sent.get(stage)])
        if int(self.c.sharding) == ZERO_1 and blocks.gather_all is not None:
            self.builder.add(replace(blocks.gather_all, device=stage), [optimizer])


def _started(step: Step, startup_s: float) -> Step:
    """Return a step with what a run does once: loading kernels, and finding the other ranks."""
    last = step.ops[-1]
    once = Op(
        name="startup",
        operator="startup",
        account="compute",
        seconds=startup_s,
        on=last.on,
        section=FORWARD,
        after=tuple(range(len(step.ops))),
    )
    return replace(step, ops=(*step.ops, once))


def plan_of(
    parameters: SlmTraining,
    c: Configuration,
    shape: ModelShape,
    machine: Machine,
    memory: dict[str, float],
    startup_s: float = 0.0,
) -> Plan:
    """Return the plan of a whole run: equal steps, the first of which takes ``startup_s`` longer."""
    step = step_of(c, shape, machine)
    steps: tuple[Step, ...] = (replace(step, repeat=parameters.steps),)
    if startup_s:
        steps = (_started(step, startup_s), replace(step, repeat=parameters.steps - 1))[: parameters.steps]
    warm = replace(step, repeat=parameters.warmup_steps)
    phases = [Phase(name="warmup", steps=(warm,))] if parameters.warmup_steps else []
    return Plan(
        workload="slm_training",
        phases=(*phases, Phase(name="train", steps=steps)),
        main_phase="train",
        memory_bytes=memory,
        work_unit="step",
        unit_metric="step_s",
    )
