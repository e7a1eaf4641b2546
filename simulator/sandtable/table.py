"""A table of results: columns with units, rows of values. How it is printed is decided in `sandtable.report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under headings; ``units`` is empty or one unit per column (empty text where there is none)."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    units: Sequence[str] = ()
    title: str = ""
    notes: Sequence[str] = field(default=())
