"""What comes out: predictions, measurements and their comparison, in one vocabulary.

A `Prediction` and a `Measurement` of one scenario carry the same metric names in the same units, so that comparing
them is a join. All of these are written as JSON with a schema version and can be read back.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sandtable import units
from sandtable.errors import printable

FloatArray = npt.NDArray[np.float64]
# samples that a metric keeps, so that a file of results stays readable, and of which the bootstrap draws 200 times
MOST_SAMPLES = 10_000
MOST_RESAMPLED = 10_000
NORMAL_95 = 1.6448536269514722  # 95th percentile of the standard normal distribution
PERCENTILES: dict[str, float] = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}


class Record(BaseModel):
    """Base of results: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(Record):
    """A value with its 90 % interval. A measurement keeps the raw samples behind it, or of many only ``every`` n-th.

    ``derived`` says that it follows from other metrics and stated numbers, such as a rate, a price or a utilisation:
    it is no evidence of its own.
    """

    value: float
    low: float
    high: float
    unit: str
    derived: bool = False
    samples: tuple[float, ...] = ()
    every: int = 1


class Answer(Record):
    """What a result comes to, for whoever asked: the first thing that every command, page and notebook shows.

    Attributes:
        question: The scenario's title.
        subject: What it was asked of: the model with its count of parameters, the machine, the software by name.
        verdict: Yes or no in a sentence; empty where the question is not such a one.
        headlines: Speed, money, and memory needed of what there is, each with its 90 % interval.
        bound: What limits it, with its share of the time.
        caveat: The one thing that the answer depends on most.
    """

    question: str
    subject: str = ""
    verdict: str = ""
    headlines: tuple[str, ...] = ()
    bound: str = ""
    caveat: str = ""

    def lines(self, width: int = 80) -> list[str]:
        """Return the answer as at most eight lines of ``width`` columns; what is too long loses its end."""
        width = max(NARROWEST, width)
        amounts = "; ".join(self.headlines)
        answer = f"{self.verdict} {amounts[:1].upper()}{amounts[1:]}" if self.verdict else amounts
        texts = (self.question, self.subject, answer, self.bound, f"! {self.caveat}" if self.caveat else "")
        parts = [_wrapped(text, width, "" if place in (0, 2) else "  ") for place, text in enumerate(texts) if text]
        while sum(map(len, parts)) > MOST_LINES:
            # the longest part gives way, the later one of equals; what was asked of what is kept while it can be
            longest = max(range(len(parts)), key=lambda place: _gives_way(parts[place], place))
            parts[longest] = _shortened(parts[longest], width)
        return [line for part in parts for line in part]

    def __str__(self) -> str:
        return "\n".join(self.lines())


MOST_LINES = 8
NARROWEST = 20


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    plain = printable(text)
    later = indent + ("  " if text.startswith("! ") or not indent else "")
    return textwrap.wrap(plain, width, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False)


def _gives_way(lines: list[str], place: int) -> tuple[bool, bool, int, int]:
    return len(lines) > 1, place != 1, len(lines), place


def _shortened(lines: list[str], width: int) -> list[str]:
    """Return the lines without the last one, and with the sign that something is missing."""
    *kept, last = lines[:-1]
    return [*kept, f"{last[: width - 4].rstrip(' ,;:')} ..."]


class TraceRow(Record):
    """One slice of a timeline: what ran where, from when to when (seconds from the start)."""

    track: str
    name: str
    start_s: float
    end_s: float
    step: int = 0


class Result(Record):
    """What predictions and measurements share."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: str
    scenario: dict[str, Any]
    machine: str
    machine_digest: str = ""
    metrics: dict[str, Metric]
    breakdown: dict[str, float] = Field(default_factory=dict)
    memory: dict[str, float] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    answer: Answer | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Prediction(Result):
    """What the model expects, with the interval it claims; written down before any run."""

    kind: str = Field(default="prediction", pattern="^prediction$")
    by_op: dict[str, float] = Field(default_factory=dict)
    binding_resource: str = ""
    guesses: tuple[str, ...] = ()


class Measurement(Result):
    """What a real run showed, and in which environment."""

    kind: str = Field(default="measurement", pattern="^measurement$")
    environment: dict[str, str] = Field(default_factory=dict)
    validity: tuple[str, ...] = ()
    # largest over smallest repeat of the headline metric, less one
    repeat_spread_frac: float | None = None
    # which part of the time that the run asked the cores for other programs took, where the system tells
    lost_frac: float | None = None
    # seconds of the machine's probes before its runs over those at calibration, see `sandtable.model.drift`
    drift: dict[str, float] = Field(default_factory=dict)


class ComparedMetric(Record):
    """One metric, predicted and measured. ``error_frac`` is predicted / measured - 1.

    ``derived`` where both follow from other metrics: then the error repeats theirs, and no summary counts it, unless
    a check of its workload is ``judged`` on it.
    """

    scenario: str
    metric: str
    unit: str
    predicted: float
    low: float
    high: float
    measured: float
    error_frac: float
    covered: bool
    derived: bool = False
    judged: bool = False


class Summary(Record):
    """Errors over many compared metrics."""

    n: int
    median_abs_error_frac: float
    p90_abs_error_frac: float
    coverage_frac: float


class Comparison(Record):
    """Predictions beside measurements, a summary, and a verdict.

    Where the machine's speed at the runs is known, predictions are those for that speed, and ``as_calibrated`` has the
    errors of those that were written down before, for the speed at its calibration.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    comparisons: tuple[ComparedMetric, ...]
    summary: Summary
    as_calibrated: Summary | None = None
    verdict: Literal["pass", "fail", "inconclusive"]
    reasons: tuple[str, ...] = ()
    answer: Answer | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Cost(Record):
    """Money and energy of a piece of work. `diff` is antisymmetric: ``a.diff(b) == -b.diff(a)`` entry by entry."""

    usd_per_h: float
    usd: float
    energy_j: float
    usd_per_unit: float
    breakdown: dict[str, float] = Field(default_factory=dict)

    def diff(self, other: Cost) -> dict[str, float]:
        """Return ``other - self`` for each amount."""
        mine, theirs = self.amounts(), other.amounts()
        return {key: theirs.get(key, 0.0) - mine.get(key, 0.0) for key in sorted(mine.keys() | theirs.keys())}

    def amounts(self) -> dict[str, float]:
        """Return the amounts that `diff` compares."""
        own = {name: float(getattr(self, name)) for name in ("usd_per_h", "usd", "energy_j", "usd_per_unit")}
        return own | {f"breakdown.{key}": value for key, value in self.breakdown.items()}


