"""HRPF and SRPF: events excite later ones of the same user, or of followers, with the same item.

Hosseini, Alizadeh, Khodadadi, Arabzadeh, Farajtabar, Zha, Rabiee, "Recurrent Poisson Factorization for Temporal
Recommendation", KDD 2017; updates after its public implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.event_pairs import Floats
from sandtable_kernels.poisson.event_pass import EventCounts, EventPass
from sandtable_kernels.poisson.event_triggers import OverEdges
from sandtable_kernels.poisson.gamma_rows import GammaRows
from sandtable_workloads.rpf.estimators.event_intensity import LaterEvents
from sandtable_workloads.rpf.estimators.fit_loop import State
from sandtable_workloads.rpf.estimators.observed_events import FollowedEdges, ObservedEvents
from sandtable_workloads.rpf.estimators.static_factorization import HPF


@dataclass(eq=False)
class HRPF(HPF):
    """Hierarchical recurrent Poisson factorization: rate ``theta_u . beta_p + tau_u sum g(t - s)``.

    The sum is over the user's own earlier events s with the same item, ``g(x) = w exp(-w x)``: tau_u is the number of
    events that one event excites.
    """

    def _prepare(self, observed: ObservedEvents) -> None:
        own = observed.pairs.own_excitation(self.decay, self.dtype)
        self._pass = EventPass(observed.pairs, self.dtype, own, n_threads=self.n_threads)
        self._released = observed.pairs.released(self.decay, observed.end)

    def _begin(self, observed: ObservedEvents, rng: np.random.Generator) -> State:
        state = super()._begin(observed, rng)
        tau = rng.uniform(0.1, 0.5, (observed.pairs.n_users, 1))
        return state | {"tau": GammaRows.start(self.prior("tau"), tau, dtype=self.dtype)}

    def _compensator(self, observed: ObservedEvents, state: State) -> float:
        # not by BLAS, whose threads wait for one another
        return float(np.sum(self._released * state["tau"].mean[:, 0]))

    def _maximise_others(self, observed: ObservedEvents, state: State, counts: EventCounts) -> None:
        assert counts.own is not None
        excited = counts.own if counts.edges is None else np.concatenate((counts.own, counts.edges))
        state["tau"].maximise(excited[:, None], self._released, np.ones(1))

    def _user_sums(self, state: State) -> dict[str, NDArray[Any]]:
        own = state["tau"].mean[: self.observed_.pairs.n_users, 0]
        return super()._user_sums(state) | {"tau": own.sum(dtype=np.float64)}

    def _publish(self, state: State) -> None:
        super()._publish(state)
        self.tau_ = state["tau"].mean[: self.theta_.shape[0], 0]


@dataclass(eq=False)
class SRPF(HRPF):
    """Social recurrent Poisson factorization: as `HRPF`, and events of followed users excite as a user's own do.

    ``fit`` takes edges: who follows whom. ``tau_`` is of users themselves, ``edge_tau_`` [E] of the edges ``edges_``,
    which are sorted by follower and then by whom they follow. Rates of priors are learned for each source: a user's mu
    is shared by all that its events excite.
    """

    social: ClassVar[bool] = True
    needs_edges: ClassVar[bool] = True

    def _prepare(self, observed: ObservedEvents) -> None:
        pairs, over = observed.pairs, observed.over_edges
        if over is None:
            edges = self._followed(observed)
            between = observed.start, observed.end, self.dtype
            over = OverEdges.of(pairs, edges.start, edges.source, self.decay, *between)
        own = pairs.own_excitation(self.decay, self.dtype)
        self._pass = EventPass(pairs, self.dtype, own, over.triggers, self.n_threads)
        self._released = np.concatenate((pairs.released(self.decay, observed.end), over.released))

    def _followed(self, observed: ObservedEvents) -> FollowedEdges:
        if observed.edges is None:
            raise ConfigError(f"{type(self).__name__} needs edges between users: fit(events, edges)")
        return observed.edges

    def _begin(self, observed: ObservedEvents, rng: np.random.Generator) -> State:
        state, edges, n_users = super()._begin(observed, rng), self._followed(observed), observed.pairs.n_users
        tau = np.concatenate((state["tau"].mean, rng.uniform(0.01, 0.1, (edges.source.size, 1))))
        group = np.concatenate((np.arange(n_users), edges.source)).astype(np.int64)
        rows = GammaRows.start(self.prior("tau"), tau, group=group, n_groups=n_users, dtype=self.dtype)
        return state | {"tau": rows}

    def _rows_before(self, name: str, n: int, old: ObservedEvents) -> tuple[NDArray[Any], NDArray[Any]]:
        if name != "tau":
            return super()._rows_before(name, n, old)
        before, now = self._followed(old), self._followed(self.observed_)
        keys = [edges.destination.astype(np.int64) * now.n_users + edges.source for edges in (before, now)]
        _, was, is_ = np.intersect1d(keys[0], keys[1], return_indices=True)
        users = np.arange(old.pairs.n_users)
        return np.append(users, old.pairs.n_users + was), np.append(users, now.n_users + is_)

    def _publish(self, state: State) -> None:
        super()._publish(state)
        self.edge_tau_ = state["tau"].mean[self.theta_.shape[0] :, 0]
        if self.observed_.over_edges is None:  # those of a shard lead to it from others
            self.edges_ = self._followed(self.observed_)

    # --- rates ---

    def _sources(self, user: int) -> list[tuple[int, float]]:
        if user < 0:
            return []
        edges = self.edges_
        mine = slice(*edges.start[[user, user + 1]])
        over = zip(edges.source[mine].tolist(), self.edge_tau_[mine].tolist(), strict=True)
        return [*super()._sources(user), *over]

    def _inflow(self, user: int) -> float:
        """As if followed users went on as in the period: whatever they do next excites as well."""
        if user < 0:
            return 0.0
        observed, edges = self.observed_, self.edges_
        mine = slice(*edges.start[[user, user + 1]])
        n_events = np.diff(observed.pairs.user_events)[edges.source[mine]]
        return float(self.edge_tau_[mine] @ n_events) / (observed.end - self.period_[0])

    def _later(self, events: Any) -> LaterEvents:
        later, edges = super()._later(events), self.observed_.edges
        if edges is None:
            return later
        start = np.append(edges.start, np.full(later.everyone.size - edges.n_users, edges.start[-1]))
        since = np.full(later.everyone.size, later.start)
        over = OverEdges.of(later.pairs, start, edges.source, self.decay, since, later.end, np.float64)
        return later._replace(over_edges=over)

    def _excited(self, later: LaterEvents) -> Callable[[], tuple[Floats | float, float]]:
        by_own, over = super()._excited(later), later.over_edges
        if over is None:
            return by_own
        event = np.repeat(np.arange(later.pairs.n_events), np.diff(over.triggers.start))
        edge = over.triggers.edge - later.pairs.n_users

        def beyond() -> tuple[Floats, float]:
            own, expected = by_own()
            rate = np.bincount(event, self.edge_tau_[edge] * over.triggers.value, later.pairs.n_events)
            return np.asarray(own + rate[later.new], np.float64), expected + float(self.edge_tau_ @ over.released)

        return beyond
