"""One pass over events: what each component and each trigger is responsible for, summed by user, item and edge."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs, Floats
from sandtable_kernels.poisson.event_triggers import EventTriggers, no_triggers
from sandtable_kernels.poisson.gamma_rows import GammaRows

Array = NDArray[Any]


class EventCounts(NamedTuple):
    """Expected counts under the responsibilities of a pass; those of users and items may be followed by zeros.

    Attributes:
        log_total: Sum over events of the log of the geometric intensity: the event term of the ELBO.
        users: [U, K].
        items: [P, K].
        own: [U], events that a user's own earlier ones excited; None without excitation.
        edges: [E], events excited over each edge; None without edges.
    """

    log_total: float
    users: Array
    items: Array
    own: Floats | None = None
    edges: Floats | None = None


class EventPass:
    """Passes over the same events, again and again.

    Args:
        pairs: The events.
        dtype: Of factors, float32 or float64.
        own: [N], excitation of each event by earlier ones of its pair; None in models without excitation.
        triggers: Events of other users that excite these; None in models without edges.
        n_threads: None: all. Counts do not depend on it.
    """

    def __init__(
        self,
        pairs: EventPairs,
        dtype: Any,
        own: Array | None = None,
        triggers: EventTriggers | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.pairs, self.own, self.triggers, self.n_threads = pairs, own, triggers, n_threads
        self._per_pair = np.empty(pairs.n_pairs, dtype)

    def __call__(self, theta: GammaRows, beta: GammaRows, tau: GammaRows | None = None) -> EventCounts:
        """Return the counts that users' and items' factors give, and ``tau`` [U + E, 1]: users' own, then edges'.

        Counts of users and items are written to `GammaRows.counts`: the next pass writes over them.
        """
        logs, excited = self.over_users(theta, beta, tau)
        self.over_items(theta, beta)
        return EventCounts(logs, theta.counts, beta.counts, *by_source(excited, self.pairs.n_users))

    def over_users(self, theta: GammaRows, beta: GammaRows, tau: GammaRows | None = None) -> tuple[float, Floats]:
        """Write the counts of users; return the sum of log intensities and the events excited [U + E], if any."""
        from sandtable_kernels.compiled import poisson_loops
        from sandtable_kernels.compiled.memory_loops import use_threads

        use_threads(self.n_threads)
        pairs, dtype = self.pairs, theta.padded.dtype
        own = own_excitation(self.own, tau, dtype)
        rows = no_triggers(dtype) if self.triggers is None else self.triggers.rows
        by_user = pairs.user_start, pairs.item, pairs.event_start
        sums = theta.counts, self._per_pair
        logs = poisson_loops.user_pass(pairs.user_chunks, by_user, theta.padded, beta.padded, sums, own, rows)
        return float(logs), own[2]

    def over_items(self, theta: GammaRows, beta: GammaRows) -> None:
        """Write the counts of items, after those of users."""
        from sandtable_kernels.compiled import poisson_loops
        from sandtable_kernels.compiled.memory_loops import use_threads

        use_threads(self.n_threads)
        pairs = self.pairs
        by_item = pairs.item_start, pairs.by_item, pairs.item_user
        poisson_loops.item_pass(pairs.item_chunks, by_item, theta.padded, beta.padded, self._per_pair, beta.counts)


def own_excitation(values: Array | None, tau: GammaRows | None, dtype: Any) -> tuple[Array, Array, Floats]:
    """Return what `events_alike` takes as ``own``: three arrays of length 0 where nothing is excited."""
    if values is None or tau is None:
        return np.zeros(0, dtype), np.zeros(0, dtype), np.zeros(0)
    return values, np.ascontiguousarray(tau.geometric[:, 0]), np.zeros(tau.shape.shape[0])


def by_source(excited: Floats, n_users: int) -> tuple[Floats | None, Floats | None]:
    """Return events excited [U + E] as those by users' own [U] and those over edges [E]; None without excitation."""
    return (excited[:n_users], excited[n_users:]) if excited.size else (None, None)
