"""Recorded units to metrics: the same names, by construction, for a prediction and for a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sandtable import units
from sandtable.engine.process import Process
from sandtable.engine.recorder import ACCOUNT_OF_COLUMN, LATENCY, FloatArray, Recorder, Units
from sandtable.results import Metric, statistic_function

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
MAKESPAN = "makespan_s"
STORAGE_COUNTERS = ("bytes_read", "n_requests")


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one quantity over the units, with those of the interval's ends where they are predicted."""

    value: FloatArray
    low: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, found: Units, column: str) -> Samples:
        """Read one column."""
        return cls(found.values[column], *found.ends(column))

    def mean(self) -> Samples:
        """Return the one sample that is the mean of all."""
        value, low, high = (np.array([part.mean()], dtype=np.float64) for part in (self.value, self.low, self.high))
        return Samples(value, low, high)

    def first(self) -> Samples:
        """Return the first sample alone."""
        return Samples(self.value[:1], self.low[:1], self.high[:1])

    def __add__(self, other: Samples) -> Samples:
        return Samples(self.value + other.value, self.low + other.low, self.high + other.high)


def collect(recorder: Recorder, process: Process) -> dict[str, Samples]:
    """Return samples by metric name: the main unit's times and counters, then those of the others.

    Main unit: ``latency_s``, ``<account>_s`` for each account in use, and every counter (those of storage only where
    something was read from it). Of another unit ``x``: ``x_s``, its time, and ``x_<counter>``; of a plan's other
    phases the mean time alone. Then the sums that the process declares, and ``makespan_s``, from the start of the run
    to the end of its last unit, where units may overlap.
    """
    found: dict[str, Samples] = {}
    main = recorder.units.get(process.main_unit)
    if main is not None:
        found |= _of_main(main, process, silent=() if _reads(recorder) else STORAGE_COUNTERS)
    for name in (*process.phases, *(name for name in recorder.units if name not in process.phases)):
        other = recorder.units.get(name)
        if other is None or name == process.main_unit:
            continue
        if name in process.phases:
            found[f"{name}_s"] = Samples.of(other, LATENCY).mean()
        else:
            names = {
                column: f"{name}_s" if column == LATENCY else f"{name}_{column}" for column in other.values.names
            }
            found |= {metric: Samples.of(other, column) for column, metric in names.items()}
    for metric, parts in process.sums.items():
        if all(part in recorder.units for part in parts):
            first, *others = (Samples.of(recorder.units[part], LATENCY).first() for part in parts)
            found[metric] = sum(others, start=first)
    if not process.phases:
        found[MAKESPAN] = Samples(*[np.array([recorder.end_s()])] * 3)
    return found


def _of_main(main: Units, process: Process, silent: Sequence[str]) -> dict[str, Samples]:
    found = {LATENCY: Samples.of(main, LATENCY)}
    if process.unit_metric is not None:
        found[process.unit_metric] = found[LATENCY]
    for column in main.values.names:
        values = main.values[column]
        unused = not np.any(values > 0) if column in ACCOUNT_OF_COLUMN else column in silent
        if column != LATENCY and not unused:
            found[column] = Samples.of(main, column)
    return found


def _reads(recorder: Recorder) -> bool:
    return any(np.any(found.values[column]) for found in recorder.units.values() for column in STORAGE_COUNTERS)


def metrics_of(
    samples: Mapping[str, Samples],
    ends: Sequence[Mapping[str, Samples]] = (),
    statistics: Sequence[str] = STATISTICS,
) -> dict[str, Metric]:
    """Reduce samples to metrics: one value where there is a single sample, else one per statistic.

    ``ends`` are the samples of runs in which all ops took as little, or as long, as they may: intervals reach to them.
    """
    metrics: dict[str, Metric] = {}
    for name, sample in samples.items():
        others = [end[name].value for end in ends if name in end]
        if len(sample.value) == 1:
            metrics[name] = _metric(name, sample, others, "mean")
            continue
        for statistic in statistics:
            metrics[f"{name}.{statistic}"] = _metric(name, sample, others, statistic)
    return metrics


def _metric(name: str, sample: Samples, others: Sequence[FloatArray], statistic: str) -> Metric:
    reduce = statistic_function(statistic)
    value, *ends = (float(reduce(part, axis=0)) for part in (sample.value, sample.low, sample.high, *others))
    return Metric(value=value, low=min(value, *ends), high=max(value, *ends), unit=units.unit_of(name))


def unit_time(metrics: Mapping[str, Metric], process: Process, n_units: float) -> Metric:
    """Return the seconds that the machine is kept per unit of work.

    A plan's units follow each other: the mean latency of one. Those of a process may overlap: the time of all of them
    by the clock, divided by their number.
    """
    if process.phases:
        return metrics.get("latency_s.mean") or metrics["latency_s"]
    whole = metrics[MAKESPAN]
    ends = {end: getattr(whole, end) / n_units for end in ("value", "low", "high")}
    return Metric(unit="s", derived=True, **ends)


def rates(each: Metric, work_unit: str) -> dict[str, Metric]:
    """Return units of work per second, from the time of one."""
    name = f"{work_unit}s_per_s"
    unit = units.unit_of(name)
    return {name: Metric(value=1 / each.value, low=1 / each.high, high=1 / each.low, unit=unit, derived=True)}


def breakdown(recorder: Recorder, process: Process) -> dict[str, float]:
    """Return the mean seconds per main unit, by account; empty where units do not say what they were spent on."""
    main = recorder.units.get(process.main_unit)
    if main is None:
        return {}
    means = {
        account: float(np.mean(main.values[column]))
        for column, account in ACCOUNT_OF_COLUMN.items()
        if column in main.values.names
    }
    return {account: value for account, value in means.items() if value > 0}
