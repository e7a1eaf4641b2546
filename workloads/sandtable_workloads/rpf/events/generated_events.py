"""Large event data with the shape of real ones: Zipf items, unequal users, sessions, returns, a social graph.

Not drawn from any of the models (`simulated_events` is), but fast, and with exactly the numbers of events, pairs and
edges that were asked for, so that a cost can be predicted before there is data. Blocks of users are drawn from seeds of
their own: what is written in pieces equals what is made at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events.event_table import EventTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BLOCK_EVENTS = 500_000
# draws, as multiples of what is still missing, until a row that has met almost everything takes what is most popular
_ROUNDS = 24
# what randomness is drawn for
_USERS, _ITEMS, _DEGREES, _EDGES, _BLOCKS = range(5)


@dataclass(frozen=True, kw_only=True)
class GeneratedEvents:
    """What to generate. Equal values give equal data.

    Attributes:
        n_users: U.
        n_items: P.
        n_events: N, exactly.
        n_pairs: Distinct (user, item) of the events, exactly; None: 0.4 N, as far as U P allows.
        zipf: Exponent of popularity: the item of rank r is met with a probability of about ``r ** -zipf``.
        spread: Standard deviation of the logarithm of users' activity; 0: all users have as many pairs.
        days: Length of the records.
        returns: Share of the events of a pair after its first that follow the one before within hours; the others
            lie in any session of the user.
        return_hours: Mean hours until such a return.
        per_session: Mean number of visits in a session of a user; sessions last about an hour.
        mean_degree: Mean number of users whom a user follows, exact in sum.
        seed: Of all randomness.
    """

    n_users: int
    n_items: int
    n_events: int
    n_pairs: int | None = None
    zipf: float = 1.0
    spread: float = 1.0
    days: float = 90.0
    returns: float = 0.6
    return_hours: float = 1.0
    per_session: float = 5.0
    mean_degree: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_users, self.n_items, self.n_events) < 1:
            raise ConfigError("n_users, n_items and n_events must be at least 1")
        if not 1 <= self.pairs <= min(self.n_events, self.n_users * self.n_items):
            most = f"{min(self.n_events, self.n_users * self.n_items):,}"
            raise ConfigError(f"n_pairs must be from 1 to {most}: no more than events, nor than users times items")
        if not 0 <= self.mean_degree <= self.n_users - 1:
            raise ConfigError(f"mean_degree must be from 0 to {self.n_users - 1}: nobody follows themselves")
        if not (self.zipf >= 0 and self.spread >= 0 and 0 <= self.returns <= 1):
            raise ConfigError("zipf and spread must not be negative, and returns is a share from 0 to 1")
        if not min(self.days, self.return_hours, self.per_session) > 0:
            raise ConfigError("days, return_hours and per_session must be above 0")

    @property
    def pairs(self) -> int:
        """Distinct (user, item)."""
        return self._usual_pairs if self.n_pairs is None else self.n_pairs

    @property
    def _usual_pairs(self) -> int:
        return min(max(1, round(0.4 * self.n_events)), self.n_users * self.n_items)

    @property
    def n_edges(self) -> int:
        """E."""
        return round(self.n_users * self.mean_degree)

    @property
    def hours(self) -> float:
        """Length of the records."""
        return 24 * self.days

    def _rng(self, part: int, block: int = 0) -> Generator:
        return np.random.default_rng(SeedSequence(self.seed, spawn_key=(part, block)))

    @cached_property
    def pairs_per_user(self) -> Ints:
        """[U]."""
        return _capped_shares(self._activity(_USERS), self.pairs, self.n_items)

    def _activity(self, part: int) -> Floats:
        return self._rng(part).lognormal(0.0, self.spread, self.n_users)

    @cached_property
    def events_per_user(self) -> Ints:
        """[U]; users without a pair have none."""
        extra = _shares(self.pairs_per_user.astype(np.float64), self.n_events - self.pairs)
        return self.pairs_per_user + extra

    @cached_property
    def _item_names(self) -> NDArray[np.int32]:
        """[P], the item of each rank of popularity: real ids are not sorted by it."""
        return self._rng(_ITEMS).permutation(self.n_items).astype(np.int32)

    def blocks(self) -> Ints:
        """Return boundaries of blocks of users of about half a million events each."""
        done = np.concatenate(([0], np.cumsum(self.events_per_user)))
        cuts = np.searchsorted(done, np.arange(0, self.n_events, _BLOCK_EVENTS))
        return np.unique(np.append(cuts, self.n_users)).astype(np.int64)

    def columns(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], Floats]]:
        """Yield user, item and time, block by block of users: by user, ascending in time within a user."""
        bounds = self.blocks()
        for block, (first, last) in enumerate(pairwise(bounds.tolist())):
            yield self._block(first, last, self._rng(_BLOCKS, block))

    def _block(self, first: int, last: int, rng: Generator) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
        n_pairs, n_events = self.pairs_per_user[first:last], self.events_per_user[first:last]
        pair_user, rank = distinct_columns(n_pairs, self.n_items, self.zipf, rng)
        count = _visits(n_pairs, n_events, rng)
        pair = np.repeat(np.arange(pair_user.size), count)
        time = self._times(pair_user[pair], count, n_events, rng)
        order = np.lexsort((time, pair_user[pair]))
        user = (first + pair_user[pair[order]]).astype(np.int32)
        return user, self._item_names[rank[pair[order]]], time[order]

    def _times(self, user: Ints, count: Ints, n_events: Ints, rng: Generator) -> Floats:
        """Return hours of events [n] that are sorted by pair: visits in sessions, and returns after a visit."""
        n = user.size
        fresh = rng.random(n) >= self.returns
        fresh[np.concatenate(([0], np.cumsum(count)[:-1]))] = True
        n_sessions = np.maximum(1, np.ceil(n_events / self.per_session)).astype(np.int64)
        begin = np.concatenate(([0], np.cumsum(n_sessions)))
        sessions = rng.random(begin[-1]) * self.hours
        visit = sessions[begin[user] + (rng.random(n) * n_sessions[user]).astype(np.int64)] + rng.random(n)
        gaps = np.cumsum(np.where(fresh, 0.0, rng.exponential(self.return_hours, n)))
        since = np.maximum.accumulate(np.where(fresh, np.arange(n), 0))
        return _folded(visit[since] + gaps - gaps[since], self.hours)

    def table(self) -> EventTable:
        """Return all events in memory, ascending in time; ids are 0 .. U - 1 and 0 .. P - 1."""
        blocks = list(self.columns())
        user, item, time = (np.concatenate(part) for part in zip(*blocks, strict=True))
        del blocks
        order = np.argsort(time)
        return EventTable(
            user[order],
            item[order],
            time[order],
            np.arange(self.n_users),
            np.arange(self.n_items),
            start=0.0,
            end=self.hours,
        )

    def edges(self) -> NDArray[np.int64]:
        """Return [E, 2], distinct: a user, and whom it follows. Few are followed by many."""
        if self.n_edges == 0:
            return np.empty((0, 2), np.int64)
        degree = _capped_shares(self._activity(_DEGREES), self.n_edges, self.n_users - 1)
        rng = self._rng(_EDGES)
        user, rank = distinct_columns(degree, self.n_users - 1, self.zipf, rng)
        names = rng.permutation(self.n_users)
        # a user has no rank of its own: those behind it move up by one
        own = np.argsort(names)[user]
        return np.stack([user, names[rank + (rank >= own)]], axis=1)


def _shares(weights: Floats, total: int) -> Ints:
    """Divide ``total`` by weights [n] into whole numbers that add up to it, each less than 1 from its exact share."""
    sums = np.cumsum(weights)
    bounds = np.floor(sums * (total / sums[-1]) + 0.5).astype(np.int64)
    bounds[-1] = total
    shares: Ints = np.diff(np.minimum(bounds, total), prepend=0)
    return shares


def _capped_shares(weights: Floats, total: int, most: int) -> Ints:
    """Divide like `_shares`, everyone at least 1 where there is enough, nobody more than ``most``."""
    least = 1 if total >= weights.size else 0
    found = np.full(weights.size, least, np.int64)
    while (left := total - int(found.sum())) > 0:
        room = most - found
        open_ = np.flatnonzero(room > 0)
        found[open_] += np.minimum(_shares(weights[open_], left), room[open_])
    return found


def _visits(n_pairs: Ints, n_events: Ints, rng: Generator) -> Ints:
    """Return the number of events of each pair, at least 1, in sum exactly those of the user; few pairs have many."""
    weight = rng.pareto(1.5, int(n_pairs.sum())) + 0.1
    user = np.repeat(np.arange(n_pairs.size), n_pairs)
    extra = (n_events - n_pairs)[user]
    sums = np.cumsum(weight)
    ends = np.cumsum(n_pairs)
    before = np.concatenate(([0.0], sums))[ends - n_pairs]
    total = np.concatenate(([0.0], sums))[ends] - before
    share = np.rint((sums - before[user]) / np.where(total[user] > 0, total[user], 1.0) * extra).astype(np.int64)
    last = ends[n_pairs > 0] - 1
    share[last] = extra[last]
    first = (ends - n_pairs)[n_pairs > 0]
    found: Ints = np.diff(share, prepend=0) + 1
    found[first] = share[first] + 1
    return found


def _folded(time: Floats, end: float) -> Floats:
    """Reflect times beyond the end back into the records."""
    back = np.mod(time, 2 * end)
    return np.asarray(np.where(back > end, 2 * end - back, back))


def popularity(n: int, zipf: float, uniform: Floats) -> Ints:
    """Return ranks 0 .. n - 1 of uniform numbers: rank r with the share of ``x ** -zipf`` between r + 1 and r + 2."""
    if zipf == 1:
        value = np.exp(uniform * np.log(n + 1.0))
    else:
        value = ((np.power(n + 1.0, 1 - zipf) - 1) * uniform + 1) ** (1 / (1 - zipf))
    return np.asarray(np.clip(value.astype(np.int64) - 1, 0, n - 1))


def distinct_columns(counts: Ints, n_columns: int, zipf: float, rng: Generator) -> tuple[Ints, Ints]:
    """Draw ``counts`` [R] distinct columns for each row, popular ones first to be met; return rows and columns, sorted.

    Rows that have met so much of what is popular that further draws bring little take the most popular that is left.
    """
    found, missing = np.empty(0, np.int64), counts
    full: list[Ints] = []
    for _ in range(_ROUNDS):
        short = np.flatnonzero(missing)
        row = np.repeat(short, missing[short])
        drawn = row * n_columns + popularity(n_columns, zipf, rng.random(row.size))
        found = np.unique(np.concatenate((found, drawn)))
        missing = np.where(missing > 0, counts - np.bincount(found // n_columns, minlength=counts.size), 0)
        # rows that have enough are not sorted again
        enough = missing[found // n_columns] == 0
        full.append(found[enough])
        found = found[~enough]
        if found.size == 0:
            break
    for at in np.flatnonzero(missing).tolist():
        wanted = at * n_columns + np.arange(n_columns)
        full.append(np.setdiff1d(wanted, found, assume_unique=True)[: missing[at]])
    cells = np.sort(np.concatenate((*full, found)))
    return cells // n_columns, cells % n_columns
