"""The engine's clock: whole picoseconds, so that sums do not drift and ties break the same way everywhere."""

from __future__ import annotations

from typing import Final

TICKS_PER_S: Final = 1_000_000_000_000


def ticks(seconds: float) -> int:
    """Convert seconds to the nearest tick, never negative."""
    return max(0, round(seconds * TICKS_PER_S))


def seconds(n_ticks: float) -> float:
    """Convert ticks to seconds."""
    return n_ticks / TICKS_PER_S
