"""PF, HPF, HRPF, SRPF: the bound is one and never falls, parameters are found again, predictions are the model's."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from scipy.stats import gamma

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.estimators.event_intensity import EventIntensity
from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
from sandtable_workloads.rpf.estimators.static_factorization import HPF, PF
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.simulated_events import KnownParameters, simulate

EDGES = ([0, 1, 2, 3, 0, 2], [1, 2, 3, 0, 2, 0])
VARIANTS: list[type[EventIntensity]] = [PF, HPF, HRPF, SRPF]
every_model = pytest.mark.parametrize("kind", VARIANTS)


def events(seed: int, n: int = 80, start: float = 0.0, n_users: int = 4, n_items: int = 5) -> tuple[Any, Any, Any]:
    """Return events of all users, some at the same times."""
    rng = np.random.default_rng(seed)
    users = np.append(np.arange(n_users), rng.integers(n_users, size=n - n_users))
    return users, rng.integers(n_items, size=n), start + np.round(np.sort(rng.uniform(0, 40, n)), 1)


def fitted(kind: type[EventIntensity], data: Any, edges: Any = EDGES, **options: Any) -> EventIntensity:
    model = kind(3, **{"dtype": "float64", "decay": 0.5, "max_iter": 15, "tol": 1e-12} | options)
    return model.fit(data, edges if model.social else None)


# --- the bound ---------------------------------------------------------------------------------------------


@every_model
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(4, 150),
    shape=st.sampled_from([0.3, 1.0, 5.0]),
    hyper=st.sampled_from([0.1, 3.0]),
    observed=st.sampled_from(["user", "period"]),
)
def test_the_bound_never_falls(
    kind: type[EventIntensity], seed: int, n: int, shape: float, hyper: float, observed: str
) -> None:
    options = {"a_theta": shape, "a_beta": shape, "a_tau": shape, "b_eta": hyper, "b_mu": hyper}
    bound = np.array(fitted(kind, events(seed, n), observed=observed, **options).elbo_)
    assert (np.diff(bound) >= -1e-9 * np.abs(bound[1:])).all()


@every_model
def test_float32_follows_float64(kind: type[EventIntensity]) -> None:
    data = events(0, 300)
    double, single = (fitted(kind, data, dtype=dtype) for dtype in ("float64", "float32"))
    assert np.allclose(single.elbo_, double.elbo_, rtol=1e-5)
    assert np.allclose(single.theta_, double.theta_, rtol=1e-3)


@pytest.mark.parametrize("kind", [HPF, HRPF, SRPF])
def test_the_bound_is_the_expectation_that_it_stands_for(kind: type[EventIntensity]) -> None:
    model = fitted(kind, events(1))
    observed, state = model.observed_, model.state_
    pairs = observed.pairs
    draw = {name: gamma(rows.shape, scale=rows.mean / rows.shape) for name, rows in state.items()}
    rates = {
        name: gamma(rows.group_shape * np.ones_like(rows.group_rate), scale=1 / rows.group_rate)
        for name, rows in state.items()
    }
    # responsibilities at their optimum: the log of the sum of geometric means, each written out
    means = {name: np.exp(digamma(rows.shape)) * rows.mean / rows.shape for name, rows in state.items()}
    user, item, time = pairs.event_user, pairs.event_item, pairs.time
    total = (means["theta"][user] * means["beta"][item]).sum(1)
    expected = float(observed.exposure @ state["theta"].mean @ state["beta"].mean.sum(0))
    arrows = [(u, u, u) for u in range(4)] if "tau" in state else []
    if observed.edges is not None:
        ends = zip(observed.edges.source.tolist(), observed.edges.destination.tolist(), strict=True)
        arrows += [(4 + e, v, u) for e, (v, u) in enumerate(ends)]
    for row, source, target in arrows:
        causes = (user[None] == source) & (item[None] == item[:, None]) & (time[None] < time[:, None])
        left = np.where(causes, 0.5 * np.exp(-0.5 * (time[:, None] - time[None])), 0.0).sum(1)
        total += np.where(user == target, means["tau"][row, 0] * left, 0.0)
        t, since = time[user == source], observed.start[target]
        released = np.exp(-0.5 * np.maximum(since - t, 0)) - np.exp(-0.5 * (observed.end - t))
        expected += float(state["tau"].mean[row, 0] * released.sum())
    bound = np.log(total).sum() - expected
    for name, rows in state.items():
        prior, group = rows.prior, np.arange(rows.shape.shape[0]) if rows.group is None else rows.group
        rate_mean = rates[name].mean()
        rate_log = digamma(rows.group_shape) - np.log(rows.group_rate)
        x_log = digamma(rows.shape) - np.log(rows.shape / rows.mean)
        bound += draw[name].entropy().sum() + rates[name].entropy().sum()
        bound += (
            prior.shape * rate_log[group][:, None]
            + (prior.shape - 1) * x_log
            - rate_mean[group][:, None] * rows.mean
        ).sum()
        # shapes of the priors are one: the log of Gamma is nought
        bound += (np.log(prior.hyper_rate) - prior.hyper_rate * rate_mean).sum()
    assert model._iterate(observed, state) == pytest.approx(bound, rel=1e-9)


@every_model
def test_fits_do_not_depend_on_threads(kind: type[EventIntensity]) -> None:
    one, two = (fitted(kind, events(2, 400), dtype="float32", n_threads=n) for n in (1, 2))
    assert one.elbo_ == two.elbo_
    assert np.array_equal(one.theta_, two.theta_)
    assert np.array_equal(one.beta_, two.beta_)


# --- what is found -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> KnownParameters:
    """Return users whose events excite 0.2 to 0.5 of their own and 0.05 to 0.3 of each of two followers'."""
    rng = np.random.default_rng(3)
    n = 40
    everyone = np.arange(n)
    source = np.concatenate((everyone, (everyone + 1) % n, (everyone + 7) % n))
    tau = np.concatenate((rng.uniform(0.2, 0.5, n), rng.uniform(0.05, 0.3, 2 * n)))
    theta, beta = rng.gamma(2.0, 0.25, (n, 2)), rng.gamma(1.0, 0.05, (15, 2))
    return KnownParameters(theta=theta, beta=beta, source=source, target=np.tile(everyone, 3), tau=tau)


