"""Passes over events where those of one item excite those of others: what each cause is responsible for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs, Floats, Ids
from sandtable_kernels.poisson.event_pass import EventCounts
from sandtable_kernels.poisson.event_triggers import EventTriggers, no_triggers
from sandtable_kernels.poisson.gamma_rows import GammaRows

Array = NDArray[Any]


class ItemCounts(NamedTuple):
    """Expected counts under the responsibilities of a pass.

    Attributes:
        counts: As without other items; where their factors excite, an event that they caused counts for both items.
        others: [U], events that a user's earlier ones with other items excited.
        clusters: [C, C] (from, to), what ``others`` is by clusters; None where factors excite.
    """

    counts: EventCounts
    others: Floats
    clusters: Floats | None = None


class Rows(NamedTuple):
    """Factors of users and items, phi [U, 1], and tau [U + E, 1] of users themselves and then of edges."""

    theta: GammaRows
    beta: GammaRows
    phi: GammaRows
    tau: GammaRows


class ItemPass:
    """Passes over the same events by user in order of time, again and again.

    Args:
        pairs: The events.
        decay: Of what an event excites in other items, per hour.
        dtype: Of factors, float32 or float64.
        own: [N], excitation of each event by earlier ones of its pair; None: there is none.
        triggers: Events of other users that excite these; None: there are none.
        n_threads: None: all. Counts do not depend on it.
    """

    def __init__(
        self,
        pairs: EventPairs,
        decay: float,
        dtype: Any,
        own: Array | None = None,
        triggers: EventTriggers | None = None,
        n_threads: int | None = None,
    ) -> None:
        from sandtable_kernels.compiled.events import excitation_loops as loops

        self.pairs, self.decay, self.dtype, self.n_threads = pairs, decay, np.dtype(dtype), n_threads
        n = pairs.n_events
        pair, place, fade = np.empty(n, np.int32), np.empty(n, np.int64), np.empty(n, dtype)
        loops.in_order(pairs.user_start, pairs.event_start, pairs.time, decay, pair, place, fade)
        same = (pairs.own_excitation(decay, np.float64)[place] / decay).astype(dtype)
        returns = np.zeros(n, dtype) if own is None else own[place].astype(dtype)
        self._line = loops.Timeline(
            pairs.user_start, pairs.user_events, pairs.item, pair, place, fade, same, returns
        )
        self._links = no_triggers(dtype) if triggers is None else triggers.rows
        self._inverse = np.empty(n, dtype)
        self._rows: Array | None = None

    # --- counts ----------------------------------------------------------------------------------------------------

    def factors(self, rows: Rows) -> ItemCounts:
        """Return counts where an event of q excites p by ``beta_q . beta_p``.

        Those of users and items are written to `GammaRows.counts`: the next pass writes over them.
        """
        from sandtable_kernels.compiled.events import excitation_loops as loops

        pairs, beta, counts = self.pairs, rows.beta, self._counts(rows.theta.counts, rows.tau)
        by_pair = self._by_pair(beta.padded.shape[1])
        logs = self._factor_pass(self._guess(rows), by_pair, counts)
        loops.sum_rows(pairs.item_chunks, pairs.item_start, pairs.by_item, by_pair, beta.padded, beta.counts)
        return self._counted(rows, logs, counts)

    def clusters(self, rows: Rows, cluster: Ids, reach: Array) -> ItemCounts:
        """Return counts where an event of an item excites others by ``reach`` [C, C] (from, to) of ``cluster`` [P]."""
        from sandtable_kernels.compiled import poisson_loops

        pairs, theta, beta, counts = self.pairs, rows.theta, rows.beta, self._counts(rows.theta.counts, rows.tau)
        logs, inverses, from_to = self._cluster_pass(self._guess(rows), cluster, reach, counts)
        by_item = pairs.item_start, pairs.by_item, pairs.item_user
        poisson_loops.item_pass(pairs.item_chunks, by_item, theta.padded, beta.padded, inverses, beta.counts)
        return self._counted(rows, logs, counts, from_to * reach)

    def _counted(self, rows: Rows, logs: float, counts: Any, clusters: Floats | None = None) -> ItemCounts:
        n_users = self.pairs.n_users
        own, edges = counts.tau[:n_users], counts.tau[n_users:]
        events = EventCounts(float(logs), rows.theta.counts, rows.beta.counts, own, edges)
        return ItemCounts(events, counts.phi, clusters)

    # --- rates -----------------------------------------------------------------------------------------------------

    def factor_rates(self, beta: Array, phi: Floats) -> Floats:
        """Return [N], by pair, ``phi`` [U] times what other items excite by beta [P, K] at each event."""
        guess = self._only(beta, phi)
        counts = self._counts(np.empty_like(guess.theta))
        self._factor_pass(guess, self._by_pair(guess.beta.shape[1]), counts)
        return self._rates()

    def cluster_rates(self, cluster: Ids, reach: Floats, phi: Floats) -> Floats:
        """Return [N], by pair, ``phi`` [U] times what other items excite by ``reach`` [C, C] (from, to) at each."""
        guess = self._only(np.zeros((cluster.size, 1)), phi)
        self._cluster_pass(guess, cluster, reach, self._counts(np.empty_like(guess.theta)))
        return self._rates()

    def _only(self, beta: Array, phi: Floats) -> Any:
        """Return a `Guess` under which all there is is what other items excite."""
        from sandtable_kernels.compiled.events import excitation_loops as loops

        beta = _padded(beta, self.dtype)
        n_users = self.pairs.n_users
        theta, tau = np.zeros((n_users, beta.shape[1]), self.dtype), np.zeros(n_users, self.dtype)
        return loops.Guess(theta, beta, (phi * self.decay).astype(self.dtype), tau, _squares(beta))

    def _rates(self) -> Floats:
        rates = np.empty(self.pairs.n_events)
        rates[self._line.place] = 1 / self._inverse
        return rates

    # --- passes ----------------------------------------------------------------------------------------------------

    def _guess(self, rows: Rows) -> Any:
        from sandtable_kernels.compiled.events import excitation_loops as loops

        theta, beta, phi, tau = (each.padded for each in rows)
        phi = phi[:, 0] * self.dtype.type(self.decay)
        return loops.Guess(theta, beta, phi, np.ascontiguousarray(tau[:, 0]), _squares(beta))

    def _counts(self, theta: Array, tau: GammaRows | None = None) -> Any:
        from sandtable_kernels.compiled.events import excitation_loops as loops

        n_users = self.pairs.n_users
        n_tau = n_users if tau is None else tau.mean.shape[0]
        return loops.Counts(theta, np.empty(n_users), np.zeros(n_tau), self._inverse)

    def _by_pair(self, width: int) -> Array:
        if self._rows is None or self._rows.shape[1] != width:
            self._rows = np.empty((self.pairs.n_pairs, width), self.dtype)
        return self._rows

    def _factor_pass(self, guess: Any, rows: Array, counts: Any) -> float:
        from sandtable_kernels.compiled.events import excitation_loops as loops
        from sandtable_kernels.compiled.memory_loops import use_threads

        use_threads(self.n_threads)
        return float(loops.factor_pass(self.pairs.user_chunks, self._line, self._links, guess, rows, counts))

    def _cluster_pass(self, guess: Any, cluster: Ids, reach: Array, counts: Any) -> tuple[float, Array, Floats]:
        from sandtable_kernels.compiled.events import excitation_loops as loops
        from sandtable_kernels.compiled.memory_loops import use_threads

        use_threads(self.n_threads)
        clusters = loops.Clusters(cluster, _padded(reach.T, self.dtype))
        chunks, n = self.pairs.user_chunks, reach.shape[0]
        inverses, from_to = np.empty(self.pairs.n_pairs, self.dtype), np.empty((chunks.size - 1, n, n))
        logs = loops.cluster_pass(chunks, self._line, self._links, guess, clusters, inverses, from_to, counts)
        return float(logs), inverses, from_to.sum(0).T

    # --- what pairs give off ---------------------------------------------------------------------------------------

    def released(self, end: float) -> Floats:
        """Return [n_pairs], the sum of ``1 - exp(-decay (end - t))`` over the events of a pair."""
        from sandtable_kernels.compiled.events import event_loops

        out = np.empty(self.pairs.n_pairs)
        event_loops.released(self.pairs.event_start, self.pairs.time, self.decay, end, out)
        return out

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
        loops.by_item(pairs.item_start, pairs.by_item, pairs.item_user, released, value, out)
        return out


def with_others(beta: Floats) -> Floats:
    """Return [P], the sum of beta_p . beta_q over all q but p."""
    return np.asarray((beta * (beta.sum(0) - beta)).sum(1))


def _squares(beta: Array) -> Array:
    return np.asarray(np.einsum("pk,pk->p", beta, beta))


def _padded(values: Array, dtype: Any) -> Array:
    from sandtable_kernels.compiled.events.row_vectors import padded_zeros

    rows: Array = padded_zeros(values.shape[0], values.shape[1], dtype)
    rows[:, : values.shape[1]] = values
    return rows
