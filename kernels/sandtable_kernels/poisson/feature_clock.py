"""Features of time that repeat: what makes factors follow the clock, and for how long each holds.

A period is cut into bins of equal length; features are constant within a bin. Times are in hours, local to whoever
the events are of; a shift such as daylight saving is not known. What accrues between two times is a difference of
integrals from time 0 on, and these are linear within a bin: so no user needs a table of bins by features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
HOURS_A_DAY, HOURS_A_WEEK = 24, 168


class ActiveFeatures(NamedTuple):
    """The features of each bin that are not zero: those of bin b at ``start[b] .. start[b + 1] - 1``."""

    start: NDArray[np.int64]
    feature: NDArray[np.int32]
    value: Array


class Phase(NamedTuple):
    """Where times [n] lie: whole periods since the first, bin, and the share of the bin that is past."""

    periods: Floats
    bin: NDArray[np.int64]
    share: Floats


@dataclass(frozen=True)
class FeatureClock:
    """Features of users and of items over the bins of a period.

    Attributes:
        user_table: [B, I], not negative: h_i in bin b.
        item_table: [B, J], not negative: l_j in bin b.
        period: Hours after which everything repeats.
        phase: Hours into the period at time 0.
    """

    user_table: Floats
    item_table: Floats
    period: float = float(HOURS_A_WEEK)
    phase: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.period) and self.period > 0):
            raise ValueError(f"a period takes some hours, not {self.period}")
        for whose in ("user", "item"):
            table = _checked(whose, getattr(self, f"{whose}_table"))
            object.__setattr__(self, f"{whose}_table", table)
        if len(self.user_table) != len(self.item_table):
            raise ValueError(
                f"features of users have {len(self.user_table)} bins and those of items {len(self.item_table)}: "
                "both describe the bins of one period"
            )

    @classmethod
    def of(
        cls, origin: Any = None, user_table: Any = None, item_table: Any = None, period: float = HOURS_A_WEEK
    ) -> FeatureClock:
        """Make a clock whose time 0 is ``origin``: see `phase_of`; tables are `weekdays_and_hours` unless given."""
        user = weekdays_and_hours() if user_table is None else user_table
        return cls(user, user if item_table is None else item_table, float(period), phase_of(origin))

    @property
    def n_bins(self) -> int:
        """B."""
        return int(self.user_table.shape[0])

    @property
    def bin_hours(self) -> float:
        """Length of a bin."""
        return self.period / self.n_bins

    def place(self, times: Any) -> Phase:
        """Return where ``times`` [n] lie."""
        since = (np.asarray(times, np.float64) + self.phase) / self.period
        periods = np.floor(since)
        within = (since - periods) * self.n_bins
        index = np.minimum(within.astype(np.int64), self.n_bins - 1)
        return Phase(periods, index, within - index)

    def bins(self, times: Any) -> NDArray[np.int64]:
        """Return the bin of each of ``times`` [n]."""
        return self.place(times).bin

    def ends_from(self, time: float) -> Iterator[tuple[int, float]]:
        """Yield the bin of ``time`` and the hour at which it ends, then those of the bins after it, without end."""
        place = self.place(np.array([time]))
        first = int(place.bin[0])
        ends = time + (1 - float(place.share[0])) * self.bin_hours
        for n in count():
            yield (first + n) % self.n_bins, ends + n * self.bin_hours

    def exposure(self, start: Any, end: float) -> Floats:
        """Return [n, B], the hours of each bin between ``start`` [n] and ``end``; for few users, and for tests."""
        past = [self._past(np.atleast_1d(np.asarray(times, np.float64))) for times in (end, start)]
        return np.asarray(past[0] - past[1])

    def _past(self, times: Floats) -> Floats:
        """Return [n, B], hours of each bin between the first period's begin and ``times``."""
        place = self.place(times)
        share = np.clip(place.bin[:, None] + place.share[:, None] - np.arange(self.n_bins), 0, 1)
        return np.asarray(self.bin_hours * (place.periods[:, None] + share))

    def accrued(self, item_totals: Array) -> Floats:
        """Return [B + 1, I, K]: what a user's factor accrues in compensator from a period's begin to each bin's.

        ``item_totals`` [J, K] are sums over items of their factors. Between bins it is linear.
        """
        per_hour = self.item_table @ item_totals
        each = self.bin_hours * self.user_table[:, :, None] * per_hour[:, None, :]
        return np.concatenate((np.zeros((1, *each.shape[1:])), np.cumsum(each, axis=0)))

    @cached_property
    def of_users(self) -> ActiveFeatures:
        """Features of users by bin."""
        return _active(self.user_table)

    @cached_property
    def of_items(self) -> ActiveFeatures:
        """Features of items by bin."""
        return _active(self.item_table)