def graph(known: KnownParameters) -> tuple[Any, Any]:
    """Return followers and whom they follow."""
    return known.targets[40:], known.sources[40:]


def split(data: EventTable, at: float) -> tuple[Any, Any]:
    return tuple((data.user[part], data.item[part], data.time[part]) for part in (data.time < at, data.time >= at))


def test_excitation_is_found_again(known: KnownParameters) -> None:
    data = simulate(known, 400.0, seed=1)
    model = SRPF(2, dtype="float64", observed="period", tol=1e-4).fit(data, graph(known), period=(0, 400))
    ids = model.user_ids_
    own = known.taus[:40][ids]
    assert np.corrcoef(own, model.tau_)[0, 1] > 0.8
    assert model.tau_.mean() == pytest.approx(own.mean(), rel=0.05)
    over = {(v, u): tau for v, u, tau in zip(known.sources, known.targets, known.taus, strict=True)}
    ends = zip(ids[model.edges_.source], ids[model.edges_.destination], strict=True)
    truth = np.array([over[each] for each in ends])
    assert np.corrcoef(truth, model.edge_tau_)[0, 1] > 0.8
    assert model.edge_tau_.mean() == pytest.approx(truth.mean(), rel=0.05)


def test_recurrence_is_worth_it_where_there_is_some(known: KnownParameters) -> None:
    first, later = split(simulate(known, 200.0, seed=2), 150.0)
    scores = [
        kind(2, observed="period", tol=1e-4)
        .fit(first, graph(known) if kind.social else None, period=(0, 150))
        .score(later)
        for kind in (HPF, HRPF, SRPF)
    ]
    assert scores[0] + 0.1 < scores[1]
    assert scores[1] + 0.1 < scores[2]


# --- prediction --------------------------------------------------------------------------------------------


@every_model
def test_intensity_is_the_sum_over_all_earlier_events(kind: type[EventIntensity]) -> None:
    data = events(3)
    model = fitted(kind, data)
    users, items, times = model.user_ids_, model.item_ids_, data[2]
    for t in (11.1, 60.0):
        place = {each: i for i, each in enumerate(users)}
        u = place[2]
        wanted = model.beta_ @ model.theta_[u]
        causes = [(2, model.tau_[u])] if kind in (HRPF, SRPF) else []
        if isinstance(model, SRPF):
            to = model.edges_.destination == u
            causes += list(zip(users[model.edges_.source[to]], model.edge_tau_[to], strict=True))
        for source, tau in causes:
            past = (data[0] == source) & (times < t)
            left = 0.5 * np.exp(-0.5 * (t - times[past]))
            wanted += tau * np.array([left[data[1][past] == p].sum() for p in items])
        assert np.allclose(model.intensity(2, t), wanted)
        assert np.allclose(model.intensity(2, t, items[[3, 0]]), wanted[[3, 0]])
        order = np.argsort(-wanted)
        recommended = model.recommend(2, t, 2, exclude=[items[order[0]], 99])
        assert recommended == [(items[p], pytest.approx(wanted[p])) for p in order[1:3]]
    assert len(model.recommend(2, 11.1, 100)) == items.size
    assert model.recommend(2, 11.1, 3, exclude=items) == []


