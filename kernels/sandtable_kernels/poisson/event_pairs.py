"""Events grouped by pairs of a user and an item, in the two orders in which factorization passes over them.

Times are in hours. All orders are stable: events of a pair are ascending in time, equal times as they were given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# parts of users, and of items, that are worked on at a time: the same whatever the threads
N_CHUNKS = 64

Ints = NDArray[np.int64]
Ids = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EventPairs:
    """N events of U users and P items as pairs, users ascending and items ascending within a user.

    Attributes:
        user_start: [U + 1], where the pairs of a user begin.
        item: [n_pairs], the item of a pair.
        pair_user: [n_pairs], its user.
        event_start: [n_pairs + 1], where the events of a pair begin.
        time: [N], hours, ascending within a pair.
        order: [N], the place of each event in the caller's arrays.
        item_start: [P + 1], where the pairs of an item begin in `by_item`.
        by_item: [n_pairs], pairs by item, users ascending within an item.
    """

    user_start: Ints
    item: Ids
    pair_user: Ids
    event_start: Ints
    time: Floats
    order: Ints
    item_start: Ints
    by_item: Ints

    @classmethod
    def of(
        cls, users: NDArray[Any], items: NDArray[Any], times: NDArray[Any], n_users: int, n_items: int
    ) -> EventPairs:
        """Group events [N], given by indices of users and items and times in hours, in time linear in N.

        Raises:
            ValueError: arrays of different lengths, or an index outside its range.
        """
        from sandtable_kernels.compiled.events import event_loops

        user, item = _indices("users", users, n_users), _indices("items", items, n_items)
        time = np.ascontiguousarray(times, np.float64)
        if not user.shape == item.shape == time.shape:
            raise ValueError(f"users {user.shape}, items {item.shape} and times {time.shape} must be as many")
        order = np.arange(time.size) if np.all(time[1:] >= time[:-1]) else np.argsort(time, kind="stable")
        order = event_loops.stable_order(item, n_items, order)
        order = event_loops.stable_order(user, n_users, order)
        event_start = event_loops.pair_bounds(user, item, order)
        first = order[event_start[:-1]]
        pair_user, pair_item = user[first], item[first]
        by_item = event_loops.stable_order(pair_item, n_items, np.arange(first.size))
        return cls(
            user_start=_starts(pair_user, n_users),
            item=pair_item,
            pair_user=pair_user,
            event_start=event_start,
            time=time[order],
            order=order,
            item_start=_starts(pair_item, n_items),
            by_item=by_item,
        )

    @property
    def n_users(self) -> int:
        """U."""
        return self.user_start.size - 1

    @property
    def n_items(self) -> int:
        """P."""
        return self.item_start.size - 1

    @property
    def n_events(self) -> int:
        """N."""
        return self.time.size

    @property
    def n_pairs(self) -> int:
        """Pairs with at least one event."""
        return self.item.size

    @property
    def user_events(self) -> Ints:
        """[U + 1], where the events of a user begin."""
        return self.event_start[self.user_start]

    @property
    def event_pair(self) -> Ints:
        """[N], the pair of each event."""
        return np.repeat(np.arange(self.n_pairs), np.diff(self.event_start))

    @cached_property
    def item_user(self) -> Ids:
        """[n_pairs], the user of each pair of `by_item`."""
        return self.pair_user[self.by_item]

    @cached_property
    def user_chunks(self) -> Ints:
        """Boundaries of users that passes take at a time."""
        return self.chunks(N_CHUNKS)

    @cached_property
    def item_chunks(self) -> Ints:
        """Boundaries of items that passes take at a time."""
        return self.chunks(N_CHUNKS, "items")

    @property
    def event_user(self) -> Ids:
        """[N], the user of each event."""
        return np.repeat(self.pair_user, np.diff(self.event_start))

    @property
    def event_item(self) -> Ids:
        """[N], the item of each event."""
        return np.repeat(self.item, np.diff(self.event_start))

    def chunks(self, n: int, of: Literal["users", "items"] = "users") -> Ints:
        """Return [n + 1] boundaries of users, or items, that hold about equally many pairs and events."""
        if of == "users":
            work = self.user_start + self.user_events + np.arange(self.n_users + 1)
        else:
            work = self.item_start + np.arange(self.n_items + 1)
        bounds = np.searchsorted(work, np.arange(n + 1) * (work[-1] / n))
        bounds[0], bounds[-1] = 0, work.size - 1
        return np.asarray(bounds, np.int64)

    def own_excitation(self, decay: float, dtype: Any = np.float32, *, itself: bool = False) -> NDArray[Any]:
        """Return [N], the sum of ``decay exp(-decay (t - s))`` over strictly earlier events s of the same pair.

        With ``itself`` it is over all events of the pair up to each: what a later one finds.
        """
        from sandtable_kernels.compiled.events import event_loops

        out = np.empty(self.n_events, dtype)
        event_loops.own_excitation(self.event_start, self.time, decay, itself, out)
        return out

    def released(self, decay: float, end: float) -> Floats:
        """Return [U], the sum of ``1 - exp(-decay (end - t))`` over a user's events before ``end``."""
        from sandtable_kernels.compiled.events import event_loops

        out = np.empty(self.n_users)
        event_loops.released(self.user_events, self.time, decay, end, out)
        return out

    def first_seen(self, start: float, end: float) -> Floats:
        """Return `first_seen` of all users [U]."""
        from sandtable_kernels.compiled.events import event_loops

        return first_seen(event_loops.first_two(self.event_user, self.time, self.n_users), start, end)


def first_seen(first_two: Floats, start: float, end: float) -> Floats:
    """Return [U], the hour from which a user counts as observed, of the first two times of each [U, 2].

    That is the first event less the gap to the second; `start` for users with fewer than two events. Nobody is observed
    before `start`, or for less than a thousandth of the time until `end`: of two events within a moment of the end no
    rate can be known.
    """
    first, second = first_two.T
    with np.errstate(invalid="ignore"):
        since = np.where(np.isfinite(second), 2 * first - second, start)
    return np.clip(since, start, end - (end - start) / 1000)


def _indices(name: str, values: NDArray[Any], n: int) -> Ids:
    index = np.ascontiguousarray(values, np.int32)
    if index.size and not (index.min() >= 0 and index.max() < n):
        raise ValueError(f"{name} must be indices from 0 to {n - 1}")
    return index


def _starts(keys: Ids, n: int) -> Ints:
    return np.concatenate(([0], np.cumsum(np.bincount(keys, minlength=n)))).astype(np.int64)
