"""PF and hierarchical PF: the same rate for all times, what the recurrent models are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import Floats
from sandtable_kernels.poisson.event_pass import EventCounts, EventPass
from sandtable_kernels.poisson.gamma_rows import GammaRows
from sandtable_workloads.rpf.estimators.event_intensity import EventIntensity
from sandtable_workloads.rpf.estimators.fit_loop import State
from sandtable_workloads.rpf.estimators.observed_events import ObservedEvents


@dataclass(eq=False)
class HPF(EventIntensity):
    """Hierarchical Poisson factorization of events: user u meets item p at the rate ``theta_u . beta_p`` per hour.

    Gopalan, Hofman, Blei, "Scalable Recommendation with Hierarchical Poisson Factorization", UAI 2015, for events in
    continuous time: what is counted are events of a pair while its user was observed.
    """

    def _prepare(self, observed: ObservedEvents) -> None:
        self._pass = EventPass(observed.pairs, self.dtype, n_threads=self.n_threads)

    def _begin(self, observed: ObservedEvents, rng: np.random.Generator) -> State:
        pairs, k = observed.pairs, self.n_components
        # such that as many events are expected as there are, shared alike between the two
        scale = np.sqrt(pairs.n_events / (k * max(float(observed.exposure.sum()), 1e-9) * pairs.n_items))
        sizes = {"theta": (pairs.n_users, k), "beta": (pairs.n_items, k)}
        return {
            name: GammaRows.start(self.prior(name), scale * rng.uniform(0.5, 1.5, size), dtype=self.dtype)
            for name, size in sizes.items()
        }

    def _expected(self, observed: ObservedEvents, state: State) -> EventCounts:
        """Return the counts under the responsibilities that ``state`` gives."""
        return self._pass(state["theta"], state["beta"], state.get("tau"))

    def _maximise_others(self, observed: ObservedEvents, state: State, counts: EventCounts) -> None:
        """Set q of what else belongs to users than theta to its optimum."""

    def _compensator(self, observed: ObservedEvents, state: State) -> float:
        """Return the expected number of events of what else belongs to users."""
        return 0.0

    def _iterate(self, observed: ObservedEvents, state: State) -> float:
        theta, beta = state["theta"], state["beta"]
        counts = self._expected(observed, state)
        weights = beta.weighted()
        of_users = sum(rows.terms for name, rows in state.items() if name != "beta")
        of_users += counts.log_total - float(theta.weighted(observed.exposure) @ weights)
        of_users -= self._compensator(observed, state)
        theta.maximise(counts.users, observed.exposure, weights)
        exposed = theta.weighted(observed.exposure)
        self._maximise_others(observed, state, counts)
        shared = self.all_reduce({"elbo": np.array(of_users), "items": counts.items, "weights": exposed})
        elbo = float(shared["elbo"]) + beta.terms
        beta.maximise(shared["items"], np.ones(beta.mean.shape[0]), shared["weights"])
        return elbo

    def _user_sums(self, state: State) -> dict[str, NDArray[Any]]:
        """Return sums over users: what there is of each, and as ``exposed`` what they add to the rate of any item."""
        theta, exposure = state["theta"], self.observed_.exposure
        of_users = {"users": np.array(float(exposure.size)), "exposed": self._exposed(theta)}
        return of_users | {"theta": self._means(theta).sum(0, dtype=np.float64)}

    def _exposed(self, theta: GammaRows) -> Floats:
        """Return what users' exposure adds to the rate of any item."""
        return theta.weighted(self.observed_.exposure)

    def _publish(self, state: State) -> None:
        self.theta_, self.beta_ = (self._means(state[name]) for name in ("theta", "beta"))
        self._over_users = self.all_reduce(self._user_sums(state))

    def _means(self, rows: GammaRows) -> NDArray[Any]:
        """Return means of factors in the shape in which they are published."""
        return rows.mean


@dataclass(eq=False)
class PF(HPF):
    """Poisson factorization: as `HPF`, with the rates of the priors given."""

    hierarchical: bool = False
