"""Figures of findings: a panel per group, a line per series. The data is written beside each figure as CSV.

An index in Markdown says of each finding whether it holds, and shows its figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandtable.report import figures
from sandtable.studies.finding import Finding
from sandtable.table import Table

MOST_COLUMNS = 3


def summary(findings: Sequence[Finding]) -> Table:
    """Return one row per finding: whether the prediction shows it, and with which figures."""
    rows = [["✓" if item.holds else "✗", item.name, item.claim, item.evidence] for item in findings]
    return Table(columns=("", "finding", "claim", "predicted"), rows=rows, title="Findings, predicted")


def write(findings: Sequence[Finding], folder: Path) -> list[Path]:
    """Write ``<name>.csv`` and ``<name>.svg`` of each finding and ``index.md`` about all, and return the paths.

    Raises:
        NoDevice: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for item in findings:
        table = folder / f"{item.name}.csv"
        item.data.to_frame().to_csv(table, index=False, lineterminator="\n")
        picture = folder / f"{item.name}.svg"
        figures.save(figure(item), picture)
        paths += [table, picture]
    overview = folder / "index.md"
    overview.write_text(index(findings), encoding="utf-8")
    return [*paths, overview]


def index(findings: Sequence[Finding]) -> str:
    """Return a page with a sentence per finding: whether the prediction shows it, with which figures."""
    held = sum(item.holds for item in findings)
    lines = ["# Findings, predicted", "", f"{held} of {len(findings)} hold.", ""]
    for item in findings:
        verdict = "holds" if item.holds else "does not hold"
        lines += [
            f"## {item.name}: {verdict}",
            "",
            f"{item.claim}: {verdict} in the prediction; {item.evidence}.",
            "",
        ]
        lines += [f"![{item.data.title}]({item.name}.svg)", "", f"Data: [{item.name}.csv]({item.name}.csv)", ""]
    return "\n".join(lines)


def figure(item: Finding) -> Any:
    """Return a matplotlib figure of a finding.

    Raises:
        NoDevice: matplotlib is not installed.
    """
    panels = panels_of(item)
    columns = min(MOST_COLUMNS, max(1, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    drawn = figures.new_figure(4.2 * columns + 0.6, 3.4 * lines + 0.7, item.data.title, title_size=11)
    axes = drawn.subplots(lines, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, item, panel)
        axis.set_title(panel, fontsize=9)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if panels:
        axes[0].legend(fontsize=7)
    return drawn


def panels_of(item: Finding) -> list[str]:
    """Return the names of a finding's panels, in their order."""
    return list(dict.fromkeys(row[0] for row in item.data.rows))


def panel_figure(item: Finding, panel: str) -> Any:
    """Return a figure of one panel alone, as a page shows it.

    Raises:
        NoDevice: matplotlib is not installed.
    """
    drawn, axis = figures.one_axis(3.2)
    _draw(axis, item, panel)
    figures.legend_below(drawn)
    return drawn


def _draw(axis: Any, item: Finding, panel: str) -> None:
    series = dict.fromkeys(row[1] for row in item.data.rows)
    for index, name in enumerate(series):
        points = sorted((row[2], row[3]) for row in item.data.rows if row[0] == panel and row[1] == name)
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, y, label=name, markersize=4, linewidth=1.2, **figures.look(index))
    if item.mark is not None:
        axis.axhline(item.mark, color=figures.REST, linewidth=0.8, linestyle="--")
    own = [row for row in item.data.rows if row[0] == panel]
    axis.set_xscale("log", base=2)
    ticks = sorted({row[2] for row in own})
    axis.set_xticks(ticks, [figures.tick_text(tick) for tick in ticks], fontsize=7)
    axis.minorticks_off()
    if item.log_y and own:
        values = [row[3] for row in own] + ([] if item.mark is None else [item.mark])
        figures.log_axis(axis, "y", [0.8 * min(values), 1.25 * max(values)])
    else:
        axis.yaxis.set_major_formatter(lambda value, _: figures.tick_text(value))
    axis.set(xlabel=item.x, ylabel=item.y)
    axis.grid(visible=True, color=figures.GRID, linewidth=0.5)
    axis.set_axisbelow(True)
