"""Plots of runs: each first as a table of data, then as a figure drawn from that table alone.

Predicted is blue and measured orange everywhere. No plot has more than six series: what is beyond them is a rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from sandtable import units
from sandtable.hardware import Storage
from sandtable.model.laws import storage_law as storage_model
from sandtable.report import figures
from sandtable.report.figures import COLOURS, GRID, INK, MEASURED, MOST_SERIES, PREDICTED, REST
from sandtable.results import ComparedMetric, Measurement, Metric, Prediction, Result
from sandtable.studies.paired import Change
from sandtable.table import Table

BANDS_FRAC = (0.25, 0.10)
HEADLINES = ("latency_s.mean", "latency_s", "step_s.mean")
# what a unit of work consists of, in the order in which plots take them while there is room
TIMES = (*HEADLINES, "io_s.mean", "memory_s.mean", "compute_s.mean", "communication_s.mean")
N_LINE_POINTS = 40
MOST_BARS, MOST_INTERVALS, MOST_POINTS = 12, 40, 300
CAPACITY, RESERVE, OTHER = "there is", "kept for the system", "other"
NOT_TAKEN = (CAPACITY, RESERVE)
UNIT_SUFFIXES = ("_bytes", "_s", "_j")
# below this share of what there is, bars would be too thin to see
SMALL_FRAC = 0.05
SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
BYTES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


def _columns(data: Table) -> dict[str, list[Any]]:
    return {name: [row[index] for row in data.rows] for index, name in enumerate(data.columns)}


def _pick(data: Table, **wanted: Any) -> dict[str, list[Any]]:
    """Return the columns of the rows that have the wanted values."""
    where = {data.columns.index(name): value for name, value in wanted.items()}
    rows = [row for row in data.rows if all(row[index] == value for index, value in where.items())]
    return _columns(Table(columns=data.columns, rows=rows))


def _distinct(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _scale(values: Sequence[float], steps: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """Return size and name of the largest unit that is not above the largest value."""
    largest = max(values, default=0.0)
    return next((step for step in steps if largest >= step[0]), steps[-1])


def words(metric: str) -> str:
    """Return a metric's name as people read it: ``io_s.mean`` is "io", ``usd_per_mtok`` "usd per mtok"."""
    name = metric.removesuffix(".mean")
    name = (
        name if "_per_" in name else next((name.removesuffix(s) for s in UNIT_SUFFIXES if name.endswith(s)), name)
    )
    return name.replace("_", " ").replace(".", " ")


def _is_mean(metric: str) -> bool:
    """Whether a metric is no percentile, which plots leave to the tables."""
    return "." not in metric or metric.endswith(".mean")


def is_exact(row: ComparedMetric | Metric) -> bool:
    """Whether an interval has no width: a count, about which there is nothing to be uncertain."""
    return row.low == row.high


# --- predicted over measured -------------------------------------------------------------------------------


def main_metrics(compared: Sequence[ComparedMetric], unit: str = "s") -> list[str]:
    """Return the few metrics that plots show: mean times, the whole before its parts, none that repeats another."""
    rows: dict[str, list[ComparedMetric]] = {}
    for row in compared:
        if row.unit == unit and not row.derived and row.measured > 0 and row.predicted > 0:
            rows.setdefault(row.metric, []).append(row)
    means = [name for name in rows if _is_mean(name)]
    ordered = sorted(means, key=lambda name: TIMES.index(name) if name in TIMES else len(TIMES))
    seen: set[tuple[tuple[str, float, float], ...]] = set()
    kept = []
    for name in ordered:
        values = tuple((row.scenario, row.predicted, row.measured) for row in rows[name])
        kept += [] if values in seen else [name]
        seen.add(values)
    return kept[:MOST_SERIES]


def scatter_data(compared: Sequence[ComparedMetric], unit: str = "s") -> Table:
    """Return predicted and measured of the main metrics of one unit, in that unit."""
    columns = ("scenario", "metric", "measured", "predicted", "low", "high", "error_frac")
    rows = [
        [row.scenario, row.metric, row.measured, row.predicted, row.low, row.high, row.error_frac]
        for name in main_metrics(compared, unit)
        for row in compared
        if row.metric == name and row.measured > 0 and row.predicted > 0
    ]
    return Table(
        columns=columns,
        rows=rows,
        units=("", "", unit, unit, unit, unit, "frac"),
        title="Predicted against measured times",
    )


