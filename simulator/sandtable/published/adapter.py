"""What an adapter is: it reads one CSV of published measurements and predicts its rows.

An adapter translates: a row's text into a device of the library and a demand, the model's answer into the row's
figures. It holds no figure of its own. A row that it cannot translate is skipped under a reason, a short phrase such
as "no device file", and the reasons are counted.
"""

from __future__ import annotations

import csv
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sandtable.calibration.fit.operator_fit import OperatorPoint
from sandtable.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a file. ``line`` is where it ends in the file, 1-based; missing cells are empty strings."""

    line: int
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a cell without the spaces around it.

        Raises:
            MalformedRow: the file has no such column.
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
        if not abs(value) < float("inf"):
            raise MalformedRow(f"{column}: {text!r} is not finite")
        return value


class MalformedRow(ValueError):
    """A row that cannot be read; it is counted under "malformed row" with its line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One figure of one row, predicted and measured, both in ``unit``; ``low`` to ``high`` is the 90 % interval.

    ``label`` says for people which row it is, ``group`` what a plot colours it by.
    """

    row_id: str
    metric: str
    unit: str
    predicted: float
    low: float
    high: float
    measured: float
    label: str
    group: str

    @property
    def error_frac(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1

    @property
    def covered(self) -> bool:
        """Whether the interval holds the measured value."""
        return self.low <= self.measured <= self.high


@dataclass(frozen=True, slots=True)
class Skipped:
    """Why a row, or one metric of it, is not scored."""

    reason: str
    metric: str | None = None


Outcome = Sequence[Scored | Skipped] | Skipped


class Adapter(ABC):
    """One file of published measurements.

    ``name`` is the file's name without ``.csv``; ``metrics`` are all that its rows can be scored on. A metric that
    `predict` says nothing of is counted as "no such figure in the row".
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]

    def read(self, folder: Path) -> Iterator[Row]:
        """Yield the rows of the file in order.

        Raises:
            ConfigError: the file is not readable as text.
        """
        path = folder / f"{self.name}.csv"
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, restkey="", restval="")
                for cells in reader:
                    overflow = cells.pop("", None)
                    row = Row(line=reader.line_num, cells=cells)
                    yield row if not overflow else Row(line=row.line, cells={})
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"cannot be read: {error}", file=str(path)) from None

    def shipped(self) -> Path | None:
        """Return the folder ``data`` beside the adapter if it ships the file; most files belong to others."""
        folder = Path(inspect.getfile(type(self))).parent / "data"
        return folder if (folder / f"{self.name}.csv").is_file() else None

    @abstractmethod
    def predict(self, row: Row) -> Outcome:
        """Predict one row, from device files alone.

        Raises:
            MalformedRow: the row cannot be read.
        """

    def held_out(self, rows: Iterable[Row]) -> list[Scored]:
        """Predict the rows whose device file was made from them, with constants made from other rows.

        Empty where no constant of a device file came from these rows.
        """
        return []

    def operator_points(self, rows: Iterable[Row]) -> Iterable[OperatorPoint]:
        """Return the timed operators among the rows, to which constants of device files may be fitted.

        Empty for files that time no operator. See `sandtable.published.operator_rows`.
        """
        return ()
