"""Compiled passes over events of which other items' events are a cause. Importing this module needs numba.

Events of a user are taken in order of time. Forward, a state holds what all earlier events excite, K numbers for
factors (or one per cluster of items); backward, another holds what all later events owe to earlier ones. What an item
would give to itself is a number per event, taken off where the sums are used. So an event costs K work, not K work
per earlier event, and nothing is as large as items times items.

Excitation of other items is a sum of ``exp(-decay (t - s))`` here; the factor ``decay`` of the kernel is in
`Guess.phi`. Events at the same time do not excite one another. Rows of factors are padded, as `row_vectors` wants them.
Chunks of users, and of items, do not depend on threads, so neither do results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from sandtable_kernels.compiled.events.intensity_loops import (
    BLOCK,
    credit_others,
    excited_by_others,
    in_order_sum,
    log_product,
    move_sum,
    row_times,
    triggers_of,
)
from sandtable_kernels.compiled.events.row_vectors import row_add, row_blend, row_dot, row_prefetch
from sandtable_kernels.compiled.memory_loops import inlined, lean, parallel, serial

# intensity of an event that no cause explains in the element type; its logarithm stays finite
_LEAST = 1e-30
# what is left of an excitation counts as nothing below this: numbers near the end of float32's range are slow
_FORGOTTEN = 1e-12
# events, or pairs, between asking for a row and reading it
_AHEAD = 12


class Timeline(NamedTuple):
    """Events of U users in order of time, equal times in order of items.

    Attributes:
        user_start: [U + 1], where a user's pairs begin.
        user_events: [U + 1], where its events begin.
        item: [n_pairs], the item of a pair.
        pair: [N], the pair of an event.
        place: [N], where it stands among the events by pair.
        fade: [N], ``exp(-decay dt)`` since the event before; 0 for a user's first, -1 where the time is the same.
        own: [N], the sum of ``exp(-decay (t - s))`` over earlier events of the same pair.
        returns: [N], what these excite in their own item, the factor of its kernel included.
    """

    user_start: Any
    user_events: Any
    item: Any
    pair: Any
    place: Any
    fade: Any
    own: Any
    returns: Any


class Guess(NamedTuple):
    """Geometric means under q, all in one element type.

    Attributes:
        theta: [U, W].
        beta: [P, W].
        phi: [U], times the decay of what items excite in others.
        tau: [U + E], of users to themselves, then of edges.
        squares: [P], beta . beta.
    """

    theta: Any
    beta: Any
    phi: Any
    tau: Any
    squares: Any


class Counts(NamedTuple):
    """Expected numbers of events by cause.

    Attributes:
        theta: [U, W].
        phi: [U], events that other items caused.
        tau: [U + E], events that the same item caused, of users themselves and over edges; of edges zeros before.
        inverse: [N], one over the intensity at an event, in order of time.
    """

    theta: Any
    phi: Any
    tau: Any
    inverse: Any


# --- in order of time --------------------------------------------------------------------------------------


@parallel
def in_order(user_start: Any, event_start: Any, time: Any, decay: Any, pair: Any, place: Any, fade: Any) -> None:
    """Write `Timeline.pair`, `place` and `fade` of events by pair."""
    for user in prange(user_start.shape[0] - 1):
        first, last = event_start[user_start[user]], event_start[user_start[user + 1]]
        pairs = np.empty(last - first, np.int32)
        for j in range(user_start[user], user_start[user + 1]):
            pairs[event_start[j] - first : event_start[j + 1] - first] = j
        order = np.argsort(time[first:last], kind="mergesort")
        for i in range(order.shape[0]):
            n = first + i
            pair[n], place[n] = pairs[order[i]], first + order[i]
            if i == 0:
                fade[n] = 0
            else:
                gap = time[place[n]] - time[place[n - 1]]
                left = np.exp(-decay * gap)
                fade[n] = -1 if gap <= 0 else left if left > _FORGOTTEN else 0


# --- what both passes need ---------------------------------------------------------------------------------


@serial
def _most_pairs(user_start: Any, first: Any, last: Any) -> Any:
    most = 0
    for user in range(first, last):
        most = max(most, user_start[user + 1] - user_start[user])
    return most


@lean
def _base(user: Any, line: Timeline, guess: Guess, base: Any) -> None:
    """Set ``base`` [3, pairs] to the base intensity of each pair, and the rest to zero."""
    first, last = line.user_start[user], line.user_start[user + 1]
    for pair in range(first, last):
        row_prefetch(guess.beta, line.item[min(pair + _AHEAD, line.item.shape[0] - 1)])
        base[0, pair - first] = row_dot(guess.theta, user, guess.beta, line.item[pair])
        base[1, pair - first] = 0
        base[2, pair - first] = 0


@inlined
def _event(
    n: Any, base: Any, cross: Any, of_user: Any, line: Timeline, links: Any, tau: Any, counts: Counts, sums: Any
) -> Any:
    """Return one over the intensity of an event, and ``sums`` with it; set `Counts.inverse`, credit followed users.

    ``cross`` is what other items excite for a phi of one; ``of_user`` are its phi and tau, ``tau`` those of all.
    ``sums`` are logs, their product, and what others and the same item excited of the user's events.
    """
    logs, product, crossed, returned = sums
    back, place = of_user[1] * line.returns[n], triggers_of(links, line.place[n])
    total = excited_by_others(links, place, tau, base + of_user[0] * cross + back)
    total = max(total, tau.dtype.type(_LEAST))
    inverse = tau.dtype.type(1) / total
    counts.inverse[n] = inverse
    credit_others(links, place, tau, inverse, counts.tau)
    logs, product = log_product(logs, product * total)
    return inverse, (logs, product, crossed + cross * inverse, returned + back * inverse)


@inlined
def _settle(user: Any, phi: Any, sums: Any, counts: Counts) -> Any:
    """Write what others and the same item excited of a user's events; return the sum of their log intensities."""
    logs, product, crossed, returned = sums
    counts.phi[user], counts.tau[user] = phi * crossed, returned
    return logs + np.log(product)


