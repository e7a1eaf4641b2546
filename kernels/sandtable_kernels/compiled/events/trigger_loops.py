"""Compiled loops that find what events of followed users excite. Importing this module needs numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from sandtable_kernels.compiled.memory_loops import parallel, serial

# a list this many times longer than another is searched rather than walked
_MUCH_LONGER = 16
# decay times hours after which nothing is left in float64
_FORGOTTEN = 40.0


@serial
def _excited(
    begin: Any, end: Any, source: Any, source_end: Any, time: Any, decay: Any, least: Any, fill: Any
) -> None:
    """Walk over events begin .. end of one user and source .. source_end of another, both with the same item.

    ``fill`` is (edge, cursor, edges, values): with values of length 0, events are only counted at the cursor.
    """
    edge, cursor, edges, values = fill
    level, before = 0.0, time[source]
    m = source
    for n in range(begin, end):
        t = time[n]
        while m < source_end and time[m] < t:
            level = level * np.exp(-decay * (time[m] - before)) + decay
            before = time[m]
            m += 1
        value = level * np.exp(-decay * (t - before)) if m > source else 0.0
        if value >= least:
            if values.shape[0]:
                edges[cursor[n]] = edge
                values[cursor[n]] = value
            cursor[n] += 1


@serial
def lower_bound(values: Any, low: Any, high: Any, wanted: Any) -> Any:
    """Return the first place in [low, high) of ascending ``values`` that is not below ``wanted``, or ``high``."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@serial
def _user(u: Any, pairs: Any, time: Any, edge_start: Any, edge_source: Any, law: Any, out: Any) -> None:
    user_start, item, event_start = pairs
    decay, least = law
    cursor, edges, values = out
    first, last = user_start[u], user_start[u + 1]
    for edge in range(edge_start[u], edge_start[u + 1]):
        v = edge_source[edge]
        a, b, b_last = first, user_start[v], user_start[v + 1]
        while a < last and b < b_last:
            if item[a] < item[b]:
                a = lower_bound(item, a, last, item[b]) if last - a > _MUCH_LONGER * (b_last - b) else a + 1
            elif item[b] < item[a]:
                b = lower_bound(item, b, b_last, item[a]) if b_last - b > _MUCH_LONGER * (last - a) else b + 1
            else:
                fill = (edge, cursor, edges, values)
                _excited(
                    event_start[a], event_start[a + 1], event_start[b], event_start[b + 1], time, decay, least, fill
                )
                a += 1
                b += 1


@parallel
def triggers(chunks: Any, pairs: Any, time: Any, edge_start: Any, edge_source: Any, law: Any, out: Any) -> None:
    """Count, or write, what excites each event over each edge to its user.

    Args:
        chunks: int64 [C + 1], boundaries of users.
        pairs: ``user_start``, ``item`` and ``event_start`` of `EventPairs`.
        time: [N], of events in the order of pairs.
        edge_start: int64 [U + 1], where the edges to a user begin.
        edge_source: [E], whose events excite.
        law: Decay, and the least value that is kept.
        out: Cursors int64 [N], which are moved by what is found; edges and values where it is written, or two of
            length 0 to count only.
    """
    for c in prange(chunks.shape[0] - 1):
        for u in range(chunks[c], chunks[c + 1]):
            _user(u, pairs, time, edge_start, edge_source, law, out)


@parallel
def carried(chunks: Any, user_events: Any, time: Any, edges: Any, law: Any, out: Any) -> None:
    """Write for each edge the sum over its source's events at t of ``exp(-decay (start - t))``, 1 from the start on.

    Args:
        chunks: int64 [C + 1], boundaries of users.
        user_events: int64 [U + 1], where the events of a user begin.
        time: [N], of events in the order of pairs.
        edges: ``edge_start`` [U + 1] and ``edge_source`` [E].
        law: Decay, and float64 [U], when observation of the destination starts.
        out: float64 [E].
    """
    edge_start, edge_source = edges
    decay, start = law
    for c in prange(chunks.shape[0] - 1):
        for u in range(chunks[c], chunks[c + 1]):
            for edge in range(edge_start[u], edge_start[u + 1]):
                v, total = edge_source[edge], 0.0
                for n in range(user_events[v], user_events[v + 1]):
                    late = decay * (start[u] - time[n])
                    if late <= 0.0:
                        total += 1.0
                    elif late < _FORGOTTEN:
                        total += np.exp(-late)
                out[edge] = total
