"""The scatter plot of a published data set: predicted over measured, first as data, then as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sandtable.published.scoring import PublishedReport
from sandtable.report import figures
from sandtable.table import Table

BANDS_FRAC = (0.25, 0.10)
COLUMNS = ("metric", "unit", "group", "label", "measured", "predicted", "low", "high", "error_frac", "worst")


def scatter_data(report: PublishedReport, name: str) -> Table:
    """Return one row per scored figure of a data set; the worst of each metric are marked."""
    rows = []
    for score in report.datasets:
        if score.name != name:
            continue
        worst = {(point.row_id, point.label) for point in score.worst()}
        for point in score.points:
            marked = (point.row_id, point.label) in worst
            rows.append(
                [
                    score.metric,
                    point.unit,
                    point.group,
                    point.label,
                    point.measured,
                    point.predicted,
                    point.low,
                    point.high,
                    point.error_frac,
                    marked,
                ]
            )
    return Table(columns=COLUMNS, rows=rows, title=f"{name}: {report.titles.get(name, '')}".strip(": "))


def scatter_figure(data: Table) -> Any:
    """Return a matplotlib figure: one log-log panel per metric, bands of 10 % and 25 %, colour by group.

    Raises:
        NoDevice: matplotlib is not installed.
    """
    records = [dict(zip(data.columns, row, strict=True)) for row in data.rows]
    metrics = list(dict.fromkeys(record["metric"] for record in records))
    groups = list(dict.fromkeys(record["group"] for record in records))
    figure = figures.new_figure(5.2 * max(1, len(metrics)), 5.2, data.title)
    axes = figure.subplots(1, max(1, len(metrics)), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=False):
        _panel(axis, [record for record in records if record["metric"] == metric], groups)
    if metrics:
        axes[0].legend(loc="upper left", fontsize=8)
    return figure


def _panel(axis: Any, records: list[dict[str, Any]], groups: list[str]) -> None:
    ends = [record[key] for record in records for key in ("measured", "predicted")]
    low, high = 0.7 * min(ends), 1.4 * max(ends)
    line = np.array([low, high])
    for band in BANDS_FRAC:
        axis.fill_between(line, line * (1 - band), line * (1 + band), color="0.5", alpha=0.15, linewidth=0)
    axis.plot(line, line, color="0.4", linewidth=0.8)
    for index, group in enumerate(groups):
        own = [record for record in records if record["group"] == group]
        if own:
            x, y = ([record[key] for record in own] for key in ("measured", "predicted"))
            axis.scatter(x, y, s=14, label=group, alpha=0.8, **figures.look(index))
    worst = sorted((r for r in records if r["worst"]), key=lambda r: -abs(np.log(r["predicted"] / r["measured"])))
    for number, record in enumerate(worst, start=1):
        where = (record["measured"], record["predicted"])
        axis.annotate(str(number), where, fontsize=7, xytext=(4, 3), textcoords="offset points")
    named = [f"{i} {r['label']} {100 * r['error_frac']:+.0f} %" for i, r in enumerate(worst, start=1)]
    listed = "\n".join(named).replace("$", r"\$")
    axis.text(0.98, 0.02, listed, transform=axis.transAxes, fontsize=7, ha="right", va="bottom")
    unit = records[0]["unit"]
    median = 100 * float(np.median([abs(record["error_frac"]) for record in records]))
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axis.set(xlabel=f"measured, {unit}", ylabel=f"predicted, {unit}")
    axis.set_title(f"{records[0]['metric']}: {len(records)} rows, median error {median:.1f} %", fontsize=10)


def write_scatter(data: Table, path: Path) -> Path:
    """Write the figure as SVG or PNG, by the ending of ``path``."""
    figures.save(scatter_figure(data), path)
    return path


def write_plots(report: PublishedReport, folder: Path) -> list[Path]:
    """Write one scatter plot per file, ``<name>.svg``, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(score.name for score in report.datasets if score.points)
    return [write_scatter(scatter_data(report, name), folder / f"{name}.svg") for name in names]
