"""Rows of a published file, CSV or Parquet: text cells in a pandas frame, each row with its line in the file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sandtable import units
from sandtable.errors import ConfigError, missing_extra
from sandtable.text_files import read_text

if TYPE_CHECKING:
    import pandas as pd

# the first that is there is read
T = TypeVar("T")
SUFFIXES = (".csv", ".parquet")
MOST_BYTES = 1024**3
_QUOTED = re.compile(r'"[^"]*"')


class MalformedRow(ValueError):
    """A row that cannot be read; it is counted under "malformed row" with its line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a file. ``line`` is where it ends in the file, 1-based; missing cells are empty strings."""

    line: int
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a cell without the spaces around it.

        Raises:
            MalformedRow: the file has no such column, or the row more cells than the file has columns.
        """
        if column not in self.cells:
            raise MalformedRow(f"no column {column!r}")
        return self.cells[column].strip()

    def number(self, column: str) -> float | None:
        """Return a cell as a number, None if it is empty.

        Raises:
            MalformedRow: the cell holds something else.
        """
        text = self.text(column)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            raise MalformedRow(f"{column}: {text!r} is not a number") from None
        try:
            return units.in_range(value, text)
        except ValueError as error:
            raise MalformedRow(f"{column}: {error}") from None


def translated(call: Callable[[Row], T], row: Row) -> T | MalformedRow:
    """Return what ``call`` makes of a row, or why the row cannot be read: whatever its cells hold, others are read."""
    try:
        return call(row)
    except MalformedRow as error:
        return error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return MalformedRow(f"cells that make no sense together: {type(error).__name__}: {error}")


class Rows(Sequence[Row]):
    """The rows of one file, in order.

    ``frame`` holds their cells as text under the file's column names, indexed by line; a row with cells beyond the
    file's columns holds nothing but missing values, and a line without any cell is no row.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        records = frame.to_dict("records")
        whole = frame.notna().all(axis=1)
        self._rows = [
            Row(line=int(line), cells=cells if is_whole else {})
            for line, cells, is_whole in zip(frame.index, records, whole, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]


def file_of(folder: Path, name: str) -> Path | None:
    """Return the file of published rows called ``name`` in a folder, CSV before Parquet; None if there is none."""
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), None)


def read_rows(path: Path) -> Rows:
    """Read a file of published rows.

    Raises:
        ConfigError: it is not readable, or a column stands twice in it.
        NoDevice: a Parquet file, and pyarrow is not installed.
    """
    try:
        frame = _from_parquet(path) if path.suffix == ".parquet" else _from_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from None
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise ConfigError(f"column {twice[0]!r} stands twice: keep one of them", file=str(path), line=1)
    return Rows(frame)


def _from_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    text = read_text(path, MOST_BYTES)
    if not text.strip():
        raise ValueError("the file is empty")
    # without what is quoted, each line is one row: as wide as the widest, so that none is refused for its width
    width = 1 + max(line.count(",") for line in _QUOTED.sub("", text).split("\n"))
    table = pd.read_csv(
        io.StringIO(text),
        header=None,
        names=list(range(width)),
        dtype=str,
        keep_default_na=False,
        skip_blank_lines=False,
    )
    breaks = pd.DataFrame({column: table[column].str.count("\n") for column in table}).sum(axis=1)
    table.index = (1 + pd.RangeIndex(len(table)) + breaks.cumsum()).astype(int)
    filled = table.ne("")
    names = table.iloc[0][: filled.iloc[0].to_numpy().nonzero()[0].max(initial=-1) + 1]
    body = table.iloc[1:][filled.iloc[1:].any(axis=1)]
    too_long = filled.loc[body.index, len(names) :].any(axis=1)
    return body[list(names.index)].mask(too_long).set_axis(list(names), axis=1)


def _from_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise missing_extra("pyarrow", "parquet") from None
    # numbered as they would be in a CSV, below a line of names
    table.index = pd.RangeIndex(2, len(table) + 2)
    return table.map(_as_text).rename(columns=str)


def _as_text(value: Any) -> str:
    """Write a cell as a CSV has it: nothing where it is missing, whole numbers without a point."""
    import pandas as pd

    if pd.isna(value):
        return ""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)
