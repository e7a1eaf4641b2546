"""Events as columns: who met which item when, checked, with ids of any type and times in hours.

Hour 0 is whatever the caller counts from; for dates it is a Monday, 00:00 UTC, so that ``hour % 24`` is the hour of the
day and ``hour // 24 % 7`` the day of the week.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_workloads.rpf.events.event_checks import TimeUnit, Where, coded, columns_of, hours, many

Codes = NDArray[np.int32]
Hours = NDArray[np.float64]
Duplicates = Literal["keep", "drop"]


@dataclass(frozen=True, eq=False)
class EventTable:
    """N events of U users and P items, ascending in time; equal times stay in the order in which they were given.

    Attributes:
        user_code: [N], places in `user_ids`.
        item_code: [N], places in `item_ids`.
        time: [N], hours.
        user_ids: [U], distinct; some may have no event.
        item_ids: [P], likewise.
        start: The hour from which events were recorded.
        end: The hour until which they were.
        origin: The UTC date of hour 0; None where times were given in hours.
        timed: Whether the times were given, rather than made up for counts without any.
        notes: What was changed or found odd, a sentence each.
    """

    user_code: Codes
    item_code: Codes
    time: Hours
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]
    start: float
    end: float
    origin: np.datetime64 | None = None
    timed: bool = True
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        events: Any,
        *,
        time_unit: TimeUnit | None = None,
        duplicates: Duplicates = "keep",
        start: float | None = None,
        until: float | None = None,
        origin: np.datetime64 | None = None,
        where: Where | None = None,
    ) -> Self:
        """Check events and put them in order.

        Args:
            events: A pandas frame or mapping with columns ``user``, ``item`` and ``time``, three arrays in this order,
                or an `EventTable`, of which only the origin is changed, where another one is given.
            time_unit: Of times that are numbers: ``h``, ``s`` or ``ms``, the last two since 1970. None: hours, unless
                they are so large that they can only be seconds or milliseconds since 1970. Dates say it themselves.
            duplicates: ``drop`` leaves one of several events of the same user, item and time.
            start: The hour from which events were recorded; None: the first event.
            until: The hour until which they were; None: the last event. A later event is refused.
            origin: The date that counts as hour 0; None: the Monday before the first event. Only for dates.
            where: Where the rows stand, for messages.

        Raises:
            ConfigError: no events; a missing column; an id or time that is missing; a time that is negative, not
                finite, before ``start`` or after ``until`` (of dates: or after today).
        """
        if isinstance(events, cls):
            return events._counted_from(origin)
        where = where or Where()
        user, item, time = columns_of(events)
        if len(user) == 0:
            raise where.error("no events: at least one row with user, item and time is needed")
        read = hours(time, time_unit, origin, where)
        _within(read.hours, start, until, where)
        user_code, user_ids = coded(user, "user", where)
        item_code, item_ids = coded(item, "item", where)
        table = cls(
            user_code,
            item_code,
            read.hours,
            user_ids,
            item_ids,
            start=float(read.hours.min()) if start is None else start,
            end=float(read.hours.max()) if until is None else until,
            origin=read.origin,
            notes=read.notes,
        )
        return table._in_order()._once(duplicates)

    def _counted_from(self, origin: np.datetime64 | None) -> Self:
        """Count hours from another date.

        Raises:
            ConfigError: the table's hours are of no known date, or of one before ``origin``.
        """
        if origin is None or origin == self.origin:
            return self
        if self.origin is None:
            return replace(self, origin=origin)
        by = float((self.origin - origin) / np.timedelta64(1, "s")) / 3600
        if self.start + by < 0:
            raise ConfigError(f"events from {self.origin} on lie before {origin}, which counts as hour 0")
        return replace(self, time=self.time + by, start=self.start + by, end=self.end + by, origin=origin)

    def _in_order(self) -> Self:
        """Sort by time. Codes are then renumbered by first appearance, so that the order of rows changes nothing."""
        if np.all(self.time[1:] >= self.time[:-1]):
            return self
        order = np.argsort(self.time, kind="stable")
        user, user_ids = _by_appearance(self.user_code[order], self.user_ids)
        item, item_ids = _by_appearance(self.item_code[order], self.item_ids)
        said = (*self.notes, "events were not in order of time and have been sorted")
        return replace(
            self,
            user_code=user,
            item_code=item,
            time=self.time[order],
            user_ids=user_ids,
            item_ids=item_ids,
            notes=said,
        )

    def _once(self, duplicates: Duplicates) -> Self:
        again = self._repeats()
        n = np.count_nonzero(again)
        if n == 0:
            return self
        events = "1 event is a copy" if n == 1 else f"{n} events are copies"
        done = "dropped" if duplicates == "drop" else "kept (duplicates='drop' leaves one of each)"
        noted = replace(self, notes=(*self.notes, f"{events} of another with the same user, item and time: {done}"))
        return noted.taken(~again) if duplicates == "drop" else noted

    def _repeats(self) -> NDArray[np.bool_]:
        """Return [N], whether an earlier row has the same user, item and time; only equal times are looked at."""
        import pandas as pd

        equal = self.time[1:] == self.time[:-1]
        near = np.flatnonzero(np.concatenate((equal, [False])) | np.concatenate(([False], equal)))
        rows = pd.DataFrame({name: getattr(self, name)[near] for name in ("time", "user_code", "item_code")})
        again = np.zeros(len(self), np.bool_)
        again[near] = rows.duplicated().to_numpy()
        return again

    def __len__(self) -> int:
        return self.time.size

    @property
    def n_users(self) -> int:
        """U, with users that have no event."""
        return self.user_ids.size

    @property
    def n_items(self) -> int:
        """P, with items that have no event."""
        return self.item_ids.size

    @property
    def user(self) -> NDArray[Any]:
        """[N], ids of users."""
        return self.user_ids[self.user_code]

    @property
    def item(self) -> NDArray[Any]:
        """[N], ids of items."""
        return self.item_ids[self.item_code]

    @cached_property
    def first_times(self) -> Hours:
        """[U], the hour of each user's first event; NaN without any."""
        first = np.full(self.n_users, np.nan)
        first[self.user_code[::-1]] = self.time[::-1]  # the last write wins
        return first

    @cached_property
    def last_times(self) -> Hours:
        """[U], the hour of each user's last event; NaN without any."""
        last = np.full(self.n_users, np.nan)
        last[self.user_code] = self.time
        return last

    @cached_property
    def events_per_user(self) -> NDArray[np.int64]:
        """[U]."""
        return np.bincount(self.user_code, minlength=self.n_users)

    def pairs(self) -> EventPairs:
        """Return the events grouped by user and item, U and P as in this table."""
        return EventPairs.of(self.user_code, self.item_code, self.time, self.n_users, self.n_items)

    def taken(self, rows: Any, *, start: float | None = None, end: float | None = None) -> Self:
        """Return some of the rows, by a mask, a slice or ascending places; ids and their codes stay."""
        return replace(
            self,
            user_code=self.user_code[rows],
            item_code=self.item_code[rows],
            time=self.time[rows],
            start=self.start if start is None else start,
            end=self.end if end is None else end,
        )

    def compacted(self) -> Self:
        """Return the same events without the ids that have none."""
        user, user_ids = _by_appearance(self.user_code, self.user_ids)
        item, item_ids = _by_appearance(self.item_code, self.item_ids)
        return replace(self, user_code=user, item_code=item, user_ids=user_ids, item_ids=item_ids)

    def frame(self) -> Any:
        """Return a pandas frame with columns ``user``, ``item`` and ``time`` in hours."""
        import pandas as pd

        return pd.DataFrame({"user": self.user, "item": self.item, "time": self.time})

    def summary(self) -> str:
        """Say in one line how large this is."""
        days = (self.end - self.start) / 24
        counts = f"{many(len(self), 'event')} of {many(self.n_users, 'user')} and {many(self.n_items, 'item')}"
        return f"{counts} over {days:,.1f} days" if self.timed else f"{counts}, without times"


def _within(time: Hours, start: float | None, until: float | None, where: Where) -> None:
    if until is not None and (late := time > until).any():
        row = int(np.argmax(late))
        raise where.error(f"time {time[row]:g} h lies after the end of the records, {until:g} h", row)
    if start is not None and (early := time < start).any():
        row = int(np.argmax(early))
        raise where.error(f"time {time[row]:g} h lies before the start of the records, {start:g} h", row)


def _by_appearance(codes: Codes, ids: NDArray[Any]) -> tuple[Codes, NDArray[Any]]:
    """Renumber codes in the order in which they first occur, and drop ids that do not."""
    import pandas as pd

    renumbered, first = pd.factorize(codes)
    return renumbered.astype(np.int32), ids[first]
