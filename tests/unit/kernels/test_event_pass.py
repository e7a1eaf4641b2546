"""Events by pairs, what earlier ones excite, and a pass over them: equal to sums over all pairs of events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma, gammaln

from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_kernels.poisson.event_pass import EventPass
from sandtable_kernels.poisson.event_triggers import LEAST_SHARE, EventTriggers, released_over_edges
from sandtable_kernels.poisson.gamma_rows import GammaPrior, GammaRows

U, P, K, DECAY = 5, 4, 3, 0.7


def problem(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return events out of order, half of them at whole hours, so that times tie within pairs and between users."""
    rng = np.random.default_rng(seed)
    time = rng.uniform(0, 30, n)
    time[::2] = np.round(time[::2])
    return rng.integers(U - 1, size=n), rng.integers(P - 1, size=n), time  # the last user and item have no event


def excitation(pairs: EventPairs, source: int | None = None) -> np.ndarray:
    """Return [N], what earlier events of ``source`` (None: of an event's own user) leave for its item."""
    user, item, time = pairs.event_user, pairs.event_item, pairs.time
    by = user[:, None] if source is None else source
    causes = (user[None] == by) & (item[None] == item[:, None]) & (time[None] < time[:, None])
    return np.where(causes, DECAY * np.exp(-DECAY * (time[:, None] - time[None])), 0.0).sum(1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60))
def test_both_orders_hold_every_event_once(seed: int, n: int) -> None:
    user, item, time = problem(seed, n)
    pairs = EventPairs.of(user, item, time, U, P)
    assert sorted(pairs.order) == list(range(n))
    key = list(zip(user[pairs.order], item[pairs.order], time[pairs.order], strict=True))
    assert key == sorted(key)
    assert np.array_equal(pairs.event_user, user[pairs.order])
    assert np.array_equal(pairs.event_item, item[pairs.order])
    assert len(set(zip(pairs.pair_user, pairs.item, strict=True))) == pairs.n_pairs
    by_item = list(zip(pairs.item[pairs.by_item], pairs.item_user, strict=True))
    assert by_item == sorted(by_item)
    assert np.array_equal(np.diff(pairs.item_start), np.bincount(pairs.item, minlength=P))
    assert np.array_equal(pairs.user_events, np.searchsorted(user[pairs.order], np.arange(U + 1)))
    for bounds, most in ((pairs.user_chunks, U), (pairs.item_chunks, P)):
        assert (bounds[0], bounds[-1]) == (0, most)
        assert (np.diff(bounds) >= 0).all()


def test_ties_stay_in_the_order_in_which_they_were_given() -> None:
    pairs = EventPairs.of(np.zeros(4, int), np.zeros(4, int), np.array([1.0, 0.0, 1.0, 0.0]), 1, 1)
    assert pairs.order.tolist() == [1, 3, 0, 2]


def test_bad_indices_are_refused() -> None:
    one = np.zeros(1, int)
    with pytest.raises(ValueError, match="items must be indices from 0 to 3"):
        EventPairs.of(one, one + 4, one, U, P)
    with pytest.raises(ValueError, match="must be as many"):
        EventPairs.of(one, np.zeros(2, int), one, U, P)


def first_of(pairs: EventPairs) -> Any:
    return pairs.event_start[pairs.event_pair]


@pytest.mark.parametrize("seed", range(4))
def test_own_excitation_is_the_sum_over_earlier_events(seed: int) -> None:
    pairs = EventPairs.of(*problem(seed), U, P)
    assert np.allclose(pairs.own_excitation(DECAY, np.float64), excitation(pairs), rtol=1e-12, atol=1e-15)
    # and with the event itself: with those of its very time that came before it in order as well
    ties = np.array([np.sum(pairs.time[first : n + 1] == pairs.time[n]) for n, first in enumerate(first_of(pairs))])
    found = pairs.own_excitation(DECAY, np.float64, itself=True)
    assert np.allclose(found, excitation(pairs) + DECAY * ties, rtol=1e-12)
    released = [(1 - np.exp(-DECAY * (31.0 - pairs.time[pairs.event_user == u]))).sum() for u in range(U)]
    assert np.allclose(pairs.released(DECAY, 31.0), released, rtol=1e-12)


