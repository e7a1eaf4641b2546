"""Events by user in order of time, and expected counts where events of one item excite those of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs, Floats, Ids

Array = NDArray[Any]

NO_LINKS = (np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0))


class ItemCounts(NamedTuple):
    """Expected counts under the responsibilities of a pass.

    Attributes:
        log_total: Sum over events of the log of the geometric intensity: the event term of the ELBO.
        users: [U, K].
        items: [P, K]; an event that another item's factors caused counts for both.
        others: [U], events that a user's earlier ones with other items excited.
        own: [U], events that earlier ones with the same item excited.
        edges: [E], events excited over each edge.
        clusters: [C, C] (from, to), what ``others`` is by clusters; None where factors excite.
    """

    log_total: float
    users: Array
    items: Array
    others: Floats
    own: Floats
    edges: Floats
    clusters: Floats | None = None


@dataclass(frozen=True)
class ItemTriggers:
    """What passes over events by user need besides the events: built once, for kernels that do not change.

    Attributes:
        pairs: The events.
        line: They in order of time, a `Timeline` of the compiled loops.
        links: What followed users excite, their `Links`.
    """

    pairs: EventPairs
    line: Any
    links: Any

    @classmethod
    def of(
        cls,
        pairs: EventPairs,
        decay: float,
        returns: float,
        dtype: Any,
        links: tuple[Array, Array, Array] = NO_LINKS,
    ) -> ItemTriggers:
        """Put events in order of time.

        Args:
            pairs: The events.
            decay: Of what an event excites in other items, per hour.
            returns: Of what it excites in its own.
            dtype: Of excitations.
            links: For the events by pair, where their causes by followed users begin [N + 1], edges, and excitations
                without the factor ``returns``.
        """
        from sandtable_kernels.compiled.events import excitation_loops as loops

        n = pairs.n_events
        pair, place, fade = np.empty(n, np.int32), np.empty(n, np.int64), np.empty(n, dtype)
        loops.in_order(pairs.user_start, pairs.event_start, pairs.time, decay, pair, place, fade)
        own = (pairs.own_excitation(decay, np.float64)[place] / decay).astype(dtype)
        back = own
        if returns != decay:
            back = (pairs.own_excitation(returns, np.float64)[place] / returns).astype(dtype)
        line = loops.Timeline(pairs.user_start, pairs.user_events, pairs.item, pair, place, fade, own, back)
        start, edge, value = links
        return cls(pairs, line, loops.Links(start, edge, value.astype(dtype)))

    def released(self, decay: float, end: float) -> Floats:
        """Return [n_pairs], the sum of ``1 - exp(-decay (end - t))`` over the events of a pair."""
        from sandtable_kernels.compiled.events import event_loops

        out = np.empty(self.pairs.n_pairs)
        event_loops.released(self.pairs.event_start, self.pairs.time, decay, end, out)
        return out

    def _empty(self, guess: Any) -> Any:
        from sandtable_kernels.compiled.events import excitation_loops as loops

        n_users, n_components = guess.theta.shape
        return loops.Counts(
            theta=np.empty((n_users, n_components)),
            phi=np.empty(n_users),
            own=np.empty(n_users),
            edges=np.zeros(guess.edges.size),
            inverse=np.empty(self.pairs.n_events, guess.theta.dtype),
        )

    def factor_counts(self, guess: Any, n_chunks: int) -> ItemCounts:
        """Return counts where an event of q excites p by ``beta_q . beta_p``; ``guess`` is a `Guess` of the loops."""
        from sandtable_kernels.compiled.events import excitation_loops as loops

        pairs, counts, logs = self.pairs, self._empty(guess), np.empty(n_chunks)
        rows = np.empty((pairs.n_pairs, guess.theta.shape[1]), guess.theta.dtype)
        loops.factor_pass(pairs.chunks(n_chunks), self.line, self.links, guess, rows, counts, logs)
        items = np.empty(guess.beta.shape)
        loops.sum_rows(pairs.chunks(n_chunks, "items"), pairs.item_start, pairs.by_item, rows, items)
        return ItemCounts(float(logs.sum()), counts.theta, items, counts.phi, counts.own, counts.edges)

    def cluster_counts(self, guess: Any, cluster: Ids, reach: Array, n_chunks: int) -> ItemCounts:
        """Return counts where an event of an item excites others by ``reach`` [C, C] (to, from) of ``cluster`` [P]."""
        from sandtable_kernels.compiled.events import excitation_loops as loops

        pairs, counts, logs = self.pairs, self._empty(guess), np.empty(n_chunks)
        reach = np.ascontiguousarray(reach, guess.theta.dtype)
        inverses = np.empty(pairs.n_pairs, guess.theta.dtype)
        parts = np.empty((n_chunks, *reach.shape))
        bounds = pairs.chunks(n_chunks), pairs.chunks(n_chunks, "items")
        loops.cluster_pass(bounds[0], self.line, self.links, guess, cluster, reach, inverses, parts, counts, logs)
        items = np.empty(guess.beta.shape)
        loops.sum_users(bounds[1], pairs.item_start, pairs.by_item, pairs.pair_user, inverses, guess, items)
        by_cluster = (parts.sum(0) * reach).T
        return ItemCounts(float(logs.sum()), counts.theta, items, counts.phi, counts.own, counts.edges, by_cluster)

    def given_off(self, released: Floats, value: Floats) -> Floats:
        """Return [U], the sum over a user's pairs of ``released`` [n_pairs] times ``value`` [P] of their items."""
        from sandtable_kernels.compiled.events import excitation_loops as loops

        out = np.empty(self.pairs.n_users)
        loops.by_user(self.pairs.user_start, self.pairs.item, released, value, out)
        return out

    def received(self, released: Floats, value: Floats) -> Floats:
        """Return [P], the sum over an item's pairs of ``released`` [n_pairs] times ``value`` [U] of their users."""
        from sandtable_kernels.compiled.events import excitation_loops as loops

        pairs, out = self.pairs, np.empty(self.pairs.n_items)
        loops.by_item(pairs.item_start, pairs.by_item, pairs.pair_user, released, value, out)
        return out
