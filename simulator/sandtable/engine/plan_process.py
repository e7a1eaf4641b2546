"""Run a plan on a machine: every op waits for what it depends on, then for its resource.

Equal steps in a row, and equal ops in a row, are advanced in one event; `Options.expand` turns that off and must
not change any result. `Options.per_request` sends every storage request through the device on its own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from sandtable.demand.op import Op
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.attribution import Interval, Share, attribute
from sandtable.engine.clock import seconds, ticks
from sandtable.engine.resources import Server, StorageServer
from sandtable.model.cost_model import CostModel, OpTime
from sandtable.model.intervals import joined
from sandtable.results import TraceRow

ACCOUNTS: tuple[str, ...] = ("io", "memory", "compute", "communication")
# by how many seconds ops may take less, and more, than predicted; and the parts of both that the whole machine shares
Miss = tuple[float, float, float, float]
NO_MISS: Miss = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run: request by request, without shortcuts, with a timeline."""

    per_request: bool = False
    expand: bool = False
    trace: bool = False


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What one step took: seconds in all and by account, and counters such as bytes read.

    A prediction fills ``low`` and ``high`` as well, the ends of the 90 % interval of the same seconds.
    """

    phase: str
    name: str
    total_s: float
    by_account: dict[str, float] = field(default_factory=dict)
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """All steps in order, seconds by op name, and the timeline if it was asked for."""

    steps: list[StepResult]
    by_op: dict[str, float]
    trace: list[TraceRow]
    total_s: float

    def phase(self, name: str) -> list[StepResult]:
        """Return the steps of one phase."""
        return [step for step in self.steps if step.phase == name]


class Engine:
    """One run of one plan; use `run`."""

    def __init__(self, plan: Plan, costs: CostModel, options: Options) -> None:
        self.plan = plan
        self.costs = costs
        self.options = options
        self.env = simpy.Environment()
        self.storage = StorageServer(self.env, costs.storage_law)
        self.servers: dict[tuple[str, str, int, str], Server] = {}
        self.steps: list[StepResult] = []
        self.by_op: dict[str, float] = {}
        self.trace: list[TraceRow] = []
        self._intervals: list[Interval] | None = None
        self._shares: dict[int, float] = {}

    def run(self) -> Run:
        """Run to the end."""
        self.env.process(self._all())
        self.env.run()
        return Run(steps=self.steps, by_op=self.by_op, trace=self.trace, total_s=seconds(self.env.now))

    def _all(self) -> Generator[simpy.Event, Any, None]:
        for phase in self.plan.phases:
            for step, times in self._expanded(phase):
                start = self.env.now
                yield from self._step(phase, step, times)
                if times > 1:
                    yield self.env.timeout((self.env.now - start) * (times - 1))

    def _expanded(self, phase: Phase) -> Iterator[tuple[Step, int]]:
        for step in phase.steps:
            if self.options.expand:
                yield from ((step, 1) for _ in range(step.repeat))
            else:
                yield step, step.repeat

    def _step(self, phase: Phase, step: Step, times: int) -> Generator[simpy.Event, Any, None]:
        start = self.env.now
        index = len(self.steps)
        waits = list(step.dependencies())
        costs = [self.costs.time(op) for op in step.ops]
        leaves = _leaves(step.ops, self.costs)
        chained = all(wait == ((i - 1,) if i else ()) for i, wait in enumerate(waits))
        # a step that names its sections also reports what each instant was spent on
        self._intervals = [] if any(op.section for op in step.ops) else None
        if chained:
            for op, cost in zip(step.ops, costs, strict=True):
                yield from self._serve(op, cost, index)
        else:
            yield from self._graph(step.ops, costs, waits, index)
        busy_s = None if chained else seconds(self.env.now - start)
        hidden = _exposed_host(step.ops, costs, busy_s)
        share = None if self._intervals is None else attribute(self._intervals, int(start), int(self.env.now))
        self._intervals = None
        if hidden:
            yield self.env.timeout(ticks(hidden))
        result = _reduce(phase, step, leaves, seconds(self.env.now - start), hidden, share)
        self.steps.extend([result] * times)
        for op, cost in leaves:
            self.by_op[op.name] = self.by_op.get(op.name, 0.0) + cost.seconds * times

    def _graph(
        self, ops: Sequence[Op], costs: Sequence[OpTime], waits: Sequence[tuple[int, ...]], index: int
    ) -> Generator[simpy.Event, Any, None]:
        done: list[simpy.Event] = []

        def one(op: Op, cost: OpTime, after: list[simpy.Event]) -> Generator[simpy.Event, Any, None]:
            if after:
                yield self.env.all_of(after)
            yield from self._serve(op, cost, index)

        for op, cost, wait in zip(ops, costs, waits, strict=True):
            done.append(self.env.process(one(op, cost, [done[i] for i in wait])))
        yield self.env.all_of(done)

    def _serve(self, op: Op, cost: OpTime, index: int) -> Generator[simpy.Event, Any, None]:
        start = self.env.now
        if op.kind == "random_read" and self.options.per_request:
            for _ in range(op.repeat):
                yield from self.storage.read(op.n_chunks, op.chunk_bytes, op.concurrency)
        else:
            once = ticks(cost.seconds / op.repeat)
            times = op.repeat if self.options.expand else 1
            start = yield from self._server(op).hold(once * op.repeat // times, times)
        if self._intervals is not None:
            self._intervals.append(Interval(int(start), int(self.env.now), op, self._sequence_share(op)))
        if self.options.trace:
            self._trace(op, cost, int(start), index)

    def _server(self, op: Op) -> Server:
        key = (op.on, op.resource, op.place, op.lane)
        server = self.servers.get(key)
        if server is None:
            server = self.servers[key] = Server(self.env)
        return server

    def _sequence_share(self, op: Op) -> float:
        """Return the share of a sequence's time that is communication within it."""
        if not op.parts:
            return 1.0 if op.account == "communication" else 0.0
        known = self._shares.get(id(op.parts))
        if known is None:
            leaves = [(leaf, self.costs.time(leaf).seconds) for part in op.parts for leaf, _ in part.leaves()]
            total = sum(cost for _, cost in leaves)
            sent = sum(cost for leaf, cost in leaves if leaf.account == "communication")
            known = self._shares[id(op.parts)] = sent / total if total else 0.0
        return known

    def _trace(self, op: Op, cost: OpTime, start: int, index: int) -> None:
        track = op.resource if op.on == "host" else f"{op.on} {op.resource}"
        if op.place:
            track += f" {op.place}"
        end = seconds(self.env.now)
        self.trace.append(TraceRow(track=track, name=op.name, start_s=seconds(start), end_s=end, step=index))


