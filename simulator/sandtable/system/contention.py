"""How much of the cores other programs took from this one: what its threads waited for, and what the host stole.

Linux counts in nanoseconds how long each thread waited for a core while it could have run (schedstat; Documentation/
scheduler/sched-stats.rst of its sources), and in hundredths of a second what all programs ran, and what a virtual
machine's host took (proc_stat(5)). Elsewhere nothing is known.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# work that lost more than this of the time that it asked for is disturbed
DISTURBED_FRAC = 0.05
# how long to look whether others run, and the part of all cores from which on they disturb
WATCH_S = 0.1
BUSY_FRAC = 0.15
PROC = Path("/proc")
NANO = 1e-9
# columns of the first line of /proc/stat
USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL = 1, 2, 3, 6, 7, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreTime:
    """Seconds since the system or a thread began, of all threads of this process and of its children together.

    Attributes:
        ran_s: They ran.
        waited_s: They could have run, and had no core.
        busy_s: All programs ran, these included.
        stolen_s: A virtual machine's host gave its cores to others.
    """

    ran_s: float
    waited_s: float
    busy_s: float
    stolen_s: float


def core_time() -> CoreTime | None:
    """Return what is counted so far, None where the system does not tell."""
    try:
        columns = (PROC / "stat").read_text().split("\n", 1)[0].split()
        ticks = os.sysconf("SC_CLK_TCK")
        busy, stolen = sum(int(columns[i]) for i in (USER, NICE, SYSTEM, IRQ, SOFTIRQ)), int(columns[STEAL])
        ran = waited = 0
        for thread in _threads(os.getpid()):
            with contextlib.suppress(OSError):  # it ended meanwhile
                times = (thread / "schedstat").read_text().split()
                ran, waited = ran + int(times[0]), waited + int(times[1])
    except (OSError, ValueError, IndexError):
        return None
    return CoreTime(ran_s=ran * NANO, waited_s=waited * NANO, busy_s=busy / ticks, stolen_s=stolen / ticks)


def _threads(process: int) -> Iterator[Path]:
    """Yield the folders of a process's threads and of those of its children, and theirs."""
    with contextlib.suppress(OSError):
        for thread in (PROC / str(process) / "task").iterdir():
            yield thread
            with contextlib.suppress(OSError):
                for child in (thread / "children").read_text().split():
                    yield from _threads(int(child))


def lost_frac(before: CoreTime | None, after: CoreTime | None) -> float:
    """Return which part of the time that our threads asked for went to other programs; 0 where nothing is known.

    Threads of ours that wait for each other lose nothing: no more is lost than others ran meanwhile.
    """
    return 0.0 if before is None or after is None else _share(*_lost_and_ran(before, after))


def _lost_and_ran(before: CoreTime, after: CoreTime) -> tuple[float, float]:
    ran = max(0.0, after.ran_s - before.ran_s)
    others = max(0.0, after.busy_s - before.busy_s - ran)
    lost = min(max(0.0, after.waited_s - before.waited_s), others) + max(0.0, after.stolen_s - before.stolen_s)
    return lost, ran


def _share(lost: float, ran: float) -> float:
    return lost / (lost + ran) if lost > 0.0 else 0.0


class Watch:
    """Adds up, second by second, what work loses whose processes may come and go meanwhile."""

    def __init__(self, every_s: float = 1.0) -> None:
        self._every_s, self._ended = every_s, threading.Event()
        self._lost = self._ran = 0.0
        self._last = core_time()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="contention")

    @property
    def lost_frac(self) -> float | None:
        """Which part of the time that it asked for other programs took; None where the system does not tell."""
        return None if self._last is None else _share(self._lost, self._ran)

    def __enter__(self) -> Watch:
        """Begin."""
        if self._last is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, with what passed since the last look."""
        self._ended.set()
        if self._last is not None:
            self._thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        now = core_time()
        if now is not None and self._last is not None:
            lost, ran = _lost_and_ran(self._last, now)
            self._lost, self._ran, self._last = self._lost + lost, self._ran + ran, now


def wait_for_calm(most_s: float) -> float:
    """Sleep until other programs leave the cores alone, at most about so long; returns for how long, in seconds."""
    begin = time.perf_counter()
    while (left := most_s - (time.perf_counter() - begin)) > 0 and _is_busy(min(WATCH_S, left)):
        pass
    return time.perf_counter() - begin


def _is_busy(watch_s: float) -> bool:
    """Sleep, and return whether others ran on a good part of the cores, or the host did, meanwhile."""
    before, start = core_time(), time.perf_counter()
    if before is None:
        return False
    time.sleep(watch_s)
    after, passed_s = core_time(), time.perf_counter() - start
    assert after is not None
    others = after.busy_s - before.busy_s - (after.ran_s - before.ran_s) + after.stolen_s - before.stolen_s
    return others > BUSY_FRAC * passed_s * (os.cpu_count() or 1)
