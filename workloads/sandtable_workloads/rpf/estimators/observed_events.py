"""What an estimator is given, as indices: events in order, who follows whom, and when each user was observed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs, Floats, Ids
from sandtable_kernels.poisson.event_triggers import OverEdges
from sandtable_workloads.rpf.events.event_table import EventTable


@dataclass(frozen=True)
class FollowedEdges:
    """E edges between users: ``destination`` follows ``source``; destinations ascending, nobody follows themselves."""

    source: Ids
    destination: Ids
    n_users: int

    @classmethod
    def of(cls, source: NDArray[Any], destination: NDArray[Any], n_users: int) -> FollowedEdges:
        """Sort edges by destination, then source; edges given twice and edges to oneself are dropped."""
        key = np.unique(np.asarray(destination, np.int64) * n_users + np.asarray(source, np.int64))
        to, from_ = key // max(n_users, 1), key % max(n_users, 1)
        other = to != from_
        return cls(from_[other].astype(np.int32), to[other].astype(np.int32), n_users)

    @cached_property
    def start(self) -> NDArray[np.int64]:
        """[U + 1], where the edges to a user begin."""
        counts = np.bincount(self.destination, minlength=self.n_users)
        return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


@dataclass(frozen=True)
class ObservedEvents:
    """Events of known users and items, in hours, and when each user was observed.

    Attributes:
        pairs: The events.
        start: [U], the hour from which a user is observed.
        end: The hour until which all are.
        edges: Who follows whom; None in models without.
        over_edges: What events excite over edges, where these are a shard's: they lead there from other shards.
    """

    pairs: EventPairs
    start: Floats
    end: float
    edges: FollowedEdges | None = None
    over_edges: OverEdges | None = None

    @cached_property
    def exposure(self) -> Floats:
        """[U], hours for which a user was observed."""
        return np.asarray(self.end - self.start)

    def fingerprint(self) -> str:
        """Return what tells these events from others: a hash of all that inference depends on."""
        import hashlib

        digest = hashlib.sha256(repr((self.end, self.pairs.n_users, self.pairs.n_items)).encode())
        for array in (self.pairs.event_start, self.pairs.item, self.pairs.user_start, self.pairs.time, self.start):
            digest.update(np.ascontiguousarray(array).data)
        if self.edges is not None:
            digest.update(self.edges.source.data)
            digest.update(self.edges.start.data)
        return digest.hexdigest()


@dataclass(frozen=True)
class IdIndex:
    """Ids of any type, and their places 0 .. n - 1."""

    ids: NDArray[Any]

    @cached_property
    def _place(self) -> dict[Any, int]:
        return {value: place for place, value in enumerate(self.ids.tolist())}

    def __len__(self) -> int:
        return self.ids.size

    def place(self, value: Any) -> int:
        """Return the place of an id, -1 where it is unknown."""
        return self._place.get(value.item() if isinstance(value, np.generic) else value, -1)

    def places(self, values: Any) -> NDArray[np.int64]:
        """Return the places of ids [n], -1 for unknown ones."""
        import pandas as pd

        # a list may mix types, of which an array would make texts
        wanted = pd.Index(values if isinstance(values, list) else np.asarray(values))
        return np.asarray(pd.Index(self.ids).get_indexer(wanted), np.int64)

    def extended(self, values: Any) -> IdIndex:
        """Return these ids and after them those of ``values`` that are new, in the order in which they occur."""
        import pandas as pd

        values = np.asarray(values)
        new = pd.unique(values[self.places(values) < 0])
        return IdIndex(np.concatenate((self.ids, np.asarray(new))) if len(self) else np.asarray(new))


def event_columns(events: Any, origin: np.datetime64 | None = None) -> tuple[NDArray[Any], NDArray[Any], Floats]:
    """Return users, items and times in hours, from ``origin`` where they are dates, of what `EventTable.of` takes.

    Raises:
        ConfigError: see there.
    """
    table = EventTable.of(events, origin=origin)
    return table.user, table.item, table.time
