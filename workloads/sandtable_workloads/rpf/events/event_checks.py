"""What is wrong with events, in one sentence that names the row, or the file and the line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError

TimeUnit = Literal["h", "s", "ms"]
COLUMNS: Final = ("user", "item", "time")
_PER_HOUR: Final[dict[TimeUnit, float]] = {"h": 1.0, "s": 3600.0, "ms": 3.6e6}
# 1e8 hours are 11,000 years, 1e8 s since 1970 are 1973; 1e11 s are the year 5138, 1e11 ms are 1973
_LEAST_SECONDS, _LEAST_MS = 1e8, 1e11
_MONDAY: Final = np.datetime64("1970-01-05", "s")
_WEEK_S: Final = 7 * 24 * 3600
_DAY_S: Final = 24 * 3600


def many(n: int, what: str) -> str:
    """Return a number with what it counts: ``1 user``, ``2,000 users``."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


@dataclass(frozen=True)
class Where:
    """Where rows stand: in a file, the first of them on ``first_line``, or nowhere but in memory.

    ``places`` are the rows of the file that were kept, where some were not.
    """

    file: str | None = None
    first_line: int | None = 1
    places: NDArray[Any] | None = None

    def error(self, message: str, row: int | None = None) -> ConfigError:
        """Build the error about a row, counted from 0."""
        if row is not None and self.places is not None:
            row = int(self.places[row])
        if row is None:
            return ConfigError(message, file=self.file)
        if self.file is None or self.first_line is None:
            return ConfigError(f"row {row} (counted from 0): {message}", file=self.file)
        return ConfigError(message, file=self.file, line=self.first_line + row)


class ReadHours(NamedTuple):
    """Times in hours, the date of hour 0 where it is known, what to say, and whether they were given as dates."""

    hours: NDArray[np.float64]
    origin: np.datetime64 | None
    notes: tuple[str, ...]
    dated: bool = True


def columns_of(events: Any) -> tuple[Any, Any, Any]:
    """Return the columns user, item and time of a frame, a mapping, a record array or a sequence of three.

    Raises:
        ConfigError: a column is missing, or they are of different lengths.
    """
    names = getattr(getattr(events, "dtype", None), "names", None)
    if isinstance(events, Mapping) or hasattr(events, "columns") or names is not None:
        have = list(names if names is not None else getattr(events, "columns", events))
        missing = [name for name in COLUMNS if name not in have]
        if missing:
            listed = ", ".join(repr(name) for name in have[:12]) or "none"
            raise ConfigError(
                f"events have no column {missing[0]!r} (there are {listed}): user, item, time are needed"
            )
        found = [events[name] for name in COLUMNS]
    elif all(hasattr(events, name) for name in COLUMNS):
        found = [getattr(events, name) for name in COLUMNS]
    elif isinstance(events, tuple | list) and len(events) == len(COLUMNS):
        found = list(events)
    else:
        raise ConfigError("events are a frame with columns user, item and time, or three arrays in this order")
    user, item, time = (column if hasattr(column, "dtype") else _array(column) for column in found)
    if not np.ndim(user) == np.ndim(item) == np.ndim(time) == 1 or not len(user) == len(item) == len(time):
        shapes = ", ".join(str(np.shape(column)) for column in (user, item, time))
        raise ConfigError(f"user, item and time must be columns of equal length, not of shapes {shapes}")
    return user, item, time


def _array(column: Any) -> NDArray[Any]:
    """Return a list as an array; of values that NumPy would turn into something else, as objects."""
    values = list(column)
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and issubclass(next(iter(kinds)), int | float | np.number):
        return np.array(values)
    found = np.empty(len(values), object)
    found[:] = values
    return found


