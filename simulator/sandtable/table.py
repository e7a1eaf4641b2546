"""A table of results: columns with units, rows of values. How it is printed is decided in `sandtable.report`.

A cell is text, a plain value, or a `Quantity`: shown to people with a fitting prefix ("118 us"), given to programs as
a plain number in the base unit, which the column beside it or the name of the metric states.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sandtable import units

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value in a base unit; ``signed`` shows a plus."""

    value: float
    unit: str
    signed: bool = False

    def text(self) -> str:
        """Return it for people."""
        shown = units.format_quantity(self.value, self.unit)
        return f"+{shown}" if self.signed and self.value > 0 else shown


def plain(cell: Any) -> Any:
    """Return a cell as programs read it."""
    if isinstance(cell, Quantity):
        return cell.value
    return cell.item() if isinstance(cell, np.generic) else cell


class Framed:
    """What gives a pandas frame; a notebook shows it as a table, under its answer where it has one."""

    @property
    def answer(self) -> object | None:
        """What it comes to, to be read before all numbers."""
        return None

    def to_frame(self) -> pd.DataFrame:
        """Return the frame."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        said = "" if self.answer is None else f"<pre>{html.escape(str(self.answer))}</pre>"
        return f"{said}{self.to_frame().to_html()}"

    def __str__(self) -> str:
        return repr(self) if self.answer is None else str(self.answer)


@dataclass(frozen=True, kw_only=True)
class Table(Framed):
    """Rows under headings; ``units`` is empty or one unit per column (empty text where there is none)."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    units: Sequence[str] = ()
    title: str = ""
    notes: Sequence[str] = field(default=())

    def names(self) -> list[str]:
        """Return column names for programs, with the unit where there is one for the whole column."""
        units_of = list(self.units) or [""] * len(self.columns)
        return [
            f"{name} [{unit}]" if unit else str(name) for name, unit in zip(self.columns, units_of, strict=True)
        ]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows for programs, by `names`."""
        return [dict(zip(self.names(), map(plain, row), strict=True)) for row in self.rows]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows for programs as a pandas frame; columns with a unit are numbers, missing where empty."""
        import pandas as pd

        frame = pd.DataFrame([list(map(plain, row)) for row in self.rows], columns=self.names())
        with_unit = [name for name, unit in zip(frame.columns, self.units, strict=False) if unit]
        return frame.assign(**{name: pd.to_numeric(frame[name]) for name in with_unit})
