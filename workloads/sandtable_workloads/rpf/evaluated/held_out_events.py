"""Events in the order of time, the first of which a model learned from and the others are held out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.event_pairs import EventPairs

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SHARE = 0.8


class Columns(NamedTuple):
    """Users [n], items [n] and times [n] in hours: what estimators are fitted to."""

    user: Ints
    item: Ints
    time: Floats


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """N events of U users and P items, given by their indices, and where training ends.

    Attributes:
        users, items: [N], int64.
        times: [N], hours, ascending.
        n_train: How many of the first events are training.
        n_users, n_items: U and P: everybody of the events, whether or not they occur in training.
        edges: Followers [E] and the users whom they follow [E]; None without a graph.
    """

    users: Ints
    items: Ints
    times: Floats
    n_train: int
    n_users: int
    n_items: int
    edges: tuple[Ints, Ints] | None = None

    @classmethod
    def of(
        cls,
        users: NDArray[Any],
        items: NDArray[Any],
        times: NDArray[Any],
        *,
        n_users: int,
        n_items: int,
        split_at: float | None = None,
        edges: tuple[NDArray[Any], NDArray[Any]] | None = None,
    ) -> HeldOut:
        """Sort events by time and split them at an hour, or behind the first four fifths of them.

        Events of the same time stay on one side.

        Raises:
            ConfigError: no event is left to train on, or to test.
        """
        order = np.argsort(times, kind="stable")
        ordered = np.asarray(times, np.float64)[order]
        if split_at is None:
            split_at = float(ordered[int(SHARE * ordered.size)]) if ordered.size else 0.0
        n_train = int(np.searchsorted(ordered, split_at, side="left"))
        if not 0 < n_train < ordered.size:
            side = "train on" if n_train == 0 else "test"
            raise ConfigError(f"no event is left to {side}: {ordered.size} events, split at hour {split_at}")
        return cls(
            users=np.asarray(users, np.int64)[order],
            items=np.asarray(items, np.int64)[order],
            times=ordered,
            n_train=n_train,
            n_users=n_users,
            n_items=n_items,
            edges=None if edges is None else (np.asarray(edges[0], np.int64), np.asarray(edges[1], np.int64)),
        )

    @property
    def n_test(self) -> int:
        """Events that are held out."""
        return self.times.size - self.n_train

    @property
    def train(self) -> Columns:
        """The events to learn from."""
        return self._columns(slice(None, self.n_train))

    @property
    def test(self) -> Columns:
        """The events that are held out."""
        return self._columns(slice(self.n_train, None))

    def _columns(self, which: slice) -> Columns:
        return Columns(self.users[which], self.items[which], self.times[which])

    @cached_property
    def pairs(self) -> EventPairs:
        """All events by pairs: a state at any time follows from those before it."""
        return EventPairs.of(self.users, self.items, self.times, self.n_users, self.n_items)

    @cached_property
    def counts(self) -> tuple[Ints, Ints, Ints]:
        """Users, items and counts of the pairs of training: the matrix that factorizations without time are given."""
        key = self.train.user * self.n_items + self.train.item
        pair, count = np.unique(key, return_counts=True)
        return pair // self.n_items, pair % self.n_items, count
