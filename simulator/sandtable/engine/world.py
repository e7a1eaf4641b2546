"""What a process sees while it runs: resources that serve it, a clock, memory, chance, and a place to report to.

Everything that a `World` gives to wait for is an event, to be yielded::

    def body(world: World) -> Body:
        start_s = yield world.serve(op)                       # when the service began
        yield world.all_of([world.serve(a), world.serve(b)])  # side by side
        yield world.sleep(0.5)
        seconds = yield world.spawn(other_plan)
        world.record("request", start_s, counters={"tokens": 7})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from sandtable.demand.op import Op
from sandtable.demand.plan import Plan
from sandtable.engine.clock import seconds, ticks
from sandtable.engine.ledger import Ledger, leaves_of
from sandtable.engine.memory_pool import MemoryPool, capacity_bytes
from sandtable.engine.plan_process import process_of
from sandtable.engine.process import Body, Process
from sandtable.engine.recorder import LATENCY, NOTHING, Recorder
from sandtable.engine.resources import Server
from sandtable.engine.sharing import RequestByRequest, SharedDevice, load_of
from sandtable.model.cost_model import CostModel, OpTime
from sandtable.results import TraceRow

# how many different ops are kept at hand; a process that makes new ones all the time does not fill the memory
MOST_KNOWN = 4096
# resources that serve all who ask at once
SHARED = ("storage", "link")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run: request by request, without shortcuts, with a timeline.

    ``scale`` multiplies the time of every op: what the ends of an interval are found with.
    """

    per_request: bool = False
    expand: bool = False
    trace: bool = False
    scale: float = 1.0


@dataclass(slots=True)
class _Known:
    """An op that was served before: its time, and how often it was served since it was last booked.

    ``server`` is who serves it, and for how many ``ticks``, where nothing else is to be done for it.
    """

    op: Op
    seconds: float
    n: int = 0
    server: Server | None = None
    ticks: int = 0