@every_model
def test_the_score_is_the_log_likelihood_written_out(kind: type[EventIntensity]) -> None:
    data, later = events(4), events(5, 30, start=41.0)
    model = fitted(kind, data)
    whole = fitted(kind, tuple(np.append(a, b) for a, b in zip(data, later, strict=True)), max_iter=1)
    # the same parameters with all events before each
    for name in ("theta_", "beta_", "tau_", "edge_tau_"):
        if hasattr(model, name):
            setattr(whole, name, getattr(model, name))
    rates = [whole.intensity(u, t, [p])[0] for u, p, t in zip(*later, strict=True)]
    steps = np.linspace(model.observed_.end, later[2].max(), 40_001)
    middle = (steps[1:] + steps[:-1]) / 2
    expected = model._base_between(np.arange(4), steps[0], steps[-1]).sum()
    time, user = np.append(data[2], later[2]), np.append(data[0], later[0])
    for u, each in enumerate(model.user_ids_):
        for source, tau in model._sources(u):
            t = time[user == model.user_ids_[source]]
            left = np.where(t < middle[:, None], 0.5 * np.exp(-0.5 * np.maximum(middle[:, None] - t, 0)), 0.0)
            expected += tau * left.sum() * (steps[1] - steps[0])
        assert each in user
    assert model.score(later) == pytest.approx((np.log(rates).sum() - expected) / 30, rel=1e-3)


def test_times_of_return_follow_the_intensity() -> None:
    model = fitted(HRPF, events(6, 200))
    t, user = 40.2, model.user_ids_[0]
    waits = model._waits(0, t, 20_000, np.random.default_rng(0))
    base, excited = float(model._base_items(0, t).sum()), float(model._excitation_items(0, t).sum())
    assert excited > 0
    for hours in (0.05, 0.3, 1.0):
        survives = np.exp(-base * hours - excited / 0.5 * (1 - np.exp(-0.5 * hours)))
        assert (waits > hours).mean() == pytest.approx(survives, abs=0.015)
    assert model.returning_time(user, t) == model.returning_time(user, t)


@every_model
def test_who_and_what_is_unknown_has_an_intensity(kind: type[EventIntensity]) -> None:
    model = fitted(kind, events(7))
    assert np.allclose(model.intensity("nobody", 41.0), model.beta_ @ model.theta_.mean(0))
    new = model.intensity(2, 41.0, ["new", model.item_ids_[0]])
    assert 0 < new[0] < new[1]
    assert len(model.recommend("nobody", 41.0, 3)) == 3
    assert model.returning_time("nobody", 41.0) > 0
    assert np.isfinite(
        model.score((["nobody", 2], [0, "new"], [41.0, 42.0]))
        if kind is PF
        else model.score(([9, 2], [0, 99], [41.0, 42.0]))
    )


# --- going on ----------------------------------------------------------------------------------------------


@every_model
def test_a_warm_start_goes_on_where_the_fit_ended(kind: type[EventIntensity]) -> None:
    data = events(8)
    long = fitted(kind, data, max_iter=12)
    warm = fitted(kind, data, max_iter=6, warm_start=True)
    warm.fit(data, EDGES if warm.social else None)
    assert np.allclose(warm.elbo_, long.elbo_[6:], rtol=1e-12)
    assert np.allclose(warm.theta_, long.theta_, rtol=1e-9)


@every_model
def test_later_events_bring_new_users_and_items(kind: type[EventIntensity]) -> None:
    model = fitted(kind, events(9), max_iter=30)
    before = model.theta_.copy()
    later = events(10, 60, start=41.0, n_users=6, n_items=8)
    model.partial_fit(later, n_iter=1)
    assert model.user_ids_.size == 6
    assert model.item_ids_.size == 8
    assert model.observed_.pairs.n_events == 140
    assert np.corrcoef(before.ravel(), model.theta_[:4].ravel())[0, 1] > 0.8
    bound = model.partial_fit(events(11, 10, start=90.0), n_iter=8).elbo_
    assert (np.diff(bound) >= -1e-9 * np.abs(bound[1:])).all()


def test_the_first_partial_fit_is_a_fit() -> None:
    model = HRPF(3, dtype="float64", tol=1e-12).partial_fit(events(0), n_iter=4)
    assert (model.n_iter_, model.max_iter) == (4, 1000)


