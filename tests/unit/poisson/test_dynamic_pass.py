"""Passes over events by the clock equal what all responsibilities, written out, give."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from sandtable_kernels.poisson.dynamic_pass import DynamicPass
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_kernels.poisson.event_pass import EventCounts
from sandtable_kernels.poisson.feature_clock import FeatureClock
from sandtable_kernels.poisson.gamma_rows import GammaPrior, GammaRows

U, P, N, K, END = 7, 5, 300, 3, 400.0


class Problem(NamedTuple):
    pairs: EventPairs
    clock: FeatureClock
    start: np.ndarray
    theta: np.ndarray
    beta: np.ndarray
    tau: np.ndarray
    own: np.ndarray


def problem(seed: int, *, week: bool) -> Problem:
    rng = np.random.default_rng(seed)
    time = np.round(rng.uniform(0, END, N), 1)
    pairs = EventPairs.of(rng.integers(0, U, N), rng.integers(0, P, N), time, U, P)
    if week:
        clock = FeatureClock.of((1, 7.5))
    else:
        tables = [
            rng.random((6, n)) * (rng.random((6, n)) < 0.6) + np.eye(6, n) + (np.arange(n) == 0) for n in (4, 3)
        ]
        clock = FeatureClock(*tables, period=30.0, phase=4.0)
    theta = rng.random((U * clock.user_table.shape[1], K)) + 0.01
    beta = rng.random((P * clock.item_table.shape[1], K)) + 0.01
    start = rng.uniform(-40, END / 2, U)
    own = pairs.own_excitation(0.3, np.float64)
    return Problem(pairs, clock, start, theta, beta, rng.random(U), own)


def passes(p: Problem, dtype=np.float64, *, own: bool = True, **options) -> DynamicPass:
    excited = p.own.astype(dtype) if own else None
    return DynamicPass(p.pairs, dtype, p.clock, p.start, END, excited, **options)


def rows(values: np.ndarray, dtype) -> GammaRows:
    """Return rows whose geometric means are ``values``."""
    made = GammaRows.start(GammaPrior(), values, dtype=dtype)
    made.padded[:, : values.shape[1]] = values
    return made


def counts(p: Problem, dtype=np.float64, **options) -> EventCounts:
    made = [rows(each, dtype) for each in (p.theta, p.beta, p.tau[:, None])]
    counted = passes(p, dtype, **options)(*made)
    assert not counted.users[:, K:].any()
    return counted._replace(users=counted.users[:, :K], items=counted.items[:, :K])


def written_out(p: Problem):
    """Return log total, and the counts of users, items and excitation, from a table of all responsibilities."""
    theta, beta = p.theta.reshape(U, -1, K), p.beta.reshape(P, -1, K)
    bins, user, item = p.clock.bins(p.pairs.time), p.pairs.event_user, p.pairs.event_item
    of_user, of_item = p.clock.user_table[bins], p.clock.item_table[bins]
    base = np.einsum("ni,nik,nj,njk->nijk", of_user, theta[user], of_item, beta[item])
    own = p.tau[user] * p.own
    total = base.sum((1, 2, 3)) + own
    phi = base / total[:, None, None, None]
    users, items = np.zeros_like(theta), np.zeros_like(beta)
    np.add.at(users, user, phi.sum(2))
    np.add.at(items, item, phi.sum(1))
    return np.log(total).sum(), users.reshape(-1, K), items.reshape(-1, K), np.bincount(user, own / total, U)


@pytest.mark.parametrize("week", [True, False], ids=["week", "tables"])
@pytest.mark.parametrize(("dtype", "close"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_counts_are_those_of_all_responsibilities(week, dtype, close):
    p = problem(0, week=week)
    counted = counts(p, dtype)
    log_total, users, items, own = written_out(p)
    assert counted.log_total == pytest.approx(log_total, rel=close)
    for name, ours, theirs in zip("uio", counted[1:4], (users, items, own), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=close, atol=close, err_msg=name)
    assert users.sum() + own.sum() == pytest.approx(N)


def test_every_event_is_counted_once_without_excitation():
    p = problem(1, week=True)
    counted = counts(p, own=False)
    assert counted.users.sum() == pytest.approx(N)
    assert counted.items.sum() == pytest.approx(N)
    assert counted.own is None


@pytest.mark.parametrize("week", [True, False], ids=["week", "tables"])
def test_rates_are_those_of_exposure_bin_by_bin(week):
    p = problem(2, week=week)
    theta, beta = p.theta.reshape(U, -1, K), p.beta.reshape(P, -1, K)
    exposure = np.concatenate([p.clock.exposure(start, END) for start in p.start])
    f = np.einsum("ub,bi,bj->uij", exposure, p.clock.user_table, p.clock.item_table)
    dynamic = passes(p)
    of_users = np.einsum("uij,jk->uik", f, beta.sum(0))
    rates, expected = dynamic.rates_of_users(beta.sum(0), p.theta)
    np.testing.assert_allclose(rates, of_users.reshape(-1, K), rtol=1e-10)
    assert expected == pytest.approx(np.vdot(of_users, theta))
    of_items = np.einsum("uij,uik->jk", f, theta)
    np.testing.assert_allclose(dynamic.rates_of_items(p.theta), of_items, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_results_do_not_depend_on_threads(dtype):
    p = problem(3, week=True)
    one, two = (counts(p, dtype, n_threads=n) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    one, two = (passes(p, dtype, n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.rates_of_items(p.theta), two.rates_of_items(p.theta))
