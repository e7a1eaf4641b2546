"""Runs of the study and tables of them: what a model gains over another, how well parameters are found again.

Reading the runs that ship needs neither numba nor scipy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sandtable_workloads.seed_intervals import Gain
from sandtable_workloads.seed_runs import SeedRun
from sandtable_workloads.seed_study import markdown_table

SHUFFLED = "SRPF, edges shuffled"
RECOVERY, SIZES = "recovery", (1_000, 10_000, 100_000, 1_000_000)
SEEDS = 20
LED_BY_PRIOR = 1_000  # events of a record whose error the priors still lead: no part of the slope
EXPECTED_SLOPE = -0.5


RUNS = Path(__file__).with_name("recurrence_runs.jsonl")
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Run(SeedRun):
    """One case with one seed.

    Attributes:
        case: Of which events.
        seed: Of the parameters, the events and the fits.
        n_events: How many were drawn.
        figures: By model, or of recovery by the number of events fitted to, then by name.
        environment: What it ran on.
    """

    case: str
    seed: int
    n_events: int
    figures: Figures
    environment: dict[str, str]


def committed() -> list[Run]:
    """Return the runs that ship with the package."""
    return Run.shipped(RUNS)


def kept_or(folder: Path, case: str, seed: int, run: Callable[[], tuple[int, Figures]]) -> tuple[Run, bool]:
    """Return the run that a folder keeps, or run it and keep it; and whether it ran.

    Raises:
        ConfigError: a run that was kept is damaged.
    """
    from sandtable.runs.measure import environment

    path = folder / f"{case.replace(' ', '_')}-{seed}.json"
    before = Run.kept(path)
    if before is not None:
        return before, False
    n_events, found = run()
    figures = {name: {key: float(f"{value:.6g}") for key, value in each.items()} for name, each in found.items()}
    done = Run(case=case, seed=seed, n_events=n_events, figures=figures, environment=environment())
    done.keep(path)
    return done, True


# --- what is compared ----------------------------------------------------------------------------------------------


class Contrast(NamedTuple):
    """Two models on events of one case, and whether the first should rank better."""

    case: str
    model: str
    against: str
    gains: bool


CONTRASTS = (
    Contrast("events recur", "HRPF", "HPF", True),
    Contrast("nothing recurs", "HRPF", "HPF", False),
    Contrast("followed users excite", "SRPF", "HRPF", True),
    Contrast("followed users excite", "SRPF", SHUFFLED, True),
    Contrast("they excite nobody", "SRPF", "HRPF", False),
    Contrast("preferences by the clock", "DRPF", "HRPF", True),
    Contrast("the same at all hours", "DRPF", "HRPF", False),
)
CASES = (*dict.fromkeys(contrast.case for contrast in CONTRASTS), RECOVERY)


class Row(NamedTuple):
    """A contrast over its seeds.

    Attributes:
        contrast: Which.
        ndcg, recall: Differences of the mean gain, and of the share within ten.
        split, next, last: Changes in percent of the mean absolute error of returning times, asked at the split, after
            each event, and after the last event of training: less than nothing is better.
        log_likelihood: Difference per held-out event.
    """

    contrast: Contrast
    ndcg: Gain
    recall: Gain
    split: Gain
    next: Gain
    last: Gain
    log_likelihood: Gain

    @property
    def as_expected(self) -> bool:
        """Whether the model ranks better beyond the interval just where it should."""
        return self.ndcg.above == self.contrast.gains


def contrasts(runs: Iterable[Run]) -> list[Row]:
    """Return a row for each contrast that has runs."""
    by_case: dict[str, list[Run]] = {}
    for run in runs:
        by_case.setdefault(run.case, []).append(run)
    return [_row(each, by_case[each.case]) for each in CONTRASTS if each.case in by_case]


def _row(contrast: Contrast, runs: Sequence[Run]) -> Row:
    def more(name: str) -> Gain:
        return Gain.of([run.figures[contrast.model][name] - run.figures[contrast.against][name] for run in runs])

    def percent(name: str) -> Gain:
        ratios = (run.figures[contrast.model][name] / run.figures[contrast.against][name] for run in runs)
        return Gain.of([100 * (ratio - 1) for ratio in ratios])

    split, after_each, last = (percent(f"{asked}_mean_h") for asked in ("split", "next", "last"))
    return Row(contrast, more("ndcg"), more("recall_10"), split, after_each, last, more("log_likelihood"))


class Level(NamedTuple):
    """Means over seeds of a model on the events of a case; None where it says nothing."""

    case: str
    model: str
    ndcg: float
    recall: float
    next_h: float | None
    log_likelihood: float | None


def levels(runs: Sequence[Run]) -> list[Level]:
    """Return a row for each model of each case that compares models."""
    found = []
    for case in CASES[:-1]:
        of_case = [run.figures for run in runs if run.case == case]
        for model in of_case[0] if of_case else ():
            names = ("ndcg", "recall_10", "next_mean_h", "log_likelihood")
            means = (_mean([each[model].get(name) for each in of_case]) for name in names)
            found.append(Level(case, model, *means))  # type: ignore[arg-type]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class Recovered(NamedTuple):
    """Relative errors over seeds of parameters found in records of one length."""

    n_events: int
    base: Gain
    tau: Gain
    bias: Gain


def recoveries(runs: Iterable[Run]) -> list[Recovered]:
    """Return a row for each length."""
    own = [run for run in runs if run.case == RECOVERY]
    sizes = sorted({int(size) for run in own for size in run.figures})

    def gain(size: int, name: str) -> Gain:
        return Gain.of([100 * run.figures[str(size)][name] for run in own])

    return [Recovered(size, *(gain(size, name) for name in ("base", "tau", "tau_bias"))) for size in sizes]


def slopes(runs: Iterable[Run], name: str) -> Gain:
    """Return the slope of an error's logarithm against that of the number of events, least squares for each seed."""
    own = [run.figures for run in runs if run.case == RECOVERY]
    return Gain.of([_slope({int(n): errors[name] for n, errors in each.items()}) for each in own])