def test_held_out_likelihood_ends_a_fit(known: KnownParameters) -> None:
    first, later = split(simulate(known, 100.0, seed=4), 80.0)
    told: list[Any] = []
    model = HRPF(10, tol=1e-3, max_iter=300).fit(first, validation=later, progress=told.append)
    assert model.converged_
    assert model.n_iter_ < 300
    assert [each.number for each in told] == list(range(1, model.n_iter_ + 1))
    assert [each.held_out for each in told if each.held_out is not None] == model.held_out_
    assert model.held_out_[-1] == pytest.approx(model.score(later))


# --- as a library ------------------------------------------------------------------------------------------


@every_model
def test_models_are_saved_with_what_they_predict_from(kind: type[EventIntensity], tmp_path) -> None:
    data = events(12)
    model = fitted(kind, data)
    model.save(tmp_path / "model.npz")
    again = PoissonEstimator.load(tmp_path / "model.npz")
    assert type(again) is kind
    assert again.get_params() == model.get_params()
    assert again.recommend(2, 50.0) == model.recommend(2, 50.0)
    assert again.score(events(13, 9, start=41.0)) == model.score(events(13, 9, start=41.0))
    assert (again.elbo_, again.n_iter_, again.converged_) == (model.elbo_, model.n_iter_, model.converged_)
    assert np.allclose(again.partial_fit(data, n_iter=2).elbo_, model.partial_fit(data, n_iter=2).elbo_)
    other = HPF if kind is not HPF else HRPF
    if not issubclass(kind, other):
        with pytest.raises(ConfigError, match=f"holds a model {kind.__name__}, not {other.__name__}"):
            other.load(tmp_path / "model.npz")


def either(n: int) -> Any:
    """Return a text, a whole number or another: ids of a list that somebody put together."""
    return (f"user {n}", n, n + 0.5)[n % 3]


@pytest.mark.parametrize("make", [str, uuid.UUID, int, either])
def test_ids_keep_their_type_in_a_file(make: Any, tmp_path) -> None:
    user, item, time = events(14)
    ids = [make(int=n) if make is uuid.UUID else make(n) for n in range(5)]
    frame = pd.DataFrame({"user": [ids[u] for u in user], "item": [f"item {p}" for p in item], "time": time})
    model = HRPF(2, max_iter=2).fit(frame)
    model.save(tmp_path / "model.npz")
    again = HRPF.load(tmp_path / "model.npz")
    assert list(again.user_ids_) == list(model.user_ids_)
    assert again.recommend(ids[1], 50.0, 2) == model.recommend(ids[1], 50.0, 2)


def test_files_that_hold_no_model_say_so(tmp_path) -> None:
    with pytest.raises(ConfigError, match="not fitted"):
        HRPF().save(tmp_path / "model.npz")
    (tmp_path / "model.npz").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"model\.npz"):
        HRPF.load(tmp_path / "model.npz")


@every_model
def test_hyperparameters_are_those_of_scikit_learn(kind: type[EventIntensity]) -> None:
    model = kind(7, decay=0.3)
    assert kind(**model.get_params()).get_params() == model.get_params()
    assert model.set_params(tol=0.5) is model
    assert model.tol == 0.5
    with pytest.raises(ConfigError, match="has no parameter 'depth'"):
        model.set_params(depth=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 0.0}, "decay must be a positive number, not 0.0"),
        ({"a_tau": np.nan}, "a_tau must be a positive number"),
        ({"n_components": 0}, "n_components must be a whole number of at least 1"),
        ({"dtype": "float16"}, "dtype is float32 or float64"),
        ({"observed": "never"}, "observed is user or period"),
        ({"a_theta": 0.01}, "needs dtype float64"),
    ],
)
def test_hyperparameters_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HRPF(**options).fit(events(0))


def test_events_and_edges_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="outside the period"):
        HRPF().fit(events(0), period=(0, 10))
    with pytest.raises(ConfigError, match="all events are at hour 5: rates need a time"):
        HRPF(1).fit(([1, 2], [1, 2], [5.0, 5.0]))
    with pytest.raises(
        ConfigError, match="20 components are more than 12 events can tell apart: set n_components to 1"
    ):
        HRPF().fit(events(0, 12))
    with pytest.raises(ConfigError, match="HRPF knows no edges"):
        HRPF().fit(events(0), EDGES)
    with pytest.raises(ConfigError, match="SRPF needs edges"):
        SRPF().fit(events(0))
    with pytest.raises(ConfigError, match="77"):
        SRPF().fit(events(0), ([0], [77]))
    with pytest.raises(ConfigError, match="before the fit's end"):
        fitted(HPF, events(0)).score(events(1))