class World:
    """One run.

    Attributes:
        env: The SimPy environment, for whatever this class does not offer; its clock counts picoseconds.
        memory: What the run holds; see `MemoryPool.take` and `MemoryPool.give`.
        rng: The only source of chance, seeded.
        recorder: Units of work recorded so far.
        ledger: Time that ops took so far.
        lone_plan: Whether the run is that of one plan, with which nothing else contends.
    """

    def __init__(
        self,
        costs: CostModel,
        options: Options | None = None,
        *,
        seed: int = 0,
        workload: str = "this run",
        lone_plan: bool = False,
    ) -> None:
        self.env = simpy.Environment()
        self.costs = costs
        self.options = options or Options()
        self.rng = np.random.default_rng(seed)
        machine = costs.machine
        self.memory = MemoryPool(self.env, capacity_bytes(machine), machine=machine.name, workload=workload)
        self.recorder = Recorder()
        self.ledger = Ledger()
        self.lone_plan = lone_plan
        self.trace: list[TraceRow] = []
        self._devices: dict[str, SharedDevice | RequestByRequest] = {}
        self._servers: dict[tuple[str, str, int, str], Server] = {}
        self._known: dict[int, _Known] = {}

    # --- time ---

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        return seconds(self.env.now)

    def sleep(self, duration_s: float) -> simpy.Event:
        """Wait for a time."""
        return self.env.timeout(ticks(duration_s))

    def all_of(self, events: Iterable[simpy.Event]) -> simpy.Event:
        """Wait for all of several."""
        return self.env.all_of(list(events))

    def any_of(self, events: Iterable[simpy.Event]) -> simpy.Event:
        """Wait for the first of several."""
        return self.env.any_of(list(events))

    def event(self) -> simpy.Event:
        """Return an event that whoever knows makes happen, with ``event.succeed(value)``."""
        return self.env.event()

    def spawn(self, work: Plan | Process | Body) -> simpy.Event:
        """Start a plan, a process or a generator beside this one; its value is the seconds that it took.

        The value of a generator is what it returns. A plan's or process's memory is held while it runs, and its units
        are recorded with the rest.
        """
        if isinstance(work, Plan):
            work = process_of(work)
        return self.env.process(self._whole(work) if isinstance(work, Process) else work)

    def _whole(self, process: Process) -> Body:
        start = self.now
        self.memory.take_all(process.memory_bytes)
        yield from process.body(self)
        for kind, n_bytes in process.memory_bytes.items():
            self.memory.give(kind, n_bytes)
        return self.now - start

    # --- resources ---

    def serve(self, op: Op) -> simpy.Event:
        """Have an op done by the resource that its kind needs; the value is when its service began, in seconds.

        Ops queue for processors, memory and the network, first come first served. Storage and the link to an
        accelerator serve all ops at once, each more slowly. Where the host issues work ahead, an op takes as long as
        issuing it, or doing it, whichever is longer.
        """
        known = self._known.get(id(op))
        if known is None:
            known = self._first(op)
        known.n += 1
        if known.server is not None:
            return known.server.hold(known.ticks)
        start, event = self.request(op, known.seconds)
        if self.options.trace:
            self._note_when(event, op, start)
        return event

    def _note_when(self, event: simpy.Event, op: Op, start: int) -> None:
        assert event.callbacks is not None
        event.callbacks.append(lambda _: self.note(op, start, len(self.recorder)))

    def request(self, op: Op, seconds_alone: float) -> tuple[int, simpy.Event]:
        """Return the tick at which an op's service begins, and what happens when it ends; nothing is booked."""
        now = int(self.env.now)
        once = ticks(seconds_alone / op.repeat)
        if op.resource in SHARED:
            load = load_of(op, self.costs).taking(once)
            return now, self._shared(op.resource).serve(load, op.repeat, seconds(now))
        start, end = self.server_of(op).book(once * op.repeat)
        if self.options.expand:
            return start, self.env.process(self._one_by_one(start, once, op.repeat))
        return start, self.env.timeout(end - now, seconds(start))

    def _one_by_one(self, start: int, once: int, times: int) -> Body:
        for duration in (start - int(self.env.now), *(once,) * times):
            yield self.env.timeout(duration)
        return seconds(start)

    def _shared(self, resource: str) -> SharedDevice | RequestByRequest:
        device = self._devices.get(resource)
        if device is None:
            by_request = self.options.per_request and resource == "storage"
            shared = SharedDevice(self.env, expand=self.options.expand)
            device = self._devices[resource] = RequestByRequest(self.env) if by_request else shared
        return device

    def _first(self, op: Op) -> _Known:
        if len(self._known) >= MOST_KNOWN:
            self.settle()
        cost, options = self.time(op), self.options
        known = _Known(op, max(cost.seconds, cost.host_s))
        if op.resource not in SHARED and not options.trace and not options.expand:
            known.server, known.ticks = self.server_of(op), ticks(known.seconds / op.repeat) * op.repeat
        self._known[id(op)] = known
        return known

    def settle(self) -> None:
        """Book what was served into the ledger."""
        for known in self._known.values():
            for leaf, cost in leaves_of([known.op], self.time) if known.n else ():
                self.ledger.add(leaf, cost, known.n)
        self._known.clear()

    def time(self, op: Op) -> OpTime:
        """Return what an op takes when nothing else uses its resource."""
        cost = self.costs.time(op)
        return cost if self.options.scale == 1 else cost.times(self.options.scale)

    def server_of(self, op: Op) -> Server:
        """Return the server that does ops of this kind, one at a time."""
        key = (op.on, op.resource, op.device, op.stream)
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = Server(self.env)
        return server

    def server(self, slots: int = 1) -> Server:
        """Return a server of a process's own, for demands whose time is known when they come."""
        return Server(self.env, slots)

    def slots(self, n: int) -> simpy.Resource:
        """Return ``n`` slots to hold for as long as it takes: ``with slots.request() as turn: yield turn; ...``."""
        return simpy.Resource(self.env, n)

    # --- reports ---

    def record(
        self,
        unit: str,
        start_s: float,
        end_s: float | None = None,
        *,
        counters: Mapping[str, float] = NOTHING,
        name: str = "",
    ) -> None:
        """Record a unit of work that began at ``start_s`` and has just ended, or did at ``end_s``.

        ``counters`` are reported like its latency: ``wait_s`` a time, ``tokens`` a number of them.
        """
        row: dict[str, Any] = {LATENCY: (self.now if end_s is None else end_s) - start_s, **counters}
        self.recorder.record(unit, row, start_s=start_s, name=name)

    def note(self, op: Op, start: int, step: int) -> None:
        """Add a slice to the timeline, from a tick until now."""
        track = op.resource if op.on == "host" else f"{op.on} {op.resource}"
        if op.device:
            track += f" {op.device}"
        row = TraceRow(track=track, name=op.name, start_s=seconds(start), end_s=self.now, step=step)
        self.trace.append(row)
