"""Compiled passes over events whose factors follow a clock. Importing this module needs numba.

Geometric means factorise over the features of users and items, so the factors of a bin are sums of those of its
features, and what a cell of a user, a bin and an item is responsible for is counted once per bin, then spread over
its features. Users, and items, are passed in chunks that do not depend on the threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from sandtable_kernels.compiled.memory_loops import parallel, serial

# products of totals whose logarithm is due
MOST, LEAST = 1e200, 1e-200


@serial
def _mix(rows: Any, features: Any, b: Any, out: Any) -> None:
    """Set ``out`` [K] to the sum of ``rows`` [features, K] over those of bin ``b``, each times its value."""
    for k in range(out.shape[0]):
        out[k] = 0
    for a in range(features.start[b], features.start[b + 1]):
        row, value = rows[features.feature[a]], features.value[a]
        for k in range(out.shape[0]):
            out[k] += value * row[k]


@serial
def _spread(counts: Any, features: Any, b: Any, total: Any) -> None:
    """Add ``total`` [K] to the rows of ``counts`` of the features of bin ``b``, times their values; then empty it."""
    for a in range(features.start[b], features.start[b + 1]):
        row, value = counts[features.feature[a]], features.value[a]
        for k in range(total.shape[0]):
            row[k] += value * total[k]
    for k in range(total.shape[0]):
        total[k] = 0


@serial
def _pass_user(
    u: Any, cells: Any, theta: Any, beta: Any, of_users: Any, of_items: Any, excited: Any, counts: Any, scratch: Any
) -> Any:
    """Pass the cells of user ``u``; return the log of its totals and what its own events are responsible for."""
    mine, theirs, weighted = scratch[0], scratch[1], scratch[2]
    tau = excited.tau[u] if excited.own.shape[0] else excited.tau.dtype.type(0)
    log_total, product, own = 0.0, 1.0, 0.0
    b = np.int64(-1)
    for c in range(cells.user_start[u], cells.user_start[u + 1]):
        if cells.bin[c] != b:
            if b >= 0:
                _spread(counts, of_users, b, weighted)
            b = np.int64(cells.bin[c])
            _mix(theta[u], of_users, b, mine)
        rows = beta[cells.item[c]]
        for k in range(theirs.shape[0]):
            theirs[k] = 0
        for a in range(of_items.start[b], of_items.start[b + 1]):
            row, value = rows[of_items.feature[a]], of_items.value[a]
            for k in range(theirs.shape[0]):
                theirs[k] += value * row[k]
        base = mine.dtype.type(0)
        for k in range(theirs.shape[0]):
            base += mine[k] * theirs[k]
        inverse = mine.dtype.type(0)
        for n in range(cells.event_start[c], cells.event_start[c + 1]):
            total = base
            if excited.own.shape[0]:
                total += tau * excited.own[n]
            if excited.edge.shape[0]:
                for j in range(excited.start[n], excited.start[n + 1]):
                    total += excited.by_edge[excited.edge[j]] * excited.value[j]
            each = 1 / total
            inverse += each
            product *= total
            if not LEAST < product < MOST:
                log_total += np.log(product)
                product = 1.0
            if excited.own.shape[0]:
                own += excited.own[n] * each
            if excited.edge.shape[0]:
                for j in range(excited.start[n], excited.start[n + 1]):
                    excited.counts[excited.edge[j]] += excited.value[j] * each
        cells.inverse[c] = inverse
        for k in range(theirs.shape[0]):
            weighted[k] += inverse * theirs[k]
    if b >= 0:
        _spread(counts, of_users, b, weighted)
    return log_total + np.log(product), own * tau


@parallel
def pass_users(
    bounds: Any,
    cells: Any,
    theta: Any,
    beta: Any,
    of_users: Any,
    of_items: Any,
    excited: Any,
    counts: Any,
    own: Any,
) -> Any:
    """Set ``counts`` [U, I, K] and ``own`` [U]; return the sum of the logs of all totals.

    ``cells`` keeps the sum over a cell's events of one over their totals in ``inverse``, for `pass_items`; ``excited``
    counts what each edge is responsible for, but for the edge's own factor.
    """
    n_chunks = bounds.shape[0] - 1
    logs = np.zeros(n_chunks)
    for chunk in prange(n_chunks):
        scratch = np.zeros((3, theta.shape[2]), theta.dtype)
        total = 0.0
        for u in range(bounds[chunk], bounds[chunk + 1]):
            counts[u] = 0
            log_total, own[u] = _pass_user(u, cells, theta, beta, of_users, of_items, excited, counts[u], scratch)
            total += log_total
            for i in range(theta.shape[1]):
                for k in range(theta.shape[2]):
                    counts[u, i, k] *= theta[u, i, k]
        logs[chunk] = total
    total = 0.0
    for chunk in range(n_chunks):
        total += logs[chunk]
    return total


@parallel
def pass_items(bounds: Any, cells: Any, theta: Any, beta: Any, of_users: Any, of_items: Any, counts: Any) -> None:
    """Set ``counts`` [P, J, K] from what `pass_users` kept of cells."""
    for chunk in prange(bounds.shape[0] - 1):
        total = np.zeros(theta.shape[2], theta.dtype)
        for p in range(bounds[chunk], bounds[chunk + 1]):
            counts[p] = 0
            b = np.int64(-1)
            for c in range(cells.item_start[p], cells.item_start[p + 1]):
                if cells.item_bin[c] != b:
                    if b >= 0:
                        _spread(counts[p], of_items, b, total)
                    b = np.int64(cells.item_bin[c])
                inverse, rows = cells.inverse[cells.by_item[c]], theta[cells.item_user[c]]
                for a in range(of_users.start[b], of_users.start[b + 1]):
                    row, value = rows[of_users.feature[a]], of_users.value[a] * inverse
                    for k in range(total.shape[0]):
                        total[k] += value * row[k]
            if b >= 0:
                _spread(counts[p], of_items, b, total)
            for j in range(beta.shape[1]):
                for k in range(beta.shape[2]):
                    counts[p, j, k] *= beta[p, j, k]


@parallel
def rates_of_users(bounds: Any, accrued: Any, until: Any, start: Any, rates: Any) -> None:
    """Set ``rates`` [U, I, K] to what accrues between the users' starts and ``until`` [I, K] = accrued by the end.

    ``accrued`` [B + 1, I, K] is what accrues from a period's begin to that of each bin; ``start`` are the users'
    whole periods, bins and shares.
    """
    n_bins = accrued.shape[0] - 1
    for chunk in prange(bounds.shape[0] - 1):
        for u in range(bounds[chunk], bounds[chunk + 1]):
            whole, low, high = accrued[n_bins], accrued[start.bin[u]], accrued[start.bin[u] + 1]
            periods, share = start.periods[u], start.share[u]
            for i in range(rates.shape[1]):
                for k in range(rates.shape[2]):
                    past = periods * whole[i, k] + low[i, k] + share * (high[i, k] - low[i, k])
                    rates[u, i, k] = max(until[i, k] - past, 0.0)


@parallel
def sums_by_start(pieces: Any, users: Any, share: Any, periods: Any, theta: Any, sums: Any) -> None:
    """Set ``sums`` [n_pieces, 3, I, K] to those of ``theta`` [U, I, K] over the users of each piece.

    They are plain, times ``share`` [U], and times ``periods`` [U].
    """
    for piece in prange(pieces.shape[0] - 1):
        sums[piece] = 0
        plain, shared, times = sums[piece, 0], sums[piece, 1], sums[piece, 2]
        for at in range(pieces[piece], pieces[piece + 1]):
            u = users[at]
            row, s, n = theta[u], share[u], periods[u]
            for i in range(row.shape[0]):
                for k in range(row.shape[1]):
                    plain[i, k] += row[i, k]
                    shared[i, k] += s * row[i, k]
                    times[i, k] += n * row[i, k]
