"""From timings of this host to its parts of a machine file: storage, memory, processor."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from sandtable import units
from sandtable.calibration import machine_fit
from sandtable.calibration.fit import least_squares, repeats
from sandtable.calibration.timing import Timing, has_own_law
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
    StoragePoint,
    library,
)
from sandtable.runs import measure
from sandtable.system import limits


def fit_machine(
    timings: Sequence[Timing],
    parts: Collection[str],
    *,
    folder: Path,
    file_bytes: int,
    quick: bool = False,
    base: Machine | None = None,
) -> Machine:
    """Fit every part that was measured, and assemble the machine.

    Args:
        timings: What was measured.
        parts: Of which parts.
        folder: Where storage was measured.
        file_bytes: Size of the file that it was measured on.
        quick: Whether little was measured; it is kept as part of the method.
        base: An earlier calibration, whose parts are kept where they were not measured again.

    Raises:
        CalibrationError: too few points.
    """
    method = f"sandtable calibrate{' --quick' if quick else ''}"
    by_software = [t for t in timings if has_own_law(t.op)]
    plain = [t for t in timings if not has_own_law(t.op)]
    found: dict[str, Any] = {}
    if "compute" in parts:
        found["processor"] = _with_earlier(
            _processor([t for t in plain if t.op.resource == "compute"], method), base
        )
    if "memory" in parts:
        found["memory"] = _memory([t for t in plain if t.op.resource == "memory"], method)
    if "storage" in parts:
        reads = [t for t in plain if t.op.resource == "storage"]
        found["storage"] = _storage(reads, method, folder, file_bytes)
    environment = measure.environment()
    if base is not None:
        machine = base.model_copy(update={**found, "environment": environment})
    else:
        machine = Machine(
            kind="machine",
            name=library.THIS_MACHINE,
            title=f"{environment['cpu']}, {environment['cpus']} CPUs, calibrated {dt.date.today().isoformat()}",
            environment=environment,
            sources={},
            **found,
        )
    return machine_fit.fitted(machine, by_software, method)


def fit_ops(timings: Sequence[Timing], method: str) -> dict[str, dict[DType, OpFit]]:
    """Fit one law per operator and dtype of one part of the machine."""
    shared = repeats.drift(timings)
    groups: dict[tuple[str, str], list[Timing]] = {}
    for timing in timings:
        groups.setdefault((timing.op.operator, timing.op.dtype), []).append(timing)
    fits: dict[str, dict[DType, OpFit]] = {}
    for (name, dtype), group in groups.items():
        fits.setdefault(name, {})[cast("DType", dtype)] = least_squares.fit_op(
            group, method=method, repeat_spread_frac=repeats.repeat_spread(group), drift_frac=shared
        )
    return fits


def _processor(timings: Sequence[Timing], method: str) -> Processor:
    fits = fit_ops(timings, method)
    # what a fit says of a rate that no point comes near may be anything: a peak is what was reached
    products = machine_fit.best_rates(timings).get("float32")
    best = products or max(t.op.flops / t.seconds for t in timings)
    overheads = [law.overhead_s for law in fits.get("gemv", {}).values()]
    return Processor(
        kind="processor",
        name="this_processor",
        title=measure.cpu_model(),
        datasheet=ProcessorDatasheet(
            family="cpu",
            cores=measure.threads(),
            peak_flops_per_s={"float32": best},
            last_level_cache_bytes=limits.last_level_cache_bytes(),
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


def _with_earlier(processor: Processor, base: Machine | None) -> Processor:
    """Return the processor with constants of software that an earlier calibration fitted.

    They are shares of the data sheet that they were fitted to, so it stays as well.
    """
    before = None if base is None else base.processor
    if before is None or before.fitted is None or processor.fitted is None or not before.fitted.operators:
        return processor
    fitted = processor.fitted.model_copy(update={"operators": before.fitted.operators})
    return processor.model_copy(update={"datasheet": before.datasheet, "fitted": fitted})


def _memory(timings: Sequence[Timing], method: str) -> Memory:
    fits = {kind: next(iter(laws.values())) for kind, laws in fit_ops(timings, method).items()}
    bandwidth = max(
        law.bandwidth_bytes_per_s.value for law in fits.values() if law.bandwidth_bytes_per_s is not None
    )
    return Memory(
        kind="memory",
        name="this_memory",
        title="Main memory",
        datasheet=MemoryDatasheet(
            technology="DRAM", capacity_bytes=float(limits.memory_bytes()), bandwidth_bytes_per_s=bandwidth
        ),
        fitted=MemoryFit(ops=fits),
        sources={
            "datasheet.capacity": "the operating system",
            "datasheet.bandwidth": "measured: the fastest memory operation of this calibration, not a data sheet's",
            "fitted": method,
        },
    )


def _storage(timings: Sequence[Timing], method: str, folder: Path, file_bytes: int) -> Storage:
    import shutil

    random = [t for t in timings if t.op.operator == "random_read" and "touch" not in t.dims]
    sequential = [t for t in timings if t.op.operator == "sequential_read"]
    rates = np.array([t.op.bytes_read / np.median(part) for t in sequential for part in t.passes])
    rate = _estimate(rates)
    fitted = least_squares.fit_storage(
        random,
        sequential_bytes_per_s=rate,
        method=f"{method}, {units.format_bytes(file_bytes)} file",
        sequential=_sequential_evidence(sequential, rates, rate.value, method),
        repeat_spread_frac=repeats.repeat_spread(random),
        drift_frac=repeats.drift(random),
        cold_factor=_cold_factor(timings),
    )
    fitted = fitted.model_copy(update={"new_file_s": new_file(timings)})
    return Storage(
        kind="storage",
        name="this_storage",
        title=f"The disk that holds {folder.resolve().anchor or folder}",
        datasheet=StorageDatasheet(
            interface="as mounted",
            capacity_bytes=float(shutil.disk_usage(folder).total),
            sequential_read_bytes_per_s=rate.value,
        ),
        fitted=fitted,
        measurements=tuple(
            StoragePoint(
                access="random",
                chunk_bytes=float(t.op.shape.chunk_bytes),
                concurrency=t.op.shape.concurrency,
                read_bytes_per_s=t.op.bytes_read / t.seconds,
            )
            for t in _longest(random)
        ),
        sources={
            "datasheet.capacity": "the operating system",
            "datasheet.sequential_read": "measured by this calibration",
            "datasheet.alignment": "the page size, which direct I/O accepts on every common file system",
            "fitted": method,
        },
    )


def _longest(timings: Sequence[Timing]) -> list[Timing]:
    """Return, for each chunk and concurrency, the timing with the longest batch: the sustained rate."""
    best: dict[tuple[float, int], Timing] = {}
    for timing in timings:
        key = (timing.op.shape.chunk_bytes, timing.op.shape.concurrency)
        if key not in best or best[key].op.n_requests < timing.op.n_requests:
            best[key] = timing
    return [best[key] for key in sorted(best)]


def _estimate(samples: np.ndarray[Any, Any]) -> Estimate[float]:
    value = float(np.median(samples))
    low, high = (float(v) for v in np.percentile(samples, [5, 95]))
    return Estimate[float](value=value, low=min(low, value), high=max(high, value))


def _sequential_evidence(
    timings: Sequence[Timing], rates: np.ndarray[Any, Any], fitted: float, method: str
) -> Evidence:
    residuals = np.log(rates / fitted)  # a rate above the fitted one is a time below the predicted one
    spread = repeats.repeat_spread(timings)
    low, high = np.percentile(residuals, [5, 95])
    return Evidence(
        date=dt.date.today(),
        n_points=len(timings),
        n_samples=sum(t.n_samples for t in timings),
        method=method,
        median_abs_error_frac=float(np.median(np.abs(np.expm1(residuals)))),
        p90_abs_error_frac=float(np.percentile(np.abs(np.expm1(residuals)), 90)),
        residual_low_frac=float(np.exp(min(low, 0.0))),
        residual_high_frac=float(np.exp(max(high, 0.0))),
        repeat_spread_frac=spread,
        n_disturbed=sum(t.n_left_out > 0 for t in timings) or None,
        n_unsettled=sum(not t.settled for t in timings) or None,
    )


def _cold_factor(timings: Sequence[Timing]) -> Estimate[float] | None:
    """Return how much longer the first touch of a region takes than a later one, from kernels that time both."""
    first = {_pair(t): t for t in timings if t.dims.get("touch") == "first"}
    again = {_pair(t): t for t in timings if t.dims.get("touch") == "again"}
    ratios = [first[key].seconds / again[key].seconds for key in first.keys() & again.keys()]
    return _estimate(np.array(ratios)) if ratios else None


def new_file(timings: Sequence[Timing]) -> Estimate[float] | None:
    """Return what making a small file takes, from all calls: a later one finds the disk as any of them did."""
    made = [t for t in timings if t.op.operator == "new_file"]
    calls = [seconds / t.op.shape.n_files for t in made for part in t.passes for seconds in part]
    if not calls:
        return None
    low, value, high = map(float, np.percentile(calls, [5, 50, 95]))
    return Estimate[float](value=value, low=low, high=high)


def _pair(timing: Timing) -> tuple[Any, ...]:
    return tuple(sorted((key, value) for key, value in timing.dims.items() if key != "touch"))
