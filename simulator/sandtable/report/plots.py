"""Plots for reports: each first as a table of data, then as a plotly figure drawn from that table alone.

Colours are Okabe and Ito's, which the colour-blind can tell apart. Predicted is blue, measured is orange everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sandtable.errors import missing_extra
from sandtable.hardware import Storage
from sandtable.model.laws import storage_law as storage_model
from sandtable.results import ComparedMetric, Measurement, Prediction, Result
from sandtable.table import Table

PREDICTED, MEASURED, BAND = "#0072B2", "#D55E00", "rgba(120,120,120,0.15)"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
BANDS_FRAC = (0.25, 0.10)
HEADLINES = ("latency_s.mean", "latency_s")
N_LINE_POINTS = 40


def _plotly() -> Any:
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise missing_extra("plotly", "report") from None
    return go


def _columns(data: Table) -> dict[str, list[Any]]:
    return {name: [row[index] for row in data.rows] for index, name in enumerate(data.columns)}


def _pick(data: Table, **wanted: Any) -> dict[str, list[Any]]:
    """Return the columns of the rows that have the wanted values."""
    where = {data.columns.index(name): value for name, value in wanted.items()}
    rows = [row for row in data.rows if all(row[index] == value for index, value in where.items())]
    return _columns(Table(columns=data.columns, rows=rows))


def _distinct(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _layout(figure: Any, title: str, **changes: Any) -> Any:
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 12},
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        **({"height": 420} | changes),
    )
    return figure


# --- predicted over measured -------------------------------------------------------------------------------


def scatter_data(compared: Sequence[ComparedMetric], unit: str = "s") -> Table:
    """Return predicted and measured of the metrics of one unit, in that unit."""
    columns = ("scenario", "metric", "measured", "predicted", "low", "high", "error_frac")
    rows = [
        [row.scenario, row.metric, row.measured, row.predicted, row.low, row.high, row.error_frac]
        for row in compared
        if row.unit == unit and row.measured > 0 and row.predicted > 0
    ]
    return Table(columns=columns, rows=rows, title=f"Predicted against measured, {unit}")


def scatter_figure(data: Table) -> Any:
    """Draw predicted over measured on log axes, with bands of 10 % and 25 %, coloured by metric."""
    go = _plotly()
    figure = go.Figure()
    columns = _columns(data)
    ends = columns["measured"] + columns["predicted"]
    low, high = (0.7 * min(ends), 1.4 * max(ends)) if ends else (0.1, 1.0)
    for band in BANDS_FRAC:
        figure.add_scatter(
            x=[low, high, high, low],
            y=[low * (1 - band), high * (1 - band), high * (1 + band), low * (1 + band)],
            fill="toself",
            fillcolor=BAND,
            line={"width": 0},
            name=f"±{100 * band:.0f} %",
            hoverinfo="skip",
            mode="lines",
        )
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"color": "#888", "width": 1}, showlegend=False
    )
    for index, metric in enumerate(_distinct(columns["metric"])):
        own = _pick(data, metric=metric)
        figure.add_scatter(
            x=own["measured"],
            y=own["predicted"],
            error_y=_whiskers(own["predicted"], own["low"], own["high"]),
            mode="markers",
            name=metric,
            marker={"color": COLOURS[index % len(COLOURS)], "size": 8},
            text=[f"{name}: {100 * e:+.1f} %" for name, e in zip(own["scenario"], own["error_frac"], strict=True)],
            hovertemplate="%{text}<br>measured %{x:.4g}<br>predicted %{y:.4g}",
        )
    figure.update_xaxes(type="log", title="measured, s")
    figure.update_yaxes(type="log", title="predicted, s")
    return _layout(figure, data.title, height=520)


def _whiskers(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [h - v for v, h in zip(values, high, strict=True)],
        "arrayminus": [v - lo for v, lo in zip(values, low, strict=True)],
        "thickness": 1,
        "width": 2,
    }


def error_data(compared: Sequence[ComparedMetric]) -> Table:
    """Return the error of each compared metric, the metric with the largest median error first."""
    by_metric: dict[str, list[ComparedMetric]] = {}
    for row in compared:
        by_metric.setdefault(row.metric, []).append(row)
    order = sorted(by_metric, key=lambda name: -float(np.median([abs(row.error_frac) for row in by_metric[name]])))
    rows = [[name, row.scenario, row.error_frac] for name in order for row in by_metric[name]]
    return Table(columns=("metric", "scenario", "error_frac"), rows=rows, title="Error by metric")


def error_figure(data: Table) -> Any:
    """Draw the errors in percent, one line of points per metric."""
    go = _plotly()
    columns = _columns(data)
    figure = go.Figure()
    figure.add_vrect(x0=-10, x1=10, fillcolor=BAND, line_width=0)
    figure.add_scatter(
        x=[100 * error for error in columns["error_frac"]],
        y=columns["metric"],
        text=columns["scenario"],
        mode="markers",
        marker={"color": PREDICTED, "size": 8},
        hovertemplate="%{text}<br>%{y}: %{x:+.1f} %<extra></extra>",
    )
    figure.update_xaxes(title="predicted / measured - 1, %", zeroline=True)
    figure.update_yaxes(autorange="reversed")
    return _layout(figure, data.title, height=160 + 24 * len(_distinct(columns["metric"])))


def interval_data(compared: Sequence[ComparedMetric]) -> Table:
    """Return intervals and predictions as multiples of what was measured: 1 lies inside where the interval held."""
    rows = [
        [
            row.scenario,
            row.metric,
            row.predicted / row.measured,
            row.low / row.measured,
            row.high / row.measured,
            row.covered,
        ]
        for row in compared
        if row.measured > 0
    ]
    columns = ("scenario", "metric", "predicted", "low", "high", "covered")
    return Table(columns=columns, rows=rows, title="90 % intervals over measured")


def interval_figure(data: Table) -> Any:
    """Draw each interval as a whisker around its prediction; red ones missed."""
    go = _plotly()
    figure = go.Figure()
    figure.add_vline(x=1, line={"color": "#888", "width": 1})
    several = len(_distinct(_columns(data)["scenario"])) > 1
    for covered, colour, name in ((True, PREDICTED, "held"), (False, MEASURED, "missed")):
        own = _pick(data, covered=covered)
        labels = [
            f"{scenario} {metric}" if several else metric
            for scenario, metric in zip(own["scenario"], own["metric"], strict=True)
        ]
        figure.add_scatter(
            x=own["predicted"],
            y=labels,
            error_x=_whiskers(own["predicted"], own["low"], own["high"]),
            mode="markers",
            name=name,
            marker={"color": colour, "size": 7},
        )
    figure.update_xaxes(title="multiple of the measured value", type="log")
    return _layout(figure, data.title, height=160 + 18 * len(data.rows))


# --- where time goes ---------------------------------------------------------------------------------------


def time_data(results: Sequence[Result]) -> Table:
    """Return seconds by account of each prediction and measurement."""
    rows = [
        [str(result.scenario.get("name", "")), result.kind, account, seconds]
        for result in results
        for account, seconds in result.breakdown.items()
    ]
    return Table(columns=("scenario", "kind", "account", "seconds"), rows=rows, title="Where the time goes")


def time_figure(data: Table) -> Any:
    """Draw stacked bars by account, predicted and measured side by side."""
    go = _plotly()
    figure = go.Figure()
    for index, account in enumerate(_distinct(_columns(data)["account"])):
        own = _pick(data, account=account)
        figure.add_bar(
            x=[own["scenario"], own["kind"]],
            y=[1e3 * seconds for seconds in own["seconds"]],
            name=account,
            marker={"color": COLOURS[index % len(COLOURS)]},
            hovertemplate="%{y:.4g} ms<extra>" + str(account) + "</extra>",
        )
    figure.update_yaxes(title="ms per unit of work")
    return _layout(figure, data.title, barmode="stack")


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
        title="Latency of each unit of work, in order",
    )


def _headline(result: Result) -> Any:
    return next((result.metrics[name] for name in HEADLINES if name in result.metrics), None)


def _samples(result: Result | None) -> tuple[float, ...]:
    metric = None if result is None else _headline(result)
    return () if metric is None else metric.samples


def latency_figure(data: Table) -> Any:
    """Draw latency over the number of the token or step."""
    go = _plotly()
    figure = go.Figure()
    for kind, colour in (("measurement", MEASURED), ("prediction", PREDICTED)):
        own = _pick(data, kind=kind)
        seconds = [1e3 * value for value in own["seconds"]]
        if own["low"] != own["seconds"]:
            ends = [1e3 * value for value in [*own["high"], *reversed(own["low"])]]
            numbers = [*own["number"], *reversed(own["number"])]
            figure.add_scatter(
                x=numbers, y=ends, fill="toself", fillcolor=BAND, line={"width": 0}, showlegend=False, mode="lines"
            )
        figure.add_scatter(x=own["number"], y=seconds, mode="lines", name=kind, line={"color": colour, "width": 1})
    figure.update_xaxes(title="number")
    figure.update_yaxes(title="ms", rangemode="tozero")
    return _layout(figure, data.title)


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
    return Table(columns=columns, rows=rows, title=f"Random reads of {storage.title}")


def storage_figure(data: Table) -> Any:
    """Draw rate over chunk size, a line and its points per number of requests in flight."""
    go = _plotly()
    figure = go.Figure()
    for index, concurrency in enumerate(_distinct(sorted(_columns(data)["concurrency"]))):
        for kind, mode in (("law", "lines"), ("measured", "markers")):
            own = _pick(data, kind=kind, concurrency=concurrency)
            figure.add_scatter(
                x=[chunk / 1024 for chunk in own["chunk_bytes"]],
                y=[rate / 1e6 for rate in own["read_bytes_per_s"]],
                mode=mode,
                name=f"{concurrency} in flight",
                legendgroup=str(concurrency),
                showlegend=kind == "law",
                marker={"color": COLOURS[index % len(COLOURS)], "size": 8},
                line={"color": COLOURS[index % len(COLOURS)], "width": 1.5},
                hovertemplate="%{x:.4g} KiB: %{y:.4g} MB/s<extra>" + f"{concurrency} in flight, {kind}</extra>",
            )
    figure.update_xaxes(type="log", title="chunk, KiB")
    figure.update_yaxes(type="log", title="read rate, MB/s")
    return _layout(figure, data.title, height=480)