def _slope(errors: dict[int, float]) -> float:
    points = [(math.log(n), math.log(error)) for n, error in errors.items() if n > LED_BY_PRIOR]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


# --- text ----------------------------------------------------------------------------------------------------------


def contrasts_text(rows: Iterable[Row]) -> str:
    """Return contrasts as a table in Markdown; changes of mean absolute errors of returning times are in percent."""
    heads = ("events", "model", "over", "seeds", "NDCG", "recall@10", *ASKED, "log-lik. an event")
    return markdown_table(heads, map(_cells, rows))


ASKED = ("return error at the split", "after each event", "after training")


def _cells(row: Row) -> tuple[str, ...]:
    (case, model, against, _), ndcg = row.contrast, row.ndcg
    errors = (error.shown("+.1f") for error in (row.split, row.next, row.last))
    others = (ndcg.shown("+.3f"), row.recall.shown("+.3f"), *errors, row.log_likelihood.shown("+.2f"))
    return (case, model, against, str(ndcg.n), *others)


def levels_text(rows: Iterable[Level]) -> str:
    """Return the levels that contrasts are differences of as a table in Markdown."""
    heads = ("events", "model", "NDCG", "recall@10", "error after each event (h)", "log-lik. an event")
    cells = (
        (
            *row[:2],
            *("" if value is None else f"{value:.{n}f}" for value, n in zip(row[2:], (3, 3, 2, 2), strict=True)),
        )
        for row in rows
    )
    return markdown_table(heads, cells)


def recoveries_text(rows: Iterable[Recovered]) -> str:
    """Return recoveries as a table in Markdown, in percent."""
    heads = ("events fitted", "seeds", "error of all base rates (%)", "error of tau (%)", "bias of tau (%)")
    return markdown_table(heads, map(_recovery_cells, rows))


def _recovery_cells(row: Recovered) -> tuple[str, ...]:
    errors = row.base.shown(".2f"), row.tau.shown(".2f"), row.bias.shown("+.2f")
    return (f"{row.n_events:,}", str(row.base.n), *errors)


def as_text(runs: Sequence[Run]) -> str:
    """Return the tables that there are runs for."""
    compared, found = contrasts(runs), recoveries(runs)
    tables = [contrasts_text(compared), levels_text(levels(runs))] if compared else []
    if found:
        falls = (slopes(runs, name).shown("+.3f") for name in ("base", "tau"))
        tables += [recoveries_text(found), "Slopes in logarithms: base rates {}, tau {}.".format(*falls)]
    return "\n\n".join(tables)
