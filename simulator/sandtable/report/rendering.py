"""Results as tables, and tables as text: for people (table, md) or for programs (csv, json)."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.results import ComparedMetric, Comparison, Metric, Result, Summary, by_metric
from sandtable.table import Quantity, Table, plain

if TYPE_CHECKING:
    from sandtable.published.scoring import PublishedReport

FORMATS = ("table", "md", "csv", "json")
WIDE = 200  # columns, where the output is not a terminal
BAR = 20


# --- rendering ---------------------------------------------------------------------------------------------


def render(table: Table, format_: str = "table") -> str:
    """Return a table as text in one of `FORMATS`.

    Raises:
        ConfigError: another format.
    """
    renderers = {"table": _as_table, "md": _as_markdown, "csv": _as_csv, "json": _as_json}
    if format_ not in renderers:
        raise ConfigError(f"format {format_!r} is not one of {', '.join(FORMATS)}")
    return renderers[format_](table)


def for_people(cell: Any) -> str:
    """Return a cell as people read it."""
    if isinstance(cell, Quantity):
        return cell.text()
    if isinstance(cell, bool | np.bool_):
        return "✓" if cell else "✗"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return "" if cell is None else str(cell)


def visible(table: Table) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Return (heading, unit) of the columns that people see, and the rows as text.

    A column "unit" is for programs: people see the unit in each value.
    """
    column_units = list(table.units) or [""] * len(table.columns)
    shown = [index for index, name in enumerate(table.columns) if name != "unit"]
    heads = [(table.columns[index], column_units[index]) for index in shown]
    return heads, [[for_people(row[index]) for index in shown] for row in table.rows]


def numeric_columns(table: Table) -> set[str]:
    """Return the columns whose values line up at the right."""

    def is_number(cell: Any) -> bool:
        return isinstance(cell, Quantity | int | float) and not isinstance(cell, bool)

    cells = {name: [row[index] for row in table.rows] for index, name in enumerate(table.columns)}
    return {
        name
        for name, column in cells.items()
        if any(map(is_number, column)) and all(is_number(cell) or cell in ("", None) for cell in column)
    }


def _as_table(table: Table) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    heads, rows = visible(table)
    right = numeric_columns(table)
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="")
    for name, unit in heads:
        # the row of units stands under the names
        head = Text(f"{name}\n{unit}" if any(table.units) else name)
        drawn.add_column(head, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    stream = io.StringIO()
    width = max(40, shutil.get_terminal_size((WIDE, 24)).columns)
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, highlight=False)
    if table.title:
        console.print(Text(table.title))
    console.print(drawn)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    lines = [line for line in lines if line] + [f"  {note}" for note in table.notes]
    return "\n".join(lines)


def _as_markdown(table: Table) -> str:
    heads, rows = visible(table)
    right = numeric_columns(table)
    names = [f"{name} ({unit})" if unit else name for name, unit in heads]
    lines = [f"**{table.title}**", ""] if table.title else []
    lines.append("| " + " | ".join(_markdown_cell(name) for name in names) + " |")
    lines.append("|" + "|".join("---:" if name in right else "---" for name, _ in heads) + "|")
    lines += ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def _markdown_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _as_csv(table: Table) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.names())
    writer.writerows([plain(cell) for cell in row] for row in table.rows)
    return stream.getvalue().rstrip("\n")


def _as_json(table: Table) -> str:
    return json.dumps(
        {"schema": 1, "title": table.title, "rows": table.records(), "notes": list(table.notes)},
        indent=1,
        ensure_ascii=False,
        default=str,
    )


# --- one result --------------------------------------------------------------------------------------------


def metrics_table(result: Result) -> Table:
    """Return the metrics of a prediction or a measurement, with 90 % intervals."""
    rows = [
        [name, _quantity(metric.value, metric), *_ends(metric), metric.unit]
        for name, metric in result.metrics.items()
    ]
    heading = "predicted" if result.kind == "prediction" else "measured"
    return Table(columns=("metric", heading, "low", "high", "unit"), rows=rows)


def _quantity(value: float, metric: Metric | ComparedMetric) -> Quantity:
    return Quantity(value, metric.unit)


def _ends(metric: Metric | ComparedMetric) -> tuple[Quantity | None, Quantity | None]:
    """Return the ends of the interval; none for a value known exactly."""
    if metric.low == metric.high:
        return None, None
    return _quantity(metric.low, metric), _quantity(metric.high, metric)


def result_notes(result: Result) -> list[str]:
    """Return lines for people: where the time goes, what fills the memory, what binds."""
    lines = []
    total = sum(result.breakdown.values())
    if total > 0:
        parts = sorted(result.breakdown.items(), key=lambda item: -item[1])
        lines.append("  time goes to   " + "   ".join(share_text(name, value / total) for name, value in parts))
    if result.memory:
        parts = sorted(result.memory.items(), key=lambda item: -item[1])
        inside = ", ".join(f"{name} {units.format_bytes(value)}" for name, value in parts)
        lines.append(f"  memory         {units.format_bytes(sum(result.memory.values()))} ({inside})")
    binding = getattr(result, "binding_resource", "")
    if binding:
        lines.append(f"  bound by       {binding}")
    return lines


def share_text(name: str, share_frac: float) -> str:
    """Return a share as text with a bar: ``io 71 % ▇▇▇▇▇▇▇``."""
    return f"{name} {100 * share_frac:.0f} % " + "▇" * round(BAR * share_frac / 2)


# --- comparisons -------------------------------------------------------------------------------------------


