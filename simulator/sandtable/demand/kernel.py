"""The seam by which a real operation states its demand, runs, and shows what is right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sandtable import plugins
from sandtable.demand.op import Op

Dims = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class KernelContext:
    """Where a kernel may work: a folder for files of its own, a seed, and how many threads it may use."""

    folder: Path
    seed: int = 0
    n_threads: int = 1
    file_bytes: int = 1 << 30


class Calls(list[float]):
    """Seconds of each call, from a kernel that knows which part of the time it asked for other programs took.

    ``begin_s`` is when it timed them, by `time.perf_counter`.
    """

    def __init__(self, seconds: Iterable[float], lost_frac: float, begin_s: float) -> None:
        super().__init__(seconds)
        self.lost_frac, self.begin_s = lost_frac, begin_s


class Kernel(ABC):
    """One real operation: what it costs, what it does, and what is right.

    ``name`` is unique. ``calibrates`` names the part of the machine whose law its timings fit: storage, memory or
    compute; or the name of a group of operators that are calibrated together, such as training, whose demands have
    a shape that a fitted law reads. None keeps it out of calibration. ``software`` is whose operator it times,
    where its demand has a shape that an operator's law reads; None for one that belongs to no software: its
    constants go under ``own``. ``once`` is for kernels that need a fresh file for every point: they are measured
    in the first pass only. ``needs`` are packages without which nothing of it can be timed.
    """

    name: ClassVar[str]
    calibrates: ClassVar[str | None] = None
    once: ClassVar[bool] = False
    software: ClassVar[str | None] = None
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Return the points at which calibration measures this kernel."""

    def probes(self) -> Sequence[Dims]:
        """Return the points of a short re-probe of the machine, together under half a second; none by default."""
        return ()

    def timings(self, dims: Dims, context: KernelContext, *, repeats: int, budget_s: float) -> list[float] | None:
        """Time this kernel in its own way and return seconds per call; None lets the caller time `prepare`.

        `Calls` also say what others took of the time, where that is not what the caller sees of this visit.
        """
        return None

    def software_of(self, dims: Dims) -> str | None:
        """Return whose operator a point times, for kernels of which not all points are of one `software`."""
        return self.software

    @abstractmethod
    def cost(self, dims: Dims) -> Op:
        """Return the demand of one call."""

    @abstractmethod
    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Set up buffers and files, and give the call that is timed; clean up on exit."""

    @abstractmethod
    def example(self) -> Dims:
        """Return small dims at which `run` and `reference` can be compared."""

    @abstractmethod
    def run(self, dims: Dims, context: KernelContext) -> np.ndarray[Any, Any]:
        """Execute the fast path once on seeded data and return its result."""

    @abstractmethod
    def reference(self, dims: Dims, context: KernelContext) -> np.ndarray[Any, Any]:
        """Compute the same result plainly in NumPy."""


@lru_cache(maxsize=1)
def kernels() -> dict[str, Kernel]:
    """Return every kernel of every installed package by name."""
    return plugins.instances(Kernel)  # type: ignore[type-abstract]