# --- factors: an event of q excites p by beta_q . beta_p ----------------------------------------------------


@lean
def _factor_forward(
    user: Any, line: Timeline, links: Any, guess: Guess, pairs: Any, state: Any, rows: Any, counts: Counts
) -> Any:
    """Return the sum of log intensities of a user's events.

    ``pairs`` [3, pairs] has base intensities and receives sums of inverse intensities, and of these times own
    excitation; ``rows`` [n_pairs, W] those times phi and what earlier events excite.
    """
    first, last, low = line.user_events[user], line.user_events[user + 1], line.user_start[user]
    phi, tau, beta = guess.phi[user], guess.tau[user], guess.beta
    one, zero = beta.dtype.type(1), beta.dtype.type(0)
    sums = 0.0, 1.0, 0.0, 0.0
    several = line.user_start[user + 1] - low > 1
    state[:] = 0
    waiting = first
    for n in range(first, last):
        pair, fade = line.pair[n], line.fade[n]
        item = line.item[pair]
        cross = zero
        if several:
            if n > first and fade >= 0:
                for m in range(waiting, n - 1):
                    row_add(state, 0, one, beta, line.item[line.pair[m]])
                row_blend(state, 0, fade, fade, beta, line.item[line.pair[n - 1]])
                waiting = n
            cross = max(row_dot(state, 0, beta, item) - line.own[n] * guess.squares[item], zero)
        base = pairs[0, pair - low]
        inverse, sums = _event(n, base, cross, (phi, tau), line, links, guess.tau, counts, sums)
        pairs[1, pair - low] += inverse
        if several:
            pairs[2, pair - low] += line.own[n] * inverse
            row_add(rows, pair, phi * inverse, state, 0)
    return _settle(user, phi, sums, counts)