def comparison_table(comparison: Comparison, *, worst_first: bool = False) -> Table:
    """Return predicted beside measured, in order or the largest error first."""
    compared = list(comparison.comparisons)
    if worst_first:
        compared.sort(key=lambda row: -abs(row.error_frac))
    rows = [
        [
            row.scenario,
            row.metric,
            _quantity(row.predicted, row),
            *_ends(row),
            _quantity(row.measured, row),
            Quantity(row.error_frac, "frac", signed=True),
            row.covered,
            row.unit,
        ]
        for row in compared
    ]
    columns = ("scenario", "metric", "predicted", "low", "high", "measured", "error", "covered", "unit")
    return Table(columns=columns, rows=rows)


HEADLINES = ("latency_s.mean", "io_s.mean", "memory_s.mean", "compute_s.mean", "communication_s.mean")


def headlines(comparison: Comparison) -> Comparison:
    """Return only the mean times and what is judged when there are many scenarios; one scenario is shown in full."""
    scenarios = {row.scenario for row in comparison.comparisons}
    if len(scenarios) < 2:
        return comparison
    rows = tuple(row for row in comparison.comparisons if row.judged or row.metric in HEADLINES)
    return comparison.model_copy(update={"comparisons": rows})


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return the summary, the verdict and its reasons as lines for people."""
    said = "" if comparison.answer is None else comparison.answer.verdict
    return [f"  {text}" for text in (summary_sentence(comparison), verdict_sentence(comparison), said) if text]


def metric_errors_table(comparison: Comparison) -> Table:
    """Return the errors of each metric over all scenarios; no row where a check is judged on one alone."""
    rows = [
        [
            name,
            found.n,
            *(
                Quantity(share, "frac")
                for share in (found.median_abs_error_frac, found.p90_abs_error_frac, found.coverage_frac)
            ),
        ]
        for name, found in by_metric(comparison.comparisons).items()
    ]
    columns = ("metric", "compared", "median error", "90th percentile", "inside interval")
    return Table(columns=columns, rows=rows, title="Errors by metric")


def summary_sentence(comparison: Comparison) -> str:
    """Return the errors of what is judged in one sentence."""
    summary = comparison.summary
    if summary.n == 0:
        return "nothing was compared"
    return (
        f"{summary.n} compared: median error {100 * summary.median_abs_error_frac:.1f} %, "
        f"90th percentile {100 * summary.p90_abs_error_frac:.1f} %, "
        f"{100 * summary.coverage_frac:.0f} % inside the 90 % interval"
        f"{_as_calibrated(comparison.as_calibrated)}"
    )


def _as_calibrated(summary: Summary | None) -> str:
    """Say how far off predictions for the machine's speed at its calibration are."""
    if summary is None:
        return ""
    return (
        f", as fast as probes found the machine before each run; {100 * summary.median_abs_error_frac:.1f} and "
        f"{100 * summary.p90_abs_error_frac:.1f} % as fast as at its calibration"
    )


def verdict_sentence(comparison: Comparison) -> str:
    """Return the verdict with its sign and its reasons."""
    sign = {"pass": "✓", "fail": "✗"}.get(comparison.verdict, "?")
    reasons = f": {'; '.join(comparison.reasons)}" if comparison.reasons else ""
    return f"{sign} {comparison.verdict}{reasons}"


# --- published measurements --------------------------------------------------------------------------------


def published_table(report: PublishedReport) -> Table:
    """Return the score of each metric of each published data set."""
    rows = []
    for score in report.datasets:
        data = score.to_json()
        held_out = data.get("held_out", {}).get("median_abs_error_frac")
        rows.append(
            [
                score.name,
                score.metric,
                score.rows,
                score.scored,
                *(
                    _share(data[key])
                    for key in ("median_abs_error_frac", "p90_abs_error_frac", "bias_frac", "coverage_frac")
                ),
                _share(held_out),
            ]
        )
    columns = ("data set", "metric", "rows", "scored", "median error", "p90 error", "bias", "covered", "held out")
    return Table(columns=columns, rows=rows)


def _share(value: float | None) -> Quantity | None:
    return None if value is None else Quantity(round(value, 4), "frac")


def published_notes(report: PublishedReport) -> list[str]:
    """Return why rows were skipped, and which were predicted worst, as lines for people."""
    lines = []
    for score in report.datasets:
        reasons = sorted(score.skipped.items(), key=lambda item: -item[1])
        if reasons:
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
            lines.append(f"  {score.name} {score.metric}: skipped {counts}")
        if score.malformed_lines:
            shown = ", ".join(map(str, score.malformed_lines[:10]))
            lines.append(f"  {score.name}: malformed lines {shown}")
    for score in report.datasets:
        lines += [
            f"  worst: {point.label}, {score.metric}: predicted {point.predicted:.4g}, "
            f"measured {point.measured:.4g} {point.unit} ({100 * point.error_frac:+.0f} %)"
            for point in score.worst(3)
        ]
    if report.missing:
        lines.append(f"  no file for: {', '.join(report.missing)}")
    return lines


def as_records(table: Table) -> list[dict[str, Any]]:
    """Return the rows of a table as dicts of plain values."""
    return [dict(zip(table.columns, map(plain, row), strict=True)) for row in table.rows]


__all__: Sequence[str] = [
    "FORMATS",
    "as_records",
    "comparison_notes",
    "comparison_table",
    "for_people",
    "metrics_table",
    "numeric_columns",
    "published_notes",
    "published_table",
    "render",
    "result_notes",
    "summary_sentence",
    "verdict_sentence",
    "visible",
]
