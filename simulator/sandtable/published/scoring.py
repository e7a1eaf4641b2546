"""Run the adapters over a folder of published measurements, and score the predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sandtable import plugins
from sandtable.errors import ConfigError, UnknownName
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row, file_of
from sandtable.workload.progress import Step

MALFORMED = "malformed row"
NO_FIGURE = "no such figure in the row"
N_WORST = 5


@dataclass(frozen=True, kw_only=True)
class DatasetScore:
    """The score of one metric of one file: every row is scored or counted under one reason."""

    name: str
    metric: str
    rows: int
    skipped: dict[str, int]
    points: tuple[Scored, ...]
    held_out: tuple[Scored, ...] = ()
    malformed_lines: tuple[int, ...] = ()

    @property
    def scored(self) -> int:
        """Number of rows scored."""
        return len(self.points)

    def worst(self, n: int = N_WORST) -> list[Scored]:
        """Return the points with the largest error, whichever way, largest first."""
        return sorted(self.points, key=lambda point: -abs(np.log(point.predicted / point.measured)))[:n]

    def to_json(self) -> dict[str, Any]:
        """Return the score as plain data; errors are null where nothing was scored."""
        data: dict[str, Any] = {
            "name": self.name,
            "metric": self.metric,
            "rows": self.rows,
            "scored": self.scored,
            "skipped": dict(sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))),
            **error_summary(self.points),
            "unit": self.points[0].unit if self.points else None,
            "worst": [_worst_json(point) for point in self.worst()],
            "malformed_lines": list(self.malformed_lines),
        }
        if self.held_out:
            summary = error_summary(self.held_out)
            data["held_out"] = {"scored": len(self.held_out), **summary}
        return data


def error_summary(points: Sequence[Scored]) -> dict[str, float | None]:
    """Return median and 90th percentile of the absolute error, median signed error (bias), and coverage."""
    names = ("median_abs_error_frac", "p90_abs_error_frac", "bias_frac", "coverage_frac")
    if not points:
        return dict.fromkeys(names)
    errors = np.array([point.error_frac for point in points])
    return {
        "median_abs_error_frac": float(np.median(np.abs(errors))),
        "p90_abs_error_frac": float(np.percentile(np.abs(errors), 90)),
        "bias_frac": float(np.median(errors)),
        "coverage_frac": float(np.mean([point.covered for point in points])),
    }


def _worst_json(point: Scored) -> dict[str, Any]:
    return {
        "row": point.row_id,
        "label": point.label,
        "predicted": point.predicted,
        "low": point.low,
        "high": point.high,
        "measured": point.measured,
        "error_frac": point.error_frac,
    }


@dataclass(frozen=True, kw_only=True)
class PublishedReport:
    """Scores of all files that were found, and the names of the known files that were not."""

    datasets: tuple[DatasetScore, ...]
    titles: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report in the form that ``sandtable published --format json`` prints."""
        return {
            "schema": 1,
            "datasets": [score.to_json() for score in self.datasets],
            "missing": list(self.missing),
        }


@lru_cache(maxsize=1)
def adapters() -> dict[str, Adapter]:
    """Return every adapter by name; a new module is found by itself."""
    return plugins.instances(Adapter, published=True)  # type: ignore[type-abstract]


def run(
    folder: Path | None = None,
    only: str | Iterable[str] | None = None,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> PublishedReport:
    """Predict every row of the files in ``folder`` that an adapter knows, and score the predictions.

    Without a folder, the files that ship with the package are used. ``only`` is one name, names with commas between
    them, or several names.

    Raises:
        ConfigError: no such folder, or none of the known files in it.
        UnknownName: ``only`` names no adapter.
    """
    known = adapters()
    chosen = only.split(",") if isinstance(only, str) else only
    names = list(known) if chosen is None else list(dict.fromkeys(name.strip() for name in chosen))
    for name in names:
        if name not in known:
            raise UnknownName("published data set", name, known)
    folders = {name: known[name].shipped() if folder is None else folder for name in names}
    if folder is not None and not folder.is_dir():
        raise ConfigError("no such folder", file=str(folder))
    present = [name for name, place in folders.items() if place and file_of(place, name)]
    if not present:
        expected = ", ".join(f"{name}.csv" for name in names)
        if folder is None:
            raise ConfigError(f"name the folder of published measurements, which holds any of: {expected}")
        raise ConfigError(f"none of the expected files is here: {expected}", file=str(folder))
    scores: list[DatasetScore] = []
    for done, name in enumerate(present):
        progress(Step(f"{name}: {known[name].title}", done, len(present)))
        place = folders[name]
        assert place is not None
        scores.extend(score(known[name], place))
    return PublishedReport(
        datasets=tuple(scores),
        titles={name: known[name].title for name in present},
        missing=tuple(name for name in names if name not in present),
    )


def score(adapter: Adapter, folder: Path) -> list[DatasetScore]:
    """Score one adapter's file: one entry per metric."""
    try:
        rows = adapter.read(folder)
    except MalformedRow as error:
        raise ConfigError(str(error), file=str(file_of(folder, adapter.name))) from None
    points: dict[str, list[Scored]] = {metric: [] for metric in adapter.metrics}
    reasons: dict[str, Counter[str]] = {metric: Counter() for metric in adapter.metrics}
    malformed: list[int] = []
    readable: list[Row] = []
    for row, found in zip(rows, adapter.predict_all(rows), strict=True):
        try:
            outcome = _by_metric(adapter, found)
            readable.append(row)
        except MalformedRow:
            malformed.append(row.line)
            outcome = dict.fromkeys(adapter.metrics, Skipped(MALFORMED))
        for metric, result in outcome.items():
            if isinstance(result, Scored):
                points[metric].append(result)
            else:
                reasons[metric][result.reason] += 1
    held_out = adapter.held_out(readable)
    return [
        DatasetScore(
            name=adapter.name,
            metric=metric,
            rows=len(rows),
            skipped=dict(reasons[metric]),
            points=tuple(points[metric]),
            held_out=tuple(point for point in held_out if point.metric == metric),
            malformed_lines=tuple(malformed),
        )
        for metric in adapter.metrics
    ]


def _by_metric(adapter: Adapter, outcome: Outcome | MalformedRow) -> dict[str, Scored | Skipped]:
    """Return, for each metric of the adapter, the one thing that became of it in a row."""
    if isinstance(outcome, MalformedRow):
        raise outcome
    if isinstance(outcome, Skipped):
        return dict.fromkeys(adapter.metrics, outcome)
    by_metric: dict[str, Scored | Skipped] = {}
    for result in outcome:
        for metric in adapter.metrics if result.metric is None else (result.metric,):
            if metric not in adapter.metrics:
                raise ValueError(f"{adapter.name}: {metric!r} is not among the adapter's metrics")
            by_metric.setdefault(metric, result)
    for point in by_metric.values():
        if isinstance(point, Scored) and not (point.measured > 0 and point.predicted > 0):
            raise MalformedRow(f"{point.metric}: an error needs positive figures")
    return {metric: by_metric.get(metric, Skipped(NO_FIGURE)) for metric in adapter.metrics}
