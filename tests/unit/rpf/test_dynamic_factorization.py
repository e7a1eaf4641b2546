"""DRPF and DSRPF: factors that follow the clock, fitted and asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma, gammaln

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.gamma_rows import GammaRows
from sandtable_workloads.rpf.estimators.dynamic_factorization import DRPF, DSRPF
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF

U, P, N = 6, 5, 160
MODELS = [DRPF, DSRPF]


def drawn(seed: int, n: int = N, hours: float = 300.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, U, n), rng.integers(0, P, n), np.sort(np.round(rng.uniform(0, hours, n), 2))


def follows(seed: int) -> np.ndarray:
    pairs = np.random.default_rng(seed + 1000).integers(0, U, (9, 2))
    return pairs[np.isin(pairs, np.unique(drawn(seed)[0])).all(1)]


def fitted(model: Any, seed: int = 0, **params: Any) -> Any:
    params = {"n_components": 3, "dtype": "float64", "max_iter": 12, "tol": 1e-12} | params
    return model(**params).fit(drawn(seed), *([follows(seed)] if model.social else []))


def tables(seed: int) -> dict[str, Any]:
    """Return features of a period of 9 hours, 3 of users and 2 of items."""
    rng = np.random.default_rng(seed)
    users, items = rng.random((4, 3)) * (rng.random((4, 3)) < 0.6), rng.random((4, 2))
    users[:, 0] += 0.1
    return {"user_features": users.tolist(), "item_features": items.tolist(), "feature_period": 9.0}


# --- inference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10_000), given_tables=st.booleans(), hierarchical=st.booleans())
def test_the_bound_never_falls(model, seed, given_tables, hierarchical):
    features = tables(seed) if given_tables else {"clock_origin": (seed % 7, seed % 24 + 0.3)}
    elbo = np.array(fitted(model, seed, hierarchical=hierarchical, **features).elbo_)
    assert (np.diff(elbo) > -1e-9 * np.abs(elbo[1:])).all()
    assert elbo[-1] > elbo[0]


def test_without_a_clock_it_is_the_recurrent_model():
    """One feature that always holds makes the state of one model a state of the other."""
    ours, theirs = fitted(DRPF, user_features=[[1.0]]), fitted(HRPF)
    for name, rows in theirs.state_.items():
        ours.state_[name].restore(rows.arrays())
    for _ in range(3):
        bounds = [model._iterate(model.observed_, model.state_) for model in (ours, theirs)]
        assert bounds[0] == pytest.approx(bounds[1], rel=1e-12)
    for name, rows in theirs.state_.items():
        np.testing.assert_allclose(ours.state_[name].mean, rows.mean, rtol=1e-10, err_msg=name)


def _terms(rows: GammaRows, shape: np.ndarray, rate: np.ndarray, group: np.ndarray | None) -> float:
    """Return priors and entropies of factors and of their rates, each written out."""
    prior = rows.prior
    log_x = digamma(shape) - np.log(rate)
    group = np.arange(len(shape)) if group is None else group
    group_shape = prior.hyper_shape + np.bincount(group) * shape.shape[1] * prior.shape
    log_rate = (digamma(group_shape) - np.log(rows.group_rate))[group][:, None]
    mean_rate = (group_shape / rows.group_rate)[group][:, None]
    a, b = prior.hyper_shape, prior.hyper_rate
    terms = prior.shape * log_rate + (prior.shape - 1) * log_x - mean_rate * shape / rate - gammaln(prior.shape)
    terms += shape - np.log(rate) + gammaln(shape) + (1 - shape) * digamma(shape)
    g_log, g_mean = digamma(group_shape) - np.log(rows.group_rate), group_shape / rows.group_rate
    hyper = a * np.log(b) + (a - 1) * g_log - b * g_mean - gammaln(a)
    hyper += group_shape - np.log(rows.group_rate) + gammaln(group_shape) + (1 - group_shape) * digamma(group_shape)
    return float(terms.sum() + hyper.sum())


def test_the_bound_is_that_of_the_model_written_out():
    """Responsibilities of all pairs of features and of each earlier event, exposures bin by bin."""
    model = fitted(DRPF, 3, clock_origin=(4, 2.5), max_iter=4)
    state, pairs, clock = model.state_, model.observed_.pairs, model.clock_
    theta, beta, tau = (state[name] for name in ("theta", "beta", "tau"))
    means = [model._means(rows) for rows in (theta, beta)]
    geometric = [rows.geometric.reshape(len(rows.group_rate), -1, 3) for rows in (theta, beta)]
    bins, user, item, time = clock.bins(pairs.time), pairs.event_user, pairs.event_item, pairs.time
    of_user, of_item = clock.user_table[bins], clock.item_table[bins]
    total = np.einsum("ni,nik,nj,njk->n", of_user, geometric[0][user], of_item, geometric[1][item])
    for n in range(time.size):
        earlier = (user == user[n]) & (item == item[n]) & (time < time[n])
        total[n] += tau.geometric[user[n], 0] * np.exp(-(time[n] - time[earlier])).sum()
    exposure = np.concatenate([clock.exposure(start, model.observed_.end) for start in model.observed_.start])
    expected = np.einsum("ub,bi,bj,uik,pjk->", exposure, clock.user_table, clock.item_table, *means)
    expected += (tau.mean[user, 0] * (1 - np.exp(-(model.observed_.end - time)))).sum()
    bound = np.log(total).sum() - expected
    bound += sum(_terms(r, r.shape, r.shape / r.mean, r.group) for r in (theta, beta, tau))
    assert model._iterate(model.observed_, state) == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_fits_do_not_depend_on_threads(model):
    one, two = (fitted(model, n_threads=n, dtype="float32") for n in (1, 2))
    assert one.elbo_ == two.elbo_
    np.testing.assert_array_equal(one.theta_, two.theta_)


def test_more_events_improve_what_was_fitted():
    model = DRPF(3, dtype="float64", max_iter=20)
    user, item, time = drawn(1)
    model.fit((user, item, time))
    before = model.theta_.copy()
    later = np.array([user[0], 99]), np.array([item[0], 77]), np.array([301.0, 302.0])
    model.partial_fit(later, n_iter=1)
    assert model.theta_.shape == (U + 1, 31, 3)
    assert model.beta_.shape == (P + 1, 31, 3)
    np.testing.assert_allclose(model.theta_[:U].mean(), before.mean(), rtol=0.2)
    assert np.corrcoef(model.theta_[:U].ravel(), before.ravel())[0, 1] > 0.8


# --- what it is for --------------------------------------------------------------------------------------------------


def by_day_and_night(n_weeks: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return events on items 0 and 1 from 8 to 20 and on 2 and 3 at night; hour 0 is Wednesday 06:00."""
    rng = np.random.default_rng(5)
    time = np.sort(rng.uniform(0, 168 * n_weeks, 4000))
    day = ((time + 6) % 24 >= 8) & ((time + 6) % 24 < 20)
    return rng.integers(0, 8, time.size), rng.integers(0, 2, time.size) + np.where(day, 0, 2), time


