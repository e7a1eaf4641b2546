"""What a history has left in the state at the times of events: excitation, counts and ages of pairs.

An event sees what lies strictly before it. Nothing is replayed in order: the state behind every event of a pair is
known from one pass over the pair, and a later time finds its own by bisection, so that events can be looked at in any
order and on all cores. Compiled when first called, and kept on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.compiled.events.trigger_loops import lower_bound
from sandtable_kernels.poisson.event_pairs import EventPairs

# what a pair counts for: exponential excitation, events so far, or one over the hours since the last
EXCITATION, COUNT, RECENCY = 0, 1, 2
_FORGOTTEN = 60.0  # decays after which nothing is left in float64


@nb.njit(cache=True)
def _left(kind: int, n_before: int, behind: float, age: float, decay: float) -> float:
    if kind == COUNT:
        return float(n_before)
    if kind == RECENCY:
        return 1 / (1 + age)
    return behind * np.exp(-decay * age) if decay * age < _FORGOTTEN else 0.0


@nb.njit(cache=True, parallel=True)
def add_state(
    rows: Any,
    users: Any,
    moments: Any,
    edge_start: Any,
    edge_source: Any,
    edge_weight: Any,
    user_start: Any,
    pair_item: Any,
    event_start: Any,
    time: Any,
    behind: Any,
    kind: int,
    decay: float,
) -> None:
    """Add to rows [n, P] what the pairs of the sources of edges to each of ``users`` [n] hold at ``moments`` [n].

    Edges ``edge_start`` [U + 1] to a user come from ``edge_source`` [E] with ``edge_weight`` [E]; pairs are those of
    `EventPairs`, and ``behind`` [N] is their `own_excitation` with events themselves.
    """
    for n in nb.prange(users.size):
        for edge in range(edge_start[users[n]], edge_start[users[n] + 1]):
            source = edge_source[edge]
            for pair in range(user_start[source], user_start[source + 1]):
                first = event_start[pair]
                end = lower_bound(time, first, event_start[pair + 1], moments[n])
                if end > first:
                    left = _left(kind, end - first, behind[end - 1], moments[n] - time[end - 1], decay)
                    rows[n, pair_item[pair]] += edge_weight[edge] * left


@dataclass(frozen=True, kw_only=True)
class PairStates:
    """What users' own pairs, or those of the users whom they follow, hold at any time of a history.

    Attributes:
        history: The events.
        edge_start, edge_source, edge_weight: [U + 1], [E] and [E]: from whom to each user, and by how much.
        kind: EXCITATION, COUNT or RECENCY.
        decay: Per hour, of excitation.
    """

    history: EventPairs
    edge_start: NDArray[np.int64]
    edge_source: NDArray[np.int64]
    edge_weight: NDArray[np.float64]
    kind: int = EXCITATION
    decay: float = 1.0

    @classmethod
    def own(cls, history: EventPairs, kind: int) -> PairStates:
        """Return the state of everybody's own pairs."""
        everyone = np.arange(history.n_users + 1)
        return cls(
            history=history,
            edge_start=everyone,
            edge_source=everyone[:-1],
            edge_weight=np.ones(history.n_users),
            kind=kind,
        )

    @classmethod
    def exciting(
        cls, history: EventPairs, edges: Sequence[Sequence[tuple[int, float]]], decay: float
    ) -> PairStates:
        """Return excitation, by the edges (source, weight) to each user."""
        flat = [edge for to_user in edges for edge in to_user]
        return cls(
            history=history,
            edge_start=np.concatenate(([0], np.cumsum([len(to_user) for to_user in edges]))).astype(np.int64),
            edge_source=np.array([source for source, _ in flat], np.int64),
            edge_weight=np.array([weight for _, weight in flat], np.float64),
            decay=decay,
        )

    @cached_property
    def _behind(self) -> NDArray[np.float64]:
        return self.history.own_excitation(self.decay, np.float64, itself=True)

    def add_to(self, rows: NDArray[Any], users: NDArray[np.int64], moments: NDArray[np.float64]) -> None:
        """Add to rows [n, P] what is left at ``moments`` [n] of what lies strictly before them."""
        at = self.history
        edges = self.edge_start, self.edge_source, self.edge_weight
        pairs = at.user_start, at.item, at.event_start, at.time
        add_state(rows, users, moments, *edges, *pairs, self._behind, self.kind, self.decay)

    def totals(self, users: NDArray[np.int64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return [n], the sum over all items."""
        found = np.empty(users.size)
        step = max(1, (64 << 20) // (8 * self.history.n_items))
        for first in range(0, users.size, step):
            part = slice(first, first + step)
            rows = np.zeros((users[part].size, self.history.n_items))
            self.add_to(rows, users[part], moments[part])
            found[part] = rows.sum(1)
        return found
