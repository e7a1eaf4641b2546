"""Compiled passes of variational inference over pairs of users and items. Importing this module needs numba.

The base rate ``theta_u . beta_p`` (geometric means) is the same for all events of a pair, so a pass costs the
arithmetic of a row per pair, and a division per event. Each chunk of users, or items, writes rows of its own and a
partial sum; chunks do not depend on threads, so neither do results. The log of a product of many intensities stands for
the sum of their logs, as far as the product stays within float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from sandtable_kernels.compiled.events.intensity_loops import (
    BLOCK,
    events_alike,
    in_order_sum,
    move_sum,
    row_times,
)
from sandtable_kernels.compiled.events.row_vectors import row_add, row_dot, row_prefetch
from sandtable_kernels.compiled.memory_loops import lean, parallel, prefetch

# pairs between asking for a row and reading it
_AHEAD = 12


@lean
def _users(first: Any, last: Any, pairs: Any, theta: Any, beta: Any, sums: Any, own: Any, triggers: Any) -> Any:
    user_start, item, event_start = pairs
    counts, per_pair = sums
    logs, product = 0.0, 1.0
    n_pairs = item.shape[0]
    for u in range(first, last):
        excited = 0.0
        counts[u] = 0.0
        for pair in range(user_start[u], user_start[u + 1]):
            row_prefetch(beta, item[min(pair + _AHEAD, n_pairs - 1)])
            p = item[pair]
            base = row_dot(theta, u, beta, p)
            share, (logs, product, excited) = events_alike(
                u, event_start[pair], event_start[pair + 1], base, own, triggers, (logs, product, excited)
            )
            per_pair[pair] = share
            row_add(counts, u, share, beta, p)
        row_times(counts, u, theta)
        if own[0].shape[0] > 0:
            own[2][u] = excited
    return logs + np.log(product)


@parallel
def user_pass(chunks: Any, pairs: Any, theta: Any, beta: Any, sums: Any, own: Any, triggers: Any) -> Any:
    """Return the sum of log intensities; write counts of users and what each pair has beside its two rows.

    Args:
        chunks: int64 [C + 1], boundaries of users.
        pairs: ``user_start``, ``item`` and ``event_start`` of `EventPairs`.
        theta: Geometric means, padded [U, W].
        beta: The same of items, [P, W].
        sums: [U, W], which receives users' counts; and [n_pairs], which receives the sum over a pair's events of one
            over the intensity.
        own: As in `events_alike`, its last array zeros before.
        triggers: As in `triggers_of`.
    """
    n = chunks.shape[0] - 1
    logs = np.empty(n)
    for c in prange(n):
        logs[c] = _users(chunks[c], chunks[c + 1], pairs, theta, beta, sums, own, triggers)
    return in_order_sum(logs)


@lean
def _items(
    first: Any, last: Any, pairs: Any, theta: Any, beta: Any, per_pair: Any, counts: Any, part: Any, whole: Any
) -> None:
    item_start, by_item, item_user = pairs
    width, n_pairs = theta.shape[1], by_item.shape[0]
    for p in range(first, last):
        whole[:] = 0.0
        for block in range(item_start[p], item_start[p + 1], BLOCK):
            for j in range(block, min(block + BLOCK, item_start[p + 1])):
                row_prefetch(theta, item_user[min(j + _AHEAD, n_pairs - 1)])
                prefetch(per_pair, by_item[min(j + 2 * _AHEAD, n_pairs - 1)])
                row_add(part, 0, per_pair[by_item[j]], theta, item_user[j])
            move_sum(part, whole)
        for k in range(width):
            counts[p, k] = whole[k] * beta[p, k]


@parallel
def item_pass(chunks: Any, pairs: Any, theta: Any, beta: Any, per_pair: Any, counts: Any) -> None:
    """Write items' ``counts`` [P, W] of a pass, after `user_pass` has written ``per_pair``.

    ``pairs`` are ``item_start`` and ``by_item`` of `EventPairs`, and the user of each pair of ``by_item``; ``chunks``
    are boundaries of items.
    """
    n = chunks.shape[0] - 1
    for c in prange(n):
        part, whole = np.zeros((1, theta.shape[1]), theta.dtype), np.empty(theta.shape[1])
        _items(chunks[c], chunks[c + 1], pairs, theta, beta, per_pair, counts, part, whole)
