"""Memory that a run holds: by kind, with its peaks, and never more than the machine has."""

from __future__ import annotations

from collections.abc import Mapping

import simpy

from sandtable import units
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine


def capacity_bytes(machine: Machine) -> float:
    """Return the bytes that a machine holds: its own memory and that of one accelerator, once if they are the same."""
    own = machine.memory.datasheet.capacity_bytes
    if machine.accelerator is None or machine.accelerator.memory.name == machine.memory.name:
        return own
    return own + machine.accelerator.memory.datasheet.capacity_bytes


class MemoryPool:
    """Bytes held by kind.

    Attributes:
        held: Bytes by kind, now.
        peak: The most that each kind ever held, in bytes.
        peak_bytes: The most that all kinds held at once.
    """

    def __init__(self, env: simpy.Environment, capacity_bytes: float, *, machine: str, workload: str) -> None:
        self.env = env
        self.capacity_bytes = capacity_bytes
        self.held: dict[str, float] = {}
        self.peak: dict[str, float] = {}
        self.peak_bytes = 0.0
        self._words = workload, machine
        self._waiting: list[tuple[simpy.Event, dict[str, float]]] = []

    @property
    def free_bytes(self) -> float:
        """What may still be taken."""
        return self.capacity_bytes - sum(self.held.values())

    def take(self, kind: str, n_bytes: float, *, wait: bool = False) -> simpy.Event:
        """Take memory; the event that comes back has happened already, unless ``wait`` has to.

        Raises:
            DoesNotFit: there is not that much left, or not even with ``wait`` when all else is given back.
        """
        return self.take_all({kind: n_bytes}, wait=wait)

    def take_all(self, sizes: Mapping[str, float], *, wait: bool = False) -> simpy.Event:
        """Take several kinds at once, all of them or none; see `take`."""
        event, fits = self.env.event(), self._fits(sizes)
        if fits and not (wait and self._waiting):
            self._hold(sizes)
            return event.succeed()
        if not wait or sum(sizes.values()) > self.capacity_bytes:
            raise DoesNotFit(self._sentence(sizes))
        self._waiting.append((event, dict(sizes)))
        return event

    def give(self, kind: str, n_bytes: float) -> None:
        """Give memory back; whoever waits for it takes it, first come first served."""
        self.held[kind] -= n_bytes
        while self._waiting and self._fits(self._waiting[0][1]):
            event, sizes = self._waiting.pop(0)
            self._hold(sizes)
            event.succeed()

    def _fits(self, sizes: Mapping[str, float]) -> bool:
        return sum(self._with(sizes).values()) <= self.capacity_bytes

    def _with(self, sizes: Mapping[str, float]) -> dict[str, float]:
        return self.held | {kind: self.held.get(kind, 0.0) + size for kind, size in sizes.items()}

    def _hold(self, sizes: Mapping[str, float]) -> None:
        self.held = self._with(sizes)
        for kind in sizes:
            self.peak[kind] = max(self.peak.get(kind, 0.0), self.held[kind])
        self.peak_bytes = max(self.peak_bytes, sum(self.held.values()))

    def _sentence(self, sizes: Mapping[str, float]) -> str:
        wanted = self._with(sizes)
        parts = ", ".join(
            f"{kind} {units.format_bytes(size)}" for kind, size in sorted(wanted.items(), key=lambda i: -i[1])
        )
        workload, machine = self._words
        return (
            f"{workload} needs {units.format_bytes(sum(wanted.values()))} of memory and {machine} has "
            f"{units.format_bytes(self.capacity_bytes)} ({parts})"
        )