def scatter_figure(data: Table) -> Any:
    """Draw predicted over measured on log axes, with bands of 10 % and 25 %, a colour and a marker by metric."""
    figure, axis = figures.one_axis(4.2, x="measured", y="predicted")
    columns = _columns(data)
    ends = columns["measured"] + columns["predicted"] or [0.1, 1.0]
    ends = [0.7 * min(ends), 1.4 * max(ends)]
    line = np.array(ends)
    for band in BANDS_FRAC:
        axis.fill_between(line, line * (1 - band), line * (1 + band), color=REST, alpha=0.18, linewidth=0)
    axis.plot(line, line, color=REST, linewidth=0.8)
    for name in "xy":
        figures.log_axis(axis, name, ends, units.format_seconds)
    for index, metric in enumerate(_distinct(columns["metric"])):
        for number, point in enumerate(row for row in data.rows if row[1] == metric):
            scenario, _, measured, predicted, low, high, error = point
            style = figures.look(index)
            axis.plot([measured] * 2, [low, high], color=style["color"], linewidth=0.8, alpha=0.6)
            label = words(metric) if not number else None
            (mark,) = axis.plot([measured], [predicted], linestyle="", markersize=4.5, label=label, **style)
            ends_text = " against ".join(map(units.format_seconds, (predicted, measured)))
            figures.tip(mark, f"{scenario}, {words(metric)}: {ends_text} ({100 * error:+.1f} %)")
    figures.legend_below(figure)
    return figure


def interval_data(compared: Sequence[ComparedMetric]) -> Table:
    """Return predictions and their intervals over what was measured, less one: 0 lies inside where the interval held.

    Of several scenarios the headline metric, of one its main metrics; what is known exactly has no interval.
    """
    names = main_metrics(compared)
    one = len({row.scenario for row in compared}) == 1
    shown = [
        row
        for row in compared
        if row.metric in (names if one else names[:1]) and row.measured > 0 and not is_exact(row)
    ]
    title = "90 % intervals" + ("" if one or not names else f" of {words(names[0])}") + ", over what was measured"
    if len(shown) > MOST_INTERVALS:
        shown = sorted(shown, key=lambda row: -abs(row.error_frac))[:MOST_INTERVALS]
        title += f": the {MOST_INTERVALS} farthest off"
    rows = [
        [
            words(row.metric) if one else row.scenario,
            *(end / row.measured - 1 for end in (row.predicted, row.low, row.high)),
            row.covered,
        ]
        for row in shown
    ]
    columns, unit = ("of", "error_frac", "low_frac", "high_frac", "covered"), ("", "frac", "frac", "frac", "")
    return Table(columns=columns, rows=rows, units=unit, title=title)


def interval_figure(data: Table) -> Any:
    """Draw each interval as a line around its prediction, above or below what was measured; filled marks held."""
    figure, axis = figures.one_axis(1.0 + 0.17 * len(data.rows), x="above or below what was measured, %", grid="x")
    axis.axvline(0, color=INK, linewidth=0.8)
    for covered, colour, name in ((True, PREDICTED, "inside its interval"), (False, MEASURED, "outside")):
        for number, (place, row) in enumerate((p, row) for p, row in enumerate(data.rows) if row[4] is covered):
            error, low, high = (100 * end for end in row[1:4])
            axis.plot([low, high], [place, place], color=colour, linewidth=1.4)
            (mark,) = axis.plot(
                [error],
                [place],
                "o" if covered else "X",
                color=colour,
                markersize=5,
                label=name if not number else None,
            )
            figures.tip(mark, f"{row[0]}: {error:+.1f} % ({low:+.1f} to {high:+.1f} %)")
    _named_rows(axis, [str(row[0]) for row in data.rows])
    figures.legend_below(figure)
    return figure


