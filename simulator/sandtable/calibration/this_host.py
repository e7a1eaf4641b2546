"""Measure a machine's kernels over a grid, fit the laws of `sandtable.model`, and write a machine file.

Nothing here is fitted to a workload's end-to-end time: those runs are the test. Points are visited in shuffled order
in several passes, so that a slow minute of the machine spreads over all of them, and how far the passes lie apart
becomes part of every interval.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from sandtable import units
from sandtable.calibration import machine_fit
from sandtable.calibration.fit import least_squares
from sandtable.calibration.fit.least_squares import OpPoint
from sandtable.calibration.gpu import recordings
from sandtable.demand.kernel import Dims, Kernel, KernelContext, kernels
from sandtable.demand.op import Op
from sandtable.demand.operator import PlainOperator, operator_named
from sandtable.errors import ConfigError, DoesNotFit, UnknownName
from sandtable.hardware import (
    DType,
    Estimate,
    Evidence,
    Machine,
    Memory,
    MemoryDatasheet,
    MemoryFit,
    OpFit,
    Processor,
    ProcessorDatasheet,
    ProcessorFit,
    Storage,
    StorageDatasheet,
    StorageFit,
    StoragePoint,
    library,
)
from sandtable.model.cost_model import CostModel
from sandtable.model.laws.storage_law import ReadPoint
from sandtable.runs import measure

PARTS = ("storage", "memory", "compute")
# operators of a framework and collectives between processes, measured where the framework is installed
OPERATOR_PARTS = ("training", "link")
# their points repeat well, since each call is the mean over many
OPERATOR_PASSES, OPERATOR_REPEATS = 2, 12
# beyond this, passes disagree too much for predictions at the level of ten percent
NOISY_SPREAD_FRAC = 0.25
# first touches: a file of its own for every point, and few enough calls that each still finds untouched regions
FRESH_FILE_BYTES = 512 << 20
FRESH_REPEATS = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, where, and for how long.

    ``budget_s`` is the time for all measurements together, those of operators aside, which have
    ``operator_budget_s``; ``passes`` is how often each point is visited.
    """

    folder: Path
    quick: bool = False
    only: tuple[str, ...] = PARTS
    operator_budget_s: float = 120.0
    file_bytes: int = 4 << 30
    budget_s: float = 360.0
    passes: int = 4
    seed: int = 0
    progress: Callable[[str], None] = lambda _: None


