"""What ops queue for one at a time: processors, memory, streams of communication, and queues of a process's own."""

from __future__ import annotations

from heapq import heapreplace

import simpy

from sandtable.engine.clock import TICKS_PER_S, ticks


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
        return self.hold(ticks(duration_s))

    def hold(self, duration: int) -> simpy.Event:
        """Return the same for a demand of so many ticks."""
        # written out: this runs once per op of a simulation
        env, free_at = self._env, self._free_at
        now: int = env._now  # type: ignore[assignment]
        start = free_at[0]
        start = max(start, now)
        end = start + duration
        if len(free_at) == 1:
            free_at[0] = end
        else:
            heapreplace(free_at, end)
        return simpy.Timeout(env, end - now, start / TICKS_PER_S)

    def book(self, duration: int) -> tuple[int, int]:
        """Take the slot that is free first for ``duration`` ticks; return the first tick and the end."""
        start = max(int(self._env.now), self._free_at[0])
        heapreplace(self._free_at, start + duration)
        return start, start + duration
