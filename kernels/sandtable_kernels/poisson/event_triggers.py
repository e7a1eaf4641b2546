"""What events of followed users excite, for social models: found once, as the kernel's decay does not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs, Floats, Ids, Ints

# of the kernel's height: what earlier events leave below it is dropped
LEAST_SHARE = 1e-12

# ``start``, ``edge`` and ``value`` of `EventTriggers`
TriggerRows = tuple[Ints, Ids, NDArray[Any]]


@dataclass(frozen=True)
class EventTriggers:
    """M triggers of N events: an edge to the event's user and what its source's earlier events leave for the same item.

    Events at the very same time do not excite one another. Sums below `LEAST_SHARE` of the kernel's height are dropped.

    Attributes:
        start: [N + 1], where the triggers of an event begin; events are in the order of `EventPairs`.
        edge: [M], U plus the number of the edge: where tau of edges follows that of users themselves.
        value: [M], the sum of ``decay exp(-decay (t - s))`` over earlier events s.
    """

    start: Ints
    edge: Ids
    value: NDArray[Any]

    @classmethod
    def of(
        cls, pairs: EventPairs, edge_start: Ints, edge_source: Ids, decay: float, dtype: Any = np.float32
    ) -> EventTriggers:
        """Find the triggers over edges that are sorted by destination: those to user u are edge_start[u] and on.

        Each edge costs the shorter of its two users' lists of items, up to a logarithm, and the events of what is in
        both; there is nothing of users times users.
        """
        from sandtable_kernels.compiled.events import trigger_loops

        start = np.zeros(pairs.n_events + 1, np.int64)
        rest = (
            pairs.user_chunks,
            (pairs.user_start, pairs.item, pairs.event_start),
            pairs.time,
            edge_start,
            edge_source,
            (float(decay), LEAST_SHARE * decay),
        )
        trigger_loops.triggers(*rest, (start[1:], *no_triggers(dtype)[1:]))
        np.cumsum(start, out=start)
        found = np.empty(start[-1], np.int32), np.empty(start[-1], dtype)
        if start[-1]:
            trigger_loops.triggers(*rest, (start[:-1].copy(), *found))
        return cls(start, found[0] + np.int32(pairs.n_users), found[1])

    @property
    def rows(self) -> TriggerRows:
        """What compiled loops take."""
        return self.start, self.edge, self.value


def no_triggers(dtype: Any) -> TriggerRows:
    """Return the rows of a model in which no other user excites: a start alone."""
    return np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, dtype)


@dataclass(frozen=True)
class OverEdges:
    """What events of followed users excite.

    Attributes:
        triggers: Of all events.
        released: [E], the events that are expected over each edge for tau 1: see `released_over_edges`.
    """

    triggers: EventTriggers
    released: Floats

    @classmethod
    def of(
        cls,
        pairs: EventPairs,
        edge_start: Ints,
        edge_source: Ids,
        decay: float,
        start: Floats,
        end: float,
        dtype: Any,
    ) -> OverEdges:
        """Find it; events are excited from ``start`` [U] of their users to ``end``."""
        triggers = EventTriggers.of(pairs, edge_start, edge_source, decay, dtype)
        return cls(triggers, released_over_edges(pairs, edge_start, edge_source, decay, start, end))

    def between(self, events: slice, edges: slice, moved: int) -> OverEdges:
        """Return it for some of the events and edges; places of edges in tau are ``moved`` less there."""
        start = self.triggers.start[events.start : events.stop + 1]
        found = slice(start[0], start[-1])
        edge = (self.triggers.edge[found] - moved).astype(np.int32)
        return OverEdges(EventTriggers(start - start[0], edge, self.triggers.value[found]), self.released[edges])


def released_over_edges(
    pairs: EventPairs, edge_start: Ints, edge_source: Ids, decay: float, start: Floats, end: float
) -> Floats:
    """Return [E], the events that a source's events excite over an edge for tau 1 while its destination is observed.

    With ``G(x) = 1 - exp(-decay x)`` it is the sum over events at t of ``G(end - t)``, less ``G(start - t)`` where t
    is before the start [U] of the destination's observation.
    """
    from sandtable_kernels.compiled.events import trigger_loops

    out = np.empty(edge_source.size)
    events = pairs.user_events
    trigger_loops.carried(
        pairs.user_chunks, events, pairs.time, (edge_start, edge_source), (float(decay), start), out
    )
    beyond = np.diff(events) - pairs.released(decay, end)
    return np.asarray(out - beyond[edge_source])