@lean
def _factor_backward(user: Any, line: Timeline, guess: Guess, state: Any, rows: Any, counts: Counts) -> None:
    """Add to ``rows`` [n_pairs, W] phi times what later events of a user owe to each of its events."""
    first, last = line.user_events[user], line.user_events[user + 1]
    phi, beta, inverse = guess.phi[user], guess.beta, counts.inverse
    one = beta.dtype.type(1)
    state[:] = 0
    waiting = last
    for n in range(last - 2, first - 1, -1):
        fade = line.fade[n + 1]
        if fade >= 0:
            for m in range(n + 2, waiting):
                row_add(state, 0, phi * inverse[m], beta, line.item[line.pair[m]])
            row_blend(state, 0, fade, fade * phi * inverse[n + 1], beta, line.item[line.pair[n + 1]])
            waiting = n + 1
        row_add(rows, line.pair[n], one, state, 0)


@lean
def _factor_finish(user: Any, line: Timeline, guess: Guess, pairs: Any, rows: Any, counts: Counts) -> None:
    """Set the counts of a user's factors, and take off ``rows`` what an item would give to itself."""
    low = line.user_start[user]
    counts.theta[user] = 0
    for j in range(line.user_start[user + 1] - low):
        item, inverse = line.item[low + j], pairs[1, j]
        row_add(counts.theta, user, inverse, guess.beta, item)
        row_add(rows, low + j, inverse, guess.theta, user)
        row_add(rows, low + j, -2 * guess.phi[user] * pairs[2, j], guess.beta, item)
    row_times(counts.theta, user, guess.theta)


@serial
def _factor_chunk(
    first: Any, last: Any, line: Timeline, links: Any, guess: Guess, rows: Any, counts: Counts
) -> Any:
    pairs = np.empty((3, _most_pairs(line.user_start, first, last)), guess.theta.dtype)
    state = np.empty((1, guess.theta.shape[1]), guess.theta.dtype)
    logs = 0.0
    for user in range(first, last):
        low, high = line.user_start[user], line.user_start[user + 1]
        rows[low:high] = 0
        _base(user, line, guess, pairs)
        logs += _factor_forward(user, line, links, guess, pairs, state, rows, counts)
        if high - low > 1:
            _factor_backward(user, line, guess, state, rows, counts)
        _factor_finish(user, line, guess, pairs, rows, counts)
    return logs


@parallel
def factor_pass(chunks: Any, line: Timeline, links: Any, guess: Guess, rows: Any, counts: Counts) -> Any:
    """Return the sum of log intensities; set ``counts``, and ``rows`` [n_pairs, W].

    ``rows`` times beta are expected counts of an item's factors, by pair: an event of p counts for p where the base or
    other items caused it, and for q where an event of q did.

    Args:
        chunks: int64 [C + 1], boundaries of users.
        line: Events.
        links: What followed users excite: ``start``, ``edge`` (numbered from U) and ``value`` of the events by pair;
            ``start`` [1] where there is nothing.
        guess: Geometric means.
        rows: Set.
        counts: Set.
    """
    n = chunks.shape[0] - 1
    logs = np.empty(n)
    for c in prange(n):
        logs[c] = _factor_chunk(chunks[c], chunks[c + 1], line, links, guess, rows, counts)
    return in_order_sum(logs)


@lean
def _item_rows(item: Any, item_start: Any, by_item: Any, rows: Any, part: Any, whole: Any) -> None:
    one = rows.dtype.type(1)
    whole[:] = 0.0
    for block in range(item_start[item], item_start[item + 1], BLOCK):
        for i in range(block, min(block + BLOCK, item_start[item + 1])):
            row_prefetch(rows, by_item[min(i + _AHEAD, by_item.shape[0] - 1)])
            row_add(part, 0, one, rows, by_item[i])
        move_sum(part, whole)