def _named_rows(axis: Any, names: Sequence[str]) -> None:
    """Write names beside rows, the first on top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)


# --- where time and memory go ------------------------------------------------------------------------------


def time_data(results: Sequence[Result]) -> Table:
    """Return seconds by account of each prediction and measurement."""
    rows = [
        [str(result.scenario.get("name", "")), result.kind, account, seconds]
        for result in results[:MOST_BARS]
        for account, seconds in result.breakdown.items()
    ]
    columns = ("scenario", "kind", "account", "seconds")
    title = f"Where the time of a unit of work goes{_left_out(results)}"
    return Table(columns=columns, rows=rows, units=("", "", "", "s"), title=title)


def _left_out(results: Sequence[Any]) -> str:
    return f": the first {MOST_BARS} of {len(results)} results" if len(results) > MOST_BARS else ""


def time_figure(data: Table) -> Any:
    """Draw a bar of accounts for each result, the predicted above the measured."""
    return _bars(data, SECONDS, units.format_seconds)


def memory_data(results: Sequence[tuple[Result, tuple[float, float] | None]]) -> Table:
    """Return bytes by kind of each result; where it is known also what the system keeps, and what there is in all.

    ``results`` come with the bytes that they may take and those kept for the system.
    """
    rows: list[list[Any]] = []
    for result, space in results[:MOST_BARS]:
        name = str(result.scenario.get("name", ""))
        rows += [[name, result.kind, kind, size] for kind, size in result.memory.items()]
        if space is not None and result.memory:
            rows += [[name, result.kind, RESERVE, space[1]]] if space[1] else []
            rows += [[name, result.kind, CAPACITY, sum(space)]]
    of_what = ", of what there is" if any(row[2] == CAPACITY for row in rows) else ""
    title = f"Memory needed{of_what}{_left_out(results)}"
    columns = ("scenario", "kind", "part", "bytes")
    return Table(
        columns=columns,
        rows=rows,
        units=("", "", "", "bytes"),
        title=title,
    )


def memory_figure(data: Table) -> Any:
    """Draw a bar of kinds of memory for each result, and a line at what there is."""
    return _bars(data, BYTES, units.format_bytes)


def _bars(data: Table, steps: Sequence[tuple[float, str]], text: Callable[[float], str]) -> Any:
    """Draw stacked bars of the last column by the one before it; the first two columns name the bar."""
    bars = [(key, list(rows)) for key, rows in groupby(data.rows, key=lambda row: (row[0], row[1]))]
    colours = _part_colours(data.rows)
    taken = [sum(row[3] for row in rows if row[2] not in NOT_TAKEN) for _, rows in bars]
    unit, name = _scale(taken, steps)
    there = min((row[3] for row in data.rows if row[2] == CAPACITY), default=0.0)
    is_far = max(taken, default=0.0) < SMALL_FRAC * there
    label_x = f"{name}; {CAPACITY} {text(there)}, beyond the right end" if is_far else name
    figure, axis = figures.one_axis(1.15 + 0.3 * len(bars) + 0.17 * -(-len(colours) // 3), x=label_x, grid="x")
    for place, (key, rows) in enumerate(bars):
        for part, start, size, colour in _spans(
            [row for row in rows if not is_far or row[2] not in NOT_TAKEN], colours
        ):
            label, width = None if place else part, size / unit
            (bar,) = axis.barh([place], [width], 0.62, left=start / unit, color=colour, label=label)
            figures.tip(bar, f"{', '.join(key)}: {part} {text(size)}")
        for total in (row[3] / unit for row in rows if row[2] == CAPACITY and not is_far):
            label = None if place else CAPACITY
            (line,) = axis.plot([total] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=2, label=label)
            figures.tip(line, f"{', '.join(key)}: {CAPACITY} {text(total * unit)}")
    axis.set_xlim(0, 1.1 * max(taken) / unit if is_far else None)
    one = len({key[0] for key, _ in bars}) == 1
    same = len({key[1] for key, _ in bars}) == 1
    _named_rows(
        axis, [kind if one else scenario if same else f"{scenario}, {kind}" for (scenario, kind), _ in bars]
    )
    figures.legend_below(figure)
    return figure


def _spans(rows: Sequence[Sequence[Any]], colours: Mapping[str, str]) -> Iterator[tuple[str, float, float, str]]:
    """Yield part, start, size and colour of each piece of a bar; what is kept for the system ends where all does."""
    sizes = dict.fromkeys(colours, 0.0)
    ends = {row[2]: row[3] for row in rows if row[2] in NOT_TAKEN}
    for _, _, part, size in rows:
        if part not in NOT_TAKEN:
            sizes[part if part in sizes else OTHER] += size
    start = 0.0
    for part, size in sizes.items():
        yield part, start, size, colours[part]
        start += size
    if RESERVE in ends:
        yield RESERVE, ends[CAPACITY] - ends[RESERVE], ends[RESERVE], GRID


def _part_colours(rows: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Return the largest parts in their order with a colour each, and a rest where they are too many."""
    totals: dict[str, float] = {}
    for _, _, part, size in rows:
        if part not in NOT_TAKEN:
            totals[part] = totals.get(part, 0.0) + size
    most = MOST_SERIES if len(totals) <= MOST_SERIES else MOST_SERIES - 1
    kept = sorted(totals, key=lambda part: -totals[part])[:most]
    colours: dict[str, str] = dict(zip((part for part in totals if part in kept), COLOURS, strict=False))
    return colours if len(kept) == len(totals) else colours | {OTHER: REST}


