"""Energy that a run really took, from the counters of its hardware.

GPUs count their joules since the driver was loaded (NVML, nvmlDeviceGetTotalEnergyConsumption); those that do not are
asked for their power, which is summed over time. Processors count microjoules in the files of Linux's powercap (the
kernel's Documentation/power/powercap/powercap.rst, "intel-rapl", AMD's included), which often only root may read, and
which start again at ``max_energy_range_uj``. Where nothing can be read, nothing was measured.
"""

from __future__ import annotations

import re
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from sandtable.hardware import Machine
from sandtable.runs.nvml import GpuSample, open_nvml

POWERCAP = Path("/sys/class/powercap")
# of the zones of a package, those that its own counter leaves out; core and uncore are parts of it
COUNTED_ZONES = re.compile(r"package-\d+(-die-\d+)?|dram")
SAMPLE_S = 0.1
# a stretch of time is believed if its ends, which lie between two samples, are a small part of it
FEWEST_SAMPLES = 10


class Counter(Protocol):
    """A counter of energy."""

    def joules(self) -> float | None:
        """Return the energy since some moment in the past; None where it cannot be read."""
        ...


@dataclass(slots=True)
class RaplCounter:
    """One zone of powercap, such as a processor's package."""

    folder: Path
    _last_uj: int | None = None
    _wrapped_uj: int = 0

    def joules(self) -> float | None:
        """Return the energy since it was first read, however often the counter began again since the read before."""
        now = _read_uj(self.folder / "energy_uj")
        if now is None:
            return None
        if self._last_uj is not None and now < self._last_uj:
            self._wrapped_uj += _read_uj(self.folder / "max_energy_range_uj") or 0
        self._last_uj = now
        return (now + self._wrapped_uj) / 1e6


def _read_uj(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


@dataclass(slots=True)
class GpuCounter:
    """One GPU: its own counter, or its power summed over time (trapezoids between two looks)."""

    look: Callable[[], GpuSample]
    clock: Callable[[], float] = time.perf_counter
    _before: tuple[float, float] | None = None
    _summed_j: float = 0.0

    def joules(self) -> float | None:
        """Return the energy since the driver was loaded, or since it was first read."""
        seen, now = self.look(), self.clock()
        if seen.energy_j is not None or seen.power_w is None:
            return seen.energy_j
        if self._before is not None:
            then, power_w = self._before
            self._summed_j += (now - then) * (power_w + seen.power_w) / 2
        self._before = (now, seen.power_w)
        return self._summed_j


@dataclass(slots=True)
class EnergyMeter:
    """Counters read every tenth of a second, and the clock at which they were; ``covers`` says what they count.

    Times are those of `time.perf_counter`, which all processes of a Linux machine share.
    """

    counters: Sequence[Counter]
    covers: str
    clock: Callable[[], float] = time.perf_counter
    _times: array[float] = field(default_factory=lambda: array("d"))
    _joules: array[float] = field(default_factory=lambda: array("d"))

    def sample(self) -> None:
        """Read all counters; one that cannot be read leaves the whole sample out."""
        read = [counter.joules() for counter in self.counters]
        known = [joules for joules in read if joules is not None]
        if known and len(known) == len(read):
            self._times.append(self.clock())
            self._joules.append(sum(known))

    def joules(self, begin_s: float, end_s: float) -> float | None:
        """Return the energy between two moments; None where the samples do not span them, or are too few."""
        times, joules = np.asarray(self._times), np.asarray(self._joules)
        inside = int(np.count_nonzero((times >= begin_s) & (times <= end_s)))
        if inside < FEWEST_SAMPLES or begin_s < times[0] or end_s > times[-1]:
            return None
        first, last = np.interp([begin_s, end_s], times, joules)
        return float(last - first)


@contextmanager
def metered(meter: EnergyMeter, every_s: float = SAMPLE_S) -> Iterator[EnergyMeter]:
    """Sample a meter while inside, and once more when left; one without counters costs nothing."""
    if not meter.counters:
        yield meter
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            meter.sample()

    meter.sample()
    watcher = threading.Thread(target=watch, name="energy", daemon=True)
    watcher.start()
    try:
        yield meter
    finally:
        ended.set()
        watcher.join()
        meter.sample()


def meter_of(machine: Machine, powercap: Path = POWERCAP) -> EnergyMeter:
    """Return a meter of what computes on a machine: its GPUs, or its processors where it has none."""
    if machine.accelerator is not None:
        gpus = _gpus()
        return EnergyMeter(counters=gpus, covers=f"{len(gpus)} GPUs, all of this machine (NVML)" if gpus else "")
    zones = rapl_counters(powercap)
    names = ", ".join(_zone_name(zone.folder) for zone in zones)
    return EnergyMeter(counters=zones, covers=f"processors: {names} (RAPL)" if zones else "")


def _gpus() -> list[GpuCounter]:
    nvml = open_nvml()
    if nvml is None:
        return []
    handles = [handle for handle in map(nvml.handle, range(nvml.n)) if handle is not None]
    return [GpuCounter(lambda handle=handle: nvml.sample(handle)) for handle in handles]  # type: ignore[misc]


def rapl_counters(powercap: Path = POWERCAP) -> list[RaplCounter]:
    """Return the counters of all packages and of memory beside them; none if one of them may not be read."""
    folders = sorted(powercap.glob("intel-rapl:*"))
    zones = [RaplCounter(folder) for folder in folders if COUNTED_ZONES.fullmatch(_zone_name(folder))]
    return zones if all(zone.joules() is not None for zone in zones) else []


def _zone_name(folder: Path) -> str:
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return ""
