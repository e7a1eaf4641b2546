"""HRPF and SRPF: events excite later ones of the same user, or of followers, with the same item.

Hosseini, Alizadeh, Khodadadi, Arabzadeh, Farajtabar, Zha, Rabiee, "Recurrent Poisson Factorization for Temporal
Recommendation", KDD 2017; updates after its public implementation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sandtable_kernels.poisson.event_pass import EventCounts, event_pass
from sandtable_kernels.poisson.gamma_rows import GammaRows
from sandtable_workloads.rpf.estimators.fit_loop import State
from sandtable_workloads.rpf.estimators.observed_events import ObservedEvents
from sandtable_workloads.rpf.estimators.static_factorization import HPF


@dataclass(eq=False)
class HRPF(HPF):
    """Hierarchical recurrent Poisson factorization: rate ``theta_u . beta_p + tau_u sum g(t - s)``.

    The sum is over the user's own earlier events s with the same item, ``g(x) = w exp(-w x)``.
    """

    def _begin(self, observed: ObservedEvents, rng: np.random.Generator) -> State:
        state = super()._begin(observed, rng)
        tau = rng.uniform(0.1, 0.5, (observed.pairs.n_users, 1))
        return state | {"tau": GammaRows.start(self.prior("tau"), tau, dtype=self.dtype)}

    def _prepare(self, observed: ObservedEvents) -> None:
        self._own = observed.pairs.own_excitation(self.decay, self.dtype)
        self._released = observed.pairs.released(self.decay, observed.end)

    def _expected(self, observed: ObservedEvents, state: State) -> EventCounts:
        theta, beta, tau = (state[name].geometric for name in ("theta", "beta", "tau"))
        return event_pass(observed.pairs, theta, beta, self._own, tau[:, 0])

    def _compensator(self, observed: ObservedEvents, state: State) -> float:
        return float(self._released @ state["tau"].mean[:, 0])

    def _maximise_others(self, observed: ObservedEvents, state: State, counts: EventCounts) -> None:
        assert counts.own is not None
        state["tau"].maximise(counts.own[:, None], self._released, np.ones(1))

    def _publish(self, state: State) -> None:
        super()._publish(state)
        self.tau_ = state["tau"].mean[:, 0]
