"""Compiled loops that put events in order and sum what earlier ones excite. Importing this module needs numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from sandtable_kernels.compiled.memory_loops import serial

# of the kernel's height: what is left of an excitation counts as nothing below; the smallest of float32 are slow
_FORGOTTEN = 1e-12


@serial
def stable_order(keys: Any, n_keys: Any, before: Any) -> Any:
    """Return ``before`` (places int64 [n]) sorted by ``keys[place]`` in 0 .. n_keys - 1, equal keys as they were."""
    start = np.zeros(n_keys + 1, np.int64)
    for key in keys:
        start[key + 1] += 1
    for i in range(n_keys):
        start[i + 1] += start[i]
    after = np.empty_like(before)
    for place in before:
        key = keys[place]
        after[start[key]] = place
        start[key] += 1
    return after


@serial
def pair_bounds(user: Any, item: Any, order: Any) -> Any:
    """Return where pairs begin among sorted events: int64 [n_pairs + 1]."""
    n = order.shape[0]
    n_pairs = 0
    last_user, last_item = np.int64(-1), np.int64(-1)
    starts = np.empty(n + 1, np.int64)
    for i in range(n):
        place = order[i]
        if user[place] != last_user or item[place] != last_item:
            last_user, last_item = user[place], item[place]
            starts[n_pairs] = i
            n_pairs += 1
    starts[n_pairs] = n
    return starts[: n_pairs + 1].copy()


@serial
def first_two(user: Any, time: Any, n_users: Any) -> Any:
    """Return the two earliest times of each user, float64 [n_users, 2]; infinite where there are fewer."""
    first = np.full((n_users, 2), np.inf)
    for i in range(user.shape[0]):
        u, t = user[i], time[i]
        if t < first[u, 0]:
            first[u, 1] = first[u, 0]
            first[u, 0] = t
        elif t < first[u, 1]:
            first[u, 1] = t
    return first


@serial
def own_excitation(event_start: Any, time: Any, decay: Any, itself: Any, out: Any) -> None:
    """Write to ``out`` [N] the sum of ``decay exp(-decay (t - s))`` over strictly earlier events s of the same pair.

    With ``itself`` it is over all events of the pair up to each: what a later one finds.
    """
    for pair in range(event_start.shape[0] - 1):
        level, waiting = 0.0, 0.0  # of earlier events, and of those at this very time
        before = time[event_start[pair]]
        for n in range(event_start[pair], event_start[pair + 1]):
            t = time[n]
            if t > before:
                level = (level + waiting) * np.exp(-decay * (t - before))
                waiting, before = 0.0, t
            waiting += decay
            left = level + waiting if itself else level
            out[n] = left if left > _FORGOTTEN * decay else 0.0


@serial
def released(group_start: Any, time: Any, decay: Any, end: Any, out: Any) -> None:
    """Write to ``out`` the sum of ``1 - exp(-decay (end - t))`` over the events of each group."""
    for group in range(group_start.shape[0] - 1):
        total = 0.0
        for n in range(group_start[group], group_start[group + 1]):
            if time[n] < end:
                total += 1.0 - np.exp(-decay * (end - time[n]))
        out[group] = total
