"""Devices that serve whoever asks at the same time: storage, and links between memories.

A load says how long the device takes per unit of it (a request, a byte) with that many requests in flight. Requests in
flight are served in turn, so that a load gets its share of them of what the device does with all of them; on its own it
takes exactly the closed form of its law. Shares are worked out anew only when a load comes or goes, whatever the
number of requests; `RequestByRequest` does the same with an event for each request, and theory tests hold the two, and
the closed form, together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import simpy

from sandtable.demand.op import Op
from sandtable.demand.operator_shapes import RandomReadShape, SequentialReadShape, SequentialWriteShape
from sandtable.engine.clock import TICKS_PER_S, ticks
from sandtable.model.cost_model import CostModel
from sandtable.model.laws import storage_law
from sandtable.model.laws.storage_law import StorageLaw


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one batch asks of a shared device.

    Attributes:
        lanes: Requests that it keeps in flight.
        unit_s: Seconds of the device per unit, with that many requests in flight from all loads together.
        fill: Ticks before the first completion on an idle device, in which others' requests are not served either.
        after_fill: Units that follow the fill.
        n_units: Units in all, for a device whose pipe is full of others' requests.
        alone: Ticks that the batch takes on its own; it never takes less.
    """

    lanes: int
    unit_s: Callable[[int], float]
    fill: int
    after_fill: float
    n_units: float
    alone: int

    def taking(self, alone: int) -> Load:
        """Return the same load of work that takes another time on its own, all of it longer or shorter by as much."""
        if alone == self.alone:
            return self
        if not self.alone:
            return replace(self, alone=alone)
        factor, unit_s = alone / self.alone, self.unit_s
        return replace(self, alone=alone, fill=round(factor * self.fill), unit_s=lambda n: factor * unit_s(n))


@lru_cache(maxsize=4096)
def random_reads(law: StorageLaw, n_requests: int, chunk_bytes: float, concurrency: int) -> Load:
    """Return the load of scattered reads; its units are requests."""
    return Load(
        lanes=max(1, min(concurrency, n_requests)),
        unit_s=partial(_interval_s, law, chunk_bytes),
        fill=ticks(storage_law.fill_s(law, chunk_bytes)),
        after_fill=n_requests - 1,
        n_units=n_requests,
        alone=ticks(storage_law.batch_s(law, n_requests, chunk_bytes, concurrency)),
    )


@lru_cache(maxsize=4096)
def _interval_s(law: StorageLaw, chunk_bytes: float, in_flight: int) -> float:
    return storage_law.interval_s(law, chunk_bytes, in_flight)


@lru_cache(maxsize=4096)
def reads_in_order(law: StorageLaw, n_bytes: float, n_requests: int, concurrency: int) -> Load:
    """Return the load of a sequential read; its units are requests."""
    alone = storage_law.sequential_s(law, n_bytes)
    return _in_order(law, n_bytes / law.sequential_bytes_per_s, alone, n_requests, concurrency)


@lru_cache(maxsize=4096)
def writes_in_order(law: StorageLaw, n_bytes: float, n_requests: int, concurrency: int) -> Load:
    """Return the load of a sequential write; its units are requests."""
    alone = storage_law.sequential_write_s(law, n_bytes)
    return _in_order(law, n_bytes / law.sequential_write_bytes_per_s, alone, n_requests, concurrency)


def _in_order(law: StorageLaw, moving_s: float, alone_s: float, n_requests: int, concurrency: int) -> Load:
    request_s = moving_s / max(1, n_requests)
    return Load(
        lanes=max(1, min(concurrency, n_requests)),
        unit_s=lambda _: request_s,
        fill=ticks(law.first_byte_s),
        after_fill=n_requests,
        n_units=n_requests,
        alone=ticks(alone_s),
    )


def transfer(n_bytes: float, seconds_alone: float, latency_s: float) -> Load:
    """Return the load of moving bytes over a link, of which every transfer at a time gets as many."""
    byte_s = (seconds_alone - latency_s) / n_bytes if n_bytes else 0.0
    return Load(
        lanes=1,
        unit_s=lambda _: byte_s,
        fill=ticks(latency_s),
        after_fill=n_bytes,
        n_units=n_bytes,
        alone=ticks(seconds_alone),
    )


def load_of(op: Op, costs: CostModel) -> Load:
    """Return the load of one execution of an op that a shared device serves."""
    law = costs.storage_law
    if isinstance(op.shape, RandomReadShape):
        return random_reads(law, *op.shape)
    if isinstance(op.shape, SequentialReadShape):
        return reads_in_order(law, op.bytes_read, op.n_requests, op.shape.concurrency)
    if isinstance(op.shape, SequentialWriteShape):
        return writes_in_order(law, op.bytes_written, op.n_requests, op.shape.concurrency)
    # what shares with others without saying how: its bytes, after what it takes with none of them
    alone, empty = (costs.time(replace(op, repeat=1, bytes_read=size)).seconds for size in (op.bytes_read, 0.0))
    return transfer(op.bytes_read or 1.0, alone, empty if empty < alone else 0.0)


def turn_of(loads: Sequence[Load]) -> float:
    """Return the ticks in which the device serves every request in flight once."""
    lanes = sum(load.lanes for load in loads)
    return sum(load.lanes * load.unit_s(lanes) for load in loads) * TICKS_PER_S


