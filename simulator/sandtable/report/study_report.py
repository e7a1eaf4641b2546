"""Reports of what is no run: a paper's findings as predicted, a change, and a search for the cheapest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sandtable.report import figures, html, lines, plots
from sandtable.report.html import Block, Page, Section
from sandtable.report.run_report import answer_card
from sandtable.results import Answer, Prediction
from sandtable.studies import cheapest_answer, paired
from sandtable.studies.cheapest import COST, HOUR_S, TIME, Found
from sandtable.studies.finding import Finding
from sandtable.studies.paired import Change
from sandtable.table import Table

# configurations that a plot shows beside the front
MOST_OTHERS = 400
OTHERS, FRONT, BEST = "another that runs", "none is both cheaper and faster", "chosen"


# --- findings ----------------------------------------------------------------------------------------------


def write_findings(workload: str, findings: Sequence[Finding], output: Path) -> Path:
    """Write the report of a paper's findings to ``output``.

    Raises:
        NoDevice: matplotlib or jinja2 is not installed.
    """
    held = sum(item.holds for item in findings)
    sentences = [f"{'✓' if item.holds else '✗'} {item.claim}" for item in findings]
    answer = [
        Block(kind="verdict", text=f"{held} of {len(findings)} findings hold in the prediction"),
        Block(kind="list", rows=sentences),
    ]
    page = Page(
        title=f"Does the prediction show what the paper about {workload} found?",
        sections=[Section(id="answer", title="Answer", blocks=answer), *map(_finding, findings)],
    )
    return html.write(page, output)


def _finding(item: Finding) -> Section:
    css, verdict = ("pass", "✓ holds") if item.holds else ("fail", "✗ does not hold")
    blocks = [
        Block(kind="verdict", css=css, text=f"{verdict} in the prediction"),
        Block(kind="text", text=f"{item.evidence}."),
    ]
    for panel in lines.panels_of(item):
        rows = [row for row in item.data.rows if row[0] == panel]
        title = item.data.title + (f": {panel}" if panel else "")
        data = Table(columns=("panel", "series", item.x, item.y), rows=rows, title=title)
        blocks.append(Block(kind="plot", table=data, draw=partial(_panel, item, panel)))
    return Section(id=item.name, title=item.claim, blocks=blocks, short=item.name.replace("_", " "))


def _panel(item: Finding, panel: str, _: Table) -> Any:
    return lines.panel_figure(item, panel)


# --- a change ----------------------------------------------------------------------------------------------


def write_difference(
    answer: Answer, before: Prediction, after: Prediction, changed: Mapping[str, Change], output: Path
) -> Path:
    """Write the report of a change to ``output``: what it comes to, what moves by how much, and every number.

    Raises:
        NoDevice: matplotlib or jinja2 is not installed.
    """
    both = [_named(before, "before"), _named(after, "after")]
    table = paired.table(before, after, changed)
    shown = Table(columns=table.columns, rows=table.rows, notes=table.notes)
    drawn = (
        (plots.change_figure, plots.change_data(changed)),
        (plots.time_figure, plots.time_data(both)),
        (plots.memory_figure, plots.memory_data([(one, None) for one in both if before.memory != after.memory])),
        (plots.spread_figure, plots.cost_data(both)),
    )
    about = str(before.scenario.get("title", "")).removesuffix(": before")
    card = answer_card(answer, about)
    fold = Block(kind="fold", text="every metric before and after", inside=[Block(kind="table", table=shown)])
    figures_of = [Block(kind="plot", table=data, draw=draw) for draw, data in drawn if data.rows]
    page = Page(
        title=answer.question,
        sections=[
            Section(id="answer", title="Answer", blocks=[card]),
            Section(id="plots", title="At a glance", blocks=figures_of),
            Section(id="numbers", title="All numbers", blocks=[fold]),
        ],
    )
    return html.write(page, output)


def _named(prediction: Prediction, name: str) -> Prediction:
    return prediction.model_copy(update={"scenario": prediction.scenario | {"name": name}})


# --- the cheapest ------------------------------------------------------------------------------------------


def write_cheapest(found: Found, output: Path) -> Path:
    """Write the report of a search to ``output``: the choice, time against money of all, and the table of the front.

    Raises:
        NoDevice: matplotlib or jinja2 is not installed.
    """
    answer = cheapest_answer.answer(found)
    choice, table = cheapest_answer.summary(found), cheapest_answer.table(found)
    shown = Table(
        columns=choice.columns, rows=choice.rows, units=choice.units, title="What there is to choose among"
    )
    everything = Table(columns=table.columns, rows=table.rows, units=table.units)
    numbers = [
        Block(kind="table", table=shown),
        Block(kind="fold", text="the same with every setting", inside=[Block(kind="table", table=everything)]),
    ]
    plot = Block(kind="plot", table=front_data(found), draw=front_figure)
    page = Page(
        title=answer.question,
        subtitle=found.goal,
        sections=[
            Section(id="answer", title="Answer", blocks=[answer_card(answer)]),
            Section(id="plots", title="At a glance", blocks=[plot]),
            Section(id="searched", title="What was searched", blocks=[Block(kind="list", rows=choice.notes)]),
            Section(id="numbers", title="All numbers", blocks=numbers),
        ],
    )
    return html.write(page, output)


def front_data(found: Found) -> Table:
    """Return dollars and hours of the choice, of the front, and of some of the other configurations that run."""
    columns, front = found.outcome.columns, set(found.front)
    others = [place for place in map(int, np.flatnonzero(found.outcome.runs)) if place not in front]
    others = others[:: -(-len(others) // MOST_OTHERS) or 1]
    groups = ((BEST, [] if found.best is None else [found.best]), (FRONT, found.front), (OTHERS, others))
    rows = [
        [
            kind,
            found.outcome.machines[place].name,
            float(columns[COST][place]),
            float(columns[TIME][place]) / HOUR_S,
        ]
        for kind, places in groups
        for place in places
    ]
    columns_of = ("which", "machine", "cost", "time")
    return Table(columns=columns_of, rows=rows, units=("", "", "USD", "h"), title="Time against money")


def front_figure(data: Table) -> Any:
    """Draw hours over dollars, both logarithmic: the front as a line, the choice large, all others faint."""
    figure, axis = figures.one_axis(3.6, x="USD", y="hours")
    for kind in (OTHERS, FRONT, BEST):
        own = sorted((row for row in data.rows if row[0] == kind), key=lambda row: (row[2], row[3]))
        x, y = [row[2] for row in own], [row[3] for row in own]
        if kind == OTHERS:
            axis.plot(x, y, ".", color=figures.REST, markersize=3, label=kind if own else None)
            continue
        axis.plot(x, y, color=figures.PREDICTED, linewidth=1)
        marker, size = ("o", 4.0) if kind == FRONT else ("*", 11.0)
        colour = figures.PREDICTED if kind == FRONT else figures.MEASURED
        for number, (_, machine, usd, hours) in enumerate(own):
            label = None if number else kind
            (mark,) = axis.plot([usd], [hours], marker, color=colour, markersize=size, label=label, linestyle="")
            figures.tip(mark, f"{machine}: {usd:,.4g} USD, {hours:.3g} h")
    for name, place in (("x", 2), ("y", 3)):
        ends = [row[place] for row in data.rows if row[place] > 0] or [0.1, 1.0]
        figures.log_axis(axis, name, [0.8 * min(ends), 1.25 * max(ends)])
    figures.legend_below(figure, columns=2)
    return figure
