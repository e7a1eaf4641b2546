"""What is known of cells before there is data: how often users, bins of a clock and items meet."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sandtable_kernels.poisson.feature_clock import FeatureClock, NamedFeatures, named_features
from sandtable_kernels.poisson.laws.dynamic_law import bins_of_items
from sandtable_workloads.rpf.rpf_parameters import Features, Rpf

# events of the users who stand for all: what a user's events share does not depend on how many users there are
SAMPLE_EVENTS = 60_000


class Clock(NamedTuple):
    """Features of a clock: I, how many there are; ``bins`` of a period; and how many are ``active`` in one."""

    features: int
    bins: int
    active: float


class Cells(NamedTuple):
    """How many cells there are, and how many (user, bin) and (item, bin) with one at least."""

    cells: float
    user_bins: float
    item_bins: float


def clock_of(p: Rpf) -> Clock:
    """Return what a fit's clock has; one feature that always holds where factors do not follow it."""
    if not p.dynamic:
        return Clock(1, 1, 1.0)
    table = named_features(p.features).table
    return Clock(table.shape[1], table.shape[0], float(table.sum(1).mean()))


def expected_cells(p: Rpf) -> Cells:
    """Return the cells of `GeneratedEvents` with a fit's counts: those of some users, for all of them."""
    users = max(1, min(p.users, round(p.users * SAMPLE_EVENTS / p.events)))
    events = max(1, round(p.events * users / p.users))
    pairs = max(1, min(round(p.n_pairs * users / p.users), events, users * p.items))
    per_event, per_user = _met(users, p.items, events, pairs, p.item_exponent, p.features)
    cells, bins = per_event * p.events, clock_of(p).bins
    return Cells(cells, per_user * p.users, bins_of_items(cells, p.items, p.item_exponent, bins))


@lru_cache(maxsize=64)
def _met(
    users: int, items: int, events: int, pairs: int, exponent: float, features: Features
) -> tuple[float, float]:
    """Return cells an event, and (user, bin) a user."""
    from sandtable_workloads.rpf.events.generated_events import GeneratedEvents

    made = GeneratedEvents(n_users=users, n_items=items, n_events=events, n_pairs=pairs, zipf=exponent)
    user, item, time = (np.concatenate(part) for part in zip(*made.columns(), strict=True))
    named: NamedFeatures = named_features(features)
    clock = FeatureClock(named.table, named.table, named.period)
    user_bin = user.astype(np.int64) * clock.n_bins + clock.bins(time)
    n_cells = np.unique(user_bin * items + item).size
    return n_cells / events, np.unique(user_bin).size / users