# --- metrics with intervals --------------------------------------------------------------------------------


def spread_data(result: Result) -> Table:
    """Return the mean times of a result, each with its interval, the whole before its parts."""
    found: dict[tuple[float, float, float], str] = {}
    for name, metric in result.metrics.items():
        is_time = metric.unit == "s" and not metric.derived and metric.value > 0 and not is_exact(metric)
        if is_time and _is_mean(name):
            found.setdefault((metric.value, metric.low, metric.high), name)
    rows = [[words(name), *ends] for ends, name in found.items()]
    return Table(
        columns=("metric", "value", "low", "high"),
        rows=rows,
        units=("", "s", "s", "s"),
        title=f"Times of the {result.kind}, with 90 % intervals",
    )


def cost_data(results: Sequence[Result]) -> Table:
    """Return the price that most results share, with its interval, one result a row; nothing for one result alone."""
    names = [
        name
        for result in results
        for name, metric in result.metrics.items()
        if metric.unit.startswith("USD") and not is_exact(metric)
    ]
    if len(results) < 2 or not names:
        return Table(columns=("of", "value", "low", "high"), rows=[])
    name = max(dict.fromkeys(names), key=names.count)
    same = len({result.kind for result in results}) == 1
    rows = [
        [
            str(one.scenario.get("name", "")) + ("" if same else f", {one.kind}"),
            metric.value,
            metric.low,
            metric.high,
        ]
        for one in results
        if (metric := one.metrics.get(name)) is not None
    ]
    unit = units.unit_of(name)
    return Table(
        columns=("of", "value", "low", "high"),
        rows=rows[:MOST_BARS],
        units=("", unit, unit, unit),
        title=f"{words(name)}, with 90 % intervals{_left_out(rows)}",
    )


def change_data(changed: Mapping[str, Change]) -> Table:
    """Return after / before of the mean metrics that a change moves, each with its interval, none twice."""
    moved = {
        (one.ratio, one.ratio_low, one.ratio_high): words(name)
        for name, one in reversed(list(changed.items()))
        if _is_mean(name) and one.ratio_low != one.ratio_high and one.unit != "bytes"
    }
    rows = [[name, *ends] for ends, name in reversed(list(moved.items()))]
    return Table(
        columns=("of", "times", "low", "high"),
        rows=rows[:MOST_BARS],
        title="Times as much as before, with 90 % intervals",
    )


def change_figure(data: Table) -> Any:
    """Draw each ratio with its interval, and a line where nothing changes."""
    figure = spread_figure(data)
    (axis,) = figure.axes
    axis.axvline(1, color=INK, linewidth=0.8)
    low, high = axis.get_xlim()
    figures.log_axis(axis, "x", [min(low, 0.95), max(high, 1.05)])
    axis.set_xlabel("times as much as before")
    return figure


def spread_figure(data: Table) -> Any:
    """Draw each value with its interval on a logarithmic axis."""
    figure, axis = figures.one_axis(0.75 + 0.24 * len(data.rows), grid="x")
    unit = data.units[1] if data.units else ""
    text = units.format_seconds if unit == "s" else figures.tick_text
    ends = [end for row in data.rows for end in row[1:4] if end > 0] or [0.1, 1.0]
    for place, (name, value, low, high) in enumerate(data.rows):
        axis.plot([max(low, min(ends)), high], [place, place], color=PREDICTED, linewidth=1.6)
        (mark,) = axis.plot([value], [place], "o", color=PREDICTED, markersize=5)
        shown, first, last = (units.format_quantity(end, unit) for end in (value, low, high))
        figures.tip(mark, f"{name}: {shown} ({first} to {last})")
    figures.log_axis(axis, "x", [0.8 * min(ends), 1.25 * max(ends)], text)
    axis.set_xlabel("" if unit == "s" else unit)
    _named_rows(axis, [str(row[0]) for row in data.rows])
    return figure


# --- one unit after another --------------------------------------------------------------------------------


