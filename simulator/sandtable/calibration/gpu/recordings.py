"""Time a machine's GPUs, and keep what was seen in a file that anybody can calibrate from again.

What times and what is read are behind one interface, `Gpus`: `LiveGpus` asks the GPUs of this machine, through the
kernels that an installed package offers and through NVML; `RecordedGpus` answers from a recording. A recording is
JSON: the GPUs and their software, samples of power and clocks, and seconds for every point.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field

from sandtable import yaml_files
from sandtable.demand.instruments import gpu_timer
from sandtable.demand.kernel import Dims, Kernel, kernels
from sandtable.errors import CalibrationError, ConfigError, DoesNotFit, MeasureError, NoDevice
from sandtable.hardware import Frozen
from sandtable.runs.nvml import GpuFacts, GpuSample, open_nvml
from sandtable.system import checksums
from sandtable.text_files import parse_json, read_text
from sandtable.workload.progress import Step

PART = "gpu"
FRAMEWORK = "torch"
IDLE, BUSY = "idle", "busy"
IDLE_S = 2.0
REPEATS = 12
QUICK_POINT_S, FULL_POINT_S = 0.25, 1.0
QUICK_BUSY_S, FULL_BUSY_S = 5.0, 20.0
# of the samples of sustained work, a recording keeps about so many
MOST_BUSY = 50


# --- recordings --------------------------------------------------------------------------------------------


class Gpu(Frozen):
    """One GPU: what the framework sees of it, and what NVML adds."""

    name: str
    units: int = Field(ge=1)
    memory_bytes: float = Field(gt=0)
    cache_bytes: float | None = None
    capability: str = ""
    facts: GpuFacts | None = None


class RecordedPoint(Frozen):
    """A row of the file: seconds per call of one point of a kernel's grid, or why it was left out."""

    kernel: str
    dims: dict[str, Any]
    seconds: tuple[float, ...] = ()
    skipped: str | None = None


class Recording(Frozen):
    """All that calibration needs to know of a machine's GPUs.

    ``generated`` says how the seconds were made up, for a recording that no GPU made. ``watched`` are samples by what
    went on: one sequence for each GPU.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    generated: str | None = None
    date: dt.date = Field(default_factory=dt.date.today)
    software: dict[str, str] = Field(default_factory=dict)
    gpus: tuple[Gpu, ...] = Field(min_length=1)
    watched: dict[str, tuple[tuple[GpuSample, ...], ...]] = Field(default_factory=dict)
    points: tuple[RecordedPoint, ...] = ()

    def to_json(self) -> str:
        """Return the file's content, with its digest: one line for each point."""
        data = self.model_dump(mode="json", exclude_none=True)
        points = data.pop("points")
        head = json.dumps(data, indent=1).removesuffix("\n}")
        text = head + ',\n "points": [\n  ' + ",\n  ".join(json.dumps(point) for point in points) + "\n ]\n}\n"
        return checksums.sealed_json(text)


def read_recording(path: Path) -> Recording:
    """Read a recording.

    Raises:
        ConfigError: no such file, no JSON, not a recording, or one that was damaged.
    """
    text = checksums.checked_json(read_text(path).encode(), str(path)).decode()
    data = parse_json(text, str(path))
    if not isinstance(data, dict) or "gpus" not in data:
        raise ConfigError("not a recording of GPUs: 'sandtable calibrate --record' writes one", file=str(path))
    return yaml_files.validate(Recording, data, str(path))


# --- what times --------------------------------------------------------------------------------------------


class Gpus(Protocol):
    """The GPUs of a machine: what they are, how long they take, and what they draw meanwhile."""

    gpus: Sequence[Gpu]
    software: Mapping[str, str]
    generated: str | None

    def time(self, kernel: Kernel, dims: Dims, *, repeats: int, budget_s: float) -> list[float]:
        """See `sandtable.demand.instruments.GpuTimer.time`."""
        ...

    def work(self, *, quick: bool) -> list[tuple[Kernel, Dims]]:
        """Return the points to time."""
        ...

    def watching(self, label: str) -> Any:
        """Return a context that gives a list of samples for each GPU, complete when it is left."""
        ...

    def close(self) -> None:
        """Let the GPUs go."""
        ...