def _leaves(ops: Sequence[Op], costs: CostModel) -> list[tuple[Op, OpTime]]:
    """Return the ops that a step executes, those of equal sequences once, with the time that they take in all."""
    times: dict[int, int] = {}
    first: dict[int, Op] = {}
    for op in ops:
        key = id(op.parts) if op.parts else id(op)
        first.setdefault(key, op)
        times[key] = times.get(key, 0) + (op.repeat if op.parts else 1)
    found = []
    for key, op in first.items():
        inner = ((leaf, count) for part in op.parts for leaf, count in part.leaves())
        pairs = inner if op.parts else iter([(op, 1)])
        for leaf, count in pairs:
            repeats = count // leaf.repeat * times[key] if op.parts else times[key]
            found.append((leaf, costs.time(leaf).times(repeats)))
    return found


def _exposed_host(ops: Sequence[Op], costs: Sequence[OpTime], busy_s: float | None) -> float:
    """Return the host's time in a step that the device's work does not hide, in seconds.

    Every place has a host process of its own. Where ops overlap, it also works on while they wait for each other,
    so that all of ``busy_s``, the time of the step, hides it.
    """
    hosts: dict[int, float] = {}
    devices: dict[int, float] = {}
    for op, cost in zip(ops, costs, strict=True):
        if cost.host_s > 0:
            hosts[op.place] = hosts.get(op.place, 0.0) + cost.host_s
            devices[op.place] = devices.get(op.place, 0.0) + cost.seconds
    exposed = (host - (devices[place] if busy_s is None else busy_s) for place, host in hosts.items())
    return max(0.0, max(exposed, default=0.0))


