"""Compiled passes over events of which other items' events are a cause. Importing this module needs numba.

Events of a user are taken in order of time. Forward, a state holds what all earlier events excite, K numbers for
factors (or one per cluster of items); backward, another holds what all later events owe to earlier ones. What an item
would give to itself is a number per event, taken off where the sums are used. So an event costs K work, not K work
per earlier event, and nothing is as large as items times items.

Excitations here are sums of ``exp(-decay (t - s))``; the factor ``decay`` of the kernel is in `Guess.phi` and
`Guess.tau`. Events at the same time do not excite one another. Sums over users are taken chunk by chunk, in order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from sandtable_kernels.compiled.memory_loops import parallel, serial

# total of an event that no cause explains in the element type; its logarithm stays finite
LEAST = 1e-30
# a product of totals is replaced by its logarithm before it could leave the range of float64
SMALL, LARGE = 1e-200, 1e200


class Timeline(NamedTuple):
    """Events of U users in order of time, equal times in order of items.

    Attributes:
        user_start: [U + 1], where a user's pairs begin.
        user_events: [U + 1], where its events begin.
        item: [n_pairs], the item of a pair.
        pair: [N], the pair of an event.
        place: [N], where it stands among the events by pair.
        fade: [N], ``exp(-decay dt)`` since the event before; 0 for a user's first, -1 where the time is the same.
        own: [N], excitation by earlier events of the same pair, with the decay of `fade`.
        returns: [N], the same with the decay of what an item excites in itself.
    """

    user_start: Any
    user_events: Any
    item: Any
    pair: Any
    place: Any
    fade: Any
    own: Any
    returns: Any


class Links(NamedTuple):
    """What followed users excite: for the events by pair, edges and excitations; one boundary only where none is."""

    start: Any
    edge: Any
    value: Any


class Guess(NamedTuple):
    """Geometric means under q, all in one element type.

    Attributes:
        theta: [U, K].
        beta: [P, K].
        phi: [U], times the decay of items.
        tau: [U], of users to themselves, times the decay of returns.
        edges: [E], of users to their followers, times the same.
    """

    theta: Any
    beta: Any
    phi: Any
    tau: Any
    edges: Any


class Counts(NamedTuple):
    """Expected numbers of events by cause.

    Attributes:
        theta: [U, K].
        phi: [U], events that other items caused.
        own: [U], events that the same item caused.
        edges: [E].
        inverse: [N], one over the intensity at an event, in order of time.
    """

    theta: Any
    phi: Any
    own: Any
    edges: Any
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
                fade[n] = np.exp(-decay * gap) if gap > 0 else -1


# --- sums that several passes need -------------------------------------------------------------------------


@serial
def _dot(a: Any, b: Any) -> Any:
    total = a[0] * b[0]
    for k in range(1, a.shape[0]):
        total += a[k] * b[k]
    return total


@serial
def _most_pairs(user_start: Any, first: Any, last: Any) -> Any:
    most = 0
    for user in range(first, last):
        most = max(most, user_start[user + 1] - user_start[user])
    return most


@serial
def _of_links(links: Links, place: Any, guess: Guess) -> Any:
    """Return what followed users excite at an event."""
    total = guess.tau[0] * 0
    if links.start.shape[0] > 1:
        for i in range(links.start[place], links.start[place + 1]):
            total += guess.edges[links.edge[i]] * links.value[i]
    return total


@serial
def _credit_links(links: Links, place: Any, guess: Guess, inverse: Any, edges: Any) -> None:
    if links.start.shape[0] > 1:
        for i in range(links.start[place], links.start[place + 1]):
            edge = links.edge[i]
            edges[edge] += guess.edges[edge] * links.value[i] * inverse


@serial
def _base(user: Any, line: Timeline, guess: Guess, base: Any) -> None:
    """Set the row of ``base`` [3, pairs] to the base intensity of each pair, and the rest to zero."""
    first = line.user_start[user]
    for j in range(line.user_start[user + 1] - first):
        base[0, j] = _dot(guess.theta[user], guess.beta[line.item[first + j]])
        base[1, j] = 0
        base[2, j] = 0


# --- factors: an event of q excites p by beta_q . beta_p ----------------------------------------------------


@serial
def _forward(
    user: Any, line: Timeline, links: Links, guess: Guess, pairs: Any, state: Any, rows: Any, counts: Counts
) -> Any:
    """Intensities of a user's events; ``pairs`` [3, pairs] and ``rows`` [pairs, K] receive sums over inverses.

    ``pairs`` has the base intensity, the sum of inverses, and that of inverses times own excitation.
    """
    first, last, low = line.user_events[user], line.user_events[user + 1], line.user_start[user]
    phi, tau = guess.phi[user], guess.tau[user]
    n_state = state.shape[0]
    logs, product, crossed, returned = 0.0, 1.0, 0.0, 0.0
    state[:] = 0
    waiting = first
    for n in range(first, last):
        fade, pair = line.fade[n], line.pair[n]
        if fade >= 0:
            for m in range(waiting, n):
                earlier = guess.beta[line.item[line.pair[m]]]
                for k in range(n_state):
                    state[k] += earlier[k]
            for k in range(n_state):
                state[k] *= fade
            waiting = n
        beta = guess.beta[line.item[pair]]
        meets, square = state[0] * beta[0], beta[0] * beta[0]
        for k in range(1, n_state):
            meets += state[k] * beta[k]
            square += beta[k] * beta[k]
        cross = max(meets - line.own[n] * square, state[0] * 0)
        total = pairs[0, pair - low] + phi * cross + tau * line.returns[n] + _of_links(links, line.place[n], guess)
        total = max(total, LEAST)
        product *= total
        if product < SMALL or product > LARGE:
            logs += np.log(product)
            product = 1.0
        counts.inverse[n] = 1 / total
        inverse = counts.inverse[n]
        _credit_links(links, line.place[n], guess, inverse, counts.edges)
        crossed += cross * inverse
        pairs[1, pair - low] += inverse
        pairs[2, pair - low] += line.own[n] * inverse
        returned += line.returns[n] * inverse
        row = rows[pair]
        for k in range(n_state):
            row[k] += inverse * state[k]
    counts.phi[user], counts.own[user] = phi * crossed, tau * returned
    return logs + np.log(product)


@serial
def _backward(user: Any, line: Timeline, guess: Guess, state: Any, rows: Any, counts: Counts) -> None:
    """Add to ``rows`` [pairs, K] what later events of a user owe to each of its events."""
    first, last = line.user_events[user], line.user_events[user + 1]
    n_state = state.shape[0]
    state[:] = 0
    waiting = last
    for n in range(last - 1, first - 1, -1):
        if n + 1 < last and line.fade[n + 1] >= 0:
            for m in range(n + 1, waiting):
                later, inverse = guess.beta[line.item[line.pair[m]]], counts.inverse[m]
                for k in range(n_state):
                    state[k] += inverse * later[k]
            fade = line.fade[n + 1]
            for k in range(n_state):
                state[k] *= fade
            waiting = n + 1
        row = rows[line.pair[n]]
        for k in range(n_state):
            row[k] += state[k]


@serial
def _finish(user: Any, line: Timeline, guess: Guess, pairs: Any, rows: Any, counts: Counts) -> None:
    """Turn sums over inverses into counts of the user's factors, and ``rows`` into those of its items' factors."""
    theta, out, phi = guess.theta[user], counts.theta[user], guess.phi[user]
    low = line.user_start[user]
    out[:] = 0
    for j in range(line.user_start[user + 1] - low):
        beta, row = guess.beta[line.item[low + j]], rows[low + j]
        inverses, own = pairs[1, j], 2 * pairs[2, j]
        for k in range(beta.shape[0]):
            out[k] += beta[k] * inverses
            row[k] = beta[k] * (theta[k] * inverses + phi * max(row[k] - own * beta[k], row[k] * 0))
    for k in range(theta.shape[0]):
        out[k] *= theta[k]


@serial
def _factor_chunk(
    first: Any, last: Any, line: Timeline, links: Links, guess: Guess, rows: Any, counts: Counts
) -> Any:
    pairs = np.empty((3, _most_pairs(line.user_start, first, last)), guess.theta.dtype)
    state = np.empty(guess.theta.shape[1], guess.theta.dtype)
    rows[line.user_start[first] : line.user_start[last]] = 0
    logs = 0.0
    for user in range(first, last):
        _base(user, line, guess, pairs)
        logs += _forward(user, line, links, guess, pairs, state, rows, counts)
        if line.user_start[user + 1] - line.user_start[user] > 1:
            _backward(user, line, guess, state, rows, counts)
        _finish(user, line, guess, pairs, rows, counts)
    return logs


@parallel
def factor_pass(
    bounds: Any, line: Timeline, links: Links, guess: Guess, rows: Any, counts: Counts, logs: Any
) -> None:
    """Set ``counts``, and ``rows`` [n_pairs, K] to expected counts of the factors of an item, by pair.

    An event of p counts for p where the base or other items caused it, and for q where an event of q did. Users are
    taken in chunks ``bounds`` [n_chunks + 1]; ``logs`` [n_chunks] is set to sums of logarithms of the intensities.
    """
    for chunk in prange(bounds.shape[0] - 1):
        logs[chunk] = _factor_chunk(bounds[chunk], bounds[chunk + 1], line, links, guess, rows, counts)


@parallel
def sum_rows(bounds: Any, item_start: Any, by_item: Any, rows: Any, out: Any) -> None:
    """Set ``out`` [P, K] float64 to the sum of ``rows`` [n_pairs, K] over the pairs of each item."""
    for chunk in prange(bounds.shape[0] - 1):
        for item in range(bounds[chunk], bounds[chunk + 1]):
            total = out[item]
            total[:] = 0
            for i in range(item_start[item], item_start[item + 1]):
                row = rows[by_item[i]]
                for k in range(total.shape[0]):
                    total[k] += row[k]


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


@serial
def _cluster_forward(
    user: Any, line: Timeline, links: Links, guess: Guess, cluster: Any, reach: Any, pairs: Any, state: Any,
    from_to: Any, counts: Counts,
) -> Any:  # fmt: skip
    """Intensities of a user's events; ``from_to`` [C, C] (to, from) receives excitation times phi over intensity."""
    first, last, low = line.user_events[user], line.user_events[user + 1], line.user_start[user]
    phi, tau = guess.phi[user], guess.tau[user]
    n_state = state.shape[0]
    logs, product, crossed, returned = 0.0, 1.0, 0.0, 0.0
    state[:] = 0
    waiting = first
    for n in range(first, last):
        fade, pair = line.fade[n], line.pair[n]
        if fade >= 0:
            for m in range(waiting, n):
                state[cluster[line.item[line.pair[m]]]] += 1
            for c in range(n_state):
                state[c] *= fade
            waiting = n
        to = cluster[line.item[pair]]
        mine = state[to]
        state[to] = max(mine - line.own[n], mine * 0)  # without what the item would give to itself
        cross = _dot(state, reach[to])
        total = pairs[0, pair - low] + phi * cross + tau * line.returns[n] + _of_links(links, line.place[n], guess)
        total = max(total, LEAST)
        product *= total
        if product < SMALL or product > LARGE:
            logs += np.log(product)
            product = 1.0
        counts.inverse[n] = 1 / total
        inverse = counts.inverse[n]
        _credit_links(links, line.place[n], guess, inverse, counts.edges)
        crossed += cross * inverse
        pairs[1, pair - low] += inverse
        returned += line.returns[n] * inverse
        target, caused = from_to[to], phi * inverse
        for c in range(n_state):
            target[c] += caused * state[c]
        state[to] = mine
    counts.phi[user], counts.own[user] = phi * crossed, tau * returned
    return logs + np.log(product)


