"""Linear-time passes over events that excite other items against sums over all pairs of events, in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from sandtable_kernels.compiled.events import excitation_loops as loops
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_kernels.poisson.event_triggers import EventTriggers
from sandtable_kernels.poisson.gamma_rows import GammaPrior, GammaRows
from sandtable_kernels.poisson.item_pass import ItemCounts, ItemPass, Rows


class Problem(NamedTuple):
    users: Any
    items: Any
    times: Any
    pairs: EventPairs
    rows: Rows
    edges: tuple[Any, Any]  # where those to a user begin, and whom they follow


def rows_of(means: list[Any], dtype: str) -> Rows:
    return Rows(*(GammaRows.start(GammaPrior(), each, dtype=dtype) for each in means))


def problem(
    seed: int, *, n_users=5, n_items=7, n_events=60, n_components=3, grid: int | None = None, dtype="float64"
) -> Problem:
    """Random events, their times on ``grid`` ticks so that many are equal; the first two users follow the third."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(n_users, size=n_events), rng.integers(n_items, size=n_events)
    times = rng.uniform(0, 20, n_events) if grid is None else rng.integers(grid, size=n_events) * 0.5
    sizes = (n_users, n_components), (n_items, n_components), (n_users, 1), (n_users + 2, 1)
    rows = rows_of([rng.gamma(1.0, 1.0, size) for size in sizes], dtype)
    edges = np.minimum(np.arange(n_users + 1), 2), np.array([2, 2], np.int32)
    return Problem(users, items, times, EventPairs.of(users, items, times, n_users, n_items), rows, edges)


def passes(p: Problem, decay: float, returns: float, n_threads: int | None = None) -> ItemPass:
    dtype = p.rows.theta.mean.dtype
    own, triggers = p.pairs.own_excitation(returns, dtype), EventTriggers.of(p.pairs, *p.edges, returns, dtype)
    return ItemPass(p.pairs, decay, dtype, own, triggers, n_threads)


def quadratic(p: Problem, alpha: Any, decay: float, returns: float) -> dict[str, Any]:
    """Expected counts by cause, every earlier event on its own; ``alpha`` [P, P, C] from q to p by component."""
    n, n_users = p.times.size, p.pairs.n_users
    g_theta, g_beta, phi, tau = (rows.geometric for rows in p.rows)
    later = p.times[:, None] > p.times
    gap = np.where(later, p.times[:, None] - p.times, 0.0)
    by_user, same = p.users[:, None] == p.users, p.items[:, None] == p.items
    base = g_theta[p.users] * g_beta[p.items]
    alpha = phi[p.users, :, None] * alpha[p.items[None, :], p.items[:, None]]  # [to, from, C]
    triggers = alpha * (later & by_user & ~same)[:, :, None] * decay * np.exp(-decay * gap)[:, :, None]
    weight = np.where(by_user, tau[p.users], 0.0)
    for follower in (0, 1):
        weight += np.outer(p.users == follower, p.users == 2) * tau[n_users + follower]
    same_item = weight * (later & same) * returns * np.exp(-returns * gap)
    total = base.sum(1) + triggers.sum((1, 2)) + same_item.sum(1)
    base, triggers, same_item = base / total[:, None], triggers / total[:, None, None], same_item / total[:, None]
    users, items, from_to = (
        np.zeros_like(g_theta),
        np.zeros_like(g_beta),
        np.zeros((*[g_beta.shape[0]] * 2, alpha.shape[2])),
    )
    others, own, edges = np.zeros(n_users), np.zeros(n_users), np.zeros(2)
    for i in range(n):
        users[p.users[i]] += base[i]
        items[p.items[i]] += base[i]
        others[p.users[i]] += triggers[i].sum()
        own[p.users[i]] += same_item[i, by_user[i]].sum()
        if p.users[i] < 2:
            edges[p.users[i]] += same_item[i, ~by_user[i]].sum()
        for j in range(n):
            from_to[p.items[j], p.items[i]] += triggers[i, j]
    counts = {"log_total": float(np.log(total).sum()), "users": users, "items": items, "own": own, "edges": edges}
    return counts | {"others": others, "from_to": from_to}


