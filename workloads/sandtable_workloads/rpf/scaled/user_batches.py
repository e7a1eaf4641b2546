"""Events as batches of users: of a store on disk, or of a table in memory; and what one pass over them tells."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs, Floats, first_seen
from sandtable_workloads.rpf.estimators.fit_checkpoint import digest
from sandtable_workloads.rpf.estimators.observed_events import ObservedEvents
from sandtable_workloads.rpf.events.event_store import EventStore, UserBatch
from sandtable_workloads.rpf.events.event_table import EventTable

# after so many time constants an excitation is below the rounding of float64: exp(-40) = 4e-18
_FORGOTTEN = 40.0


class TableBatches:
    """A table of events, by batches of users of about ``batch_events`` events, as `EventStore` gives them."""

    def __init__(self, table: EventTable, batch_events: int) -> None:
        self.table = table
        self.user_ids, self.item_ids = table.user_ids, table.item_ids
        self.start, self.end, self.origin = table.start, table.end, table.origin
        self.n_users, self.n_items, self.n_events = table.n_users, table.n_items, len(table)
        self._order = np.argsort(table.user_code, kind="stable")
        self._row = np.concatenate(([0], np.cumsum(table.events_per_user)))
        n = max(1, min(self.n_users, round(self.n_events / batch_events)))
        bounds = np.searchsorted(self._row, np.arange(n) * (self.n_events / n))
        self._bounds = np.unique(np.append(bounds, self.n_users))

    @property
    def n_batches(self) -> int:
        """Batches."""
        return self._bounds.size - 1

    def bounds(self) -> NDArray[np.int64]:
        """Return [n_batches + 1], the users at which batches begin."""
        return self._bounds.copy()

    def batch(self, index: int) -> UserBatch:
        """Return one batch."""
        first, last = self._bounds[index : index + 2].tolist()
        rows = self._order[self._row[first] : self._row[last]]
        table = self.table
        return UserBatch(first, last, table.user_code[rows], table.item_code[rows], table.time[rows], self.n_items)

    def batches(self, order: Iterable[int] | None = None) -> Iterable[UserBatch]:
        """Yield batches, all of them or those of ``order``."""
        return (self.batch(int(index)) for index in (range(self.n_batches) if order is None else order))


Batches = EventStore | TableBatches


def batches_of(events: Any, batch_events: int) -> Batches:
    """Return batches of a store, the path of one, or events as `fit` takes them.

    Raises:
        ConfigError: events that cannot be used.
    """
    if isinstance(events, EventStore | TableBatches):
        return events
    if isinstance(events, str | os.PathLike):
        return EventStore(events)
    return TableBatches(EventTable.of(events), batch_events)


@dataclass(frozen=True)
class Scan:
    """What a pass over all batches tells.

    Attributes:
        start: [U], the hour from which each user is observed.
        recent: The events that still excite at the end, with all users and items; the only ones kept in memory.
        kept_from: The hour from which those are.
        fingerprint: `digest` of all events.
    """

    start: Floats
    recent: ObservedEvents
    kept_from: float
    fingerprint: str

    @property
    def exposure(self) -> Floats:
        """[U], hours for which each user was observed."""
        return self.recent.exposure


def scan(batches: Batches, decay: float, observed: str) -> Scan:
    """Read all batches once; ``observed`` as in `PoissonEstimator`."""
    from sandtable_kernels.compiled.events import event_loops

    kept_from = max(batches.start, batches.end - _FORGOTTEN / decay)
    start, kept, digests = np.full(batches.n_users, batches.start), [], []
    for batch in batches.batches():
        users = slice(batch.first_user, batch.last_user)
        if observed == "user":
            first = event_loops.first_two(batch.user - batch.first_user, batch.time, batch.n_users)
            start[users] = first_seen(first, batches.start, batches.end)
        recent = batch.time >= kept_from
        kept.append((batch.user[recent], batch.item[recent], batch.time[recent]))
        digests.append(digest(batch.user, batch.item, batch.time))
    user, item, time = (np.concatenate(column) for column in zip(*kept, strict=True))
    pairs = EventPairs.of(user, item, time, batches.n_users, batches.n_items)
    sizes = np.array([batches.n_users, batches.n_items, batches.start, batches.end])
    fingerprint = digest(sizes, np.frombuffer("".join(digests).encode(), np.uint8))
    return Scan(start, ObservedEvents(pairs, start, batches.end), kept_from, fingerprint)
