"""What ops queue for one at a time: processors, memory, streams of communication, and queues of a process's own."""

from __future__ import annotations

from heapq import heapreplace

import simpy

from sandtable.engine.clock import seconds, ticks


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
