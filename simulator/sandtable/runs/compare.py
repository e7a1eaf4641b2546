"""Join a prediction with a measurement, and judge."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from sandtable import units
from sandtable.errors import ConfigError, did_you_mean
from sandtable.results import (
    ComparedMetric,
    Comparison,
    Measurement,
    Metric,
    Prediction,
    Result,
    summarise,
)

# what a check is judged on: the median and 90th percentile of the absolute error of what its workload is judged by
HEADLINE = "latency_s.mean"
MEDIAN_LIMIT_FRAC = 0.10
P90_LIMIT_FRAC = 0.25
_THRESHOLD = re.compile(r"^\s*(<=|>=|<|>)\s*(.+?)\s*$")
_OPERATORS: dict[str, Callable[[Any, float], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def compare(
    prediction: Prediction, measurement: Measurement, judged: Collection[str] = (HEADLINE,)
) -> list[ComparedMetric]:
    """Return every metric that both carry, in the prediction's order; ``judged`` are those that decide a check."""
    rows = []
    for name, predicted in prediction.metrics.items():
        measured = measurement.metrics.get(name)
        if measured is None or measured.value == 0:
            continue
        rows.append(
            ComparedMetric(
                scenario=str(prediction.scenario["name"]),
                metric=name,
                unit=predicted.unit,
                predicted=predicted.value,
                low=predicted.low,
                high=predicted.high,
                measured=measured.value,
                error_frac=predicted.value / measured.value - 1,
                covered=_covered(predicted, measured.value),
                derived=predicted.derived and measured.derived,
                judged=name in judged,
            )
        )
    return rows


def _covered(predicted: Metric, measured: float) -> bool:
    """Whether the interval holds the value; a count that is known exactly may differ by rounding."""
    slack = 1e-9 * abs(measured)
    return predicted.low - slack <= measured <= predicted.high + slack


def judge(
    rows: Sequence[ComparedMetric],
    *,
    extra: Iterable[str] = (),
    repeats_frac: Sequence[float] = (),
) -> Comparison:
    """Summarise what is judged over all scenarios, and say whether it is within the limits.

    Where nothing is, all metrics that are evidence of their own are summarised. ``extra`` are reasons found
    elsewhere, such as a crossed threshold; any of them fails the check. ``repeats_frac`` says of each scenario within
    what share the machine repeats itself: a miss that is no larger than that neither passes nor fails.
    """
    main = [row for row in rows if row.judged] or [row for row in rows if not row.derived]
    summary = summarise(main)
    reasons = list(extra)
    if not main:
        return Comparison(
            comparisons=tuple(rows), summary=summary, verdict="inconclusive", reasons=("nothing was compared",)
        )
    failed = bool(reasons)
    for what, value, limit, quantile in (
        ("median", summary.median_abs_error_frac, MEDIAN_LIMIT_FRAC, 50),
        ("90th percentile", summary.p90_abs_error_frac, P90_LIMIT_FRAC, 90),
    ):
        repeats = float(np.percentile(repeats_frac, quantile)) if len(repeats_frac) else 0.0
        if value > limit:
            failed = failed or value > repeats
            reasons.append(_reason(what, value, limit, repeats))
    verdict: Literal["pass", "fail", "inconclusive"] = "fail" if failed else "inconclusive" if reasons else "pass"
    return Comparison(comparisons=tuple(rows), summary=summary, verdict=verdict, reasons=tuple(reasons))


def _reason(what: str, value: float, limit: float, repeats: float) -> str:
    missed = f"{what} of the absolute error is {100 * value:.1f} %, above {100 * limit:.0f} %"
    return (
        f"{missed}, and this machine repeats itself within {100 * repeats:.0f} % only"
        if value <= repeats
        else missed
    )


def check_thresholds(thresholds: dict[str, str], result: Result) -> list[tuple[str, bool, float]]:
    """Return (sentence, held, value) for each threshold of a scenario, such as ``{"latency_s.p95": "< 500 ms"}``.

    Raises:
        ConfigError: a threshold on a metric that the result lacks, or one that cannot be read.
    """
    found = []
    for metric, text in thresholds.items():
        if metric not in result.metrics:
            raise ConfigError(f"threshold on unknown metric {metric!r}{did_you_mean(metric, result.metrics)}")
        sentence, holds = condition(metric, text)
        value = result.metrics[metric].value
        found.append((sentence, holds(value), value))
    return found


def condition(metric: str, text: str) -> tuple[str, Callable[[Any], Any]]:
    """Return a condition on a metric, such as ``< 500 ms``, as a sentence and as a function of a value or a column.

    Raises:
        ConfigError: it cannot be read, or its unit is not the metric's.
    """
    match = _THRESHOLD.match(text)
    if match is None:
        raise ConfigError(f"thresholds.{metric}: {text!r} is not a threshold: write it like '< 500 ms'")
    symbol, limit_text = match.groups()
    limit = _limit(metric, limit_text)
    return f"{metric} {symbol} {limit_text}", lambda value: _OPERATORS[symbol](value, limit)


def _limit(metric: str, text: str) -> float:
    quantity, unit = units.quantity_of(metric), units.unit_of(metric)
    try:
        if quantity not in (None, "1/s"):
            return units.parse(text, str(quantity))
        number, _, written = text.partition(" ")
        if written.strip() not in ("", unit):
            raise ValueError(f"{metric} is counted in {unit}, not in {written.strip()!r}")
        try:
            return units.parse_count(number)
        except ValueError:
            raise ValueError(f"{text!r} is not a number: write it like '< 15 {unit}'") from None
    except ValueError as error:
        raise ConfigError(f"thresholds.{metric}: {error}") from None
