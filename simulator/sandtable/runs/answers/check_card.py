"""The answer of a check: whether predictions hold, as far as the machine repeats itself, and what is furthest off."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from sandtable import units
from sandtable.model.drift import Drift
from sandtable.results import Answer, ComparedMetric, Comparison, Measurement, Metric, Prediction, by_metric
from sandtable.runs import compare
from sandtable.runs.answers.answer_card import number_and_unit, subject_of
from sandtable.workload.scenarios import Case

# a machine whose probe moved by less since its calibration is as it was
DRIFT_SHOWN_FRAC = 0.05
VERDICTS = {"pass": "Yes, {} hold{}", "fail": "No, {} {} off", "inconclusive": "Undecided"}


class Pair(NamedTuple):
    """A prediction and what was measured of it, if it was."""

    case: Case
    prediction: Prediction
    measurement: Measurement | None


def check_answer(judged: Comparison, pairs: Sequence[Pair], left: str = "") -> Answer:
    """Return the answer of a check of one scenario or of many; ``left`` says what is still to be done."""
    ran = [pair for pair in pairs if pair.measurement is not None]
    worst = worst_row(judged.comparisons)
    subjects = list(dict.fromkeys(subject_of(pair.case) for pair in pairs))
    notes = [note for _, _, measured in ran if measured is not None for note in measured.validity]
    verdict = _verdict_of_one(judged, ran[0]) if len(pairs) == 1 and ran else _verdict_of_many(judged, ran)
    return Answer(
        question=_question([pair.case for pair in pairs]),
        subject=subjects[0] if len(subjects) == 1 else f"{len(pairs)} scenarios, the first: {subjects[0]}",
        verdict=verdict,
        headlines=_memory(ran[0]) if len(pairs) == 1 and ran else _metric_by_metric(judged),
        bound="" if worst is None else f"Furthest off: {_missed(worst, several=len(pairs) > 1)}.",
        caveat=left or next(iter((*judged.reasons, *notes)), ""),
    )


def _question(cases: Sequence[Case]) -> str:
    """Return the title of the scenario, or what the titles of a suite's points begin with."""
    scenario = cases[0].scenario
    return scenario.title.removesuffix(f": {scenario.name}") if len(cases) > 1 else scenario.title


def repeatability(measured: Measurement) -> float:
    """Return within what share the machine repeats itself: from run to run, and beside other programs."""
    lost_frac = measured.lost_frac or 0.0
    return max(measured.repeat_spread_frac or 0.0, 1 / (1 - min(lost_frac, 0.99)) - 1)


def _repeats(ran: Sequence[Pair]) -> str:
    within = max((repeatability(pair.measurement) for pair in ran if pair.measurement is not None), default=0.0)
    return f"this machine repeats itself within {100 * within:.0f} %"


def _opening(verdict: str, *, several: bool) -> str:
    what, ends = ("the predictions", ("", "are")) if several else ("the prediction", ("s", "is"))
    return VERDICTS[verdict].format(what, ends[verdict == "fail"])


def _verdict_of_one(judged: Comparison, pair: Pair) -> str:
    """Return the verdict on one scenario: predicted, measured, how far off, how well the machine repeats itself."""
    assert pair.measurement is not None
    name = headline_of(pair)
    (predicted, unit), (measured, _) = (
        number_and_unit(result.metrics[name].value, result.metrics[name].unit)
        for result in (pair.prediction, pair.measurement)
    )
    error = pair.prediction.metrics[name].value / pair.measurement.metrics[name].value - 1
    opening = _opening(judged.verdict, several=False)
    return (
        f"{opening}: predicted {predicted}, measured {measured} {unit}, {off_by(error)}{_drift(judged, [pair])}; "
        f"{_repeats([pair])}."
    )


def _verdict_of_many(judged: Comparison, ran: Sequence[Pair]) -> str:
    summary = judged.summary
    opening = _opening(judged.verdict, several=True)
    if summary.n == 0:
        return f"{opening}: nothing was compared."
    return (
        f"{opening}: {summary.n} compared, median error {100 * summary.median_abs_error_frac:.1f} %"
        f"{_drift(judged, ran)}, 90th percentile {100 * summary.p90_abs_error_frac:.0f} %, "
        f"{100 * summary.coverage_frac:.0f} % inside their 90 % interval; {_repeats(ran)}."
    )


def _drift(judged: Comparison, ran: Sequence[Pair]) -> str:
    """Say in brackets how far the machine drifted since calibration, and the error of predictions without that."""
    drifts = [Drift(pair.measurement.drift).typical for pair in ran if pair.measurement is not None]
    typical = median(drifts) if drifts else 1.0
    moved = max(typical, 1 / typical) - 1
    if judged.as_calibrated is None or moved < DRIFT_SHOWN_FRAC:
        return ""
    error = judged.as_calibrated.median_abs_error_frac
    return (
        f" ({100 * error:.1f} % for the speed at calibration: by its probes the machine was {100 * moved:.0f} % "
        f"{'slower' if typical > 1 else 'faster'})"
    )


def _metric_by_metric(judged: Comparison) -> tuple[str, ...]:
    """Return the median error of each metric, where a check is judged on several."""
    errors = {name.removesuffix(".mean"): found for name, found in by_metric(judged.comparisons).items()}
    listed = ", ".join(f"{name} {100 * found.median_abs_error_frac:.1f} %" for name, found in errors.items())
    return (f"median errors: {listed}",) if listed else ()


def headline_of(pair: Pair) -> str:
    """Return the workload's first headline that both carry."""
    assert pair.measurement is not None
    names = (*pair.case.workload.headlines, compare.HEADLINE, *pair.prediction.metrics)
    both = pair.prediction.metrics.keys() & pair.measurement.metrics.keys()
    return next(name for name in names if name in both)


def off_by(error_frac: float) -> str:
    """Return an error in words: ``4 % too high``."""
    share = f"{100 * abs(error_frac):.2g} %"
    return f"{share} too {'high' if error_frac > 0 else 'low'}" if error_frac else "not off at all"


def worst_row(rows: Sequence[ComparedMetric]) -> ComparedMetric | None:
    """Return the mean that is furthest off; what follows from others and single percentiles are left out."""
    means = [row for row in rows if not row.derived and row.metric.partition(".")[2] in ("", "mean")]
    return max(means, key=lambda row: abs(row.error_frac), default=None)


def _missed(row: ComparedMetric, *, several: bool) -> str:
    where = f" of {row.scenario}" if several else ""
    amounts = [units.format_quantity(value, row.unit) for value in (row.predicted, row.measured)]
    return f"{row.metric}{where}, {off_by(row.error_frac)} ({amounts[0]} predicted, {amounts[1]} measured)"


def _memory(pair: Pair) -> tuple[str, ...]:
    assert pair.measurement is not None
    name = "peak_memory_bytes"
    both = [result.metrics.get(name) for result in (pair.prediction, pair.measurement)]
    sizes = [units.format_bytes(metric.value) for metric in both if isinstance(metric, Metric)]
    return (f"memory {sizes[0]} predicted, {sizes[1]} measured",) if len(sizes) == 2 else ()