def test_recommendations_follow_the_clock():
    model = DRPF(4, clock_origin="2024-01-03 06:00", max_iter=40).fit(by_day_and_night())
    end = 168.0 * 6
    for hours, items in ((8.0, {0, 1}), (20.0, {2, 3}), (32.0, {0, 1})):
        assert {item for item, _ in model.recommend(3, end + hours, 2)} == items
    constant = HRPF(4, max_iter=40).fit(by_day_and_night())
    test = tuple(column[:200] for column in by_day_and_night())
    test = test[0], test[1], test[2] + end
    assert model.score(test) > constant.score(test) + 0.3


def test_dates_say_which_weekday_it_is():
    import pandas as pd

    user, item, time = drawn(2)
    frame = pd.DataFrame(
        {"user": user, "item": item, "time": pd.Timestamp("2024-01-03 06:00") + pd.to_timedelta(time, "h")}
    )
    model = DRPF(2, max_iter=2).fit(frame)
    first = 2 * 24 + 6 + time[0]
    assert model.clock_.bins([model.observed_.pairs.time.min()])[0] == int(first)


# --- asking ----------------------------------------------------------------------------------------------------------


def test_intensity_is_the_sum_over_features_and_earlier_events():
    model = fitted(DRPF, clock_origin=(2, 0.0))
    user, item, time = drawn(0)
    t = 300.25
    weekday_hour = [(2 + int(t // 24)) % 7, 7 + int(t % 24)]
    u, place = model.user_index_.place(4), model.item_index_.places(np.arange(P))
    base = model.beta_[:, weekday_hour].sum(1) @ model.theta_[u, weekday_hour].sum(0)
    own = np.array([np.exp(-(t - time[(user == 4) & (item == p)])).sum() for p in range(P)])
    np.testing.assert_allclose(model.intensity(4, t, range(P)), base[place] + model.tau_[u] * own, rtol=1e-9)
    np.testing.assert_allclose(model.intensity(4, t)[place], model.intensity(4, t, range(P)), rtol=1e-9)


def test_unknown_users_and_items_are_like_the_mean_and_like_one_that_nobody_met():
    model = fitted(DRPF)
    rates = model.intensity("nobody", 301.0, [0, 1, 99])
    assert (rates > 0).all()
    assert rates[2] < rates[:2].min()
    assert model.returning_time("nobody", 301.0) > 0


def test_returning_times_are_exponential_in_the_summed_rate():
    model = fitted(DRPF, a_tau=1e-3, user_features=tables(7)["user_features"], feature_period=9.0)
    waits = model._waits(2, 410.3, 20_000, np.random.default_rng(0))
    for hours in (0.05, 0.4, 2.0):
        excited = model._excitation_items(2, 410.3).sum() * (1 - np.exp(-hours))
        expected = model._base_between(np.array([2]), 410.3, 410.3 + hours)[0] + excited
        assert np.mean(waits < hours) == pytest.approx(1 - np.exp(-expected), abs=0.015)


@pytest.mark.parametrize("model", MODELS)
def test_the_likelihood_of_later_events_is_that_of_the_intensities(model):
    """Event by event through `intensity`, and the base's integral by many small steps."""
    ours = fitted(model, 8)
    later = np.array([1, 2, 1]), np.array([0, 3, 0]), np.array([300.5, 303.0, 304.5])
    score = ours.score(later)
    whole = tuple(np.concatenate(each) for each in zip(drawn(8), later, strict=True))
    informed = fitted(model, 8, max_iter=1).fit(whole, *([follows(8)] if model.social else []))
    for name, rows in ours.state_.items():
        informed.state_[name].restore(rows.arrays())
    informed._publish(informed.state_)
    logs = [np.log(informed.intensity(u, t, [p])[0]) for u, p, t in zip(*later, strict=True)]
    moments = np.linspace(ours.observed_.end, 304.5, 2001)
    middles = (moments[1:] + moments[:-1]) / 2
    steps = [[informed.intensity(u, t).sum() for t in middles] for u in ours.user_ids_]
    expected = np.sum(steps) * (moments[1] - moments[0])
    assert score == pytest.approx((sum(logs) - expected) / 3, rel=2e-3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"clock_origin": "tomorrow"}, "clock_origin is the date"),
        ({"user_features": [[1.0], [0.0]]}, "bin 1 has no feature of users"),
        ({"item_features": [[1.0]]}, "168 bins and those of items 1"),
        ({"feature_period": 0.0}, "some hours"),
    ],
)
def test_features_that_cannot_be_used_are_one_sentence(params, message):
    with pytest.raises(ConfigError, match=message):
        DRPF(**params).fit(drawn(0))


def test_parameters_are_stored_as_given():
    table = np.ones((2, 1))
    model = DRPF(user_features=table, clock_origin=(1, 2))
    assert model.user_features is table
    assert DRPF(**model.get_params()).get_params() == model.get_params()
