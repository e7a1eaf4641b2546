"""Instruments that a package with kernels may bring along, found like the kernels themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from sandtable import plugins
from sandtable.demand.kernel import Dims, Kernel
from sandtable.errors import NoDevice


class GpuTimer(ABC):
    """Times kernels on the GPUs of this machine; making one raises NoDevice where there is none that it can use."""

    name: ClassVar[str]

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return ``gpus``, what the framework tells and ``bus`` for each, and ``software``, versions by name."""

    @abstractmethod
    def time(self, kernel: Kernel, dims: Dims, *, repeats: int, budget_s: float) -> list[float]:
        """Return seconds per call.

        Raises:
            DoesNotFit, NoDevice: this GPU cannot do this point.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the GPUs go."""


class StorageCrossCheck(ABC):
    """Another program that measures storage, as a second opinion on a calibration."""

    name: ClassVar[str]

    @abstractmethod
    def bytes_per_s(self, path: Path, points: Sequence[tuple[int, int]], runtime_s: float) -> list[float]:
        """Return the rate of random reads of an existing file at each point: chunk size in bytes, requests in flight.

        Raises:
            NoDevice: the program is not installed.
            MeasureError: it failed.
        """


def gpu_timer() -> GpuTimer:
    """Return the timer of an installed package.

    Raises:
        NoDevice: no package has one, or this machine has no GPU that it can use.
    """
    for kind in plugins.classes(GpuTimer).values():  # type: ignore[type-abstract]
        return kind()  # pyright: ignore[reportAbstractUsage]
    raise NoDevice("no installed package of kernels can time a GPU")


def storage_cross_check() -> StorageCrossCheck:
    """Return the second opinion of an installed package.

    Raises:
        NoDevice: no package has one.
    """
    for kind in plugins.classes(StorageCrossCheck).values():  # type: ignore[type-abstract]
        return kind()  # pyright: ignore[reportAbstractUsage]
    raise NoDevice("no installed package of kernels can measure storage with another program")
