"""What the harness asks of a recommender, and the simplest ones: popularity, a user's own counts, the last item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
from sandtable_workloads.rpf.evaluated.replayed_state import COUNT, RECENCY, PairStates
from sandtable_workloads.rpf.evaluated.returning_times import Returns

Floats = NDArray[np.float64]
Rows = NDArray[Any]


class Trained(Protocol):
    """A recommender that learned from the first events of a history."""

    def scores(self, part: slice) -> Rows:
        """Return rows [n, P]: for each of some held-out events, how near each item is, given all before the event."""
        raise NotImplementedError

    def waits(self, returns: Returns) -> Floats | None:
        """Return [n], the hours from when it is asked until users come back; None where it has no time."""

    def log_likelihood(self) -> float | None:
        """Return that of the held-out events in continuous time, per event; None where it has none."""


@dataclass(frozen=True)
class Contender:
    """A recommender by name, and what trains it."""

    name: str
    train: Callable[[HeldOut], Trained]


@dataclass(frozen=True)
class SteadyRates:
    """Factors whose products are events per hour, the same at all times, or mere scores.

    Attributes:
        held: The events.
        of_users, of_items: [U, K] and [P, K].
        rates: Whether products are events per hour.
    """

    held: HeldOut
    of_users: Rows
    of_items: Rows
    rates: bool = True

    def scores(self, part: slice) -> Rows:
        """Return products."""
        return np.asarray(self.of_users[self.held.test.user[part]] @ self.of_items.T)

    def waits(self, returns: Returns) -> Floats | None:
        """Return the medians of exponential distributions."""
        if not self.rates:
            return None
        total = self.of_users[returns.users].astype(np.float64) @ self.of_items.sum(0, dtype=np.float64)
        return np.asarray(np.log(2) / np.maximum(total, 1e-300))

    def log_likelihood(self) -> float | None:
        """Return that of a Poisson process."""
        if not self.rates:
            return None
        test, hours = self.held.test, self.held.test_hours
        rate = np.einsum("nk,nk->n", self.of_users[test.user], self.of_items[test.item], dtype=np.float64)
        mass = self.of_users.sum(0, dtype=np.float64) @ self.of_items.sum(0, dtype=np.float64) * hours
        with np.errstate(divide="ignore"):
            return float((np.log(rate).sum() - mass) / test.time.size)


@dataclass(frozen=True)
class OwnPast:
    """Items by what a user did with them before, those without by popularity."""

    held: HeldOut
    popular: Floats
    states: PairStates

    def scores(self, part: slice) -> Rows:
        """Return counts or recency, beside which popularity only decides between equals."""
        test = self.held.test
        rows = np.tile(self.popular, (test.user[part].size, 1))
        self.states.add_to(rows, test.user[part], test.time[part])
        return rows

    def waits(self, returns: Returns) -> Floats | None:
        """Say nothing."""
        return None

    def log_likelihood(self) -> float | None:
        """Say nothing."""
        return None


def popularity() -> Contender:
    """Items by their events of training; as a rate, a user's activity times the item's share, with one event more."""

    def train(held: HeldOut) -> SteadyRates:
        of_users = np.bincount(held.train.user, minlength=held.n_users) + 1.0
        of_items = np.bincount(held.train.item, minlength=held.n_items) + 1.0
        return SteadyRates(held, of_users[:, None] / held.train_hours, of_items[:, None] / of_items.sum())

    return Contender("popularity", train)


def own_counts() -> Contender:
    """Items by how often the user met them until the event."""
    return _own_past("own counts", COUNT)


def recency() -> Contender:
    """Items by how lately the user met them."""
    return _own_past("recency", RECENCY)


def _own_past(name: str, kind: int) -> Contender:
    def train(held: HeldOut) -> OwnPast:
        count = np.bincount(held.train.item, minlength=held.n_items)
        # far below what one event adds, and what hours of recency differ by
        popular = 1e-9 * count / count.max()
        return OwnPast(held, popular, PairStates.own(held.pairs, kind))

    return Contender(name, train)