def test_a_user_is_observed_from_one_gap_before_the_first_event_on() -> None:
    user, time = np.array([0, 0, 0, 1, 2, 2]), np.array([9.0, 5.0, 7.0, 4.0, 1.0, 8.0])
    pairs = EventPairs.of(user, np.arange(6) % 3, time, 4, 3)
    # the second lacks a gap, the third would begin before the period, the fourth has no event
    assert pairs.first_seen(0.5, 9.0).tolist() == [3.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("times", [(10.0, 10.0), (10.0 - 1e-9, 10.0)])
def test_nobody_is_observed_for_no_time_at_all(times: tuple[float, float]) -> None:
    pairs = EventPairs.of(np.array([0, 0, 1]), np.zeros(3, int), np.array([*times, 0.0]), 2, 1)
    assert pairs.first_seen(0.0, 10.0).tolist() == [9.99, 0.0]


def edges(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where edges to each user begin, their sources and destinations."""
    linked = np.random.default_rng(seed).random((U, U)) < 0.5
    np.fill_diagonal(linked, val=False)
    destination, source = np.nonzero(linked)
    return np.searchsorted(destination, np.arange(U + 1)), source.astype(np.int32), destination


@pytest.mark.parametrize("seed", range(4))
def test_triggers_are_what_followed_users_left(seed: int) -> None:
    pairs = EventPairs.of(*problem(seed), U, P)
    start, source, destination = edges(seed)
    triggers = EventTriggers.of(pairs, start, source, DECAY, np.float64)
    found = np.zeros((source.size, pairs.n_events))
    event = np.repeat(np.arange(pairs.n_events), np.diff(triggers.start))
    found[triggers.edge - U, event] = triggers.value
    for edge in range(source.size):
        left = excitation(pairs, int(source[edge]))
        wanted = np.where((pairs.event_user == destination[edge]) & (left >= LEAST_SHARE * DECAY), left, 0.0)
        assert np.allclose(found[edge], wanted, rtol=1e-12)
    assert triggers.value.size > 20


def test_lists_of_very_different_length_are_searched() -> None:
    many = np.arange(1000)
    user, item = np.append(np.zeros(1000, int), [1, 1]), np.append(many, [3, 977])
    pairs = EventPairs.of(user, item, np.append(np.zeros(1000), [1.0, 2.0]), 2, 1000)
    for start, source in (([0, 0, 1], [0]), ([0, 1, 1], [1])):
        triggers = EventTriggers.of(pairs, np.array(start), np.array(source, np.int32), DECAY, np.float64)
        wanted = DECAY * np.exp(-DECAY * np.array([1.0, 2.0])) if source == [0] else []
        assert np.allclose(triggers.value, wanted)


def test_what_an_edge_carries_while_its_follower_is_observed() -> None:
    pairs = EventPairs.of(*problem(1), U, P)
    start, source, destination = edges(1)
    since, end = np.linspace(0.0, 28.0, U), 30.0
    found = released_over_edges(pairs, start, source, DECAY, since, end)
    for edge, (v, u) in enumerate(zip(source, destination, strict=True)):
        t = pairs.time[pairs.event_user == v]
        before = np.where(t < since[u], 1 - np.exp(-DECAY * np.maximum(since[u] - t, 0)), 0.0)
        assert found[edge] == pytest.approx((1 - np.exp(-DECAY * (end - t)) - before).sum(), rel=1e-12)


# --- the pass ----------------------------------------------------------------------------------------------


def rows(seed: int, n: int, k: int, dtype: Any = np.float64) -> GammaRows:
    return GammaRows.start(GammaPrior(), np.random.default_rng(seed).gamma(1.0, 1.0, (n, k)) + 0.01, dtype=dtype)


def by_hand(pairs: EventPairs, theta: np.ndarray, beta: np.ndarray, tau: np.ndarray | None, social: bool) -> Any:
    """Return log intensities and counts by responsibilities of every component and every earlier event of everyone."""
    user, item = pairs.event_user, pairs.event_item
    parts = [theta[user] * beta[item]]
    _, source, destination = edges(3)
    if tau is not None:
        parts.append((tau[user] * excitation(pairs))[:, None])
    if social and tau is not None:
        over = [
            np.where(user == u, tau[U + e] * excitation(pairs, int(v)), 0.0)
            for e, (v, u) in enumerate(zip(source, destination, strict=True))
        ]
        parts.append(np.stack(over, 1))
    everything = np.concatenate(parts, 1)
    total = everything.sum(1)
    share = everything / total[:, None]
    users, items, own = np.zeros((U, K)), np.zeros((P, K)), np.zeros(U)
    np.add.at(users, user, share[:, :K])
    np.add.at(items, item, share[:, :K])
    if tau is not None:
        np.add.at(own, user, share[:, K])
    return np.log(total).sum(), users, items, own, share[:, K + 1 :].sum(0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["static", "own", "social"])
def test_a_pass_equals_responsibilities_over_all_earlier_events(kind: str, dtype: Any) -> None:
    pairs = EventPairs.of(*problem(2), U, P)
    start, source, _ = edges(3)
    theta, beta = rows(0, U, K, dtype), rows(1, P, K, dtype)
    tau = None if kind == "static" else rows(2, U + source.size, 1, dtype)
    own = None if kind == "static" else pairs.own_excitation(DECAY, dtype)
    triggers = EventTriggers.of(pairs, start, source, DECAY, dtype) if kind == "social" else None
    counts = EventPass(pairs, dtype, own, triggers)(theta, beta, tau)
    wanted = by_hand(
        pairs, theta.geometric, beta.geometric, None if tau is None else tau.geometric[:, 0], kind == "social"
    )
    close: dict[str, Any] = {
        "rtol": 1e-11 if dtype == np.float64 else 1e-4,
        "atol": 1e-6 if dtype == np.float32 else 1e-9,
    }
    assert np.allclose(counts.log_total, wanted[0], **close)
    assert np.allclose(counts.users[:, :K], wanted[1], **close)
    assert np.allclose(counts.items[:, :K], wanted[2], **close)
    assert not counts.users[:, K:].any()
    if kind == "static":
        assert counts.own is None
        return
    assert counts.own is not None
    assert np.allclose(counts.own, wanted[3], **close)
    if kind == "social":
        assert counts.edges is not None
        assert np.allclose(counts.edges, wanted[4], **close)
        assert counts.users.sum() + counts.own.sum() + counts.edges.sum() == pytest.approx(pairs.n_events, rel=1e-5)


def test_counts_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    pairs = EventPairs.of(rng.integers(300, size=n), rng.integers(70, size=n), rng.uniform(0, 99, n), 300, 70)
    own = pairs.own_excitation(DECAY, np.float32)
    found = []
    for threads in (1, 2, 1):
        theta, beta, tau = rows(0, 300, 7, np.float32), rows(1, 70, 7, np.float32), rows(2, 300, 1, np.float32)
        counts = EventPass(pairs, np.float32, own, n_threads=threads)(theta, beta, tau)
        theta.maximise(counts.users, np.ones(300), np.ones(7))
        found.append((counts.log_total, counts.users, counts.items, counts.own, theta.mean, theta.terms))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_products_of_many_small_or_large_rates_stay_in_range() -> None:
    n = 3000
    pairs = EventPairs.of(np.zeros(n, int), np.arange(n) % 2, np.arange(n) * 1.0, 1, 2)
    for size in (1e-12, 1e12):
        theta, beta = rows(0, 1, 2), rows(1, 2, 2)
        theta.padded *= size
        counts = EventPass(pairs, np.float64)(theta, beta)
        both = np.log((theta.geometric @ beta.geometric.T)[0, pairs.event_item]).sum()
        assert counts.log_total == pytest.approx(both, rel=1e-12)


# --- Gamma factors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("k", [1, 5, 20, 33])
def test_factors_are_maximised_as_scipy_would(k: int, dtype: Any) -> None:
    rng = np.random.default_rng(k)
    n = 50
    counts = np.exp(rng.uniform(-20, 12, (n, k))).astype(dtype)
    exposure, weights = rng.gamma(2, 100, n), rng.gamma(1, 1, k)
    found = GammaRows.start(GammaPrior(0.3, 1.5, 0.2), rng.gamma(1, 1, (n, k)), dtype=dtype)
    prior_rate = found.prior_rate.copy()
    found.maximise(counts, exposure, weights)
    shape, rate = 0.3 + counts.astype(float), np.multiply.outer(exposure, weights) + prior_rate[:, None]
    close = 1e-11 if dtype == np.float64 else 2e-6
    assert np.allclose(found.shape, shape, rtol=close)
    assert np.allclose(found.mean, shape / rate, rtol=close)
    assert np.allclose(found.geometric, np.exp(digamma(shape)) / rate, rtol=close)
    assert np.allclose(found.weighted(exposure), exposure @ found.mean.astype(float), rtol=1e-12)
    assert np.allclose(found.group_rate, 0.2 + (shape / rate).sum(1), rtol=close)
    assert found.terms == pytest.approx(bound_terms(found.prior, shape, rate, found), rel=10 * close)


def bound_terms(prior: GammaPrior, shape: np.ndarray, rate: np.ndarray, found: GammaRows) -> float:
    """Return priors and entropies, written out."""
    hyper_shape, hyper_rate = prior.hyper_shape + shape.shape[1] * prior.shape, found.group_rate[:, None]
    log_mean, mean = digamma(shape) - np.log(rate), shape / rate
    log_hyper, hyper = digamma(hyper_shape) - np.log(hyper_rate), hyper_shape / hyper_rate
    a, c, d = prior.shape, prior.hyper_shape, prior.hyper_rate
    factors = a * log_hyper - gammaln(a) + (a - 1) * log_mean - hyper * mean
    rates = c * np.log(d) - gammaln(c) + (c - 1) * log_hyper - d * hyper
    entropies = [
        s - np.log(r) + gammaln(s) + (1 - s) * digamma(s)
        for s, r in ((shape, rate), (np.full_like(hyper_rate, hyper_shape), hyper_rate))
    ]
    return float(factors.sum() + rates.sum() + entropies[0].sum() + entropies[1].sum())


def test_rates_that_are_given_stay() -> None:
    found = GammaRows.start(GammaPrior(1.0, rate=0.1), np.ones((3, 2)))
    found.maximise_rates(np.full((3, 2), 4.0), np.full((3, 2), 0.9))
    assert np.allclose(found.mean, 5.0)
    one = 5 - np.log(1.0) + gammaln(5) - 4 * digamma(5) + np.log(0.1) - 0.1 * 5.0
    assert found.terms == pytest.approx(6 * one)


def test_groups_share_a_rate() -> None:
    group = np.array([0, 0, 1])
    found = GammaRows.start(GammaPrior(1.0, 2.0, 0.5), np.array([[1.0], [2.0], [4.0]]), group=group, n_groups=3)
    assert np.allclose(found.group_mean, [(2 + 2) / 3.5, (2 + 1) / 4.5, 2 / 0.5])
    assert np.allclose(found.prior_rate, found.group_mean[group])