@serial
def _cluster_finish(user: Any, line: Timeline, guess: Guess, pairs: Any, inverses: Any, counts: Counts) -> None:
    """Turn sums over inverses into counts of the user's factors, and keep them for the items'."""
    theta, out, low = guess.theta[user], counts.theta[user], line.user_start[user]
    out[:] = 0
    for j in range(line.user_start[user + 1] - low):
        beta, inverse = guess.beta[line.item[low + j]], pairs[1, j]
        inverses[low + j] = inverse
        for k in range(out.shape[0]):
            out[k] += beta[k] * inverse
    for k in range(out.shape[0]):
        out[k] *= theta[k]


@serial
def _cluster_chunk(
    first: Any, last: Any, line: Timeline, links: Links, guess: Guess, cluster: Any, reach: Any, inverses: Any,
    from_to: Any, counts: Counts,
) -> Any:  # fmt: skip
    pairs = np.empty((3, _most_pairs(line.user_start, first, last)), guess.theta.dtype)
    state = np.empty(reach.shape[0], guess.theta.dtype)
    from_to[:] = 0
    logs = 0.0
    for user in range(first, last):
        _base(user, line, guess, pairs)
        logs += _cluster_forward(user, line, links, guess, cluster, reach, pairs, state, from_to, counts)
        _cluster_finish(user, line, guess, pairs, inverses, counts)
    return logs