@dataclass(slots=True)
class _Batch:
    load: Load
    rounds: int
    done: simpy.Event
    value: object
    start: int = 0  # of this round
    left: float = 0.0  # units of this round
    rate: float = 0.0  # units per tick
    end: int = 0
    undisturbed: bool = False  # alone since the round began


class SharedDevice:
    """Serves all loads at once; a load that is alone takes one event, however many rounds it goes."""

    def __init__(self, env: simpy.Environment, *, expand: bool = False) -> None:
        self._env = env
        self._expand = expand
        self._batches: list[_Batch] = []
        self._ready = 0  # when the pipe is full
        self._since = 0  # up to when `left` is worked out
        self._version = 0

    def serve(self, load: Load, rounds: int = 1, value: object = None) -> simpy.Event:
        """Return what happens when ``rounds`` equal batches, each after the one before, are served."""
        if load.alone <= 0:
            return self._env.timeout(0, value)
        if len(self._batches) == 1 and self._batches[0].undisturbed:
            self._skip_rounds(self._batches[0])
        self._advance()
        batch = _Batch(load, rounds, self._env.event(), value)
        self._batches.append(batch)
        self._begin(batch)
        self._plan()
        return batch.done

    def _begin(self, batch: _Batch) -> None:
        now, load = int(self._env.now), batch.load
        batch.start = now
        batch.undisturbed = len(self._batches) == 1
        batch.left = load.after_fill if batch.undisturbed else load.n_units
        if batch.undisturbed:
            self._ready = now + load.fill

    def _advance(self) -> None:
        """Work out what is left of every batch by now."""
        now = int(self._env.now)
        elapsed = now - max(self._since, self._ready)
        if elapsed > 0:
            for batch in self._batches:
                batch.left = max(0.0, batch.left - batch.rate * elapsed)
        self._since = now

    def _skip_rounds(self, batch: _Batch) -> None:
        """Leave the rounds behind that went by while a batch was alone."""
        rounds = min((int(self._env.now) - batch.start) // batch.load.alone, batch.rounds - 1)
        if rounds > 0:
            batch.rounds -= rounds
            batch.start += rounds * batch.load.alone
            batch.left = batch.load.after_fill
            self._since, self._ready = batch.start, batch.start + batch.load.fill

    def _plan(self) -> None:
        """Share the device among the batches, and wait for the first that ends."""
        self._version += 1
        if not self._batches:
            return
        now, turn = int(self._env.now), turn_of([batch.load for batch in self._batches])
        alone = len(self._batches) == 1
        for batch in self._batches:
            batch.undisturbed = batch.undisturbed and alone
            batch.rate = batch.load.lanes / turn if turn else math.inf
            if batch.undisturbed:
                batch.end = batch.start + batch.load.alone * (1 if self._expand else batch.rounds)
            else:
                # rounded as a duration, so that it does not depend on when it is
                served = max(now, self._ready) + round(batch.left / batch.rate)
                batch.end = max(served, batch.start + batch.load.alone)
        self._wait(min(batch.end for batch in self._batches) - now)

    def _wait(self, duration: int) -> None:
        version = self._version

        def over(_: simpy.Event) -> None:
            if version == self._version:
                self._depart()

        callbacks = self._env.timeout(duration).callbacks
        assert callbacks is not None
        callbacks.append(over)

    def _depart(self) -> None:
        self._advance()
        now = self._env.now
        ended = [batch for batch in self._batches if batch.end <= now]
        for batch in ended:
            batch.rounds -= 1 if self._expand or not batch.undisturbed else batch.rounds
            if not batch.rounds:
                self._batches.remove(batch)
                batch.done.succeed(batch.value)
        for batch in ended:
            if batch.rounds:
                self._begin(batch)
        self._plan()


class RequestByRequest:
    """Serves all loads at once, with an event for each request: what is checked against."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._loads: list[Load] = []
        self._ready = 0
        self._turn = 0.0  # ticks in which every request in flight is served once

    def serve(self, load: Load, rounds: int = 1, value: object = None) -> simpy.Event:
        """Return what happens when ``rounds`` equal batches, each after the one before, are served."""
        return self._env.process(self._rounds(load, rounds, value))

    def _rounds(self, load: Load, rounds: int, value: object) -> Generator[simpy.Event, Any, object]:
        for _ in range(rounds if load.alone > 0 else 0):
            start = int(self._env.now)
            idle = not self._loads
            if idle:
                self._ready = start + load.fill
            self._join(load)
            yield from self._requests(load, load.after_fill if idle else load.n_units)
            yield self._env.timeout(max(0, start + load.alone - int(self._env.now)))
            self._leave(load)
        return value

    def _join(self, load: Load) -> None:
        self._loads.append(load)
        self._turn = turn_of(self._loads)

    def _leave(self, load: Load) -> None:
        self._loads.remove(load)
        self._turn = turn_of(self._loads)

    def _requests(self, load: Load, left: float) -> Generator[simpy.Event, Any, None]:
        env = self._env
        if self._ready > env.now:
            yield env.timeout(self._ready - env.now)
        while left > 0:
            yield env.timeout(round(min(1.0, left) * self._turn / load.lanes))
            left -= 1
