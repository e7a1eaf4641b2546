"""A plan as a process: every op waits for what it depends on, then for its resource.

Where nothing else runs, equal steps in a row, and ops in a row, are advanced in one event; `Options.expand` turns that
off and must not change any result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import simpy

from sandtable.demand.op import Op
from sandtable.demand.plan import Phase, Plan, Reported, Step
from sandtable.engine.attribution import Interval, Share, attribute
from sandtable.engine.clock import seconds, ticks
from sandtable.engine.ledger import ALL_EXPOSED, NO_MISS, Miss, added, ends_of, leaves_of, miss_of
from sandtable.engine.process import Body, Process
from sandtable.engine.recorder import ACCOUNTS, LATENCY
from sandtable.model.cost_model import OpTime

if TYPE_CHECKING:
    from sandtable.engine.world import World


def process_of(plan: Plan) -> Process:
    """Return the process that carries a plan out, and reports a unit for each of its steps."""
    shared = {field.name: getattr(plan, field.name) for field in fields(Reported)}
    return Process(
        **shared,
        body=lambda world: _Player(plan, world).body(),
        main_unit=plan.main_phase,
        phases=tuple(phase.name for phase in plan.phases),
    )


class _Player:
    """One run of one plan."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan = plan
        self.world = world
        self.env = world.env
        self._intervals: list[Interval] | None = None
        self._shares: dict[int, float] = {}
        # nothing else can come between equal steps, or ops in a row
        self._at_once = world.lone_plan and not world.options.expand
        self._unwatched = self._at_once and not world.options.per_request and not world.options.trace

    def body(self) -> Body:
        self.world.costs.prepare(self.plan.different_ops())
        for phase in self.plan.phases:
            for step, times in self._expanded(phase):
                start = self.env.now
                yield from self._step(phase, step, times)
                if times > 1:
                    yield self.env.timeout((self.env.now - start) * (times - 1))

    def _expanded(self, phase: Phase) -> Iterator[tuple[Step, int]]:
        for step in phase.steps:
            if not self._at_once:
                yield from ((step, 1) for _ in range(step.repeat))
            else:
                yield step, step.repeat

    def _step(self, phase: Phase, step: Step, times: int) -> Body:
        start = self.env.now
        index = len(self.world.recorder)
        waits = list(step.dependencies())
        costs = [self.world.time(op) for op in step.ops]
        leaves = leaves_of(step.ops, self.world.time)
        chained = all(wait == ((i - 1,) if i else ()) for i, wait in enumerate(waits))
        # a step that names its sections also reports what each instant was spent on
        self._intervals = [] if any(op.section for op in step.ops) else None
        if chained and self._unwatched and self._intervals is None:
            spent = (ticks(cost.seconds / op.repeat) * op.repeat for op, cost in zip(step.ops, costs, strict=True))
            yield self.env.timeout(sum(spent))
        elif chained:
            for op, cost in zip(step.ops, costs, strict=True):
                yield from self._serve(op, cost, index)
        else:
            yield from self._graph(step.ops, costs, waits, index)
        busy_s = None if chained else seconds(self.env.now - start)
        hidden = 0.0 if step.host_stated else _exposed_host(step.ops, costs, busy_s)
        share = None if self._intervals is None else attribute(self._intervals, int(start), int(self.env.now))
        self._intervals = None
        if hidden:
            yield self.env.timeout(ticks(hidden))
        end = self.env.now
        row, low, high = _reduced(step, leaves, seconds(end - start), hidden, share)
        self.world.recorder.record(
            phase.name, row, name=step.name, start_s=seconds(start), low=low, high=high, times=times
        )
        exposed = ALL_EXPOSED if share is None else _exposed_frac(leaves, row)
        for op, cost in leaves:
            self.world.ledger.add(op, cost, times, unit=phase.name, exposed=exposed)

    def _graph(
        self, ops: Sequence[Op], costs: Sequence[OpTime], waits: Sequence[tuple[int, ...]], index: int
    ) -> Body:
        done: list[simpy.Event] = []

        def one(op: Op, cost: OpTime, after: list[simpy.Event]) -> Body:
            if after:
                yield self.env.all_of(after)
            yield from self._serve(op, cost, index)

        for op, cost, wait in zip(ops, costs, waits, strict=True):
            done.append(self.env.process(one(op, cost, [done[i] for i in wait])))
        yield self.env.all_of(done)

    def _serve(self, op: Op, cost: OpTime, index: int) -> Body:
        start, done = self.world.request(op, cost.seconds)
        yield done
        if self._intervals is not None:
            self._intervals.append(Interval(start, int(self.env.now), op, self._sequence_share(op)))
        if self.world.options.trace:
            self.world.note(op, start, index)

    def _sequence_share(self, op: Op) -> float:
        """Return the share of a sequence's time that is communication within it."""
        if not op.parts:
            return 1.0 if op.account == "communication" else 0.0
        known = self._shares.get(id(op.parts))
        if known is None:
            leaves = [(leaf, self.world.time(leaf).seconds) for part in op.parts for leaf, _ in part.leaves()]
            total = sum(cost for _, cost in leaves)
            sent = sum(cost for leaf, cost in leaves if leaf.account == "communication")
            known = self._shares[id(op.parts)] = sent / total if total else 0.0
        return known


