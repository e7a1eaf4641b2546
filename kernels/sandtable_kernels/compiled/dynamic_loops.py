"""Compiled passes over events whose factors follow a clock. Importing this module needs numba.

Geometric means factorise over the features of users and items, so the factors of a bin are sums of those of its
features, and what a cell of a user, a bin and an item is responsible for is counted once per bin, then spread over
its features. Users, and items, are passed in chunks that do not depend on the threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from sandtable_kernels.compiled.events.intensity_loops import BLOCK, events_alike, in_order_sum, row_times
from sandtable_kernels.compiled.events.row_vectors import row_add, row_dot, row_prefetch, row_set
from sandtable_kernels.compiled.memory_loops import inlined, lean, parallel, prefetch

# cells between asking for rows and reading them
_AHEAD = 8


@inlined
def _mix(features: Any, b: Any, rows: Any, first: Any, mixed: Any) -> None:
    """Set ``mixed`` [1, W] to the sum over the features of bin ``b`` of ``rows``, from row ``first`` on."""
    begin = features.start[b]
    row_set(mixed, 0, features.value[begin], rows, first + features.feature[begin])  # every bin has a feature
    for a in range(begin + 1, features.start[b + 1]):
        row_add(mixed, 0, features.value[a], rows, first + features.feature[a])


@inlined
def _spread(features: Any, b: Any, total: Any, rows: Any, first: Any) -> None:
    """Add ``total`` [1, W] to the ``rows`` of the features of bin ``b``, from row ``first`` on."""
    for a in range(features.start[b], features.start[b + 1]):
        row_add(rows, first + features.feature[a], features.value[a], total, 0)


@inlined
def _ask_for(features: Any, b: Any, rows: Any, first: Any) -> None:
    for a in range(features.start[b], features.start[b + 1]):
        row_prefetch(rows, first + features.feature[a])


@inlined
def _features_each(cells: Any, theta: Any, beta: Any) -> Any:
    """Return I and J."""
    n_users, n_items = cells.user_start.shape[0] - 1, cells.item_start.shape[0] - 1
    return theta.shape[0] // max(n_users, 1), beta.shape[0] // max(n_items, 1)


@inlined
def _add_mixed(features: Any, b: Any, share: Any, rows: Any, first: Any, fresh: Any, total: Any) -> None:
    """Add to ``total`` [1, W] ``share`` times what `_mix` would give; it is set instead where it is ``fresh``."""
    begin = features.start[b]
    factor, row = share * features.value[begin], first + features.feature[begin]
    if fresh:
        row_set(total, 0, factor, rows, row)
    else:
        row_add(total, 0, factor, rows, row)
    for a in range(begin + 1, features.start[b + 1]):
        row_add(total, 0, share * features.value[a], rows, first + features.feature[a])


@lean
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
    mine: Any,
    weighted: Any,
) -> Any:
    n_user, n_item = _features_each(cells, theta, beta)
    n_cells = cells.item.shape[0]
    logs, product = 0.0, 1.0
    for u in range(first, last):
        excited, rows = 0.0, u * n_user
        counts[rows : rows + n_user] = 0
        b = np.int64(-1)
        for c in range(cells.user_start[u], cells.user_start[u + 1]):
            after = min(c + _AHEAD, n_cells - 1)
            _ask_for(of_items, np.int64(cells.bin[after]), beta, cells.item[after] * n_item)
            fresh = cells.bin[c] != b
            if fresh:
                if b >= 0:
                    _spread(of_users, b, weighted, counts, rows)
                b = np.int64(cells.bin[c])
                _mix(of_users, b, theta, rows, mine)
            base, row = theta.dtype.type(0), cells.item[c] * n_item
            for a in range(of_items.start[b], of_items.start[b + 1]):
                base += of_items.value[a] * row_dot(mine, 0, beta, row + of_items.feature[a])
            begin, end = cells.event_start[c], cells.event_start[c + 1]
            share, (logs, product, excited) = events_alike(
                u, begin, end, base, own, triggers, (logs, product, excited)
            )
            cells.share[c] = share
            _add_mixed(of_items, b, share, beta, row, fresh, weighted)
        if b >= 0:
            _spread(of_users, b, weighted, counts, rows)
        for r in range(rows, rows + n_user):
            row_times(counts, r, theta)
        if own[0].shape[0] > 0:
            own[2][u] = excited
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
    own: Any,
    triggers: Any,
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
        own: As in `poisson_loops.user_pass`, with values in the order of cells.
        triggers: As there, with rows in that order.
    """
    n = chunks.shape[0] - 1
    logs = np.empty(n)
    for c in prange(n):
        mixed, total = np.empty((1, theta.shape[1]), theta.dtype), np.empty((1, theta.shape[1]), theta.dtype)
        logs[c] = _users(
            chunks[c], chunks[c + 1], cells, of_users, of_items, theta, beta, counts, own, triggers, mixed, total
        )
    return in_order_sum(logs)


@lean
def _items(
    first: Any, last: Any, cells: Any, of_users: Any, of_items: Any, theta: Any, beta: Any, counts: Any, part: Any
) -> None:
    n_user, n_item = _features_each(cells, theta, beta)
    n_cells = cells.item_user.shape[0]
    for p in range(first, last):
        rows = p * n_item
        counts[rows : rows + n_item] = 0
        b, waiting = np.int64(-1), 0
        for c in range(cells.item_start[p], cells.item_start[p + 1]):
            after, later = min(c + _AHEAD, n_cells - 1), min(c + 2 * _AHEAD, n_cells - 1)
            _ask_for(of_users, np.int64(cells.item_bin[after]), theta, cells.item_user[after] * n_user)
            prefetch(cells.share, cells.by_item[later])
            fresh = cells.item_bin[c] != b or waiting == BLOCK
            if fresh:
                if b >= 0:
                    _spread(of_items, b, part, counts, rows)
                b, waiting = np.int64(cells.item_bin[c]), 0
            share = cells.share[cells.by_item[c]]
            _add_mixed(of_users, b, share, theta, cells.item_user[c] * n_user, fresh, part)
            waiting += 1
        if b >= 0:
            _spread(of_items, b, part, counts, rows)
        for r in range(rows, rows + n_item):
            row_times(counts, r, beta)


@parallel
def item_pass(chunks: Any, cells: Any, of_users: Any, of_items: Any, theta: Any, beta: Any, counts: Any) -> None:
    """Write items' ``counts`` [P J, W] of a pass, after `user_pass` has written cells' shares."""
    for c in prange(chunks.shape[0] - 1):
        part = np.empty((1, theta.shape[1]), theta.dtype)
        _items(chunks[c], chunks[c + 1], cells, of_users, of_items, theta, beta, counts, part)


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
    sums = np.empty(n)
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
    return in_order_sum(sums)


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
