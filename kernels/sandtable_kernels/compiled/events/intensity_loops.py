"""What passes over events share: intensities summed by cause, logs by products, sums in order. Importing needs numba.

All of it is inlined: a call for each event would cost as much as the event.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sandtable_kernels.compiled.memory_loops import inlined, serial

# rows, or events, that are summed in the element type before the sum goes to float64
BLOCK = 512
# events from which on, all alike, one log is sooner there than their product
_ALIKE = 8
# a product of intensities whose log is taken before it leaves float64
_MOST, _LEAST = 1e200, 1e-200


@inlined
def log_product(logs: Any, product: Any) -> Any:
    """Return ``logs`` and ``product``, whose log stands for a sum of logs; near the end of float64 it is taken."""
    if product > _MOST or product < _LEAST:
        logs += np.log(product)
        product = 1.0
    return logs, product


@inlined
def triggers_of(triggers: Any, n: Any) -> Any:
    """Return where those of event ``n`` begin and end.

    ``triggers`` are ``start``, ``edge`` (numbered from U) and ``value`` of `EventTriggers`; ``start`` [1] where there
    are none.
    """
    if triggers[0].shape[0] > 1:
        return triggers[0][n], triggers[0][n + 1]
    return 0, 0


@inlined
def excited_by_others(triggers: Any, place: Any, tau: Any, total: Any) -> Any:
    """Return ``total`` and what the triggers at ``place`` excite, of geometric means ``tau`` [U + E]."""
    for i in range(place[0], place[1]):
        total += tau[triggers[1][i]] * triggers[2][i]
    return total


@inlined
def credit_others(triggers: Any, place: Any, tau: Any, inverse: Any, excited: Any) -> None:
    """Add to ``excited`` [U + E] the share of each edge in an event whose intensity is one over ``inverse``."""
    for i in range(place[0], place[1]):
        edge = triggers[1][i]
        excited[edge] += tau[edge] * triggers[2][i] * inverse


@inlined
def events_alike(u: Any, first: Any, end: Any, base: Any, own: Any, triggers: Any, sums: Any) -> Any:
    """Return the sum of one over the intensity over events of a user that share their base intensity, and ``sums``.

    Args:
        u: The user.
        first: Its first event, to that before ``end``.
        end: See there.
        base: Their base intensity, of the element type.
        own: Values [N] by a user's own earlier events, geometric means [U + E] of users' own and then edges'
            excitation, and float64 [U + E], which receives the events excited; three of length 0 without excitation.
        triggers: As in `triggers_of`.
        sums: Logs, their product as in `log_product`, and the user's events that its own earlier ones excited.
    """
    logs, product, by_own = sums
    as_given = own[1].dtype.type
    share = as_given(0)
    if own[0].shape[0] == 0:
        share = as_given(end - first) / base
        if end - first > _ALIKE:
            logs += (end - first) * np.log(base)
        else:
            for _ in range(first, end):
                logs, product = log_product(logs, product * base)
    else:
        one = as_given(1)
        for n in range(first, end):
            place = triggers_of(triggers, n)
            mine = own[1][u] * own[0][n]
            total = excited_by_others(triggers, place, own[1], base + mine)
            inverse = one / total
            share += inverse
            by_own += mine * inverse
            credit_others(triggers, place, own[1], inverse, own[2])
            logs, product = log_product(logs, product * total)
    return share, (logs, product, by_own)


@inlined
def row_times(target: Any, row: Any, source: Any) -> None:
    """Multiply a row of ``target`` by that of ``source``."""
    for k in range(target.shape[1]):
        target[row, k] *= source[row, k]


@inlined
def move_sum(part: Any, whole: Any) -> None:
    """Add ``part`` [1, W], of the element type, to ``whole`` float64 [W]; then empty it."""
    for k in range(whole.shape[0]):
        whole[k] += part[0, k]
    part[:] = 0


@serial
def in_order_sum(parts: Any) -> Any:
    """Return the sum of ``parts``: in a parallel function, their own ``sum`` would depend on the threads."""
    total = 0.0
    for part in parts:
        total += part
    return total


@serial
def in_order_rows(parts: Any) -> Any:
    """Return the sum of rows of ``parts`` [n, W], one after the other.

    Apart from parallel loops, where each addition of two rows would be a parallel loop of its own.
    """
    total = np.zeros(parts.shape[1])
    for part in range(parts.shape[0]):
        for k in range(total.shape[0]):
            total[k] += parts[part, k]
    return total