class LiveGpus:
    """The NVIDIA GPUs of this machine.

    Raises:
        NoDevice: there is none that the framework can use, or the framework is missing.
    """

    generated: str | None = None

    def __init__(self) -> None:
        self.nvml = open_nvml()
        self.idle = self._idle()
        self._timer = gpu_timer()
        described = self._timer.describe()
        self.software: Mapping[str, str] = described["software"]
        buses = [gpu.pop("bus", None) for gpu in described["gpus"]]
        nvml = self.nvml
        self._handles = [] if nvml is None else [nvml.handle(index, bus) for index, bus in enumerate(buses)]
        facts = [None if nvml is None else nvml.facts(index, bus) for index, bus in enumerate(buses)]
        self.gpus: Sequence[Gpu] = [
            Gpu(**gpu, facts=fact) for gpu, fact in zip(described["gpus"], facts, strict=True)
        ]

    def _idle(self) -> list[list[GpuSample]]:
        """Look at all GPUs before anything of ours runs on them."""
        if self.nvml is None:
            return []
        handles = [self.nvml.handle(index) for index in range(self.nvml.n)]
        with self.nvml.watching([handle for handle in handles if handle is not None]) as found:
            time.sleep(IDLE_S if handles else 0.0)
        return found

    def time(self, kernel: Kernel, dims: Dims, *, repeats: int, budget_s: float) -> list[float]:
        """See `sandtable.demand.instruments.GpuTimer.time`."""
        return self._timer.time(kernel, dims, repeats=repeats, budget_s=budget_s)

    def work(self, *, quick: bool) -> list[tuple[Kernel, Dims]]:
        """Return all grids."""
        return grids(len(self.gpus), quick=quick)

    @contextmanager
    def watching(self, label: str) -> Iterator[list[list[GpuSample]]]:
        """Sample while inside; idle GPUs were looked at before."""
        if label == IDLE:
            yield self.idle
        elif self.nvml is None or None in self._handles:
            yield []
        else:
            with self.nvml.watching(self._handles) as found:
                yield found

    def close(self) -> None:
        """End the processes that hold the GPUs."""
        self._timer.close()


class RecordedGpus:
    """GPUs that somebody recorded."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.gpus: Sequence[Gpu] = recording.gpus
        self.software: Mapping[str, str] = recording.software
        self.generated = recording.generated
        self._known = {_key(point.kernel, point.dims): point for point in recording.points}

    def time(self, kernel: Kernel, dims: Dims, *, repeats: int, budget_s: float) -> list[float]:
        """Return what was timed then.

        Raises:
            NoDevice: this point was not, or could not be.
        """
        point = self._known.get(_key(kernel.name, dims))
        if point is None:
            raise NoDevice("is not in the recording")
        if not point.seconds:
            raise NoDevice(point.skipped or "has no seconds in the recording")
        return list(point.seconds)

    def work(self, *, quick: bool) -> list[tuple[Kernel, Dims]]:
        """Return the points that were recorded and whose kernels are installed; a quick look takes all of them too."""
        by_name = {kernel.name: kernel for kernel in gpu_kernels()}
        points = self.recording.points
        return [(by_name[point.kernel], point.dims) for point in points if point.kernel in by_name]

    @contextmanager
    def watching(self, label: str) -> Iterator[list[list[GpuSample]]]:
        """Give what was sampled then."""
        yield [list(samples) for samples in self.recording.watched.get(label, ())]

    def close(self) -> None:
        """Nothing is held."""


def _key(kernel: str, dims: Mapping[str, Any]) -> tuple[Any, ...]:
    return (kernel, *sorted(dims.items()))


def may_have_gpu() -> bool:
    """Whether it is worth asking: an NVIDIA driver is there, and the framework that would time a GPU."""
    driver = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
    return driver and find_spec(FRAMEWORK) is not None


def gpu_kernels() -> list[Kernel]:
    """Return every kernel that is timed on a GPU."""
    return [kernel for kernel in kernels().values() if kernel.calibrates == PART]


def grids(n_gpus: int, *, quick: bool) -> list[tuple[Kernel, Dims]]:
    """Return the points of all kernels: on one GPU, on 2, on 4, and on all of them."""
    groups = {1, n_gpus} | {n for n in (2, 4) if n <= n_gpus}
    found = [(kernel, dims) for kernel in gpu_kernels() for dims in kernel.grid(quick=quick)]
    return [(kernel, dims) for kernel, dims in found if dims.get("processes", 1) in groups]


# --- observing ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Observed:
    """Points as they come in; ``broken_by`` is what ended it early: an interruption, or a process that died."""

    gpus: Gpus
    points: list[RecordedPoint] = field(default_factory=list)
    watched: dict[str, tuple[tuple[GpuSample, ...], ...]] = field(default_factory=dict)
    broken_by: BaseException | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the user had enough before the last point."""
        return isinstance(self.broken_by, KeyboardInterrupt)

    def recording(self) -> Recording:
        """Return what there is so far."""
        return Recording(
            generated=self.gpus.generated,
            software=dict(self.gpus.software),
            gpus=tuple(self.gpus.gpus),
            watched=self.watched,
            points=tuple(self.points),
        )