@parallel
def cluster_pass(
    bounds: Any, line: Timeline, links: Links, guess: Guess, cluster: Any, reach: Any, inverses: Any, from_to: Any,
    counts: Counts, logs: Any,
) -> None:  # fmt: skip
    """Set ``counts``, the sums of inverse intensities by pair, and what clusters excite over intensities.

    Args:
        bounds: [n_chunks + 1] of users.
        line: Events.
        links: What followed users excite.
        guess: Geometric means.
        cluster: [P], of each item.
        reach: [C, C], geometric mean of pi times distance, ``reach[to, from]``.
        inverses: [n_pairs], set.
        from_to: [n_chunks, C, C] float64, set; times ``reach`` it is the expected number of events by cause.
        counts: Set.
        logs: [n_chunks], set to sums of logarithms of the intensities.
    """
    for chunk in prange(bounds.shape[0] - 1):
        logs[chunk] = _cluster_chunk(
            bounds[chunk], bounds[chunk + 1], line, links, guess, cluster, reach, inverses, from_to[chunk], counts
        )


@parallel
def sum_users(
    bounds: Any, item_start: Any, by_item: Any, pair_user: Any, inverses: Any, guess: Guess, out: Any
) -> None:
    """Set ``out`` [P, K] float64 to counts of items' factors, from ``inverses`` [n_pairs] and the users' factors."""
    for chunk in prange(bounds.shape[0] - 1):
        for item in range(bounds[chunk], bounds[chunk + 1]):
            total, beta = out[item], guess.beta[item]
            total[:] = 0
            for i in range(item_start[item], item_start[item + 1]):
                pair = by_item[i]
                theta, inverse = guess.theta[pair_user[pair]], inverses[pair]
                for k in range(total.shape[0]):
                    total[k] += theta[k] * inverse
            for k in range(total.shape[0]):
                total[k] *= beta[k]


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
def by_item(item_start: Any, order: Any, pair_user: Any, released: Any, value: Any, out: Any) -> None:
    """Set ``out`` [P] to the sum over an item's pairs of ``released`` [n_pairs] times ``value`` [U] of the user."""
    for item in prange(out.shape[0]):
        total = 0.0
        for i in range(item_start[item], item_start[item + 1]):
            total += released[order[i]] * value[pair_user[order[i]]]
        out[item] = total