def _reduce(
    phase: Phase,
    step: Step,
    leaves: Sequence[tuple[Op, OpTime]],
    total_s: float,
    hidden: float,
    share: Share | None,
) -> StepResult:
    by_account = dict.fromkeys(ACCOUNTS, 0.0)
    misses: dict[tuple[str, str], Miss] = {}
    counters = {"bytes_read": 0.0, "n_requests": 0.0, **step.counters}
    for op, cost in leaves:
        by_account[op.account] += cost.seconds
        key = (op.account, cost.law)
        misses[key] = _added(misses.get(key, NO_MISS), _miss(cost))
        if op.resource == "storage":
            counters["bytes_read"] += op.bytes_read * op.repeat
            counters["n_requests"] += op.n_chunks * op.repeat
    by_account["compute"] += hidden
    serial = sum(by_account.values())
    # waiting and overlap scale the interval of the total as they scale the total
    scale = total_s / serial if serial > 0 else 1.0
    ends = {account: _ends(seconds, misses, account) for account, seconds in by_account.items()}
    low, high = _ends(serial, misses)
    ends["total"] = (low * scale, high * scale)
    if share is not None:
        by_account, ends = _overlapped(by_account, ends, share, hidden)
        counters |= {f"{name}_s": value * total_s / share.total_s for name, value in share.by_section.items()}
        counters |= {"idle_s": share.idle_s} if share.idle_s else {}
    return StepResult(
        phase=phase.name,
        name=step.name,
        total_s=total_s,
        by_account=by_account,
        low={account: low for account, (low, _) in ends.items()},
        high={account: high for account, (_, high) in ends.items()},
        counters=counters,
    )


def _overlapped(
    busy: Mapping[str, float], ends: Mapping[str, tuple[float, float]], share: Share, hidden: float
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return seconds of the step by account, and their ends, where ops ran at once: each instant counts once."""
    found = {account: share.by_account.get(account, 0.0) for account in busy}
    found["compute"] += hidden
    scales = {account: found[account] / seconds if seconds else 0.0 for account, seconds in busy.items()}
    scaled = {account: (ends[account][0] * scales[account], ends[account][1] * scales[account]) for account in busy}
    return found, scaled | {"total": ends["total"]}


def _miss(cost: OpTime) -> Miss:
    below, above = cost.seconds - cost.low, cost.high - cost.seconds
    shared = cost.seconds * cost.drift_frac
    return below, above, min(below, shared / (1 + cost.drift_frac)), min(above, shared)


def _added(a: Miss, b: Miss) -> Miss:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def _ends(
    seconds: float, misses: Mapping[tuple[str, str], Miss], account: str | None = None
) -> tuple[float, float]:
    """Return the ends of the 90 % interval of a sum of ops, of one account or of all.

    Ops of one law share its error, so that theirs add up, over accounts as well; see `joined` for those of several.
    """
    by_law: dict[str, Miss] = {}
    for (of, law), miss in misses.items():
        if account in (None, of):
            by_law[law] = _added(by_law.get(law, NO_MISS), miss)
    below, above = (joined([(miss[side], miss[2 + side]) for miss in by_law.values()]) for side in (0, 1))
    return seconds - below, seconds + above


def run(plan: Plan, costs: CostModel, options: Options | None = None) -> Run:
    """Run ``plan`` and return its steps, in seconds of simulated time."""
    return Engine(plan, costs, options or Options()).run()


__all__ = ["ACCOUNTS", "Engine", "Options", "Run", "StepResult", "run"]
