"""Events that a model learned from, later ones that it did not, and both together as indices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_workloads.rpf.events.event_split import EventSplit, chronological_split
from sandtable_workloads.rpf.events.event_table import EventTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Columns(NamedTuple):
    """Places of users [n] and items [n], and times [n] in hours, ascending."""

    user: Ints
    item: Ints
    time: Floats

    @classmethod
    def of(cls, table: EventTable) -> Columns:
        """Return a table's events by the codes that both parts of a split share."""
        return cls(table.user_code.astype(np.int64), table.item_code.astype(np.int64), table.time)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """N events of U users and P items, split in time; users and items of either part have a place.

    Attributes:
        split: Training, and what is held out.
        edges: Ids of followers [E] and of the users whom they follow [E]; None without a graph.
    """

    split: EventSplit
    edges: tuple[NDArray[Any], NDArray[Any]] | None = None

    @classmethod
    def of(cls, events: Any, edges: tuple[NDArray[Any], NDArray[Any]] | None = None, share: float = 0.8) -> HeldOut:
        """Split events behind a share of them.

        Raises:
            ConfigError: of `chronological_split`.
        """
        return cls(chronological_split(events, share), edges)

    @property
    def n_users(self) -> int:
        """U."""
        return self.split.test.n_users

    @property
    def n_items(self) -> int:
        """P."""
        return self.split.test.n_items

    @cached_property
    def train(self) -> Columns:
        """The events to learn from."""
        return Columns.of(self.split.earlier)

    @cached_property
    def test(self) -> Columns:
        """The events that are held out."""
        return Columns.of(self.split.test)

    @property
    def train_hours(self) -> float:
        """Length of training."""
        return self.split.train.end - self.split.train.start

    @property
    def test_hours(self) -> float:
        """From the split to the last held-out event."""
        return float(self.test.time[-1]) - self.split.time

    @cached_property
    def all_events(self) -> Columns:
        """Both parts."""
        first, then = self.train, self.test
        return Columns(
            np.concatenate((first.user, then.user)),
            np.concatenate((first.item, then.item)),
            np.concatenate((first.time, then.time)),
        )

    @cached_property
    def pairs(self) -> EventPairs:
        """All events by pairs: a state at any time follows from those before it."""
        return EventPairs.of(*self.all_events, self.n_users, self.n_items)

    @cached_property
    def counts(self) -> tuple[Ints, Ints, Ints]:
        """Users, items and counts of the pairs of training: the matrix that factorizations without time are given."""
        pair, count = np.unique(self.train.user * self.n_items + self.train.item, return_counts=True)
        return pair // self.n_items, pair % self.n_items, count

    def known_edges(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return the edges whose users both have an event of training: a model knows no others."""
        if self.edges is None:
            return None
        seen = self.split.train.user_ids
        known = np.isin(self.edges[0], seen) & np.isin(self.edges[1], seen)
        return self.edges[0][known], self.edges[1][known]
