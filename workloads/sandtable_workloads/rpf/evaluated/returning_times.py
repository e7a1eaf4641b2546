"""When users come back: hours to their next event, asked at three kinds of moments.

After the last event of training is what the authors' code asks. Which event that is shows only at the split, until
which nothing more happened; long waits are the likeliest to lie across it, so that whoever expects a quick return after
an event does worst. Asked at the split, a model knows of that silence; asked after each held-out event, no wait is
favoured but by the end of the records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut

Floats = NDArray[np.float64]
HALVINGS = 64
SOONEST, NEVER = 1e-9, 1e9  # hours between which medians are looked for


@dataclass(frozen=True)
class Returns:
    """Users, when it is asked, and how long it then took.

    Attributes:
        users: [n].
        asked: [n], hours; what happened before is known.
        hours: [n], from then to the next event.
    """

    users: NDArray[np.int64]
    asked: Floats
    hours: Floats

    @classmethod
    def after_training(cls, held: HeldOut) -> Returns:
        """Ask right after each user's last event of training; whoever did not come back is left out."""
        users, last, first = _either_side(held)
        return cls(users, np.nextafter(last, np.inf), first - last)

    @classmethod
    def at_split(cls, held: HeldOut) -> Returns:
        """Ask when training ends."""
        users, _, first = _either_side(held)
        split = float(np.nextafter(held.split.time, np.inf))
        return cls(users, np.full(users.size, split), first - split)

    @classmethod
    def after_each(cls, held: HeldOut) -> Returns:
        """Ask right after every held-out event that is followed by a later one of its user."""
        test = held.test
        order = np.lexsort((test.time, test.user))
        user, time = test.user[order], test.time[order]
        followed = np.flatnonzero((user[1:] == user[:-1]) & (time[1:] > time[:-1]))
        return cls(user[followed], np.nextafter(time[followed], np.inf), time[followed + 1] - time[followed])


ASKED: dict[str, Callable[[HeldOut], Returns]] = {
    "last": Returns.after_training,
    "split": Returns.at_split,
    "next": Returns.after_each,
}


def _either_side(held: HeldOut) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return users with events on both sides of the split, their last one before it and their first one after."""
    last, first = np.full(held.n_users, -np.inf), np.full(held.n_users, np.inf)
    np.maximum.at(last, held.train.user, held.train.time)
    np.minimum.at(first, held.test.user, held.test.time)
    users = np.flatnonzero(np.isfinite(last) & np.isfinite(first))
    return users, last[users], first[users]


@dataclass(frozen=True)
class ReturnErrors:
    """Estimated beside actual hours [n] until users come back."""

    estimated: Floats
    actual: Floats

    @property
    def figures(self) -> dict[str, float]:
        """Root mean square, mean and median of the absolute error, in hours."""
        error = np.abs(self.estimated - self.actual)
        return {
            "rms": float(np.sqrt(np.mean(error**2))),
            "mean": float(np.mean(error)),
            "median": float(np.median(error)),
        }


def median_wait(expected: Callable[[Floats], Floats], n: int) -> Floats:
    """Return [n], the hours within which an event is as likely as not; `NEVER` where it is not within 10^9.

    Args:
        expected: Gives, for hours [n], the number of events expected within them if nothing new excites; rising.
        n: How many are asked for.
    """
    low, high = np.full(n, np.log(SOONEST)), np.full(n, np.log(NEVER))
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        enough = expected(np.exp(middle)) >= np.log(2)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.asarray(np.exp(high))
