"""What an adapter is: it reads one file of published measurements and predicts its rows.

An adapter translates: a row's text into a device of the library and a demand, the model's answer into the row's
figures. It holds no figure of its own. A row that it cannot translate is skipped under a reason, a short phrase such
as "no device file", and the reasons are counted.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sandtable.calibration.timing import Timing
from sandtable.errors import ConfigError
from sandtable.published.rows import MalformedRow, Row, Rows, file_of, read_rows, translated


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

    ``name`` is the file's name without its ending; ``metrics`` are all that its rows can be scored on. A metric that
    `predict` says nothing of is counted as "no such figure in the row".
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]

    def read(self, folder: Path) -> Rows:
        """Return the rows of the file in order.

        Raises:
            ConfigError: there is no such file, or it is not readable.
        """
        path = file_of(folder, self.name)
        if path is None:
            raise ConfigError("no such file", file=str(folder / f"{self.name}.csv"))
        return read_rows(path)

    def shipped(self) -> Path | None:
        """Return the folder ``data`` beside the adapter if it ships the file; most files belong to others."""
        folder = Path(inspect.getfile(type(self))).parent / "data"
        return folder if file_of(folder, self.name) else None

    @abstractmethod
    def predict(self, row: Row) -> Outcome:
        """Predict one row, from device files alone.

        Raises:
            MalformedRow: the row cannot be read.
        """

    def predict_all(self, rows: Iterable[Row]) -> Iterator[Outcome | MalformedRow]:
        """Predict rows in order; one that cannot be read gives its error. For adapters that predict many at once."""
        return (translated(self.predict, row) for row in rows)

    def held_out(self, rows: Iterable[Row]) -> list[Scored]:
        """Predict the rows whose device file was made from them, with constants made from other rows.

        Empty where no constant of a device file came from these rows.
        """
        return []

    def timings(self, rows: Iterable[Row]) -> Iterable[Timing]:
        """Return the timed operators among the rows, to which constants of device files may be fitted.

        Empty for files that time no operator. See `sandtable.published.operator_rows`.
        """
        return ()
