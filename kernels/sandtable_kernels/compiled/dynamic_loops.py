"""Compiled passes over events whose factors follow a clock. Importing this module needs numba.

Geometric means factorise over the features of users and items, so the factors of a bin are sums of those of its
features, and what a cell of a user, a bin and an item is responsible for is counted once per bin, then spread over
its features. Users, and items, are passed in chunks that do not depend on the threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from sandtable_kernels.compiled.events.row_vectors import row_add, row_dot, row_prefetch
from sandtable_kernels.compiled.memory_loops import parallel, prefetch, serial

# cells between asking for rows and reading them
_AHEAD = 8
# cells of an item whose sum is kept apart before it goes to the item's features
_BLOCK = 512
# a product of intensities whose log is taken before it leaves float64
_MOST, _LEAST = 1e200, 1e-200


@serial
def _mix(features: Any, b: Any, rows: Any, first: Any, mixed: Any) -> None:
    """Set ``mixed`` [1, W] to the sum over the features of bin ``b`` of ``rows``, from row ``first`` on."""
    mixed[:] = 0
    for a in range(features.start[b], features.start[b + 1]):
        row_add(mixed, 0, features.value[a], rows, first + features.feature[a])


@serial
def _spread(features: Any, b: Any, total: Any, rows: Any, first: Any) -> None:
    """Add ``total`` [1, W] to the ``rows`` of the features of bin ``b``, from row ``first`` on; then empty it."""
    for a in range(features.start[b], features.start[b + 1]):
        row_add(rows, first + features.feature[a], features.value[a], total, 0)
    total[:] = 0


@serial
def _ask_for(features: Any, b: Any, rows: Any, first: Any) -> None:
    for a in range(features.start[b], features.start[b + 1]):
        row_prefetch(rows, first + features.feature[a])


@serial
def _features_each(cells: Any, theta: Any, beta: Any) -> Any:
    """Return I and J."""
    n_users, n_items = cells.user_start.shape[0] - 1, cells.item_start.shape[0] - 1
    return theta.shape[0] // max(n_users, 1), beta.shape[0] // max(n_items, 1)


@serial
def _users(
    first: Any,
    last: Any,
    cells: Any,
    of_users: Any,
    of_items: Any,
    theta: Any,
    beta: Any,
    counts: Any,
    own: Any,
    triggers: Any,
) -> Any:
    n_user, n_item = _features_each(cells, theta, beta)
    one, nothing = theta.dtype.type(1), theta.dtype.type(0)
    mine, weighted = np.zeros((1, theta.shape[1]), theta.dtype), np.zeros((1, theta.shape[1]), theta.dtype)
    n_cells = cells.item.shape[0]
    logs, product = 0.0, 1.0
    for u in range(first, last):
        excited_u = 0.0
        counts[u * n_user : (u + 1) * n_user] = 0
        b = np.int64(-1)
        for c in range(cells.user_start[u], cells.user_start[u + 1]):
            after = min(c + _AHEAD, n_cells - 1)
            _ask_for(of_items, np.int64(cells.bin[after]), beta, cells.item[after] * n_item)
            if cells.bin[c] != b:
                if b >= 0:
                    _spread(of_users, b, weighted, counts, u * n_user)
                b = np.int64(cells.bin[c])
                _mix(of_users, b, theta, u * n_user, mine)
            base, row = nothing, cells.item[c] * n_item
            for a in range(of_items.start[b], of_items.start[b + 1]):
                base += of_items.value[a] * row_dot(mine, 0, beta, row + of_items.feature[a])
            share = nothing
            for n in range(cells.event_start[c], cells.event_start[c + 1]):
                total, excited = base, nothing
                if own is not None:
                    excited = own[1][u] * own[0][n]
                    total += excited
                    if triggers is not None:
                        for j in range(triggers[0][n], triggers[0][n + 1]):
                            total += own[1][triggers[1][j]] * triggers[2][j]
                inverse = one / total
                share += inverse
                if own is not None:
                    excited_u += excited * inverse
                    if triggers is not None:
                        for j in range(triggers[0][n], triggers[0][n + 1]):
                            edge = triggers[1][j]
                            own[2][edge] += own[1][edge] * triggers[2][j] * inverse
                product *= total
                if product > _MOST or product < _LEAST:
                    logs += np.log(product)
                    product = 1.0
            cells.share[c] = share
            for a in range(of_items.start[b], of_items.start[b + 1]):
                row_add(weighted, 0, share * of_items.value[a], beta, row + of_items.feature[a])
        if b >= 0:
            _spread(of_users, b, weighted, counts, u * n_user)
        for r in range(u * n_user, (u + 1) * n_user):
            for k in range(theta.shape[1]):
                counts[r, k] *= theta[r, k]
        if own is not None:
            own[2][u] = excited_u
    return logs + np.log(product)


@parallel
def user_pass(
    chunks: Any,
    cells: Any,
    of_users: Any,
    of_items: Any,
    theta: Any,
    beta: Any,
    counts: Any,
    own: Any = None,
    triggers: Any = None,
) -> Any:
    """Return the sum of log intensities; write counts of users, and each cell's share for `item_pass`.

    Args:
        chunks: int64 [C + 1], boundaries of users.
        cells: Arrays of `EventCells` by name, and ``share`` [n_cells], which receives the sum over a cell's events of
            one over the intensity.
        of_users: `ActiveFeatures` of users.
        of_items: The same of items.
        theta: Geometric means, padded [U I, W].
        beta: The same of items, [P J, W].
        counts: Receives counts of users, [U I, W].
        own: As in `poisson_loops.user_pass`, with values in the order of cells; so are the rows of ``triggers``.
        triggers: None without edges.
    """
    n = chunks.shape[0] - 1
    logs = np.empty(n)
    for c in prange(n):
        logs[c] = _users(chunks[c], chunks[c + 1], cells, of_users, of_items, theta, beta, counts, own, triggers)
    total = 0.0
    for c in range(n):
        total += logs[c]
    return total


@serial
def _items(
    first: Any, last: Any, cells: Any, of_users: Any, of_items: Any, theta: Any, beta: Any, counts: Any
) -> None:
    n_user, n_item = _features_each(cells, theta, beta)
    part = np.zeros((1, theta.shape[1]), theta.dtype)
    n_cells = cells.item_user.shape[0]
    for p in range(first, last):
        counts[p * n_item : (p + 1) * n_item] = 0
        b, waiting = np.int64(-1), 0
        for c in range(cells.item_start[p], cells.item_start[p + 1]):
            after, later = min(c + _AHEAD, n_cells - 1), min(c + 2 * _AHEAD, n_cells - 1)
            _ask_for(of_users, np.int64(cells.item_bin[after]), theta, cells.item_user[after] * n_user)
            prefetch(cells.share, cells.by_item[later])
            if cells.item_bin[c] != b or waiting == _BLOCK:
                if b >= 0:
                    _spread(of_items, b, part, counts, p * n_item)
                b, waiting = np.int64(cells.item_bin[c]), 0
            share, row = cells.share[cells.by_item[c]], cells.item_user[c] * n_user
            for a in range(of_users.start[b], of_users.start[b + 1]):
                row_add(part, 0, share * of_users.value[a], theta, row + of_users.feature[a])
            waiting += 1
        if b >= 0:
            _spread(of_items, b, part, counts, p * n_item)
        for r in range(p * n_item, (p + 1) * n_item):
            for k in range(beta.shape[1]):
                counts[r, k] *= beta[r, k]


@parallel
def item_pass(chunks: Any, cells: Any, of_users: Any, of_items: Any, theta: Any, beta: Any, counts: Any) -> None:
    """Write items' ``counts`` [P J, W] of a pass, after `user_pass` has written cells' shares."""
    for c in prange(chunks.shape[0] - 1):
        _items(chunks[c], chunks[c + 1], cells, of_users, of_items, theta, beta, counts)


@parallel
def rates_of_users(chunks: Any, accrued: Any, until: Any, start: Any, theta: Any, rates: Any) -> Any:
    """Set ``rates`` [U, I, K] to what accrues between users' starts and the end; return the sum of ``theta`` times it.

    Args:
        chunks: int64 [C + 1], boundaries of users.
        accrued: float64 [B + 1, I, K], what accrues from a period's begin to that of each bin.
        until: float64 [I, K], what accrues from time 0 to the end.
        start: `Phase` of the users' starts.
        theta: Means [U, I, K].
        rates: float64 [U, I, K].
    """
    n, whole = chunks.shape[0] - 1, accrued[accrued.shape[0] - 1]
    sums = np.zeros(n)
    for c in prange(n):
        total = 0.0
        for u in range(chunks[c], chunks[c + 1]):
            low, high = accrued[start.bin[u]], accrued[start.bin[u] + 1]
            periods, share = start.periods[u], start.share[u]
            for i in range(rates.shape[1]):
                for k in range(rates.shape[2]):
                    past = periods * whole[i, k] + low[i, k] + share * (high[i, k] - low[i, k])
                    rate = max(until[i, k] - past, 0.0)
                    rates[u, i, k] = rate
                    total += theta[u, i, k] * rate
        sums[c] = total
    expected = 0.0
    for c in range(n):
        expected += sums[c]
    return expected


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
