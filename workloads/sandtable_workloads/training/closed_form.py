"""The time of a training step in closed form, for many configurations at once.

The engine plays a step op by op (`sandtable_workloads.training.training_plan`); here the same parts, costed by the
same laws,
are put together by formulas, so that a sweep asks for thousands of configurations in one call. A theory test holds
the two together.

Letters: f, b one layer forward and backward, g, r its all-gather and its reduction, L layers, p stages,
m micro-batches, v chunks of a stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import FloatArray, operator_named
from sandtable.demand.operator_shapes import Number
from sandtable.model.cost_model import CostModel
from sandtable.model.intervals import joined
from sandtable_workloads.training.states.offloading import Moves, is_offloaded, moves
from sandtable_workloads.training.step_demand import Demand, Software, held_params
from sandtable_workloads.training.step_numbers import Configuration
from sandtable_workloads.training.step_parts import FULL, GRAD_OP, Both, StepParts, exposed_s, parts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds of a step, one entry per configuration; ``communication`` is what computing does not hide.

    ``compute`` and ``communication`` and ``idle`` add up to ``step``, and so do forward, backward and optimiser.
    ``low`` to ``high`` is the 90 % interval of ``step``.
    """

    step: FloatArray
    forward: FloatArray
    backward: FloatArray
    optimizer: FloatArray
    compute: FloatArray
    communication: FloatArray
    idle: FloatArray
    low: FloatArray
    high: FloatArray


