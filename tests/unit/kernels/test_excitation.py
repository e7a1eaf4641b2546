"""Linear-time passes over events that excite other items against sums over all pairs of events, in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from sandtable_kernels.compiled.events import excitation_loops as loops
from sandtable_kernels.compiled.memory_loops import use_threads
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_kernels.poisson.item_triggers import ItemCounts, ItemTriggers


class Problem(NamedTuple):
    users: Any
    items: Any
    times: Any
    pairs: EventPairs
    guess: loops.Guess


def problem(seed: int, *, n_users=5, n_items=7, n_events=60, n_components=3, grid: int | None = None) -> Problem:
    """Random events, their times on ``grid`` ticks so that many are equal, and random geometric means."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(n_users, size=n_events), rng.integers(n_items, size=n_events)
    times = rng.uniform(0, 20, n_events) if grid is None else rng.integers(grid, size=n_events) * 0.5
    draw = rng.gamma
    guess = loops.Guess(
        theta=draw(1.0, 1.0, (n_users, n_components)),
        beta=draw(1.0, 1.0, (n_items, n_components)),
        phi=draw(1.0, 1.0, n_users),
        tau=draw(1.0, 1.0, n_users),
        edges=np.zeros(0),
    )
    return Problem(users, items, times, EventPairs.of(users, items, times, n_users, n_items), guess)


def quadratic(p: Problem, alpha: Any, decay: float, returns: float) -> dict[str, Any]:
    """Expected counts by cause, every earlier event on its own; ``alpha`` [P, P, C] from q to p by component."""
    n = p.times.size
    earlier = (p.users[:, None] == p.users) & (p.times[:, None] > p.times)
    same = p.items[:, None] == p.items
    gap = np.where(earlier, p.times[:, None] - p.times, 0.0)
    base = p.guess.theta[p.users] * p.guess.beta[p.items]
    phi = p.guess.phi[p.users]
    triggers = phi[:, None, None] * alpha[p.items[None, :], p.items[:, None]]  # [to, from, C]
    triggers = triggers * (earlier & ~same)[:, :, None] * np.exp(-decay * gap)[:, :, None]
    own = p.guess.tau[p.users] * np.sum((earlier & same) * np.exp(-returns * gap), 1)
    total = base.sum(1) + triggers.sum((1, 2)) + own
    base, triggers, own = base / total[:, None], triggers / total[:, None, None], own / total
    theta, beta = np.zeros_like(p.guess.theta), np.zeros_like(p.guess.beta)
    from_to = np.zeros_like(alpha)
    by_user = np.zeros((2, p.guess.phi.size))
    for i in range(n):
        theta[p.users[i]] += base[i]
        beta[p.items[i]] += base[i]
        by_user[:, p.users[i]] += triggers[i].sum(), own[i]
        for j in range(n):
            from_to[p.items[j], p.items[i]] += triggers[i, j]
    logs = float(np.log(total).sum())
    return {
        "users": theta,
        "items": beta,
        "from_to": from_to,
        "others": by_user[0],
        "own": by_user[1],
        "log_total": logs,
    }


def factor_counts(p: Problem, decay: float, n_chunks: int = 3) -> ItemCounts:
    return ItemTriggers.of(p.pairs, decay, decay, p.guess.theta.dtype).factor_counts(p.guess, n_chunks)


@pytest.mark.parametrize("grid", [None, 12])
@pytest.mark.parametrize("seed", range(4))
def test_factors_equal_the_sum_over_all_earlier_events(seed, grid):
    p, decay = problem(seed, grid=grid), 0.7
    alpha = p.guess.beta[:, None, :] * p.guess.beta[None, :, :]
    want, got = quadratic(p, alpha, decay, decay), factor_counts(p, decay)
    assert got.log_total == pytest.approx(want["log_total"], rel=1e-12)
    for name in ("users", "others", "own"):
        np.testing.assert_allclose(getattr(got, name), want[name], rtol=1e-9, atol=1e-12)
    both = want["from_to"].sum(0) + want["from_to"].sum(1)  # an event counts for what was excited and what excited
    np.testing.assert_allclose(got.items, want["items"] + both, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grid", [None, 12])
@pytest.mark.parametrize("seed", range(4))
def test_clusters_equal_the_sum_over_all_earlier_events(seed, grid):
    p, decay, returns = problem(seed, grid=grid), 0.3, 0.9
    rng = np.random.default_rng(seed)
    cluster = rng.integers(3, size=p.guess.beta.shape[0])
    reach = rng.gamma(1.0, 1.0, (3, 3))  # to, from
    want = quadratic(p, reach[cluster[None, :], cluster[:, None]][:, :, None], decay, returns)
    triggers = ItemTriggers.of(p.pairs, decay, returns, np.float64)
    counts = triggers.cluster_counts(p.guess, cluster.astype(np.int32), reach, 3)
    assert counts.log_total == pytest.approx(want["log_total"], rel=1e-12)
    for name in ("users", "others", "own"):
        np.testing.assert_allclose(getattr(counts, name), want[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(counts.items, want["items"], rtol=1e-9, atol=1e-12)
    blocks = np.zeros((3, 3))
    np.add.at(blocks, (cluster[:, None], cluster[None, :]), want["from_to"][:, :, 0])
    assert counts.clusters is not None
    np.testing.assert_allclose(counts.clusters, blocks, rtol=1e-9, atol=1e-12)


def test_every_event_has_one_cause():
    p = problem(9, n_events=300)
    got = factor_counts(p, 0.5)
    assert got.users.sum() + got.others.sum() + got.own.sum() == pytest.approx(300)
    assert got.items.sum() == pytest.approx(got.users.sum() + 2 * got.others.sum())


def test_threads_do_not_change_a_bit():
    p = problem(3, n_users=40, n_events=900)
    results = []
    try:
        for n_threads in (1, 2):
            use_threads(n_threads)
            results.append(factor_counts(p, 0.5, n_chunks=8))
    finally:
        use_threads(None)
    for one, two in zip(*results, strict=True):
        assert one is two is None or np.array_equal(one, two)


def test_float32_is_near_float64_where_an_item_mostly_repeats_itself():
    p = problem(5, n_items=2, n_events=400)
    single = p._replace(guess=loops.Guess(*(np.asarray(part, np.float32) for part in p.guess)))
    want, got = factor_counts(p, 0.01), factor_counts(single, 0.01)
    for name in ("users", "others", "own", "items"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=2e-4, atol=1e-3)


def test_rates_of_items_take_the_newest_of_the_others():
    rng = np.random.default_rng(1)
    shape, mean = rng.gamma(2.0, 1.0, (2, 6, 3))
    base, prior, weight = rng.gamma(2.0, 1.0, 3), rng.gamma(1.0, 1.0, 6), rng.gamma(1.0, 1.0, 6)
    want, now = np.empty_like(mean), mean.copy()
    for p in range(6):
        others = np.arange(6) != p
        want[p] = base + weight[p] * now[others].sum(0) + weight[others] @ now[others]
        now[p] = shape[p] / (want[p] + prior[p])
    rate = np.empty_like(mean)
    loops.item_rates(shape, base, prior, weight, mean, rate)
    np.testing.assert_allclose(rate, want, rtol=1e-12)
    np.testing.assert_allclose(mean, now, rtol=1e-12)
