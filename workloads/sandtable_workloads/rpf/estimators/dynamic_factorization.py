"""DRPF and DSRPF: preferences follow the clock, beside excitation of events by a user's own or by followed users'.

``theta_u(t) = sum_i h_i(t) theta_ui`` and ``beta_p(t) = sum_j l_j(t) beta_pj``; features h and l are those of the
weekday and the hour unless others are given. Hosseini et al., KDD 2017, and the public implementation; there a user's
exposure is a table of all pairs of features for each user, here it comes from one table for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.dynamic_pass import DynamicPass, sum_of_items
from sandtable_kernels.poisson.event_pairs import Floats
from sandtable_kernels.poisson.event_pass import EventCounts
from sandtable_kernels.poisson.feature_clock import ActiveFeatures, FeatureClock
from sandtable_kernels.poisson.gamma_rows import GammaRows
from sandtable_workloads.rpf.estimators.fit_loop import State
from sandtable_workloads.rpf.estimators.observed_events import ObservedEvents
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF

Array = NDArray[Any]

# events whose factors are mixed at once
_AT_ONCE = 1 << 16


@dataclass(eq=False)
class DRPF(HRPF):
    """Dynamic recurrent Poisson factorization: as `HRPF`, with factors of users and items that follow the clock.

    ``theta_`` is [U, I, K] and ``beta_`` [P, J, K]; with the default features I = J = 31: weekdays from Monday on, then
    hours of the day. Those that users never meet are at the prior, as far as exposure leaves it.

    Args:
        clock_origin: Local date and time of hour 0 (of pandas, NumPy or the standard library, or in ISO 8601), or its
            weekday (Monday is 0) and hour. None: the date that events are given by, or Monday 00:00 if these are hours.
        user_features: [B, I], not negative: features h in each of B bins of equal length of a period.
        item_features: [B, J], the same of l; those of users where only these are given.
        feature_period: Hours after which features repeat.
    """

    clock_origin: Any = None
    user_features: Any = None
    item_features: Any = None
    feature_period: float = 168.0

    def check_params(self) -> None:
        super().check_params()
        self._clock(None)

    def _clock(self, first: np.datetime64 | None) -> FeatureClock:
        origin = first if self.clock_origin is None else self.clock_origin
        try:
            return FeatureClock.of(origin, self.user_features, self.item_features, self.feature_period)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from None

    # --- inference -------------------------------------------------------------------------------------------------

    def _prepare(self, observed: ObservedEvents) -> None:
        super()._prepare(observed)
        self.clock_ = self._clock(self.origin_)
        without = self._pass
        self._by_clock = DynamicPass(
            observed.pairs,
            self.dtype,
            self.clock_,
            observed.start,
            observed.end,
            without.own,
            without.triggers,
            self.n_threads,
        )

    def _begin(self, observed: ObservedEvents, rng: np.random.Generator) -> State:
        state, clock = super()._begin(observed, rng), self.clock_
        # a base rate has as many terms as pairs of features hold at once: as many events are expected as before
        terms = float(np.mean(clock.user_table.sum(1) * clock.item_table.sum(1)))
        for name, table in (("theta", clock.user_table), ("beta", clock.item_table)):
            constant = state[name].mean
            n, n_features = constant.shape[0], table.shape[1]
            means = np.repeat(constant, n_features, axis=0) / np.sqrt(terms)
            means *= rng.uniform(0.5, 1.5, means.shape)
            group = np.repeat(np.arange(n), n_features)
            state[name] = GammaRows.start(state[name].prior, means, group=group, n_groups=n, dtype=self.dtype)
        return state

    def _expected(self, observed: ObservedEvents, state: State) -> EventCounts:
        return self._by_clock(state["theta"], state["beta"], state.get("tau"))

    def _iterate(self, observed: ObservedEvents, state: State) -> float:
        theta, beta = state["theta"], state["beta"]
        counts = self._expected(observed, state)
        rates, expected = self._by_clock.rates_of_users(sum_of_items(beta.mean, beta.group_rate.size), theta.mean)
        of_users = sum(rows.terms for name, rows in state.items() if name != "beta")
        of_users += counts.log_total - expected - self._compensator(observed, state)
        theta.maximise_rates(counts.users, rates)
        exposed = self._by_clock.rates_of_items(theta.mean)
        self._maximise_others(observed, state, counts)
        shared = self.all_reduce({"elbo": np.array(of_users), "items": counts.items, "weights": exposed})
        elbo = float(shared["elbo"]) + beta.terms
        beta.maximise_rates(shared["items"], shared["weights"])
        return elbo

    def _means(self, rows: GammaRows) -> Array:
        """Return means [n, features, K]."""
        return rows.mean.reshape(rows.group_rate.size, -1, rows.n_components)

    def _exposed(self, theta: GammaRows) -> Floats:
        return self._by_clock.rates_of_items(theta.mean)

    # --- rates -----------------------------------------------------------------------------------------------------

    def _theta_of(self, user: Any) -> Array:
        """Return features of users [..., I, K]."""
        unseen = np.less(user, 0)[..., None, None]
        return np.asarray(np.where(unseen, self._mean_user("theta"), self.theta_[user]))

    def _beta_of(self, item: Array) -> Array:
        """Return features of items [..., J, K]."""
        return np.asarray(np.where(np.less(item, 0)[..., None, None], self._unseen_item(), self.beta_[item]))

    def _base_items(self, user: int, t: float) -> Floats:
        index = int(self.clock_.bins([t])[0])
        mine = self.clock_.user_table[index] @ self._theta_of(user)
        held = np.flatnonzero(self.clock_.item_table[index])
        per_feature = np.einsum("pjk,k->pj", self.beta_[:, held], mine)
        return np.asarray(per_feature @ self.clock_.item_table[index, held], np.float64)

    def _base_at(self, user: Array, item: Array, time: Array) -> Floats:
        bins = self.clock_.bins(time)
        theta = np.concatenate((self.theta_, self._mean_user("theta")[None]))  # whoever is -1 comes last
        beta = np.concatenate((self.beta_, self._unseen_item()[None]), dtype=self.beta_.dtype)
        rate = np.empty(bins.size)
        for part in _parts(bins.size):
            mine = _mixed(theta, user[part], self.clock_.of_users, bins[part])
            theirs = _mixed(beta, item[part], self.clock_.of_items, bins[part])
            rate[part] = np.einsum("nk,nk->n", mine, theirs)
        return rate

    def _base_between(self, user: Array, start: float, end: float) -> Floats:
        exposure = self.clock_.exposure(start, end)[0]
        per_hour = self.clock_.item_table @ sum_of_items(self.state_["beta"].mean, self.beta_.shape[0])
        weights = (self.clock_.user_table * exposure[:, None]).T @ per_hour
        of_user = np.append(
            np.einsum("uik,ik->u", self.theta_, weights), np.vdot(self._mean_user("theta"), weights)
        )
        return np.asarray(of_user[user], np.float64)

    def _waits(self, user: int, t: float, n: int, rng: np.random.Generator) -> Floats:
        """Return [n] samples: bin after bin of the clock, the base rate is constant until the next event."""
        excited = self._excitation_items(user, t).sum() / self.decay  # events expected of it
        due = rng.exponential(1.0, n)
        share = rng.exponential(1.0, n) / max(excited, 1e-300)
        sooner = np.where(share < 1, -np.log1p(-np.minimum(share, 1 - 1e-16)) / self.decay, np.inf)
        totals = sum_of_items(self.state_["beta"].mean, self.beta_.shape[0])
        per_bin = np.einsum(
            "bi,ik,bk->b", self.clock_.user_table, self._theta_of(user), self.clock_.item_table @ totals
        )
        return np.minimum(self._until(due, per_bin, t), sooner)

    def _until(self, due: Floats, per_bin: Floats, t: float) -> Floats:
        """Return hours from ``t`` on until the base rates ``per_bin`` [B] have summed up to each of ``due`` [n]."""
        whole = float(per_bin.sum()) * self.clock_.bin_hours
        periods = np.floor(due / whole)
        rest = due - periods * whole
        ends, sums = _ends_and_sums(self.clock_, per_bin, t)
        return np.asarray(periods * self.clock_.period + np.interp(rest, sums, ends) - t)


@dataclass(eq=False)
class DSRPF(DRPF, SRPF):
    """Dynamic social recurrent Poisson factorization: as `DRPF`, with the edges of `SRPF`."""


def _parts(n: int) -> Iterator[slice]:
    return (slice(low, low + _AT_ONCE) for low in range(0, n, _AT_ONCE))


def _mixed(factors: Array, places: Array, active: ActiveFeatures, bins: Array) -> Floats:
    """Return [n, K], factors [.., features, K] at ``places`` [n], summed over the features of ``bins`` [n]."""
    start, n_active = active.start[bins], np.diff(active.start)[bins]
    mixed = np.zeros((bins.size, factors.shape[2]))
    for nth in range(int(n_active.max(initial=0))):
        has = np.flatnonzero(n_active > nth)
        at = start[has] + nth
        mixed[has] += active.value[at, None] * factors[places[has], active.feature[at]]
    return mixed


def _ends_and_sums(clock: FeatureClock, per_bin: Floats, t: float) -> tuple[Floats, Floats]:
    """Return ``t`` and the ends of the bins of the period after it, and what rates have summed up to until each.

    That is a bin more than a period has: the one that ``t`` lies in comes twice, its end first and its begin last.
    """
    bins, ends = zip(*islice(clock.ends_from(t), clock.n_bins + 1), strict=True)
    hours = np.array([t, *ends])
    hours[-1] = t + clock.period
    sums = np.concatenate(([0.0], np.cumsum(np.diff(hours) * per_bin[list(bins)])))
    return hours, sums
