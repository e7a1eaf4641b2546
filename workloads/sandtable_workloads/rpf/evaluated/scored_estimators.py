"""Estimators of the family in the harness: intensities of all items at held-out events, many events at once.

What an estimator adds to its base rates and to excitation along edges is asked of itself, event by event.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_kernels.poisson.feature_clock import FeatureClock
from sandtable_workloads.rpf.estimators.event_intensity import EventIntensity
from sandtable_workloads.rpf.evaluated.contenders import Contender, Rows
from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
from sandtable_workloads.rpf.evaluated.replayed_state import PairStates
from sandtable_workloads.rpf.evaluated.returning_times import Floats, Returns, median_wait

Ints = NDArray[np.int64]


def of_estimator(make: Callable[[], EventIntensity], name: str | None = None) -> Contender:
    """Return what fits a new estimator to training, with the graph where it is a social one."""

    def train(held: HeldOut) -> ScoredEstimator:
        estimator = make()
        edges = held.known_edges() if estimator.social else None
        # users and items who only come later are unseen, not idle
        return ScoredEstimator(held, estimator.fit(held.split.train.compacted(), edges))

    return Contender(name or type(make()).__name__, train)


@dataclass(frozen=True)
class ScoredEstimator:
    """A fitted estimator, asked at held-out events with all that came before each of them."""

    held: HeldOut
    estimator: EventIntensity

    # --- scores ----------------------------------------------------------------------------------------------------

    def scores(self, part: slice) -> Rows:
        """Return intensities [n, P], events per hour."""
        users, moments = self.held.test.user[part], self.held.test.time[part]
        rows = self._base(users, moments)
        if self._along_edges:
            self._states.add_to(rows, users, moments)
        else:
            for row, user, moment in zip(rows, self._user_place[users], moments, strict=True):
                if user >= 0:
                    excited = self._informed._excitation_items(int(user), float(moment))
                    row[self._known] += excited[self._item_place[self._known]]
        return rows

    def _base(self, users: Ints, moments: Floats) -> Rows:
        theta = self.estimator._theta_of(self._user_place[users])
        if self._clock is None:
            return np.asarray(theta @ self._beta.T, np.float64)
        rows = np.empty((users.size, self.held.n_items))
        bins = self._clock.bins(moments)
        for index in np.unique(bins):
            user, item = self._clock.user_table[index], self._clock.item_table[index]
            now = bins == index
            rows[now] = np.einsum("i,nik->nk", user, theta[now]) @ np.einsum("j,pjk->kp", item, self._beta)
        return rows

    def waits(self, returns: Returns) -> Floats | None:
        """Return medians [n]: when an event is as likely as not, the user having done nothing since."""
        base, (rate, decay), more = (
            self._base_expected(returns),
            self._decaying(returns),
            self._inflow[returns.users],
        )
        w = self.estimator.decay

        def expected(hours: Floats) -> Floats:
            left = (rate / decay * np.expm1(-decay * hours[:, None])).sum(1)
            return np.asarray(base(hours) - left + more * (hours + np.expm1(-w * hours) / w))

        return median_wait(expected, returns.users.size)

    @cached_property
    def _inflow(self) -> Floats:
        """[U], events per hour that later ones of others will bring about in the long run."""
        return np.array([self.estimator._inflow(int(place)) for place in self._user_place])

    def _base_expected(self, returns: Returns) -> Callable[[Floats], Floats]:
        """Return what gives the events of the base [n] that are expected within hours [n]."""
        model, clock, places = self.estimator, self._clock, self._user_place[returns.users]
        if clock is None:
            per_hour = model._base_between(places, 0.0, 1.0)
            return lambda hours: per_hour * hours
        begins = clock.bin_hours * np.arange(clock.n_bins) - clock.phase
        in_bin = np.array([model._base_between(places, begin, begin + clock.bin_hours) for begin in begins])
        before = np.concatenate((np.zeros((1, places.size)), np.cumsum(in_bin, axis=0)))
        each = np.arange(places.size)

        def until(times: Floats) -> Floats:
            at = clock.place(times)
            return np.asarray(at.periods * before[-1] + before[at.bin, each] + at.share * in_bin[at.bin, each])

        begun = until(returns.asked)
        return lambda hours: until(returns.asked + hours) - begun

    def _decaying(self, returns: Returns) -> tuple[Floats, Floats]:
        """Return rates of excitation with all items, and their decays, [n, 1 or more] each."""
        if self._along_edges:
            rate = self._states.totals(returns.users, returns.asked)[:, None]
            return rate, np.full_like(rate, self.estimator.decay)
        asked = zip(self._user_place[returns.users], returns.asked, strict=True)
        both = np.array([self._informed._decaying(int(user), float(t)) for user, t in asked])
        return both[..., 0], both[..., 1]

    def log_likelihood(self) -> float | None:
        """Return the estimator's score of the held-out events."""
        return self.estimator.score(self.held.split.test)

    # --- what the estimator is ---------------------------------------------------------------------------------------

    @property
    def _clock(self) -> FeatureClock | None:
        """What factors follow; None: they are constant."""
        return getattr(self.estimator, "clock_", None)

    @cached_property
    def _along_edges(self) -> bool:
        return type(self.estimator)._excitation_items is EventIntensity._excitation_items

    @cached_property
    def _user_place(self) -> Ints:
        return self.estimator.user_index_.places(self.held.split.test.user_ids)

    @cached_property
    def _item_place(self) -> Ints:
        return self.estimator.item_index_.places(self.held.split.test.item_ids)

    @cached_property
    def _known(self) -> NDArray[np.bool_]:
        """[P], whether an item occurred in training."""
        return self._item_place >= 0

    @cached_property
    def _beta(self) -> Rows:
        return self.estimator._beta_of(self._item_place)

    @cached_property
    def _states(self) -> PairStates:
        """What excites each user: whoever was not seen in training, themselves alone as the mean of all."""
        model = self.estimator
        known = np.flatnonzero(self._user_place >= 0)
        user_at = dict(zip(self._user_place[known].tolist(), known.tolist(), strict=True))
        mean = float(model.tau_.mean()) if hasattr(model, "tau_") else 0.0

        def edges(user: int, place: int) -> list[tuple[int, float]]:
            if place < 0:
                return [(user, mean)] if mean else []
            return [(user_at[source], weight) for source, weight in model._sources(place) if source in user_at]

        to_users = [edges(user, int(place)) for user, place in enumerate(self._user_place)]
        return PairStates.exciting(self.held.pairs, to_users, model.decay)

    @cached_property
    def _informed(self) -> EventIntensity:
        """The estimator with all events of users and items that it knows as its history, its parameters as they are."""
        model, (users, items, times) = copy.copy(self.estimator), self.held.all_events
        user, item = self._user_place[users], self._item_place[items]
        known = (user >= 0) & (item >= 0)
        old = model.observed_
        pairs = EventPairs.of(user[known], item[known], times[known], old.pairs.n_users, old.pairs.n_items)
        model.observed_ = replace(old, pairs=pairs, end=float(times[-1]))
        return model
