"""One pass over events: what each component and each trigger is responsible for, summed by user, item and edge."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs, Floats

Array = NDArray[Any]


class EventCounts(NamedTuple):
    """Expected counts under the responsibilities of a pass.

    Attributes:
        log_total: Sum over events of the log of the geometric intensity: the event term of the ELBO.
        users: [U, K].
        items: [P, K].
        own: [U], events that a user's own earlier ones excited; None without excitation.
        edges: [E], events excited over each edge; None without edges.
    """

    log_total: float
    users: Array
    items: Array
    own: Floats | None = None
    edges: Floats | None = None


def event_pass(
    pairs: EventPairs, theta: Array, beta: Array, own: Array | None = None, tau: Array | None = None
) -> EventCounts:
    """Return the counts given geometric means ``theta`` [U, K], ``beta`` [P, K], ``tau`` [U] and values ``own`` [N]."""
    g_theta, g_beta = theta[pairs.pair_user], beta[pairs.item]
    both = np.asarray(g_theta * g_beta, np.float64)
    total = np.repeat(both.sum(1), np.diff(pairs.event_start))
    if own is not None and tau is not None:
        excited = tau[pairs.event_user] * own
        total = total + excited
    per_pair = np.add.reduceat(1 / total, pairs.event_start[:-1])
    both *= per_pair[:, None]
    users, items = np.zeros(theta.shape), np.zeros(beta.shape)
    np.add.at(users, pairs.pair_user, both)
    np.add.at(items, pairs.item, both)
    by_user = None
    if own is not None and tau is not None:
        by_user = np.bincount(pairs.event_user, excited / total, minlength=pairs.n_users).astype(np.float64)
    return EventCounts(float(np.log(total).sum()), users, items, by_user)
