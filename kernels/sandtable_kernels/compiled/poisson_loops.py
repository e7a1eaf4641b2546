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

from sandtable_kernels.compiled.events.row_vectors import row_add, row_dot, row_prefetch
from sandtable_kernels.compiled.memory_loops import dividing, parallel, prefetch, serial

# pairs between asking for a row and reading it
_AHEAD = 12
# pairs of an item whose sum is kept in the element type before it goes to float64
_BLOCK = 512
# events of a pair from which on, all alike without excitation, one log is sooner there than their product
_ALIKE = 8
# a product of intensities whose log is taken before it leaves float64
_MOST, _LEAST = 1e200, 1e-200


@dividing
def _users(first: Any, last: Any, pairs: Any, theta: Any, beta: Any, sums: Any, own: Any, triggers: Any) -> Any:
    user_start, item, event_start = pairs
    counts, per_pair = sums
    one, zero = theta.dtype.type(1.0), theta.dtype.type(0.0)
    logs, product = 0.0, 1.0
    n_pairs = item.shape[0]
    for u in range(first, last):
        excited_u = 0.0
        counts[u] = 0.0
        for pair in range(user_start[u], user_start[u + 1]):
            row_prefetch(beta, item[min(pair + _AHEAD, n_pairs - 1)])
            p = item[pair]
            base = row_dot(theta, u, beta, p)
            share = zero
            first_event, end = event_start[pair], event_start[pair + 1]
            if own is None and end - first_event > _ALIKE:
                share = theta.dtype.type(end - first_event) / base
                logs += (end - first_event) * np.log(base)
                first_event = end
            for n in range(first_event, end):
                total, excited = base, zero
                if own is not None:
                    excited = own[1][u] * own[0][n]
                    total += excited
                if triggers is not None:
                    for j in range(triggers[0][n], triggers[0][n + 1]):
                        total += triggers[3][triggers[1][j]] * triggers[2][j]
                inverse = one / total
                share += inverse
                if own is not None:
                    excited_u += excited * inverse
                if triggers is not None:
                    for j in range(triggers[0][n], triggers[0][n + 1]):
                        edge = triggers[1][j]
                        triggers[4][edge] += triggers[3][edge] * triggers[2][j] * inverse
                product *= total
                if product > _MOST or product < _LEAST:
                    logs += np.log(product)
                    product = 1.0
            per_pair[pair] = share
            row_add(counts, u, share, beta, p)
        for k in range(counts.shape[1]):
            counts[u, k] *= theta[u, k]
        if own is not None:
            own[2][u] = excited_u
    return logs + np.log(product)


@parallel
def user_pass(
    chunks: Any, pairs: Any, theta: Any, beta: Any, sums: Any, own: Any = None, triggers: Any = None
) -> Any:
    """Return the sum of log intensities; write counts of users and what each pair has beside its two rows.

    Args:
        chunks: int64 [C + 1], boundaries of users.
        pairs: ``user_start``, ``item`` and ``event_start`` of `EventPairs`.
        theta: Geometric means, padded [U, W].
        beta: The same of items, [P, W].
        sums: [U, W], which receives users' counts; and [n_pairs], which receives the sum over a pair's events of one
            over the intensity.
        own: None without excitation; or values [N] by a user's own earlier events, geometric means [U + E] of users'
            own and then edges' excitation, and float64 [U + E], zeros before, which receives the events excited.
        triggers: None without edges; or ``start``, ``edge`` (numbered from U) and ``value`` of `EventTriggers`, and the
            last two arrays of ``own``.
    """
    n = chunks.shape[0] - 1
    logs = np.empty(n)
    for c in prange(n):
        logs[c] = _users(chunks[c], chunks[c + 1], pairs, theta, beta, sums, own, triggers)
    total = 0.0
    for c in range(n):
        total += logs[c]
    return total


@serial
def _items(first: Any, last: Any, pairs: Any, theta: Any, beta: Any, per_pair: Any, counts: Any) -> None:
    item_start, by_item, item_user = pairs
    width, n_pairs = theta.shape[1], by_item.shape[0]
    part, whole = np.empty((1, width), theta.dtype), np.empty(width)
    for p in range(first, last):
        whole[:] = 0.0
        for block in range(item_start[p], item_start[p + 1], _BLOCK):
            part[:] = 0.0
            for j in range(block, min(block + _BLOCK, item_start[p + 1])):
                row_prefetch(theta, item_user[min(j + _AHEAD, n_pairs - 1)])
                prefetch(per_pair, by_item[min(j + 2 * _AHEAD, n_pairs - 1)])
                row_add(part, 0, per_pair[by_item[j]], theta, item_user[j])
            for k in range(width):
                whole[k] += part[0, k]
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
        _items(chunks[c], chunks[c + 1], pairs, theta, beta, per_pair, counts)