def point(value: float, unit: str) -> Metric:
    """Return a metric known exactly, such as a count of bytes."""
    return Metric(value=value, low=value, high=value, unit=unit)


def measured_metric(name: str, samples: Sequence[float] | FloatArray, statistic: str = "mean") -> Metric:
    """Reduce samples to a metric: its mean or percentile, with the samples kept.

    The interval is the 5th to 95th percentile of the statistic over bootstrap resamples, or of its limiting
    distribution where there are many samples.
    """
    values = np.asarray(samples, dtype=float)
    value = float(statistic_function(statistic)(values, axis=0))
    every = -(-len(values) // MOST_SAMPLES)
    low, high = _resampled(values, statistic) if len(values) <= MOST_RESAMPLED else _limiting(values, statistic)
    return Metric(
        value=value,
        low=min(low, value),
        high=max(high, value),
        unit=units.unit_of(name),
        samples=tuple(values[::every].tolist()),
        every=every,
    )


def _resampled(values: FloatArray, statistic: str) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    draws = statistic_function(statistic)(values[rng.integers(0, len(values), (200, len(values)))], axis=1)
    low, high = np.percentile(draws, [5, 95])
    return float(low), float(high)


def _limiting(values: FloatArray, statistic: str) -> tuple[float, float]:
    """Return the 90 % interval of a mean by the central limit theorem, of a percentile by its order statistics.

    The rank of the p-quantile among n samples has the standard deviation sqrt(n p (1 - p)) (David and Nagaraja, "Order
    Statistics", section 7.1).
    """
    n = len(values)
    if statistic == "mean":
        miss = NORMAL_95 * float(np.std(values)) / math.sqrt(n)
        return float(np.mean(values)) - miss, float(np.mean(values)) + miss
    part = PERCENTILES[statistic] / 100
    miss = NORMAL_95 * math.sqrt(n * part * (1 - part))
    ranks = np.clip([math.floor(n * part - miss), math.ceil(n * part + miss)], 0, n - 1)
    low, high = np.partition(values, ranks)[ranks]
    return float(low), float(high)


def statistic_function(statistic: str) -> Any:
    """Return the NumPy reduction for "mean" or a percentile such as "p95"."""
    if statistic == "mean":
        return np.mean

    def percentile(values: Any, axis: int) -> Any:
        # a sample, not a value between two: the same whether a run is there once or three times
        return np.percentile(values, PERCENTILES[statistic], axis=axis, method="inverted_cdf")

    return percentile


def distribution(name: str, samples: Sequence[float] | FloatArray, statistics: Iterable[str]) -> dict[str, Metric]:
    """Return ``name.statistic`` metrics of the same samples; only the first keeps the samples themselves."""
    metrics: dict[str, Metric] = {}
    for statistic in statistics:
        metric = measured_metric(name, samples, statistic)
        metrics[f"{name}.{statistic}"] = (
            metric if not metrics else metric.model_copy(update={"samples": (), "every": 1})
        )
    return metrics


def summarise(compared: Sequence[ComparedMetric]) -> Summary:
    """Return errors, and how many intervals held, of what is judged or evidence of its own."""
    compared = [row for row in compared if row.judged or not row.derived]
    if not compared:
        return Summary(n=0, median_abs_error_frac=0.0, p90_abs_error_frac=0.0, coverage_frac=0.0)
    errors = np.abs([row.error_frac for row in compared])
    return Summary(
        n=len(compared),
        median_abs_error_frac=float(np.median(errors)),
        p90_abs_error_frac=float(np.percentile(errors, 90)),
        coverage_frac=float(np.mean([row.covered for row in compared])),
    )


def by_metric(rows: Sequence[ComparedMetric]) -> dict[str, Summary]:
    """Return the errors of each metric that is judged, over all scenarios; nothing where it is one alone."""
    names = dict.fromkeys(row.metric for row in rows if row.judged)
    if len(names) < 2:
        return {}
    return {name: summarise([row for row in rows if row.judged and row.metric == name]) for name in names}


def metric_table(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """Return metrics as plain dicts without samples, as the JSON output shows them."""
    return {name: metric.model_dump(exclude={"samples", "every"}) for name, metric in metrics.items()}