@dataclass(slots=True, kw_only=True)
class Observation:
    """One point of one kernel: its demand, and seconds per call by pass.

    ``software`` is whose operator it is; empty for Sandtable's own kernels.
    """

    kernel: str
    software: str = ""
    dims: Dims
    op: Op
    samples: list[list[float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median over passes of the median call, in seconds."""
        return float(np.median([np.median(part) for part in self.samples]))

    @property
    def n_samples(self) -> int:
        """Calls timed in all."""
        return sum(len(part) for part in self.samples)


@dataclass(frozen=True, kw_only=True)
class FittedPoint:
    """One measured point beside what the fitted machine predicts for it, in seconds."""

    kernel: str
    dims: Dims
    measured_s: float
    fitted_s: float

    @property
    def error_frac(self) -> float:
        """Fitted over measured, less one."""
        return self.fitted_s / self.measured_s - 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibrated machine, what it was fitted to, and what the user should know about its quality."""

    machine: Machine
    observations: Sequence[Observation]
    points: Sequence[FittedPoint]
    warnings: Sequence[str]
    seconds: float


def calibrate(settings: Settings, base: Machine | None = None) -> Calibration:
    """Measure this machine and return it calibrated.

    Args:
        settings: What to measure, where, for how long.
        base: An earlier calibration, whose parts are kept where they are not measured again.

    Raises:
        UnknownName: ``only`` names a part that does not exist.
        ConfigError: ``only`` some parts, and no ``base`` to put them into.
        CalibrationError: too few points.
    """
    check_parts(settings.only)
    if base is None and not set(settings.only) >= set(PARTS):
        raise ConfigError(needs_base(settings.only))
    begin = time.perf_counter()
    observations = observe(replace(settings, only=tuple(part for part in settings.only if part in PARTS)))
    observations += observe(operator_settings(settings))
    machine = fit_machine(observations, settings, base)
    costs = CostModel(machine)
    points = [
        FittedPoint(kernel=o.kernel, dims=o.dims, measured_s=o.seconds, fitted_s=costs.time(o.op).seconds)
        for o in observations
        if "touch" not in o.dims
    ]
    return Calibration(
        machine=machine,
        observations=observations,
        points=points,
        warnings=_warnings(machine, observations),
        seconds=time.perf_counter() - begin,
    )


def check_parts(parts: Iterable[str]) -> None:
    """Refuse names of parts that nothing measures.

    Raises:
        UnknownName: with the nearest names.
    """
    known = (*PARTS, *OPERATOR_PARTS, recordings.PART)
    for part in parts:
        if part not in known:
            raise UnknownName("part to calibrate", part, known)


def needs_base(parts: Iterable[str]) -> str:
    """Say that some parts alone make no machine."""
    return (
        f"calibrating only {', '.join(parts)} needs an earlier full calibration to put it into: run "
        "'sandtable calibrate' without --only first"
    )


# --- measuring ---------------------------------------------------------------------------------------------


def observe(settings: Settings) -> list[Observation]:
    """Measure every calibrating kernel over its grid, in shuffled passes, within the budget."""
    context = KernelContext(
        folder=settings.folder, seed=settings.seed, n_threads=measure.threads(), file_bytes=settings.file_bytes
    )
    settings.folder.mkdir(parents=True, exist_ok=True)
    check_space(settings.folder, settings.file_bytes, settings.only)
    work = [
        (kernel, Observation(kernel=kernel.name, software=kernel.software or "", dims=dims, op=kernel.cost(dims)))
        for kernel in kernels().values()
        if kernel.calibrates in settings.only
        # memory and compute points take milliseconds; only storage is worth a smaller grid
        for dims in kernel.grid(quick=settings.quick and kernel.calibrates not in ("memory", "compute"))
    ]
    if not work:
        return []
    rng = np.random.default_rng(settings.seed)
    stream = measure.stream_through()
    begin = time.perf_counter()
    for index in range(settings.passes):
        order = [int(item) for item in rng.permutation(len(work)) if index == 0 or not work[int(item)][0].once]
        for position, item in enumerate(order):
            kernel, observation = work[item]
            done = index * len(work) + position
            left = settings.budget_s - (time.perf_counter() - begin)
            share = left / max(1, settings.passes * len(work) - done)
            settings.progress(f"pass {index + 1} of {settings.passes}: {kernel.name} {describe(observation.dims)}")
            observation.samples.append(_samples(kernel, observation.dims, context, share, stream))
        if time.perf_counter() - begin > settings.budget_s * (index + 1.3) / (index + 1) and index >= 1:
            break
    return [observation for _, observation in work]


def _samples(
    kernel: Kernel, dims: Dims, context: KernelContext, share_s: float, before: Callable[[], object]
) -> list[float]:
    """Time one point for about ``share_s``, or once where no time is left."""
    repeats = 1000 if share_s > 0 else 1
    own = kernel.timings(dims, context, repeats=min(repeats, OPERATOR_REPEATS), budget_s=share_s)
    if own is not None:
        return own
    if kernel.once:
        repeats = min(repeats, FRESH_REPEATS)
        context = replace(context, file_bytes=min(context.file_bytes, FRESH_FILE_BYTES))
    # half of the time goes into what runs before each call
    return measure.time_kernel(kernel, dims, context, repeats=repeats, budget_s=0.5 * share_s, before=before)


def operator_settings(settings: Settings) -> Settings:
    """Return the settings of the second round, which times operators."""
    return replace(
        settings,
        only=tuple(part for part in settings.only if part in OPERATOR_PARTS),
        budget_s=settings.operator_budget_s,
        passes=OPERATOR_PASSES,
    )


def check_space(folder: Path, file_bytes: int, parts: Iterable[str]) -> None:
    """Refuse to start when the folder's disk cannot hold the file that storage is measured on."""
    if "storage" not in parts:
        return
    import shutil

    free = shutil.disk_usage(folder).free
    present = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    if free + present < file_bytes * 1.05:
        raise DoesNotFit(
            f"{folder} has {units.format_bytes(free)} free and the test file needs {units.format_bytes(file_bytes)}: "
            "choose another --storage-path, or a smaller --file-size"
        )


def describe(dims: Dims) -> str:
    """Return a point of a grid on one line."""
    parts = []
    for key, value in dims.items():
        text = units.format_bytes(value) if key.endswith("bytes") else str(value)
        parts.append(f"{units.strip_suffix(key)}={text}".replace(" ", ""))
    return " ".join(parts)


# --- fitting -----------------------------------------------------------------------------------------------


def fit_machine(observations: Sequence[Observation], settings: Settings, base: Machine | None) -> Machine:
    """Fit every part that was measured, and assemble the machine."""
    method = f"sandtable calibrate{' --quick' if settings.quick else ''}"
    operators = [o for o in observations if o.software]
    compute = [o for o in observations if o.op.resource == "compute" and not o.software]
    memory = [o for o in observations if o.op.resource == "memory"]
    storage = [o for o in observations if o.op.resource == "storage"]
    parts: dict[str, Any] = {}
    if "compute" in settings.only:
        parts["processor"] = _processor(compute, method)
    if "memory" in settings.only:
        parts["memory"] = _memory(memory, method)
    if "storage" in settings.only:
        parts["storage"] = _storage(storage, method, settings)
    environment = measure.environment()
    if base is not None:
        return machine_fit.fitted(
            base.model_copy(update={**parts, "environment": environment}), _timed(operators), method
        )
    machine = Machine(
        kind="machine",
        name=library.THIS_MACHINE,
        title=f"{environment['cpu']}, {environment['cpus']} CPUs, calibrated {dt.date.today().isoformat()}",
        environment=environment,
        sources={},
        **parts,
    )
    return machine_fit.fitted(machine, _timed(operators), method)


def _timed(observations: Sequence[Observation]) -> list[machine_fit.Timed]:
    return [
        machine_fit.Timed(software=o.software, op=o.op, seconds=o.seconds, n_samples=o.n_samples)
        for o in observations
    ]


def repeat_spread(observations: Sequence[Observation]) -> float | None:
    """Return how far passes lie from their point's median: half the 90 % interval, as a fraction."""
    deviations: list[float] = []
    weights: list[float] = []
    for observation in observations:
        medians = np.log([np.median(part) for part in observation.samples])
        if len(medians) > 1:
            # a small sample's deviations are too small by this much
            scale = np.sqrt(len(medians) / (len(medians) - 1))
            deviations.extend(scale * np.abs(medians - medians.mean()))
            weights.extend([float(least_squares.weight_of(observation.seconds))] * len(medians))
    if not deviations:
        return None
    # robust against single disturbed points: the 90th percentile of the absolute deviation
    return float(np.expm1(least_squares.weighted_percentile(np.array(deviations), np.array(weights), 90)))


def drift(observations: Sequence[Observation]) -> float | None:
    """Return how far the machine wanders from one pass to another: half the 90 % interval, as a fraction.

    A pass takes a minute or so. What all its points share, a run some time later will meet again, in another state;
    what single points do for themselves averages out over the calls of a run. The first is the median of a pass over
    all points, less what scatter alone would make of it; the interval is Student's, for one more draw. Repeats of
    single points contain the drift, so that it is no more than their spread, however few passes there were.
    """
    passes = min((len(o.samples) for o in observations), default=0)
    if passes < 2:
        return None
    logs = np.log([[np.median(part) for part in o.samples[:passes]] for o in observations])
    off = logs - logs.mean(axis=1, keepdims=True)
    weights = np.asarray(least_squares.weight_of(np.array([o.seconds for o in observations])))
    shared = np.array([least_squares.weighted_percentile(column, weights, 50) for column in off.T])
    # the median absolute deviation is 0.6745 of a normal one's sigma; a row of n deviations has n - 1 of its own
    scatter = (
        least_squares.weighted_percentile(np.abs(off - shared).ravel(), np.repeat(weights, passes), 50) / 0.6745
    )
    scatter *= np.sqrt(passes / (passes - 1))
    n = weights.sum() ** 2 / (weights**2).sum()
    # a median varies pi / 2 times as much as a mean
    variance = max(0.0, float(shared.var(ddof=1)) - np.pi / 2 * scatter**2 / n)
    half = float(np.expm1(least_squares.student_95(passes - 1) * np.sqrt(variance * (1 + 1 / passes))))
    return min(half, repeat_spread(observations) or 0.0)


def fit_ops(observations: Sequence[Observation], method: str) -> dict[str, dict[DType, OpFit]]:
    """Fit one law per operator and dtype of one part of the machine."""
    shared = drift(observations)
    groups: dict[tuple[str, str], list[Observation]] = {}
    for observation in observations:
        groups.setdefault((observation.op.operator, observation.op.dtype), []).append(observation)
    fits: dict[str, dict[DType, OpFit]] = {}
    for (name, dtype), group in groups.items():
        operator = operator_named(name)
        points = [
            OpPoint(
                n_items=o.op.n_items,
                n_bytes=o.op.bytes_moved,
                flops=o.op.flops,
                n_special=o.op.n_special,
                seconds=o.seconds,
            )
            for o in group
        ]
        fits.setdefault(name, {})[cast("DType", dtype)] = least_squares.fit_op(
            points,
            method=method,
            n_samples=sum(o.n_samples for o in group),
            repeat_spread_frac=repeat_spread(group),
            drift_frac=shared,
            bound_by=operator.bound_by if isinstance(operator, PlainOperator) else "bandwidth",
        )
    return fits


def _processor(observations: Sequence[Observation], method: str) -> Processor:
    fits = fit_ops(observations, method)
    dense = [law for name, laws in fits.items() if operator_named(name).dense for law in laws.values()]
    rates = [law.rate_flops_per_s.value for law in dense if law.rate_flops_per_s is not None]
    best = max(rates, default=max(o.op.flops / o.seconds for o in observations))
    overheads = [law.overhead_s for law in fits.get("gemv", {}).values()]
    return Processor(
        kind="processor",
        name="this_processor",
        title=measure.cpu_model(),
        datasheet=ProcessorDatasheet(
            family="cpu",
            cores=measure.threads(),
            peak_flops_per_s={"float32": best},
            last_level_cache_bytes=last_level_cache_bytes(),
        ),
        fitted=ProcessorFit(
            ops=fits,
            call_overhead_s=min(overheads, key=lambda e: e.value, default=None),
        ),
        sources={
            "datasheet.cores": "the operating system: CPUs this process may run on",
            "datasheet.peak": "measured: the best matrix product of this calibration, not a data sheet's peak",
            "datasheet.last_level_cache": "the operating system",
            "fitted": method,
        },
    )


def _memory(observations: Sequence[Observation], method: str) -> Memory:
    fits = {kind: next(iter(laws.values())) for kind, laws in fit_ops(observations, method).items()}
    bandwidth = max(
        law.bandwidth_bytes_per_s.value for law in fits.values() if law.bandwidth_bytes_per_s is not None
    )
    return Memory(
        kind="memory",
        name="this_memory",
        title="Main memory",
        datasheet=MemoryDatasheet(
            technology="DRAM", capacity_bytes=float(measure.total_memory_bytes()), bandwidth_bytes_per_s=bandwidth
        ),
        fitted=MemoryFit(ops=fits),
        sources={
            "datasheet.capacity": "the operating system",
            "datasheet.bandwidth": "measured: the fastest memory operation of this calibration, not a data sheet's",
            "fitted": method,
        },
    )


def _storage(observations: Sequence[Observation], method: str, settings: Settings) -> Storage:
    import shutil

    random = [o for o in observations if o.op.operator == "random_read" and "touch" not in o.dims]
    sequential = [o for o in observations if o.op.operator == "sequential_read"]
    rates = np.array([o.op.bytes_read / np.median(part) for o in sequential for part in o.samples])
    rate = _estimate(rates)
    fitted = least_squares.fit_storage(
        [
            ReadPoint(
                n_requests=o.op.shape.n_chunks,
                chunk_bytes=o.op.shape.chunk_bytes,
                concurrency=o.op.shape.concurrency,
                seconds=o.seconds,
            )
            for o in random
        ],
        sequential_bytes_per_s=rate,
        method=f"{method}, {units.format_bytes(settings.file_bytes)} file",
        n_samples=sum(o.n_samples for o in random),
        sequential=_sequential_evidence(sequential, rates, rate.value, method),
        repeat_spread_frac=repeat_spread(random),
        drift_frac=drift(random),
        cold_factor=_cold_factor(observations),
    )
    return Storage(
        kind="storage",
        name="this_storage",
        title=f"The disk that holds {settings.folder.resolve().anchor or settings.folder}",
        datasheet=StorageDatasheet(
            interface="as mounted",
            capacity_bytes=float(shutil.disk_usage(settings.folder).total),
            sequential_read_bytes_per_s=rate.value,
        ),
        fitted=fitted,
        measurements=tuple(
            StoragePoint(
                access="random",
                chunk_bytes=float(o.op.shape.chunk_bytes),
                concurrency=o.op.shape.concurrency,
                read_bytes_per_s=o.op.bytes_read / o.seconds,
            )
            for o in _longest(random)
        ),
        sources={
            "datasheet.capacity": "the operating system",
            "datasheet.sequential_read": "measured by this calibration",
            "datasheet.alignment": "the page size, which direct I/O accepts on every common file system",
            "fitted": method,
        },
    )


def _longest(observations: Sequence[Observation]) -> list[Observation]:
    """Return, for each chunk and concurrency, the observation with the longest batch: the sustained rate."""
    best: dict[tuple[float, int], Observation] = {}
    for observation in observations:
        key = (observation.op.shape.chunk_bytes, observation.op.shape.concurrency)
        if key not in best or best[key].op.n_requests < observation.op.n_requests:
            best[key] = observation
    return [best[key] for key in sorted(best)]


def _estimate(samples: np.ndarray[Any, Any]) -> Estimate[float]:
    value = float(np.median(samples))
    low, high = (float(v) for v in np.percentile(samples, [5, 95]))
    return Estimate[float](value=value, low=min(low, value), high=max(high, value))


def _sequential_evidence(
    observations: Sequence[Observation], rates: np.ndarray[Any, Any], fitted: float, method: str
) -> Evidence:
    residuals = np.log(rates / fitted)  # a rate above the fitted one is a time below the predicted one
    spread = repeat_spread(observations)
    low, high = np.percentile(residuals, [5, 95])
    return Evidence(
        date=dt.date.today(),
        n_points=len(observations),
        n_samples=sum(o.n_samples for o in observations),
        method=method,
        median_abs_error_frac=float(np.median(np.abs(np.expm1(residuals)))),
        p90_abs_error_frac=float(np.percentile(np.abs(np.expm1(residuals)), 90)),
        residual_low_frac=float(np.exp(min(low, 0.0))),
        residual_high_frac=float(np.exp(max(high, 0.0))),
        repeat_spread_frac=spread,
    )


def _cold_factor(observations: Sequence[Observation]) -> Estimate[float] | None:
    """Return how much longer the first touch of a region takes than a later one, from kernels that time both."""
    first = {_pair(o): o for o in observations if o.dims.get("touch") == "first"}
    again = {_pair(o): o for o in observations if o.dims.get("touch") == "again"}
    ratios = [first[key].seconds / again[key].seconds for key in first.keys() & again.keys()]
    return _estimate(np.array(ratios)) if ratios else None


def _pair(observation: Observation) -> tuple[Any, ...]:
    return tuple(sorted((key, value) for key, value in observation.dims.items() if key != "touch"))


def last_level_cache_bytes() -> float | None:
    """Return the size of the largest cache of the first CPU, in bytes, where the operating system tells."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM]?)", path.read_text().strip())
        if match is not None:
            sizes.append(float(match[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[match[2]])
    return max(sizes, default=None)


def _warnings(machine: Machine, observations: Sequence[Observation]) -> list[str]:
    """Say which parts of the machine did not repeat well enough to be trusted."""
    found = []
    for resource in ("storage", "memory", "compute", "network"):
        spread = repeat_spread([o for o in observations if o.op.resource == resource])
        if spread is not None and spread > NOISY_SPREAD_FRAC:
            found.append(
                f"{resource}: repeats lie {100 * spread:.0f} % apart; this machine is too noisy to trust at the level "
                "of ten percent. Close other programs and calibrate again; the intervals already include it."
            )
    fit: StorageFit | None = machine.storage.fitted
    if fit is not None and fit.cold_factor.value > 1.2:
        found.append(f"storage: a region's first touch takes {fit.cold_factor.value:.2f} times a later one")
    return found