@parallel
def sum_rows(chunks: Any, item_start: Any, by_item: Any, rows: Any, beta: Any, counts: Any) -> None:
    """Set ``counts`` [P, W] to beta times the sum of ``rows`` [n_pairs, W] over the pairs of each item."""
    for c in prange(chunks.shape[0] - 1):
        part, whole = np.zeros((1, rows.shape[1]), rows.dtype), np.empty(rows.shape[1])
        for item in range(chunks[c], chunks[c + 1]):
            _item_rows(item, item_start, by_item, rows, part, whole)
            for k in range(whole.shape[0]):
                counts[item, k] = max(whole[k], 0.0) * beta[item, k]


@serial
def item_rates(shape: Any, base: Any, prior: Any, weight: Any, mean: Any, rate: Any) -> None:
    """Set ``rate`` [P, K] of items' factors beyond the prior's, one item after another.

    An item's rate depends on the means of all others, so that these must be the newest for the bound to rise. Sums
    over items are kept up to date, K work an item.

    Args:
        shape: [P, K], of q.
        base: [K], exposure times means of the users' factors.
        prior: [P], expected rates of the priors.
        weight: [P], excitation that events of an item give off, times the phi of their users.
        mean: [P, K], of q; set to the new ones.
        rate: [P, K], set.
    """
    n_items, n_state = shape.shape
    everything, weighted = np.zeros(n_state), np.zeros(n_state)
    for item in range(n_items):
        for k in range(n_state):
            everything[k] += mean[item, k]
            weighted[k] += weight[item] * mean[item, k]
    for item in range(n_items):
        w, own_prior = weight[item], prior[item]
        means, rates, shapes = mean[item], rate[item], shape[item]
        for k in range(n_state):
            others = everything[k] - means[k]
            from_others = weighted[k] - w * means[k]
            rates[k] = base[k] + w * max(others, 0.0) + max(from_others, 0.0)
            new = shapes[k] / (rates[k] + own_prior)
            everything[k] = others + new
            weighted[k] = from_others + w * new
            means[k] = new


# --- clusters: an event of q excites p by pi of their clusters ----------------------------------------------


class Clusters(NamedTuple):
    """What items of clusters excite in one another.

    Attributes:
        of_item: [P], the cluster of each item.
        reach: [C, W], geometric mean of pi times distance, ``reach[to, from]``, padded.
    """

    of_item: Any
    reach: Any


@inlined
def _fade(state: Any, fade: Any) -> None:
    """Multiply ``state`` [1, W] by ``fade``; a cluster that is met no more would go on through the slowest numbers."""
    nothing, least = state.dtype.type(0), state.dtype.type(_FORGOTTEN)
    for c in range(state.shape[1]):
        left = state[0, c] * fade
        state[0, c] = left if left > least else nothing


@lean
def _cluster_user(
    user: Any, line: Timeline, links: Any, guess: Guess, clusters: Clusters, pairs: Any, state: Any, from_to: Any,
    counts: Counts,
) -> Any:  # fmt: skip
    """Return the sum of log intensities of a user's events; ``pairs`` and ``from_to`` [C, W] receive sums."""
    first, last, low = line.user_events[user], line.user_events[user + 1], line.user_start[user]
    phi, tau, reach = guess.phi[user], guess.tau[user], clusters.reach
    one, zero = reach.dtype.type(1), reach.dtype.type(0)
    sums = 0.0, 1.0, 0.0, 0.0
    state[:] = 0
    waiting = first
    for n in range(first, last):
        pair, fade = line.pair[n], line.fade[n]
        if fade >= 0:
            for m in range(waiting, n):
                state[0, clusters.of_item[line.item[line.pair[m]]]] += one
            _fade(state, fade)
            waiting = n
        to = clusters.of_item[line.item[pair]]
        mine = state[0, to]
        state[0, to] = max(mine - line.own[n], zero)  # without what the item would give to itself
        cross = row_dot(state, 0, reach, to)
        base = pairs[0, pair - low]
        inverse, sums = _event(n, base, cross, (phi, tau), line, links, guess.tau, counts, sums)
        pairs[1, pair - low] += inverse
        row_add(from_to, to, phi * inverse, state, 0)
        state[0, to] = mine
    return _settle(user, phi, sums, counts)


