"""What is asked of a fit: intensities, recommendations, times of return, and the likelihood of later events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.event_pairs import EventPairs, Floats
from sandtable_kernels.poisson.event_triggers import OverEdges
from sandtable_workloads.rpf.estimators.observed_events import event_columns
from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator
from sandtable_workloads.rpf.events.event_checks import hour_of

Array = NDArray[Any]


class LaterEvents(NamedTuple):
    """Events after a fit, with those before as their causes.

    Attributes:
        pairs: All of them, of users and items that were fitted and behind these of others.
        new: [N], which of `pairs` are the later ones.
        known_user: [N], the user of an event, -1 where it was not fitted.
        known_item: [N], its item.
        everyone: [U], all users, -1 those who were not fitted.
        start: From when on events are later, in hours.
        end: The time of the last.
        over_edges: What events excite over edges; None without.
    """

    pairs: EventPairs
    new: NDArray[np.bool_]
    known_user: Array
    known_item: Array
    everyone: Array
    start: float
    end: float
    over_edges: OverEdges | None = None


@dataclass(eq=False)
class EventIntensity(PoissonEstimator):
    """Prediction with ``theta_``, ``beta_`` and ``tau_``, for models with a constant base rate.

    Users and items that were not fitted have the place -1: such a user is like the mean of all, such an item like one
    that nobody met. Times ``t`` are hours, or dates where events had dates.

    After a fit by batches of users, which keeps only events that still excite at its end, excitation is known from
    that end on; to ask what it was before is refused.
    """

    def intensity(self, user: Any, t: Any, items: Iterable[Any] | None = None) -> Floats:
        """Return events per hour of ``user`` with each item [P], or with those given, at ``t`` given all before it.

        Raises:
            NotFitted: before `fit`.
            ConfigError: ``t`` is no time, or one before the end of a fit by batches.
        """
        u, t = self.user_index_.place(user), self._hour(t)
        if items is None:
            return self._base_items(u, t) + self._excitation_items(u, t)
        places = self.item_index_.places(list(items))
        base = self._base_at(np.full(places.size, u), places, np.full(places.size, t))
        excited = np.concatenate((self._excitation_items(u, t), [0.0]))  # nobody met what is unknown
        return base + excited[places]

    def recommend(self, user: Any, t: Any, n: int = 20, exclude: Iterable[Any] = ()) -> list[tuple[Any, float]]:
        """Return the ``n`` items of highest intensity at ``t``, highest first, without those to ``exclude``.

        Raises:
            ConfigError: see `intensity`; ``n`` is no whole number of at least 1.
        """
        if not (isinstance(n, int | np.integer) and n >= 1):
            raise ConfigError(f"n must be a whole number of at least 1, not {n}")
        rate = self.intensity(user, t)
        places = self.item_index_.places(list(exclude))
        rate[places[places >= 0]] = -1.0
        n = min(n, int((rate >= 0).sum()))
        best = np.argpartition(-rate, n - 1)[:n] if n else np.empty(0, np.int64)
        best = best[np.lexsort((best, -rate[best]))]
        return list(zip(self.item_index_.ids[best].tolist(), rate[best].tolist(), strict=True))

    def returning_time(self, user: Any, t: Any, n_samples: int = 100) -> float:
        """Return the hours from ``t`` to the next event of ``user`` with any item: the median of samples.

        Raises:
            ConfigError: see `intensity`.
        """
        t = self._hour(t)
        rng, place = np.random.default_rng(self.random_state), self.user_index_.place(user)
        waits = self._waits(place, t, n_samples, rng)
        if inflow := self._inflow(place):
            waits = np.minimum(waits, _first_brought_about(rng.exponential(1 / inflow, n_samples), self.decay))
        return float(np.median(waits))

    def score(self, events: Any, y: None = None) -> float:
        """Return the mean log-likelihood per event of later events, each given all that came before it.

        The likelihood is that of the time from the end of the fitted period to the last of these events; ``y`` is there
        for scikit-learn.

        Raises:
            ConfigError: events that cannot be used, or one before the end of the fit.
        """
        return self._held_out(events)()

    def _hour(self, t: Any) -> float:
        """Return the hour of a time that is asked for."""
        hour = hour_of(t, self.origin_)
        if hour < self.period_[1] and self._forgot and "tau" in self.state_:
            raise ConfigError(
                f"a fit by batches keeps only what still excites at its end: ask for that, hour {self.period_[1]:g}, "
                f"or later, not for {hour:g}"
            )
        return hour

    # --- rates -----------------------------------------------------------------------------------------------------

    def _theta_of(self, user: Any) -> Array:
        """Return rows of users [..., K]."""
        unseen = np.less(user, 0)[..., None]
        return np.asarray(np.where(unseen, self._mean_user("theta"), self.theta_[user]))

    def _beta_of(self, item: Array) -> Array:
        """Return rows of items [..., K]."""
        return np.asarray(np.where(np.less(item, 0)[..., None], self._unseen_item(), self.beta_[item]))

    def _unseen_item(self) -> Array:
        """Return [K], the mean under q of an item that was there and had no event."""
        rate = self._over_users["exposed"] + self.state_["beta"].group_mean.mean()
        return np.asarray(self.prior("beta").shape / rate)

    def _mean_user(self, name: str) -> Array:
        """Return what stands for a user that was not fitted, of ``theta`` and what else `_user_sums` has."""
        return np.asarray(self._over_users[name] / self._over_users["users"], self.theta_.dtype)

    def _base_items(self, user: int, t: float) -> Floats:
        """Return [P], the base rate of a user with each item."""
        return np.asarray(self.beta_ @ self._theta_of(user), np.float64)

    def _base_at(self, user: Array, item: Array, time: Array) -> Floats:
        """Return [n], the base rate of each user with each item at each time."""
        return np.asarray(np.einsum("nk,nk->n", self._theta_of(user), self._beta_of(item)), np.float64)

    def _base_between(self, user: Array, start: float, end: float) -> Floats:
        """Return [n], the expected number of base events of users with all items between two times."""
        weights = self.beta_.sum(0, dtype=np.float64)
        return np.asarray(self._theta_of(user) @ weights * (end - start), np.float64)

    def _sources(self, user: int) -> list[tuple[int, float]]:
        """Return whose events excite a user's, and by how much."""
        return [(user, float(self.tau_[user]))] if user >= 0 and hasattr(self, "tau_") else []

    def _excitation_items(self, user: int, t: float) -> Floats:
        """Return [P], what earlier events add to the rate of a user with each item."""
        pairs = self.observed_.pairs
        rate = np.zeros(pairs.n_items)
        for source, tau in self._sources(user):
            pair = slice(*pairs.user_start[[source, source + 1]])
            bounds = pairs.event_start[pair.start : pair.stop + 1]
            time = pairs.time[bounds[0] : bounds[-1]]
            past = time < t
            items = np.repeat(pairs.item[pair], np.diff(bounds))[past]
            rate += tau * np.bincount(items, self.decay * np.exp(-self.decay * (t - time[past])), pairs.n_items)
        return rate

    def _inflow(self, user: int) -> float:
        """Return events per hour of a user that later events of others will bring about in the long run."""
        return 0.0

    def _waits(self, user: int, t: float, n: int, rng: np.random.Generator) -> Floats:
        """Return [n] samples of the time to the next event: the base's or the excitation's, whichever is sooner."""
        base = self._base_between(np.array([user]), t, t + 1.0)[0]
        wait = rng.exponential(1 / base, n)
        for rate, decay in self._decaying(user, t):
            share = rng.exponential(1.0, n) / max(rate / decay, 1e-300)  # of the events expected of it
            sooner = np.where(share < 1, -np.log1p(-np.minimum(share, 1 - 1e-16)) / decay, np.inf)
            wait = np.minimum(wait, sooner)
        return np.asarray(wait)

    def _decaying(self, user: int, t: float) -> list[tuple[float, float]]:
        """Return rates at ``t`` that earlier events add to a user's with all items, and at which they decay."""
        return [(float(self._excitation_items(user, t).sum()), self.decay)]

    # --- later events ----------------------------------------------------------------------------------------------

    def _likelihood(self, later: LaterEvents) -> Callable[[], float]:
        pairs = later.pairs
        users, items, times = later.known_user[later.new], later.known_item[later.new], pairs.time[later.new]
        excited = self._excited(later)

        def mean() -> float:
            more, more_expected = excited()
            rate = self._base_at(users, items, times) + more
            expected = self._base_between(later.everyone, later.start, later.end).sum() + more_expected
            mine = {"of_users": np.array(np.log(rate).sum() - expected), "events": np.array(float(times.size))}
            shared = self.all_reduce(mine)
            return float(shared["of_users"] / shared["events"])

        return mean

    def _later(self, events: Any) -> LaterEvents:
        user, item, time = event_columns(events, self.origin_)
        start = self.observed_.end
        if time.min() < start:
            raise ConfigError(f"an event to score is at {time.min():g} hours, before the fit's end at {start:g}")
        user_ids, item_ids = self.user_index_.extended(user), self.item_index_.extended(item)
        old = self.observed_.pairs
        pairs = EventPairs.of(
            np.concatenate((old.event_user, user_ids.places(user))),
            np.concatenate((old.event_item, item_ids.places(item))),
            np.concatenate((old.time, time)),
            len(user_ids),
            len(item_ids),
        )
        return LaterEvents(
            pairs=pairs,
            new=pairs.order >= old.n_events,
            known_user=np.where(pairs.event_user < old.n_users, pairs.event_user, -1),
            known_item=np.where(pairs.event_item < old.n_items, pairs.event_item, -1),
            everyone=np.where(np.arange(len(user_ids)) < old.n_users, np.arange(len(user_ids)), -1),
            start=start,
            end=float(time.max()),
        )

    def _excited(self, later: LaterEvents) -> Callable[[], tuple[Floats | float, float]]:
        """Return what gives the rates of later events beyond the base, and the number of events expected of them."""
        if "tau" not in self.state_:
            return lambda: (0.0, 0.0)
        pairs, old = later.pairs, self.observed_.pairs
        users, own = later.known_user[later.new], pairs.own_excitation(self.decay, np.float64)[later.new]
        mass = pairs.released(self.decay, later.end)
        mass[: old.n_users] -= old.released(self.decay, later.start)

        def beyond() -> tuple[Floats, float]:
            tau = np.append(self.tau_, self._mean_user("tau")).astype(np.float64)
            return tau[users] * own, float(tau[later.everyone] @ mass)

        return beyond


def _first_brought_about(due: Floats, decay: float) -> Floats:
    """Return hours s [n] at which ``s - (1 - exp(-decay s)) / decay`` is ``due`` [n], by bisection.

    That is what a steady inflow adds up to whose effects are each delayed by the kernel.
    """
    low, high = due, due + 1 / decay
    for _ in range(60):
        middle = 0.5 * (low + high)
        enough = middle + np.expm1(-decay * middle) / decay >= due
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.asarray(high)
