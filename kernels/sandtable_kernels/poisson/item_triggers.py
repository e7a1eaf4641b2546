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

    def factor_counts(self, guess: Any, n_chunks: int) -> ItemCounts:
        """Return counts where an event of q excites p by ``beta_q . beta_p``; ``guess`` is a `Guess` of the loops."""
        from sandtable_kernels.compiled.events import excitation_loops as loops

        pairs = self.pairs
        counts, logs, rows = self._factor_pass(guess, n_chunks)
        items = np.empty(guess.beta.shape)
        loops.sum_rows(pairs.chunks(n_chunks, "items"), pairs.item_start, pairs.by_item, rows, items)
        return ItemCounts(float(logs.sum()), counts.theta, items, counts.phi, counts.own, counts.edges)

    def cluster_counts(self, guess: Any, cluster: Ids, reach: Array, n_chunks: int) -> ItemCounts:
        """Return counts where an event of an item excites others by ``reach`` [C, C] (to, from) of ``cluster`` [P]."""
        from sandtable_kernels.compiled.events import excitation_loops as loops

        pairs = self.pairs
        counts, logs, inverses, parts = self._cluster_pass(guess, cluster, reach, n_chunks)
        items, bounds = np.empty(guess.beta.shape), pairs.chunks(n_chunks, "items")
        loops.sum_users(bounds, pairs.item_start, pairs.by_item, pairs.pair_user, inverses, guess, items)
        clusters = (parts.sum(0) * reach).T
        return ItemCounts(float(logs.sum()), counts.theta, items, counts.phi, counts.own, counts.edges, clusters)

    def factor_rates(self, beta: Floats, phi: Floats) -> Floats:
        """Return [N], by pair, ``phi`` [U] times what other items excite by ``beta_q . beta_p`` at each event."""
        return self._rates(self._factor_pass(_only(beta, phi), 1)[0])

    def cluster_rates(self, cluster: Ids, reach: Floats, phi: Floats) -> Floats:
        """Return [N], by pair, ``phi`` [U] times what other items excite by ``reach`` [C, C] (to, from)."""
        beta = np.zeros((cluster.size, 1))
        return self._rates(self._cluster_pass(_only(beta, phi), cluster, reach, 1)[0])

    def _rates(self, counts: Any) -> Floats:
        rates = np.empty(self.pairs.n_events)
        rates[self.line.place] = 1 / counts.inverse
        return rates

    def _factor_pass(self, guess: Any, n_chunks: int) -> tuple[Any, Floats, Array]:
        from sandtable_kernels.compiled.events import excitation_loops as loops

        counts, logs = self._empty(guess), np.empty(n_chunks)
        rows = np.empty((self.pairs.n_pairs, guess.theta.shape[1]), guess.theta.dtype)
        loops.factor_pass(self.pairs.chunks(n_chunks), self.line, self.links, guess, rows, counts, logs)
        return counts, logs, rows

    def _cluster_pass(
        self, guess: Any, cluster: Ids, reach: Array, n_chunks: int
    ) -> tuple[Any, Floats, Array, Floats]:
        from sandtable_kernels.compiled.events import excitation_loops as loops

        counts, logs, bounds = self._empty(guess), np.empty(n_chunks), self.pairs.chunks(n_chunks)
        reach = np.ascontiguousarray(reach, guess.theta.dtype)
        inverses, parts = np.empty(self.pairs.n_pairs, guess.theta.dtype), np.empty((n_chunks, *reach.shape))
        loops.cluster_pass(bounds, self.line, self.links, guess, cluster, reach, inverses, parts, counts, logs)
        return counts, logs, inverses, parts

    def _empty(self, guess: Any) -> Any:
        from sandtable_kernels.compiled.events import excitation_loops as loops

        return loops.Counts(
            theta=np.empty(guess.theta.shape),
            phi=np.empty(guess.phi.size),
            own=np.empty(guess.phi.size),
            edges=np.zeros(guess.edges.size),
            inverse=np.empty(self.pairs.n_events, guess.theta.dtype),
        )

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


def _only(beta: Floats, phi: Floats) -> Any:
    """Return a `Guess` under which all there is is what other items excite."""
    from sandtable_kernels.compiled.events import excitation_loops as loops

    return loops.Guess(np.zeros((phi.size, beta.shape[1])), beta, phi, np.zeros(phi.size), np.zeros(0))