def latency_data(prediction: Prediction | None, measurement: Measurement | None) -> Table:
    """Return seconds of each unit of work in order (tokens, steps), where the samples were kept.

    A prediction without samples gives its mean, with its interval, for every unit.
    """
    rows: list[list[Any]] = []
    counts = []
    for result in (prediction, measurement):
        samples = _samples(result)
        counts.append(len(samples))
        if result is not None:
            rows += [[result.kind, index, value, value, value] for index, value in enumerate(samples, start=1)]
    headline = None if prediction is None else _headline(prediction)
    if headline is not None and not counts[0] and prediction is not None:
        ends = [headline.value, headline.low, headline.high]
        rows += [[prediction.kind, index, *ends] for index in range(1, max(counts[1], 2) + 1)]
    return Table(
        columns=("kind", "number", "seconds", "low", "high"),
        rows=rows,
        title="Time of each unit of work, in order",
    )


def _headline(result: Result) -> Metric | None:
    return next((result.metrics[name] for name in HEADLINES if name in result.metrics), None)


def _samples(result: Result | None) -> tuple[float, ...]:
    metric = None if result is None else _headline(result)
    return () if metric is None else metric.samples


def latency_figure(data: Table) -> Any:
    """Draw time over the number of the token or step; of very many, the median of as many as share a point."""
    figure, axis = figures.one_axis(2.8, x="number")
    unit, name = _scale([float(np.median(_columns(data)["seconds"] or [1.0]))], SECONDS)
    axis.set_ylabel(name)
    for kind, colour in (("measurement", MEASURED), ("prediction", PREDICTED)):
        own = _pick(data, kind=kind)
        number, seconds, low, high = (_thinned(own[key]) for key in ("number", "seconds", "low", "high"))
        axis.plot(number, seconds / unit, color=colour, linewidth=1, label=kind if len(number) else None)
        if own["low"] != own["seconds"]:
            axis.fill_between(number, low / unit, high / unit, color=colour, alpha=0.15, linewidth=0)
    axis.set_ylim(bottom=0)
    figures.legend_below(figure)
    return figure


def _thinned(values: Sequence[float]) -> Any:
    each = -(-len(values) // MOST_POINTS) or 1
    return np.array([np.median(values[i : i + each]) for i in range(0, len(values), each)])


# --- storage -----------------------------------------------------------------------------------------------


def storage_data(storage: Storage) -> Table:
    """Return the storage curve: measured random reads, and the law at and between them, in bytes per second."""
    law = storage_model.law_of(storage)
    points = [point for point in storage.measurements if point.access == "random"]
    rows: list[list[Any]] = [
        ["measured", point.concurrency, point.chunk_bytes, point.read_bytes_per_s] for point in points
    ]
    chunks = [point.chunk_bytes for point in points] or [4096.0, 1048576.0]
    sizes = np.geomspace(min(chunks), max(chunks), N_LINE_POINTS)
    for concurrency in sorted({point.concurrency for point in points}) or [1, 4, 16, 64]:
        rates = storage_model.throughput_bytes_per_s(law, sizes, np.full_like(sizes, concurrency))
        rows += [["law", concurrency, float(c), float(r)] for c, r in zip(sizes, rates, strict=True)]
    columns = ("kind", "concurrency", "chunk_bytes", "read_bytes_per_s")
    return Table(
        columns=columns, rows=rows, units=("", "", "bytes", "bytes/s"), title=f"Random reads of {storage.title}"
    )


def storage_figure(data: Table) -> Any:
    """Draw rate over chunk size, a line and its points for some numbers of requests in flight."""
    figure, axis = figures.one_axis(3.4, x="size of a read", y="read rate")
    columns = _columns(data)
    for name, key, text in (("x", "chunk_bytes", units.format_bytes), ("y", "read_bytes_per_s", _rate)):
        ends = columns[key] or [1.0, 10.0]
        figures.log_axis(axis, name, [0.8 * min(ends), 1.25 * max(ends)], text)
    numbers = _distinct(sorted(columns["concurrency"]))
    for index, concurrency in enumerate(numbers[:: -(-len(numbers) // MOST_SERIES) or 1]):
        style = figures.look(index)
        law, points = (_pick(data, kind=kind, concurrency=concurrency) for kind in ("law", "measured"))
        label = f"{concurrency:g} in flight"
        axis.plot(law["chunk_bytes"], law["read_bytes_per_s"], color=style["color"], linewidth=1.2, label=label)
        for x, y in zip(points["chunk_bytes"], points["read_bytes_per_s"], strict=True):
            (mark,) = axis.plot([x], [y], markersize=4, **style)
            figures.tip(mark, f"{label}, {units.format_bytes(x)}: {_rate(y)}")
    figures.legend_below(figure)
    return figure


def _rate(value: float) -> str:
    return units.format_si(value, "B/s")
