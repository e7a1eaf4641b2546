"""When users come back: the time from the last event of training to the first that is held out, in hours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut

Floats = NDArray[np.float64]
HALVINGS = 100


@dataclass(frozen=True)
class Returns:
    """Users who have events on both sides of the split, and when they did.

    Attributes:
        users: [n].
        since: [n], the hour of each one's last event of training.
        hours: [n], from then to the first held-out event.
    """

    users: NDArray[np.int64]
    since: Floats
    hours: Floats

    @classmethod
    def of(cls, held: HeldOut) -> Returns:
        """Return who came back; whoever did not is left out, as nobody knows when they would."""
        last = np.full(held.n_users, -np.inf)
        np.maximum.at(last, held.train.user, held.train.time)
        first = np.full(held.n_users, np.inf)
        np.minimum.at(first, held.test.user, held.test.time)
        users = np.flatnonzero(np.isfinite(last) & np.isfinite(first))
        return cls(users, last[users], first[users] - last[users])

    @property
    def just_after(self) -> Floats:
        """[n], moments before which the last event of training lies."""
        return np.nextafter(self.since, np.inf)


@dataclass(frozen=True)
class ReturnErrors:
    """Estimated beside actual hours [n] until users come back."""

    estimated: Floats
    actual: Floats

    @property
    def root_mean_square(self) -> float:
        """Of the error, in hours."""
        return float(np.sqrt(np.mean((self.estimated - self.actual) ** 2)))

    @property
    def median(self) -> float:
        """Of the absolute error, in hours."""
        return float(np.median(np.abs(self.estimated - self.actual)))


def median_wait(base: Floats, excited: Floats, decay: float) -> Floats:
    """Return [n], the hours s within which an event is as likely as not.

    These solve ``base s + excited (1 - e^(-decay s)) = ln 2``.

    Args:
        base: [n], events per hour that do not change.
        excited: [n], events that excitation will add if nothing new excites.
        decay: Of excitation, per hour.
    """
    base, excited = np.maximum(base, 1e-300), np.asarray(excited, np.float64)
    low, high = np.log(2) / (base + decay * excited), np.log(2) / base
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        enough = base * middle - excited * np.expm1(-decay * middle) >= np.log(2)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.asarray(0.5 * (low + high))
