"""Pairs of runs that were predicted and executed: does the interval of a predicted ratio hold the measured one?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sandtable.model.error_sources import drift_of
from sandtable.results import NORMAL_95, Metric
from sandtable.runs.check import Checked
from sandtable.runs.compare import HEADLINE
from sandtable.runs.predict import Foreseen, foresee
from sandtable.studies import paired
from sandtable.studies.paired import Change
from sandtable.table import Quantity, Table
from sandtable.workload.scenarios import Case

# the mean range of n draws of a normal distribution over its standard deviation (Tippett, Biometrika 17, 1925)
RANGE = {2: 1.128, 3: 1.693, 4: 2.059, 5: 2.326, 6: 2.534}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One run: its name, what was foreseen, what was measured, in how many repeats, and how far they lie apart."""

    name: str
    foreseen: Foreseen
    measured: Metric
    repeats: int
    spread_frac: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two runs: the predicted ratio of a metric, after / before, and the measured one.

    ``low`` to ``high`` is the 90 % interval of a ratio that is measured: of the ratio itself, and of what the machine
    wanders from run to run, of which a mean over repeats keeps less. ``overlap`` are the least and the most that the
    ratio could be by two intervals that know nothing of each other.
    """

    before: str
    after: str
    change: Change
    low: float
    high: float
    measured: float
    overlap: tuple[float, float]

    @property
    def covered(self) -> bool:
        """Whether the interval holds the measured ratio."""
        return self.low <= self.measured <= self.high

    @property
    def covered_alone(self) -> bool:
        """Whether the interval of the ratio itself holds the measured one, as if no run scattered."""
        return self.change.ratio_low <= self.measured <= self.change.ratio_high

    @property
    def width_frac(self) -> float:
        """The width of the interval of the ratio itself over that which overlap leaves."""
        return (self.change.ratio_high - self.change.ratio_low) / (self.overlap[1] - self.overlap[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How many pairs there are, which part of the measured ratios lies within, and the median `Pair.width_frac`."""

    n: int
    covered_frac: float
    alone_frac: float
    width_frac: float

    def sentence(self) -> str:
        """Return it for people."""
        pairs = "1 pair" if self.n == 1 else f"{self.n} pairs"
        return (
            f"{pairs}: {100 * self.covered_frac:.0f} % of the measured ratios inside the 90 % interval with the"
            f" scatter of repeats, {100 * self.alone_frac:.0f} % without; it is {self.width_frac:.2f} times as wide as"
            " two intervals that overlap leave"
        )


def ran(cases: Iterable[Checked], metric: str = HEADLINE) -> list[Ran]:
    """Return the cases of a check that have run; those that were read back are predicted anew."""
    return [
        Ran(
            name=item.name,
            foreseen=item.foreseen or _foreseen(item.case),
            measured=item.measurement.metrics[metric],
            repeats=len(item.repeats.executions),
            spread_frac=item.measurement.repeat_spread_frac,
        )
        for item in cases
        if item.measurement is not None and metric in item.measurement.metrics
    ]


def _foreseen(case: Case) -> Foreseen:
    return foresee(case.scenario, case.workload, case.parameters, case.machine)


def scatter(runs: Iterable[Ran]) -> float:
    """Return how far one repeat of a run lies from its mean, in logarithms: half a 90 % interval, zero if none was.

    Of the median over the runs, so that one that was disturbed says nothing; a range of n repeats is `RANGE` times as
    wide as a standard deviation.
    """
    found = [
        NORMAL_95 * math.log1p(one.spread_frac) / RANGE[min(one.repeats, max(RANGE))]
        for one in runs
        if one.spread_frac is not None and one.repeats > 1
    ]
    return float(np.median(found)) if found else 0.0


def pair(before: Ran, after: Ran, metric: str = HEADLINE, *, scattered: float = 0.0) -> Pair:
    """Return two runs beside each other; their repeats are ``scattered``, if that is zero as their machine drifts."""
    sides = [paired.Side(one.foreseen) for one in (before, after)]
    old, new = (one.foreseen.prediction.metrics[metric] for one in (before, after))
    change = paired.change(metric, *sides)
    wanders = [scattered or drift_of(side.weights(metric)) for side in sides]
    wandered = math.hypot(
        *(one / math.sqrt(run.repeats) for one, run in zip(wanders, (before, after), strict=True))
    )
    below, above = math.log(change.ratio / change.ratio_low), math.log(change.ratio_high / change.ratio)
    return Pair(
        before=before.name,
        after=after.name,
        change=change,
        low=change.ratio * math.exp(-math.hypot(below, wandered)),
        high=change.ratio * math.exp(math.hypot(above, wandered)),
        measured=after.measured.value / before.measured.value,
        overlap=(new.low / old.high, new.high / old.low),
    )


def pairs(runs: Sequence[Ran], metric: str = HEADLINE) -> list[Pair]:
    """Return every two of the runs, each once; those of which nothing is uncertain are none."""
    common = scatter(runs)
    found = (pair(before, after, metric, scattered=common) for before, after in itertools.combinations(runs, 2))
    return [one for one in found if one.overlap[0] < one.overlap[1]]


def coverage(found: Sequence[Pair]) -> Coverage:
    """Summarise at least one pair."""
    return Coverage(
        n=len(found),
        covered_frac=float(np.mean([one.covered for one in found])),
        alone_frac=float(np.mean([one.covered_alone for one in found])),
        width_frac=float(np.median([one.width_frac for one in found])),
    )


def records(found: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return pairs as rows for programs; ``low`` to ``high`` is with the scatter of repeats."""
    own = ("before", "after", "low", "high", "measured", "covered", "covered_alone", "width_frac")
    ratios = ("ratio", "ratio_low", "ratio_high", "probability")
    return [
        {name: getattr(one, name) for name in own} | {name: getattr(one.change, name) for name in ratios}
        for one in found
    ]


def speedups(runs: Sequence[Ran], baseline: str, metric: str = HEADLINE) -> Table:
    """Return how many times as fast as ``baseline`` each run is, predicted with its interval beside measured."""
    base = next((one for one in runs if one.name == baseline), None)
    others = [] if base is None else [one for one in runs if one is not base]
    rows = []
    for other in others:
        assert base is not None
        # the time of the baseline over that of the other
        found = pair(other, base, metric, scattered=scatter(runs))
        error = found.change.ratio / found.measured - 1
        ends = (found.change.ratio, found.low, found.high, found.measured)
        rows.append([other.name, *ends, Quantity(error, "frac", signed=True), found.covered])
    columns = ("scenario", f"times as fast as {baseline}", "low", "high", "measured", "error", "covered")
    return Table(columns=columns, rows=rows)