def weekdays_and_hours() -> Floats:
    """Return [168, 31]: 7 weekdays from Monday on, then 24 hours of the day, each 1 where it holds and 0 elsewhere."""
    hour = np.arange(HOURS_A_WEEK)
    table = np.zeros((HOURS_A_WEEK, 7 + HOURS_A_DAY))
    table[hour, hour // HOURS_A_DAY] = 1
    table[hour, 7 + hour % HOURS_A_DAY] = 1
    return table


def hours_of_day() -> Floats:
    """Return [24, 24]: each hour of the day is a feature of its own, and nothing else."""
    return np.eye(HOURS_A_DAY)


class NamedFeatures(NamedTuple):
    """Features that have a name: their table [B, I] for users and items alike, and the period in hours."""

    table: Floats
    period: float


def named_features(name: str) -> NamedFeatures:
    """Return "weekdays_and_hours" of a week, or "hours" of a day."""
    if name == "hours":
        return NamedFeatures(hours_of_day(), float(HOURS_A_DAY))
    return NamedFeatures(weekdays_and_hours(), float(HOURS_A_WEEK))


def phase_of(origin: Any) -> float:
    """Return the hours from Monday 00:00 to ``origin``.

    ``origin`` is a date and time (of pandas, NumPy or the standard library, or in ISO 8601), a weekday (Monday is 0)
    and an hour, hours since Monday 00:00, or None: Monday 00:00.

    Raises:
        ValueError: anything else.
    """
    if origin is None:
        return 0.0
    if isinstance(origin, np.datetime64):
        origin = origin.astype("datetime64[us]").item()
    try:
        if isinstance(origin, str):
            origin = datetime.fromisoformat(origin)
        if isinstance(origin, datetime):
            seconds = 60 * origin.minute + origin.second + 1e-6 * origin.microsecond
            return origin.weekday() * HOURS_A_DAY + origin.hour + seconds / 3600
        weekday, hour = (0.0, origin) if isinstance(origin, int | float | np.number) else origin
        phase = HOURS_A_DAY * float(weekday) + float(hour)
    except (TypeError, ValueError):
        phase = np.nan
    if not np.isfinite(phase):
        raise ValueError(
            f"clock_origin is the date and time of hour 0, such as 2024-01-01 00:00, or its weekday and hour, "
            f"not {origin!r}"
        )
    return phase


def _checked(whose: str, given: Any) -> Floats:
    """Return what is ``given`` as float64 [bins, features]; a bin without any feature would have no rate at all."""
    table: Floats = np.ascontiguousarray(given, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"features of {whose}s are a table of bins by features, not of shape {table.shape}")
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise ValueError(f"features of {whose}s must be finite and not negative")
    if len(table) > np.iinfo(np.int16).max:
        raise ValueError(f"features of {whose}s have {len(table)} bins, more than {np.iinfo(np.int16).max}")
    empty = np.flatnonzero(table.sum(1) == 0)
    if empty.size:
        raise ValueError(f"bin {empty[0]} has no feature of {whose}s that is positive: nothing could happen in it")
    return table


def _active(table: Floats) -> ActiveFeatures:
    bins, features = np.nonzero(table)
    start = np.concatenate(([0], np.cumsum(np.bincount(bins, minlength=len(table)))))
    return ActiveFeatures(start.astype(np.int64), features.astype(np.int32), table[bins, features])