@lean
def _cluster_finish(user: Any, line: Timeline, guess: Guess, pairs: Any, inverses: Any, counts: Counts) -> None:
    """Set the counts of a user's factors, and keep sums of inverse intensities for the items'."""
    low = line.user_start[user]
    counts.theta[user] = 0
    for j in range(line.user_start[user + 1] - low):
        inverses[low + j] = pairs[1, j]
        row_add(counts.theta, user, pairs[1, j], guess.beta, line.item[low + j])
    row_times(counts.theta, user, guess.theta)


@serial
def _cluster_chunk(
    first: Any, last: Any, line: Timeline, links: Any, guess: Guess, clusters: Clusters, inverses: Any, from_to: Any,
    counts: Counts,
) -> Any:  # fmt: skip
    reach = clusters.reach
    pairs = np.empty((3, _most_pairs(line.user_start, first, last)), reach.dtype)
    state, part = np.empty((1, reach.shape[1]), reach.dtype), np.zeros_like(reach)
    from_to[:] = 0
    logs, summed = 0.0, 0
    for user in range(first, last):
        _base(user, line, guess, pairs)
        logs += _cluster_user(user, line, links, guess, clusters, pairs, state, part, counts)
        _cluster_finish(user, line, guess, pairs, inverses, counts)
        summed += line.user_events[user + 1] - line.user_events[user]
        if summed > BLOCK or user == last - 1:
            for to in range(from_to.shape[0]):
                for c in range(from_to.shape[1]):
                    from_to[to, c] += part[to, c]
            part[:] = 0
            summed = 0
    return logs


@parallel
def cluster_pass(
    chunks: Any, line: Timeline, links: Any, guess: Guess, clusters: Clusters, inverses: Any, from_to: Any,
    counts: Counts,
) -> Any:  # fmt: skip
    """Return the sum of log intensities; set ``counts``, and sums by pair and by clusters.

    Args:
        chunks: int64 [n_chunks + 1], boundaries of users.
        line: Events.
        links: As in `factor_pass`.
        guess: Geometric means.
        clusters: What excites.
        inverses: [n_pairs], set to sums of one over the intensity.
        from_to: [n_chunks, C, C] float64 (to, from), set; times `Clusters.reach` it is the number of events by cause.
        counts: Set.
    """
    n = chunks.shape[0] - 1
    logs = np.empty(n)
    for c in prange(n):
        logs[c] = _cluster_chunk(
            chunks[c], chunks[c + 1], line, links, guess, clusters, inverses, from_to[c], counts
        )
    return in_order_sum(logs)


# --- what pairs give off ------------------------------------------------------------------------------------


@parallel
def by_user(user_start: Any, item: Any, released: Any, value: Any, out: Any) -> None:
    """Set ``out`` [U] to the sum over a user's pairs of ``released`` [n_pairs] times ``value`` [P] of the item."""
    for user in prange(out.shape[0]):
        total = 0.0
        for pair in range(user_start[user], user_start[user + 1]):
            total += released[pair] * value[item[pair]]
        out[user] = total


@parallel
def by_item(item_start: Any, order: Any, item_user: Any, released: Any, value: Any, out: Any) -> None:
    """Set ``out`` [P] to the sum over an item's pairs of ``released`` [n_pairs] times ``value`` [U] of the user."""
    for item in prange(out.shape[0]):
        total = 0.0
        for i in range(item_start[item], item_start[item + 1]):
            total += released[order[i]] * value[item_user[i]]
        out[item] = total