def coded(ids: Any, what: str, where: Where) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Return the place of each id among the distinct ones, which come in the order in which they occur.

    Whole numbers that stand as floats, as a column has them in which others are missing, are integers.

    Raises:
        ConfigError: an id is missing, or cannot be told from others (a list).
    """
    import pandas as pd

    try:
        codes, distinct = pd.factorize(ids, use_na_sentinel=True)
    except TypeError:
        raise where.error(f"ids of {what}s must be numbers, texts or other values that can be hashed") from None
    if codes.size and codes.min() < 0:
        raise where.error(f"the {what} is missing", int(np.argmax(codes < 0)))
    found = np.asarray(distinct)
    if found.dtype.kind == "f" and np.all(found == np.floor(found)) and np.abs(found).max(initial=0) < 2**53:
        found = found.astype(np.int64)
    return codes.astype(np.int32), found


def hours(time: Any, unit: TimeUnit | None, origin: np.datetime64 | None, where: Where) -> ReadHours:
    """Return times in hours, of numbers, dates or texts that are either.

    Raises:
        ConfigError: a time that is missing, negative, not finite, in the future or no time at all.
    """
    import pandas as pd

    column: Any = pd.Series(time).reset_index(drop=True)
    if pd.api.types.is_timedelta64_dtype(column):
        return _of_numbers(column.dt.total_seconds().to_numpy(np.float64) / 3600, "h", origin, where)
    if pd.api.types.is_datetime64_any_dtype(column):
        return _of_dates(column, origin, where)
    if pd.api.types.is_numeric_dtype(column):
        return _of_numbers(column.to_numpy(np.float64, na_value=np.nan), unit, origin, where)
    numbers: Any = pd.to_numeric(column, errors="coerce")
    if numbers.notna().any():
        _refuse(numbers.isna(), column, "is not a number", where)
        return _of_numbers(numbers.to_numpy(np.float64), unit, origin, where)
    return _of_dates(_parsed(column, where), origin, where)


def hour_of(time: Any, origin: np.datetime64 | None) -> float:
    """Return the hour of one time: a number, or a date (also as text) where hour 0 is the date ``origin``.

    Raises:
        ConfigError: it is neither, or a date where events had hours.
    """
    import pandas as pd

    try:
        dated = isinstance(time, np.datetime64) or hasattr(time, "isoformat")
        hour = float("nan") if dated else float(time)
    except (TypeError, ValueError):
        dated, hour = True, float("nan")
    try:
        moment = pd.Timestamp(time) if dated else pd.NaT
    except (TypeError, ValueError):
        moment = pd.NaT
    if not (np.isfinite(hour) or isinstance(moment, pd.Timestamp)):
        raise ConfigError(f"a time is an hour or a date such as 2024-05-01T18:00, not {str(time)[:60]!r}")
    if not dated:
        return hour
    if origin is None:
        raise ConfigError(f"{moment} is a date, and the events had hours: give an hour")
    utc = moment.tz_convert(None) if moment.tz is not None else moment
    return float((utc - pd.Timestamp(origin)).total_seconds()) / 3600


def _parsed(column: Any, where: Where) -> Any:
    import pandas as pd

    try:
        dates: Any = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    except (ValueError, TypeError, OverflowError):
        dates = pd.Series(pd.NaT, index=column.index)
    said = "is not a time: write hours, seconds since 1970 or dates such as 2009-05-04T23:08:57Z"
    _refuse(dates.isna(), column, said, where)
    return dates


def _refuse(bad: Any, column: Any, said: str, where: Where) -> None:
    import pandas as pd

    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        value = column.iloc[row]
        message = "the time is missing" if pd.isna(value) else f"time {str(value)[:60]!r} {said}"
        raise where.error(message, row)


def _of_numbers(
    values: NDArray[np.float64], unit: TimeUnit | None, origin: np.datetime64 | None, where: Where
) -> ReadHours:
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        said = "the time is missing" if np.isnan(values[row]) else f"time {values[row]} is not finite"
        raise where.error(said, row)
    most = float(values.max())
    found: TimeUnit = unit or ("ms" if most >= _LEAST_MS else "s" if most >= _LEAST_SECONDS else "h")
    if values.min() < 0:
        row = int(np.argmax(values < 0))
        since = "since 1970" if found != "h" else "from whatever hour 0 is"
        raise where.error(f"time {values[row]:g} is negative: times count upwards {since}", row)
    if found == "h":
        return ReadHours(values, origin, (), dated=False)
    notes = () if unit else (f"times are read as {'milli' * (found == 'ms')}seconds since 1970",)
    return _since_origin(values / _PER_HOUR[found] * 3600, origin, notes, where)


def _of_dates(column: Any, origin: np.datetime64 | None, where: Where) -> ReadHours:
    if column.isna().any():
        raise where.error("the time is missing", int(np.argmax(column.isna().to_numpy())))
    import pandas as pd

    utc = column.dt.tz_convert("UTC").dt.tz_localize(None) if column.dt.tz is not None else column
    seconds = (utc - pd.Timestamp("1970-01-01")).dt.total_seconds().to_numpy(np.float64)
    return _since_origin(seconds, origin, (), where)


def _since_origin(
    seconds: NDArray[np.float64], origin: np.datetime64 | None, notes: tuple[str, ...], where: Where
) -> ReadHours:
    now = float(np.datetime64("now", "s").astype(np.int64)) + _DAY_S
    if (future := seconds > now).any():
        row = int(np.argmax(future))
        shown = (
            np.datetime64(int(seconds[row]), "s") if abs(seconds[row]) < 1e17 else f"{seconds[row]:g} s since 1970"
        )
        raise where.error(f"time {shown} lies in the future", row)
    monday = float(_MONDAY.astype(np.int64))
    if origin is None:
        origin = _MONDAY + np.timedelta64(int((seconds.min() - monday) // _WEEK_S) * _WEEK_S, "s")
    since = (seconds - float(origin.astype("datetime64[s]").astype(np.int64))) / 3600
    if since.min() < 0:
        raise where.error(f"time lies before {origin}, which counts as hour 0", int(np.argmax(since < 0)))
    return ReadHours(since, origin, notes)