class Timer:
    """Costs lists of demands on a machine: one law call per kind of operator and element type."""

    def __init__(self, costs: CostModel, n: int, sharing: int = 1) -> None:
        self.costs = costs
        self.sharing = sharing
        self.n = n
        self.on = "host" if costs.machine.accelerator is None else "accelerator"
        # by law: seconds in each list of demands, and how much less and more they may be at the ends of its interval
        self.by_law: dict[str, list[FloatArray]] = {}
        self.early: dict[str, list[FloatArray]] = {}
        self.late: dict[str, list[FloatArray]] = {}

    def seconds(self, lists: Iterable[Sequence[Demand]], sections: Iterable[str] = repeat("")) -> list[FloatArray]:
        """Return the seconds of each list of demands, its collectives included; each belongs to a section of a step."""
        lists = list(lists)
        found = [np.zeros(self.n) for _ in lists]
        groups: dict[tuple[str, str, str], list[tuple[int, Demand]]] = {}
        for index, (demands, section) in enumerate(zip(lists, sections, strict=False)):
            for demand in demands:
                role = self._role(demand, section)
                groups.setdefault((demand.operator, demand.dtype, role), []).append((index, demand))
        for (operator, dtype, role), members in groups.items():
            timed = self._group(operator, dtype, [demand for _, demand in members], role)
            of_law = self.by_law.setdefault(operator, [np.zeros(self.n) for _ in lists])
            early = self.early.setdefault(operator, [np.zeros(self.n) for _ in lists])
            late = self.late.setdefault(operator, [np.zeros(self.n) for _ in lists])
            for (index, demand), alone, less, more in zip(members, *timed, strict=True):
                row = alone if demand.hidden_by is None else self._exposed(alone, demand.hidden_by)
                found[index] += row * demand.times
                of_law[index] += row * demand.times
                early[index] += np.minimum(less, row) * demand.times
                # of what is hidden in part, only the rest may take longer in proportion
                late[index] += np.divide(more * row, alone, out=np.zeros(self.n), where=alone > 0) * demand.times
        return found

    def _exposed(self, seconds: FloatArray, hidden_by: Demand) -> FloatArray:
        """Return what is left of a collective that another demand hides."""
        hides = self._group(hidden_by.operator, hidden_by.dtype, [hidden_by])[0][0] * hidden_by.times
        return np.asarray(np.maximum(0.0, seconds - hides))

    def _role(self, demand: Demand, section: str) -> str:
        """Return the role of a demand that the software may have constants of its own for, else nothing."""
        stack, role = self.costs.machine.stack, f"{section}.{demand.name}"
        return role if stack is not None and f"{demand.law.fitted_as}.{role}" in stack.software else ""

    def _group(
        self, operator: str, dtype: str, demands: Sequence[Demand], role: str = ""
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the seconds of each demand, and how much less and more each may be at the ends of its interval."""
        shape_type = operator_named(operator).Shape
        columns = shape_type(
            *(
                np.concatenate([np.broadcast_to(np.asarray(number, np.float64), (self.n,)) for number in numbers])
                for numbers in zip(*(demand.shape for demand in demands), strict=True)
            )
        )
        op = Op(
            name="",
            operator=operator,
            account="",
            role=role,
            shape=shape_type(*(float(column[0]) for column in columns)),
            dtype=dtype,
            on=self.on,  # type: ignore[arg-type]
            sharing=self.sharing,
            sustained=True,
        )
        low_frac, high_frac = self.costs.spread(op, columns)
        seconds = self.costs.seconds(op, columns)
        least = np.minimum(seconds, self.costs.least_s(op, columns))
        ends = seconds, seconds - np.maximum(seconds / high_frac, least), seconds / low_frac - seconds
        alone, less, more = (end.reshape(len(demands), self.n) for end in ends)
        return alone, less, more

    def issue(self, demands: Sequence[Demand]) -> FloatArray:
        """Return the host's time to issue a list of demands."""
        total = np.zeros(self.n)
        for demand in demands:
            total = total + self.costs.issue_s(demand.operator, demand.shape) * demand.times
        return total


# parts of a step besides its layers: lists of demands, with the section of the step, and single collectives
COMPUTED = {
    "embedding_forward": "forward",
    "embedding_backward": "backward",
    "head_forward": "forward",
    "head_backward": "backward",
    "between": "backward",
    "optimizer": "optimizer",
}
SENT = ("gather", "reduce", "gather_outer", "reduce_outer", "gather_all", "send")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """The parts of `StepParts` in seconds; ``layer_*`` are means over a model's layers.

    ``compute_share_*`` is what is left of a layer without its own communication.
    """

    n_layers: Number
    forward: FloatArray
    backward: FloatArray
    layer_sent: FloatArray
    embedding_forward: FloatArray
    embedding_backward: FloatArray
    head_forward: FloatArray
    head_backward: FloatArray
    between: FloatArray
    optimizer: FloatArray
    gather: FloatArray
    reduce: FloatArray
    gather_outer: FloatArray
    reduce_outer: FloatArray
    gather_all: FloatArray
    send: FloatArray
    issue: FloatArray
    issue_optimizer: FloatArray
    exposed_forward: FloatArray
    exposed_backward: FloatArray
    update: FloatArray
    low_frac: FloatArray
    high_frac: FloatArray


def seconds_of(parts: StepParts, c: Configuration, timer: Timer, software: Software) -> Seconds:
    """Cost the parts of a step."""
    ends = [parts.embedding_forward, parts.embedding_backward, parts.head_forward, parts.head_backward]
    once = {name: getattr(parts, name) for name in COMPUTED} | {name: [getattr(parts, name)] for name in SENT}
    both = [direction for layer in parts.layers for direction in (layer.forward, layer.backward)]
    inner = [[d for d in direction if d.communicates] for direction in both]
    k = len(both)
    directions = ["forward", "backward"] * (k // 2)
    sections = [*directions, *directions, *(COMPUTED.get(name, "") for name in once)]
    times = timer.seconds([*both, *inner, *once.values()], sections)
    shares = [layer.count / c.n_layers for layer in parts.layers]
    forward = sum(share * seconds for share, seconds in zip(shares, times[0:k:2], strict=True))
    backward = sum(share * seconds for share, seconds in zip(shares, times[1:k:2], strict=True))
    sent = sum(shares[i // 2] * seconds for i, seconds in enumerate(times[k : 2 * k]))
    layers = sum(layer.count * (timer.issue(layer.forward) + timer.issue(layer.backward)) for layer in parts.layers)
    low, high = interval(timer, [share * c.accumulation * c.n_layers for share in shares for _ in (0, 1)])
    named = dict(zip(once, times[2 * k :], strict=True))
    waited = _exposed(parts, c, timer, software, named | {"forward": forward, "backward": backward})
    return Seconds(
        n_layers=c.n_layers,
        forward=np.asarray(forward),
        backward=np.asarray(backward),
        layer_sent=np.asarray(sent),
        issue=np.asarray(layers / c.pipeline + sum(timer.issue(demands) for demands in ends)),
        issue_optimizer=timer.issue(parts.optimizer),
        low_frac=low,
        high_frac=high,
        **waited,
        **named,
    )


def _exposed(
    parts: StepParts, c: Configuration, timer: Timer, software: Software, device: dict[str, Any]
) -> dict[str, FloatArray]:
    """Return what the host adds to each section, where they are waited for; see `step_parts.exposed_s`."""
    zero = np.zeros(timer.n)
    if not software.waits:
        return {"exposed_forward": zero, "exposed_backward": zero, "update": zero}

    def end(name: str) -> Both:
        return device[name], timer.issue(getattr(parts, name))

    def layers(name: str) -> Both:
        issued = sum(layer.count * timer.issue(getattr(layer, name)) for layer in parts.layers)
        return c.n_layers * device[name], issued + software.host_s(name, c)

    forward = (end("embedding_forward"), layers("forward"), end("head_forward"))
    backward = (end("head_backward"), layers("backward"), end("embedding_backward"))
    return {
        "exposed_forward": zero + exposed_s(forward),
        "exposed_backward": zero + exposed_s(backward),
        "update": zero + software.host_s("update", c),
    }


def interval(timer: Timer, weights: Sequence[Number]) -> tuple[FloatArray, FloatArray]:
    """Return the ends of the 90 % interval of the layers' time, as shares of it.

    Operators of one law are wrong together; those of several are joined as in the engine.
    """
    total = sum(sum(w * s for w, s in zip(weights, seconds, strict=False)) for seconds in timer.by_law.values())
    below, above = (
        joined(
            (np.asarray(sum(w * s for w, s in zip(weights, ends, strict=False)) / total), 0.0) for ends in of_law
        )
        for of_law in (timer.early.values(), timer.late.values())
    )
    return 1 - below, 1 + above


def step_times(c: Configuration, costs: CostModel, n: int) -> StepTimes:
    """Return the step times of ``n`` configurations of one structure on one machine."""
    c = c.computed()
    software = Software(costs.machine.stack)
    parts = parts_of(c, software)
    s = seconds_of(parts, c, Timer(costs, n, c.sharing), software)
    # a collective op's ``times`` are in its seconds already
    piped = np.broadcast_to(np.asarray(c.pipeline) > 1, (n,))
    single, pipe = _single(c, s, parts), _pipeline(c, s, parts)
    chosen = {
        name: np.where(piped, getattr(pipe, name), getattr(single, name)) for name in StepTimes.__dataclass_fields__
    }
    if is_offloaded(c):
        chosen = _offloaded(chosen, c, s, moves(c, costs, held_params(c)))
    times = StepTimes(**chosen)
    waited, times = _waiting(times, c, s), _with_host(times, s.issue * c.accumulation + s.issue_optimizer)
    if software.waits:
        pairs = {name: (getattr(times, name), getattr(waited, name)) for name in chosen}
        times = StepTimes(**{name: np.where(piped, *pair) for name, pair in pairs.items()})
    return replace(times, low=times.step * s.low_frac, high=times.step * s.high_frac)


def _offloaded(times: dict[str, FloatArray], c: Configuration, s: Seconds, moved: Moves) -> dict[str, FloatArray]:
    """Return times with what comes and goes beside each pass, and with the step of an optimiser that lies elsewhere."""
    forward = np.maximum(times["forward"], c.accumulation * moved.forward_s)
    backward = np.maximum(times["backward"], c.accumulation * moved.backward_s)
    elsewhere = c.offload_optimizer != "none"
    optimizer = times["optimizer"] + (moved.optimizer_s - s.optimizer if elsewhere else 0.0)
    compute = times["compute"] - (s.optimizer if elsewhere else 0.0)
    step = forward + backward + optimizer
    changed = {"forward": forward, "backward": backward, "optimizer": optimizer, "step": step, "compute": compute}
    return times | changed | {"communication": step - compute - times["idle"]}


def _waiting(times: StepTimes, c: Configuration, s: Seconds) -> StepTimes:
    """Add what the host leaves the device to wait for in each section."""
    forward, backward = c.accumulation * s.exposed_forward, c.accumulation * s.exposed_backward
    added = forward + backward + s.update
    return replace(
        times,
        step=times.step + added,
        forward=times.forward + forward,
        backward=times.backward + backward,
        optimizer=times.optimizer + s.update,
        compute=times.compute + added,
    )


def _with_host(times: StepTimes, issue: FloatArray) -> StepTimes:
    """A host that cannot issue fast enough makes every section longer alike."""
    hidden = np.maximum(0.0, issue - times.step)
    scale = 1 + hidden / times.step
    return replace(
        times,
        step=times.step + hidden,
        forward=times.forward * scale,
        backward=times.backward * scale,
        optimizer=times.optimizer * scale,
        compute=times.compute + hidden,
    )


# --- without pipeline stages -----------------------------------------------------------------------------------


def _single(c: Configuration, s: Seconds, parts: StepParts) -> StepTimes:
    """One device does all layers: micro-batches follow each other, the gradients' reduction hides behind the last."""
    gathered, regathered = np.asarray(c.sharding) >= GRAD_OP, np.asarray(c.sharding) >= FULL
    g, root = np.where(gathered, s.gather, 0.0), np.where(gathered, s.gather_outer, 0.0)
    overlaps, regather = np.asarray(c.overlaps) > 0, np.where(regathered, s.gather, 0.0)
    in_turn = root + s.embedding_forward + s.n_layers * (g + s.forward) + s.head_forward
    forward = np.where(overlaps, _forward(s, g, root), in_turn)
    computing = s.head_backward + s.n_layers * s.backward + s.embedding_backward
    sharded = np.where(
        overlaps,
        _sharded_backward(s, regather),
        computing + s.n_layers * (regather + s.reduce) + s.reduce_outer,
    )
    replicated = np.where(overlaps, _replicated_backward(s, parts), computing + _all_reduced(s, parts))
    last = np.where(gathered, sharded, replicated)
    before = np.where(gathered, sharded, computing) + s.between
    backward = last + (c.accumulation - 1) * before
    total_forward = c.accumulation * forward
    regain = np.where(np.asarray(c.sharding) == 1, s.gather_all, 0.0)
    optimizer = s.optimizer + regain
    step = total_forward + backward + optimizer
    layers = c.accumulation * s.n_layers * (s.forward + s.backward - s.layer_sent)
    ends = c.accumulation * (s.embedding_forward + s.head_forward + s.head_backward + s.embedding_backward)
    compute = layers + ends + (c.accumulation - 1) * s.between + s.optimizer
    return StepTimes(
        step=step,
        forward=total_forward,
        backward=backward,
        optimizer=optimizer,
        compute=compute,
        communication=step - compute,
        idle=np.zeros_like(step),
        low=step,
        high=step,
    )


def _forward(s: Seconds, g: FloatArray, root: FloatArray) -> FloatArray:
    """Gathers run one layer ahead: the embedding hides the first, and each layer the next."""
    first = np.maximum(s.embedding_forward, g)
    return root + first + s.forward + (s.n_layers - 1) * np.maximum(s.forward, g) + s.head_forward


def _sharded_backward(s: Seconds, g: FloatArray) -> FloatArray:
    """A layer hides the reduction of the one before it and the gather of the next; the last two stand alone."""
    period = np.maximum(s.backward, s.reduce + g)
    computed = np.maximum(s.head_backward, g) + s.backward + (s.n_layers - 1) * period
    return np.asarray(np.maximum(computed + s.reduce, computed + s.embedding_backward) + s.reduce_outer)


def _units(s: Seconds, parts: StepParts) -> FloatArray:
    return np.asarray(s.n_layers / parts.layers_per_reduce)


def _all_reduced(s: Seconds, parts: StepParts) -> FloatArray:
    return _units(s, parts) * s.reduce + s.reduce_outer


def _replicated_backward(s: Seconds, parts: StepParts) -> FloatArray:
    """Buckets queue for the network as their layers finish; the queue is busiest from its first or its last bucket."""
    units, computed = _units(s, parts), s.head_backward + s.n_layers * s.backward
    first = s.head_backward + parts.layers_per_reduce * s.backward + units * s.reduce
    last = computed + s.reduce
    queued = np.maximum(first, last)
    return np.asarray(np.maximum(queued, computed + s.embedding_backward) + s.reduce_outer)


# --- pipelines -------------------------------------------------------------------------------------------------


def _pipeline(c: Configuration, s: Seconds, parts: StepParts) -> StepTimes:
    """1F1B: every micro-batch costs the slowest stage's time, and filling and draining cost all the others'.

    With v chunks per stage the pipe fills in a v-th of the time (arXiv 2104.04473, section 2.2), and each micro-batch
    crosses v times as many borders. While all stages are busy, a border is crossed once per stage and direction for
    as many micro-batches as there are stages in flight.
    """
    m, p, v = c.accumulation, c.pipeline, c.chunks
    per_stage = s.n_layers / p
    forward, backward = per_stage * s.forward, per_stage * s.backward
    first = s.embedding_forward + s.embedding_backward
    last = s.head_forward + s.head_backward
    # where layers do not divide, chunks in the middle have one more than those with the model's ends
    most = np.ceil(s.n_layers / (p * v)) * v
    least = np.floor(s.n_layers / (p * v)) * v
    both = s.forward + s.backward
    slowest = np.maximum(most * both, least * both + np.maximum(first, last))
    fill = (p - 1) * (forward + backward + 2 * s.send * v) / v
    crossing = np.where(v > 1, 0.0, 2 * s.send * (p - 1) / p)
    piped = fill + (m - 1) * (slowest + crossing) + forward + backward + first + last
    reduced = np.where(
        np.asarray(c.sharding) >= GRAD_OP, s.gather_all + _stage_reduce(c, s, parts), _stage_reduce(c, s, parts)
    )
    step = piped + reduced + s.optimizer + np.where(np.asarray(c.sharding) == 1, s.gather_all, 0.0)
    share = (forward + s.embedding_forward / p + s.head_forward / p) / (forward + backward + (first + last) / p)
    sent = m * per_stage * s.layer_sent
    compute = m * (forward + backward + (first + last) / p) - sent + s.optimizer
    communication = sent + reduced + (step - piped - reduced - s.optimizer)
    return StepTimes(
        step=step,
        forward=piped * share,
        backward=piped * (1 - share) + reduced,
        optimizer=step - piped - reduced,
        compute=np.asarray(compute),
        communication=np.asarray(communication),
        idle=np.asarray(step - compute - communication),
        low=step,
        high=step,
    )


def _stage_reduce(c: Configuration, s: Seconds, parts: StepParts) -> FloatArray:
    """Return the part of a stage's reduction that its last backward does not hide.

    The first stage, which ends last, holds the embedding. With several chunks, the queue of their reductions is longest
    from its first or from its last chunk on.
    """
    per = s.n_layers / (c.pipeline * c.chunks)
    units = per / parts.layers_per_reduce
    first = units * s.reduce - (per - parts.layers_per_reduce) * s.backward
    # between the last micro-batch's backward of one chunk and of the next lie those of the other micro-batches
    queued = (c.chunks - 1) * (units * s.reduce - c.pipeline * per * s.backward)
    late = np.maximum(np.maximum(first, first + queued), s.reduce)
    late = np.where(np.asarray(c.replicas) > 1, np.maximum(0.0, late - s.embedding_backward), 0.0)
    whole = units * c.chunks * s.reduce
    return np.asarray(np.where(c.overlaps > 0, late, whole) + s.reduce_outer)
