"""What ops queue for: a storage device that serves request by request, and servers that take one op at a time."""

from __future__ import annotations

from collections.abc import Generator
from heapq import heapreplace
from typing import Any

import simpy

from sandtable.engine.clock import seconds, ticks
from sandtable.model.laws import storage_law as storage_model
from sandtable.model.laws.storage_law import StorageLaw

Waits = Generator[simpy.Event, Any, None]


class StorageServer:
    """A storage device shared by whoever reads from it, one event per request.

    The service law is that of `sandtable.model.laws.storage_law`: the first completion of a batch comes after the
    fill time,
    and completions follow each other at the interval that the law gives for the number of requests then in flight,
    whoever sent them. Requests of a batch are sent as earlier ones complete, ``concurrency`` in flight.
    """

    def __init__(self, env: simpy.Environment, law: StorageLaw) -> None:
        self.env = env
        self.law = law
        self.in_flight = 0
        self._last_completion = 0
        self._intervals: dict[tuple[float, int], int] = {}

    def read(self, n_requests: int, chunk_bytes: float, concurrency: int) -> Waits:
        """Read ``n_requests`` chunks; the process ends with the last completion."""
        if n_requests <= 0:
            return
        env, lanes = self.env, min(concurrency, n_requests)
        self.in_flight += lanes
        fill = ticks(storage_model.fill_s(self.law, chunk_bytes))
        lane = ticks(storage_model.lane_s(self.law, chunk_bytes))
        completions: list[int] = []
        start = int(env.now)
        for index in range(n_requests):
            if index >= lanes:
                yield env.timeout(completions[index - lanes] - env.now)
            completion = int(env.now) + fill
            if index or self._last_completion > env.now:  # an idle device owes no one an interval
                completion = max(completion, self._last_completion + self._interval(chunk_bytes))
            if index == n_requests - 1:
                completion = max(completion, start + lane)
            self._last_completion = completion
            completions.append(completion)
        for completion in completions[-lanes:]:
            yield env.timeout(completion - env.now)
        self.in_flight -= lanes

    def _interval(self, chunk_bytes: float) -> int:
        key = (chunk_bytes, self.in_flight)
        if key not in self._intervals:
            self._intervals[key] = ticks(storage_model.interval_s(self.law, chunk_bytes, self.in_flight))
        return self._intervals[key]


class Server:
    """Serves as many demands at a time as it has slots, first come first served.

    How long a demand takes is known when it comes, so that its end is too: serving it is one event.
    """

    __slots__ = ("_env", "_free_at")

    def __init__(self, env: simpy.Environment, slots: int = 1) -> None:
        self._env = env
        self._free_at = [0] * slots

    def serve(self, duration_s: float) -> simpy.Event:
        """Return what happens when the demand has been served; its value is when that began, in seconds."""
        start, end = self.book(ticks(duration_s))
        return self._env.timeout(end - self._env.now, seconds(start))

    def book(self, duration: int) -> tuple[int, int]:
        """Take the slot that is free first for ``duration`` ticks; return the first tick and the end."""
        now: int = self._env._now  # type: ignore[assignment]
        start = max(now, self._free_at[0])
        heapreplace(self._free_at, start + duration)
        return start, start + duration