def assert_counts(got: ItemCounts, want: dict[str, Any], items: Any) -> None:
    k = items.shape[1]
    assert got.counts.log_total == pytest.approx(want["log_total"], rel=1e-11)
    np.testing.assert_allclose(got.counts.users[:, :k], want["users"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.counts.items[:, :k], items, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.others, want["others"], rtol=1e-9, atol=1e-12)
    for name in ("own", "edges"):
        np.testing.assert_allclose(getattr(got.counts, name), want[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("grid", [None, 12])
@pytest.mark.parametrize("seed", range(4))
def test_factors_equal_the_sum_over_all_earlier_events(seed, grid):
    p, decay = problem(seed, n_users=[5, 60][seed % 2], grid=grid), 0.7  # sixty: many with one item only
    beta = p.rows.beta.geometric
    want = quadratic(p, beta[:, None, :] * beta[None, :, :], decay, 0.9)
    both = want["from_to"].sum(0) + want["from_to"].sum(1)  # an event counts for what was excited and what excited
    assert_counts(passes(p, decay, 0.9).factors(p.rows), want, want["items"] + both)


@pytest.mark.parametrize("grid", [None, 12])
@pytest.mark.parametrize("seed", range(4))
def test_clusters_equal_the_sum_over_all_earlier_events(seed, grid):
    p, decay, returns = problem(seed, grid=grid), 0.3, 0.9
    rng = np.random.default_rng(seed)
    cluster = rng.integers(3, size=p.pairs.n_items).astype(np.int32)
    reach = rng.gamma(1.0, 1.0, (3, 3))
    want = quadratic(p, reach[cluster[:, None], cluster[None, :]][:, :, None], decay, returns)
    got = passes(p, decay, returns).clusters(p.rows, cluster, reach)
    assert_counts(got, want, want["items"])
    blocks = np.zeros((3, 3))
    np.add.at(blocks, (cluster[:, None], cluster[None, :]), want["from_to"][:, :, 0])
    assert got.clusters is not None
    np.testing.assert_allclose(got.clusters, blocks, rtol=1e-9, atol=1e-12)


def test_every_event_has_one_cause():
    p = problem(9, n_events=300)
    counts, others, _ = passes(p, 0.5, 0.5).factors(p.rows)
    assert counts.own is not None
    assert counts.edges is not None
    of_base = counts.users.sum()
    assert of_base + others.sum() + counts.own.sum() + counts.edges.sum() == pytest.approx(300)
    assert counts.items.sum() == pytest.approx(of_base + 2 * others.sum())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_do_not_change_a_bit(dtype):
    p = problem(3, n_users=90, n_items=30, n_events=3000, dtype=dtype)
    cluster, reach = (np.arange(30) % 3).astype(np.int32), np.eye(3) + 0.1
    results = []
    for n_threads in (1, 2):
        each = passes(p, 0.5, 0.9, n_threads)
        for got in (each.factors(p.rows), each.clusters(p.rows, cluster, reach)):
            results.append(
                [np.copy(value) for value in (*got.counts, got.others, got.clusters) if value is not None]
            )
    for one, two in zip(results[:2], results[2:], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_float32_is_near_float64_where_an_item_mostly_repeats_itself():
    p = problem(5, n_items=2, n_events=400)
    want = passes(p, 0.01, 0.01).factors(p.rows)
    rows = rows_of([rows.mean for rows in p.rows], "float32")
    got = passes(p._replace(rows=rows), 0.01, 0.01).factors(rows)
    np.testing.assert_allclose(got.others, want.others, rtol=2e-4)
    for name in ("own", "users", "items"):
        one, two = (getattr(each.counts, name)[..., :3] for each in (got, want))
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=1e-3)


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