def observe(gpus: Gpus, *, quick: bool, progress: Callable[[str], None], seed: int = 0) -> Observed:
    """Time every point on one GPU in shuffled order, then what takes several of them.

    A point that this GPU cannot do is kept with the reason. What ends the work early is kept as well, and so are the
    points that were finished.

    Raises:
        CalibrationError: this GPU could do none of the points.
    """
    observed = Observed(gpus)
    points = gpus.work(quick=quick)
    order = np.random.default_rng(seed).permutation(len(points))
    # several processes for several GPUs take long to start, so their points stand together, at the end
    work = sorted((points[int(index)] for index in order), key=lambda item: int(item[1].get("processes", 1)))
    try:
        with gpus.watching(IDLE) as samples:
            pass
        observed.watched[IDLE] = _frozen(samples)
        for index, (kernel, dims) in enumerate(work):
            progress(Step(f"GPU, {kernel.name} {words(dims)}", index, len(work)))
            observed.points.append(_point(observed, kernel, dims, quick=quick))
    except (KeyboardInterrupt, MeasureError) as error:
        observed.broken_by = error
    if observed.broken_by is None and not any(point.seconds for point in observed.points):
        reason = observed.points[0].skipped if observed.points else "no installed kernel times any of them"
        raise CalibrationError(f"none of {len(work)} points could be timed: {reason}")
    return observed


def _point(observed: Observed, kernel: Kernel, dims: Dims, *, quick: bool) -> RecordedPoint:
    gpus, budget_s = observed.gpus, QUICK_POINT_S if quick else FULL_POINT_S
    try:
        if not kernel.cost(dims).sustained:
            seconds = gpus.time(kernel, dims, repeats=REPEATS, budget_s=budget_s)
        else:
            busy_s = QUICK_BUSY_S if quick else FULL_BUSY_S
            with gpus.watching(BUSY) as samples:
                seconds = gpus.time(kernel, dims, repeats=1 << 20, budget_s=busy_s)
            seconds = seconds[:: max(1, len(seconds) // MOST_BUSY)]
            observed.watched[BUSY] = _frozen(samples)
    except (DoesNotFit, NoDevice) as refused:
        return RecordedPoint(kernel=kernel.name, dims=dict(dims), skipped=str(refused))
    return RecordedPoint(kernel=kernel.name, dims=dict(dims), seconds=tuple(seconds))


def _frozen(samples: Sequence[Sequence[GpuSample]]) -> tuple[tuple[GpuSample, ...], ...]:
    return tuple(tuple(of_one) for of_one in samples)


def words(dims: Dims) -> str:
    """Return a point of a grid on one line."""
    return " ".join(f"{name}={value}" for name, value in dims.items() if name != "processes")
