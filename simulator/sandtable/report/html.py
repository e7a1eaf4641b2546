"""Self-contained HTML pages: sections of blocks, drawn by one template. Everything that is shown is escaped.

A page asks no network for anything, works without scripts (they sort tables and open folds for printing), and holds
each plot as inline SVG with its data as a table beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from typing import Any

import sandtable
from sandtable.errors import missing_extra
from sandtable.hardware import GUESS
from sandtable.report import figures, rendering
from sandtable.system import atomic_files
from sandtable.table import Quantity, Table, plain

TEMPLATE = "report.html.j2"
MOST_DATA_ROWS = 120


@dataclass(frozen=True, kw_only=True)
class Block:
    """One piece of a section; ``kind`` decides how the template shows it.

    Kinds are "text", "verdict", "heading", "list", "code", "card", "table", "plot", and "fold", which holds ``inside``
    behind its text. An ``appendix`` stays closed on paper.
    """

    kind: str
    text: str = ""
    css: str = ""
    rows: Sequence[str] = ()
    table: Table | None = None
    shaded: frozenset[int] | None = None
    draw: Callable[[Table], Any] | None = None
    inside: Sequence[Block] = ()
    appendix: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a page; one without blocks is left out. ``short`` names it where its title is too long."""

    id: str
    title: str
    blocks: Sequence[Block]
    short: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page: its heading, a line under it, and its sections."""

    title: str
    subtitle: str = ""
    sections: Sequence[Section]


def write(page: Page, output: Path) -> Path:
    """Write a page to ``output``, and return that.

    Raises:
        NoDevice: matplotlib or jinja2 is not installed.
    """
    atomic_files.write_atomically(output, render(page))
    return output


def render(page: Page) -> str:
    """Return a page as HTML.

    Raises:
        NoDevice: matplotlib or jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise missing_extra(str(error.name), "report") from None
    # PackageLoader would import the package anew; the template lies beside this file
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    numbers = count(1)
    sections = [
        {
            "id": section.id,
            "title": section.title,
            "short": section.short or section.title,
            "groups": _groups(section.blocks, numbers),
        }
        for section in page.sections
        if section.blocks
    ]
    text = environment.get_template(TEMPLATE).render(
        title=page.title,
        subtitle=page.subtitle,
        version=sandtable.__version__,
        sections=sections,
        colours=figures.COLOURS,
    )
    return re.sub(r"\n\s*\n+", "\n", text)


def _groups(blocks: Sequence[Block], numbers: Any) -> list[dict[str, Any]]:
    """Return blocks as the template shows them: plots that follow each other stand side by side."""
    return [
        {"plots": kind == "plot", "blocks": [_shown(block, numbers) for block in own]}
        for kind, own in groupby(blocks, key=lambda block: block.kind)
    ]


def _shown(block: Block, numbers: Any) -> dict[str, Any]:
    """Return one block as plain values, its plot drawn, its table as text."""
    shown: dict[str, Any] = {"kind": block.kind, "text": block.text, "css": block.css, "rows": list(block.rows)}
    shown |= {"groups": _groups(block.inside, numbers), "appendix": block.appendix, "svg": "", "view": None}
    if block.table is None:
        return shown
    shown["view"] = view_of(block.table, block.shaded)
    shown["text"] = block.text or block.table.title
    if block.draw is not None:
        number = next(numbers)
        shown["svg"] = figures.inline(block.draw, block.table, f"Plot: {shown['text']}", f"p{number}-")
        shown["view"] = view_of(_beside_a_plot(block.table))
    return shown


def _beside_a_plot(data: Table) -> Table:
    """Return the data of a plot as a table to read: without lines of a law, no more rows than anyone reads."""
    units_of = list(data.units) or [""] * len(data.columns)
    rows = [
        [
            Quantity(cell, unit) if unit and isinstance(cell, float) else cell
            for cell, unit in zip(row, units_of, strict=True)
        ]
        for row in data.rows
        if row[0] != "law"
    ]
    notes = [f"the first {MOST_DATA_ROWS} of {len(rows)} rows"] if len(rows) > MOST_DATA_ROWS else []
    return Table(columns=data.columns, rows=rows[:MOST_DATA_ROWS], title=data.title, notes=notes)


def view_of(table: Table, shaded: frozenset[int] | None = None) -> dict[str, Any]:
    """Return a table as the template shows it: headings with units, cells as text, some rows shaded.

    ``shaded`` are places of rows; without it, rows with a cell that says it is a guess are.
    """
    heads, rows = rendering.visible(table)
    right = rendering.numeric_columns(table)
    places = [place for place, name in enumerate(table.columns) if name != "unit"]
    shown = []
    for place, row in enumerate(rows):
        cells = [
            {
                "text": text,
                "number": name in right,
                "value": _sorted_by(table.rows[place][column]) if name in right else None,
            }
            for text, (name, _), column in zip(row, heads, places, strict=True)
        ]
        marked = any(cell.startswith(GUESS) for cell in row) if shaded is None else place in shaded
        shown.append({"shaded": marked, "cells": cells})
    numbers = [name in right for name, _ in heads]
    return {
        "title": table.title,
        "heads": list(zip(heads, numbers, strict=True)),
        "notes": list(table.notes),
        "rows": shown,
    }


def _sorted_by(cell: Any) -> str | None:
    value = plain(cell)
    return f"{value:.9g}" if isinstance(value, int | float) else None
