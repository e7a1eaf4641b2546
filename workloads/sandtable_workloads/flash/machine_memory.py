"""What of a machine's memory is left for a model, when the system and other programs have theirs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sandtable.hardware import Machine
from sandtable.units import format_bytes
from sandtable.workload.seam import Verdict

GIB: Final = float(1 << 30)
# What Google's Kubernetes Engine keeps of a machine for its system and agents, by size: a quarter of the first 4 GiB,
# a fifth of the next 4, a tenth of the next 8, 6 % of the next 112, 2 % of the rest
# (https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes). On a laptop of 8 GiB that is 1.8 GiB,
# which is what a desktop takes when it idles.
_STEPS: Final = ((4 * GIB, 0.25), (4 * GIB, 0.2), (8 * GIB, 0.1), (112 * GIB, 0.06), (float("inf"), 0.02))
# what llama.cpp leaves free of each device when it chooses what to load (--fit-target, 1024 MiB)
DEVICE_RESERVE_BYTES: Final = GIB


def reserve_of(capacity_bytes: float) -> float:
    """Return the bytes that a system of that size keeps for itself."""
    kept, left = 0.0, capacity_bytes
    for step, share in _STEPS:
        kept += share * min(left, step)
        left -= min(left, step)
    return kept


@dataclass(frozen=True)
class Room:
    """Memory for a model, in bytes: the host's, and that of an accelerator with memory of its own (0 without).

    ``reserve_bytes`` are kept of both together, and ``has_bytes`` is there in all.
    """

    host_bytes: float
    device_bytes: float
    reserve_bytes: float

    @classmethod
    def of(cls, machine: Machine, reserve_bytes: float | None = None) -> Room:
        """Return the room on a machine; ``reserve_bytes`` of the host's memory instead of the usual ones are kept."""
        capacity = machine.memory.datasheet.capacity_bytes
        reserve = min(capacity, reserve_of(capacity) if reserve_bytes is None else reserve_bytes)
        accelerator = machine.accelerator
        if accelerator is None or accelerator.memory.name == machine.memory.name:
            return cls(capacity - reserve, 0.0, reserve)
        own = accelerator.memory.datasheet.capacity_bytes
        kept = min(own, DEVICE_RESERVE_BYTES)
        return cls(capacity - reserve, own - kept, reserve + kept)

    @property
    def free_bytes(self) -> float:
        """What a model may take of both."""
        return self.host_bytes + self.device_bytes

    @property
    def has_bytes(self) -> float:
        """What is there in all."""
        return self.free_bytes + self.reserve_bytes

    def sentence(self, who: str, machine: str, needs: Mapping[str, float]) -> str:
        """Say why what is needed, by kind, does not fit."""
        parts = ", ".join(
            f"{kind} {format_bytes(n)}" for kind, n in sorted(needs.items(), key=lambda item: -item[1])
        )
        return (
            f"{who} needs {format_bytes(sum(needs.values()))} of memory and {machine} has "
            f"{format_bytes(self.has_bytes)} ({parts}), of which {format_bytes(self.reserve_bytes)} are the system's"
        )

    def verdict(self, needs: Mapping[str, float]) -> Verdict:
        """Return whether what is needed, by kind, fits."""
        kinds = list(needs)
        taken = itertools.accumulate(needs.values())
        passed = (kind for kind, total in zip(kinds, taken, strict=True) if total > self.free_bytes)
        return Verdict(
            needed_bytes=sum(needs.values()),
            has_bytes=self.free_bytes,
            largest=max(kinds, key=lambda kind: needs[kind]),
            breaks=next(passed, None),
            reserve_bytes=self.reserve_bytes,
        )
