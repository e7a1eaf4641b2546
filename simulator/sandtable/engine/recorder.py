"""What units of work took, in columns: one row per unit, one column per quantity, a table per kind of unit.

A prediction and a real run are recorded alike. A quantity's name carries its unit, as metrics do: ``latency_s`` is the
time of the unit, ``io_s`` and its like the accounts of it, and anything else a counter.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
ACCOUNTS: tuple[str, ...] = ("io", "memory", "compute", "communication")
ACCOUNT_OF_COLUMN = {f"{account}_s": account for account in ACCOUNTS}
LATENCY = "latency_s"
NOTHING: Mapping[str, float] = {}


@dataclass(slots=True, kw_only=True)
class StepResult:
    """One row: seconds in all and by account, and counters such as bytes read.

    A prediction has ``low`` and ``high`` as well, the ends of the 90 % interval of the same seconds, by account and
    in all as "total".
    """

    phase: str
    name: str
    total_s: float
    by_account: dict[str, float] = field(default_factory=dict)
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)


class Growing:
    """Named columns of floats that grow by rows; a quantity that a row lacks is ``missing`` there.

    Rows that lack all of them need not be written: raising ``n`` is enough.
    """

    __slots__ = ("_columns", "_missing", "n")

    def __init__(self, missing: float = 0.0) -> None:
        self.n = 0
        self._missing = missing
        self._columns: dict[str, array[float]] = {}

    def append(self, row: Mapping[str, float], times: int = 1) -> None:
        """Add ``times`` equal rows."""
        n = self.n
        for name, value in row.items():
            column = self._columns.get(name)
            if column is None or len(column) < n:
                column = self._padded(name)
            if times == 1:
                column.append(value)
            else:
                column.extend(array("d", (value,)) * times)
        self.n = n + times

    def _padded(self, name: str) -> array[float]:
        column = self._columns.setdefault(name, array("d"))
        column.extend(array("d", (self._missing,)) * (self.n - len(column)))
        return column

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in the order in which they were first seen."""
        return tuple(self._columns)

    def __getitem__(self, name: str) -> FloatArray:
        """Return a copy of one column."""
        return np.array(self._padded(name)) if name in self._columns else np.full(self.n, self._missing)


class Units:
    """All units of one kind, in the order in which they were recorded."""

    def __init__(self) -> None:
        self.values = Growing()
        self._low, self._high = Growing(np.nan), Growing(np.nan)
        self._starts = array("d")
        self._names = array("l")
        self._codes: dict[str, int] = {}

    def append(
        self,
        row: Mapping[str, float],
        low: Mapping[str, float],
        high: Mapping[str, float],
        *,
        name: str,
        start_s: float,
        times: int,
    ) -> None:
        """Add ``times`` equal units; see `Recorder.record`."""
        code = self._codes.setdefault(name, len(self._codes))
        for ends, given in ((self._low, low), (self._high, high)):
            if given:
                ends.n = self.values.n
                ends.append(given, times)
        self.values.append(row, times)
        self._starts.extend(array("d", (start_s,)) * times)
        self._names.extend(array("l", (code,)) * times)

    def __len__(self) -> int:
        return self.values.n

    def ends(self, name: str) -> tuple[FloatArray, FloatArray]:
        """Return the ends of the 90 % interval of a quantity, its own value where none was recorded."""
        value = self.values[name]
        if not self._low.n:
            return value, value
        self._low.n = self._high.n = self.values.n
        low, high = self._low[name], self._high[name]
        return np.where(np.isnan(low), value, low), np.where(np.isnan(high), value, high)

    def names(self) -> list[str]:
        """Return the units' names."""
        known = list(self._codes)
        return [known[code] for code in self._names]

    @property
    def starts_s(self) -> FloatArray:
        """When each unit began, in seconds from the start of the run; NaN where that was not recorded."""
        return np.array(self._starts)

    def end_s(self) -> float:
        """Return when the last unit ended, in seconds from the start of the run; NaN where no start was recorded."""
        return float(np.max(self.starts_s + self.values[LATENCY])) if len(self) else 0.0

    def table(self) -> dict[str, Any]:
        """Return all columns by name: ``name`` and ``start_s`` of each unit, then what was recorded of it."""
        columns = {column: self.values[column] for column in self.values.names}
        return {"name": self.names(), "start_s": np.array(self._starts), **columns}

    def rows(self, phase: str) -> Iterator[StepResult]:
        """Yield one view per unit."""
        columns = {name: (self.values[name], *self.ends(name)) for name in self.values.names}
        accounts = {name: account for name, account in ACCOUNT_OF_COLUMN.items() if name in columns}
        timed = {LATENCY: "total", **accounts} if self._low.n else {}
        for i, name in enumerate(self.names()):
            yield StepResult(
                phase=phase,
                name=name,
                total_s=float(columns[LATENCY][0][i]),
                by_account={account: float(columns[column][0][i]) for column, account in accounts.items()},
                low={account: float(columns[column][1][i]) for column, account in timed.items()},
                high={account: float(columns[column][2][i]) for column, account in timed.items()},
                counters={
                    column: float(value[i])
                    for column, (value, _, _) in columns.items()
                    if column != LATENCY and column not in accounts
                },
            )


class Recorder:
    """The units of a run by kind, kinds in the order in which they first appeared."""

    def __init__(self) -> None:
        self.units: dict[str, Units] = {}

    def record(
        self,
        unit: str,
        row: Mapping[str, float],
        *,
        name: str = "",
        start_s: float = np.nan,
        low: Mapping[str, float] = NOTHING,
        high: Mapping[str, float] = NOTHING,
        times: int = 1,
    ) -> None:
        """Record ``times`` equal units.

        Args:
            unit: Kind of unit, such as "request" or the phase of a plan.
            row: ``latency_s``, the time of the unit, and every other quantity by name.
            name: Which unit it is, where that is worth telling; few different ones.
            start_s: When it began, in seconds from the start of the run.
            low: Lower ends of the 90 % interval of predicted quantities.
            high: Upper ends.
            times: How many equal units follow each other.
        """
        units = self.units.get(unit)
        if units is None:
            units = self.units[unit] = Units()
        units.append(row, low, high, name=name, start_s=start_s, times=times)

    @classmethod
    def of(cls, steps: Iterable[StepResult]) -> Recorder:
        """Return a recorder of these rows."""
        recorder = cls()
        for step in steps:
            row, low, high = (
                {LATENCY if account == "total" else f"{account}_s": value for account, value in part.items()}
                for part in ({"total": step.total_s, **step.by_account}, step.low, step.high)
            )
            recorder.record(step.phase, row | step.counters, name=step.name, low=low, high=high)
        return recorder

    def __len__(self) -> int:
        return sum(len(units) for units in self.units.values())

    def end_s(self) -> float:
        """Return when the last unit of all ended, in seconds from the start of the run."""
        return max((units.end_s() for units in self.units.values()), default=0.0)

    def tables(self) -> Iterator[dict[str, Any]]:
        """Yield the columns of each kind of unit, with its name as ``unit``."""
        for unit, units in self.units.items():
            yield {"unit": unit, **units.table()}

    def steps(self) -> list[StepResult]:
        """Return a view of every row, kind by kind."""
        return [step for unit, units in self.units.items() for step in units.rows(unit)]