def _exposed_host(ops: Sequence[Op], costs: Sequence[OpTime], busy_s: float | None) -> float:
    """Return the host's time in a step that the device's work does not hide, in seconds.

    Every queue of a device has a host process of its own. Where ops overlap, it also works on while they wait for each
    other, so that all of ``busy_s``, the time of the step, hides it.
    """
    hosts: dict[tuple[int, str], float] = {}
    working: dict[tuple[int, str], float] = {}
    for op, cost in zip(ops, costs, strict=True):
        if cost.host_s > 0:
            queue = op.device, op.stream
            hosts[queue] = hosts.get(queue, 0.0) + cost.host_s
            working[queue] = working.get(queue, 0.0) + cost.seconds
    exposed = (host - (working[queue] if busy_s is None else busy_s) for queue, host in hosts.items())
    return max(0.0, max(exposed, default=0.0))


Row = dict[str, float]


def _reduced(
    step: Step, leaves: Sequence[tuple[Op, OpTime]], total_s: float, hidden: float, share: Share | None
) -> tuple[Row, Row, Row]:
    """Return what is recorded of a step: its quantities, and the low and high ends of those that are times."""
    by_account = dict.fromkeys(ACCOUNTS, 0.0)
    misses: dict[tuple[str, str], Miss] = {}
    counters = {"bytes_read": 0.0, "n_requests": 0.0, **step.counters}
    for op, cost in leaves:
        by_account[op.account] += cost.seconds
        key = (op.account, cost.law)
        misses[key] = added(misses.get(key, NO_MISS), miss_of(cost))
        if op.resource == "storage":
            counters["bytes_read"] += op.bytes_read * op.repeat
            counters["n_requests"] += op.n_requests * op.repeat
    by_account["compute"] += hidden
    serial = sum(by_account.values())
    # waiting and overlap scale the interval of the total as they scale the total
    scale = total_s / serial if serial > 0 else 1.0
    ends = {account: ends_of(seconds, misses, account) for account, seconds in by_account.items()}
    low, high = ends_of(serial, misses)
    if share is not None:
        by_account, ends = _overlapped(by_account, ends, share, hidden)
        counters |= {f"{name}_s": value * total_s / share.total_s for name, value in share.by_section.items()}
        counters |= {"idle_s": share.idle_s} if share.idle_s else {}
    timed = {f"{account}_s": value for account, value in by_account.items()}
    row = {LATENCY: total_s, **timed, **counters}

    def side(end: float, index: int) -> Row:
        own = {f"{account}_s": pair[index] for account, pair in ends.items()}
        # parts of a step are as uncertain as the step: the same ops, the same laws
        return {LATENCY: end, **own, **_scaled(counters, end / total_s if total_s else 1.0)}

    return row, side(low * scale, 0), side(high * scale, 1)


def _scaled(counters: Row, factor: float) -> Row:
    return {name: value * factor for name, value in counters.items() if name.endswith("_s")}


def _exposed_frac(leaves: Sequence[tuple[Op, OpTime]], row: Row) -> dict[str, float]:
    """Return what is left of the ops of each account where they hide behind each other, as a part of their time."""
    busy = dict.fromkeys(ACCOUNTS, 0.0)
    for op, cost in leaves:
        busy[op.account] += cost.seconds
    return {account: row[f"{account}_s"] / seconds for account, seconds in busy.items() if seconds}


def _overlapped(
    busy: Mapping[str, float], ends: Mapping[str, tuple[float, float]], share: Share, hidden: float
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return seconds of the step by account, and their ends, where ops ran at once: each instant counts once."""
    found = {account: share.by_account.get(account, 0.0) for account in busy}
    found["compute"] += hidden
    scales = {account: found[account] / seconds if seconds else 0.0 for account, seconds in busy.items()}
    return found, {
        account: (low * scales[account], high * scales[account]) for account, (low, high) in ends.items()
    }
