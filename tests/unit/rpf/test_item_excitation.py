"""IIRPF and XIIRPF: the bound never falls and is the bound, predictions are the model's, and what excites is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from scipy.stats import gamma

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.estimators.item_excitation import IIRPF, XIIRPF, ItemExcitation
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF
from sandtable_workloads.rpf.events.simulated_events import KnownParameters, simulate

Events = tuple[Any, Any, Any]


def events(seed: int, *, n_users=4, n_items=6, n=60, ticks: int | None = None, start=0.0, hours=40.0) -> Events:
    rng = np.random.default_rng(seed)
    times = rng.uniform(start, start + hours, n) if ticks is None else start + rng.integers(ticks, size=n) * 0.5
    return rng.integers(n_users, size=n), rng.integers(n_items, size=n), np.sort(times)


def models(**options: Any) -> list[ItemExcitation]:
    given_clusters = {item: "ab"[item % 2] for item in range(50)}
    distances = [[1.0, 0.5], [0.0, 2.0]]
    return [
        IIRPF(3, dtype="float64", **options),
        XIIRPF(
            3, dtype="float64", clusters=given_clusters, distances=distances, nu=0.7, decay_items=0.4, **options
        ),
    ]


@pytest.fixture(params=[0, 1], ids=["IIRPF", "XIIRPF"])
def model(request) -> ItemExcitation:
    return models(max_iter=12)[request.param]


# --- the bound ---------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(3, 80),
    n_users=st.integers(1, 5),
    n_items=st.integers(1, 8),
    ticks=st.sampled_from([None, 3, 30]),
    shape=st.sampled_from([0.3, 1.0, 4.0]),
    hierarchical=st.booleans(),
)
def test_the_bound_never_falls(seed, n, n_users, n_items, ticks, shape, hierarchical):
    data = events(seed, n_users=n_users, n_items=n_items, n=n, ticks=ticks)
    for each in models(
        max_iter=25, tol=1e-15, a_beta=shape, a_phi=shape, hierarchical=hierarchical, random_state=seed
    ):
        elbo = np.array(each.fit(data, period=(-1.0, 41.0)).elbo_)
        assert (np.diff(elbo) >= -1e-9 * np.abs(elbo[1:])).all()


def alpha_of(model: ItemExcitation, *, part: str) -> Any:
    """[P, P] from q to p, the mean or geometric mean under q; an item excites no others of itself."""
    if isinstance(model, XIIRPF):
        pi = getattr(model.state_["pi"], part) * np.asarray(model.distances) / model.nu
        alpha = pi[model.cluster_[:, None], model.cluster_]
    else:
        beta = getattr(model.state_["beta"], part)
        alpha = beta @ beta.T
    return alpha * (1 - np.eye(alpha.shape[0]))


def excitation(model: ItemExcitation, data: Events, at: Events, phi: Any, tau: Any, alpha: Any) -> Any:
    """What events of ``data`` add to the rates of events ``at``, one by one; rows of users and items as they are."""
    (u, q, s), (v, p, t) = data, at
    gap = t[:, None] - s
    past = (v[:, None] == u) & (gap > 0)
    gap = np.where(past, gap, 0.0)
    w1, w2 = model.decay, getattr(model, "decay_items", model.decay)
    of_own = tau[v] * ((past & (p[:, None] == q)) * w1 * np.exp(-w1 * gap)).sum(1)
    return of_own + phi[v] * (past * alpha[q, p[:, None]] * w2 * np.exp(-w2 * gap)).sum(1)


def rows_bound(rows: Any) -> float:
    """Priors and entropies of rows and of their rates, by the definitions."""
    shape, rate = rows.shape, rows.shape / rows.mean
    log = digamma(shape) - np.log(rate)
    g_shape, g_rate, prior = rows.group_shape[:, None], rows.group_rate[:, None], rows.prior
    g_log = digamma(g_shape) - np.log(g_rate)
    log_gamma = gamma.logpdf(1.0, prior.shape) + 1.0  # -ln Gamma(shape)
    total = np.sum(prior.shape * g_log + log_gamma + (prior.shape - 1) * log - g_shape / g_rate * rows.mean)
    hyper = gamma.logpdf(1.0, prior.hyper_shape) + 1.0 + prior.hyper_shape * np.log(prior.hyper_rate)
    total += np.sum(hyper + (prior.hyper_shape - 1) * g_log - prior.hyper_rate * g_shape / g_rate)
    total += gamma.entropy(shape, scale=1 / rate).sum() + gamma.entropy(g_shape, scale=1 / g_rate).sum()
    return float(total)


def test_the_bound_is_what_its_definition_gives(model):
    data = events(3, n=70, ticks=60)
    model.fit(data)
    state, observed = model.state_, model.observed_
    users, items, times = data
    index = model.user_index_.places(users), model.item_index_.places(items), times
    phi, tau = (state[name].geometric[:, 0] for name in ("phi", "tau"))
    base = (state["theta"].geometric[index[0]] * state["beta"].geometric[index[1]]).sum(1)
    rate = base + excitation(model, index, index, phi, tau, alpha_of(model, part="geometric"))
    w1, w2 = model.decay, getattr(model, "decay_items", model.decay)
    left = observed.end - times
    phi, tau = (state[name].mean[index[0], 0] for name in ("phi", "tau"))
    expected = observed.exposure @ state["theta"].mean @ state["beta"].mean.sum(0)
    expected += np.sum(tau * (1 - np.exp(-w1 * left)))
    expected += np.sum(phi * alpha_of(model, part="mean").sum(1)[index[1]] * (1 - np.exp(-w2 * left)))
    want = np.log(rate).sum() - expected + sum(rows_bound(rows) for rows in state.values())
    assert model._iterate(observed, state) == pytest.approx(want, rel=1e-11)


def test_threads_and_precision_hardly_matter(model):
    data = events(5, n=400, n_items=20, n_users=12)
    one = model.fit(data)
    params = model.get_params()
    single = type(model)(**params | {"dtype": "float32", "n_threads": 1}).fit(data)
    np.testing.assert_allclose(single.elbo_, one.elbo_, rtol=1e-5)
    np.testing.assert_allclose(single.intensity(3, 41.0), one.intensity(3, 41.0), rtol=1e-3)


# --- prediction --------------------------------------------------------------------------------------------


def test_intensity_is_the_models(model):
    data = events(7, n=80)
    model.fit(data)
    u, p, s = data
    index = model.user_index_.places(u), model.item_index_.places(p), s
    user = model.user_index_.place(2)
    n = len(model.item_index_)
    at = np.full(n, user), np.arange(n), np.full(n, 33.3)
    more = excitation(model, index, at, model.phi_, model.tau_, alpha_of(model, part="mean"))
    want = model.beta_ @ model.theta_[user] + more
    np.testing.assert_allclose(model.intensity(2, 33.3), want, rtol=1e-10)
    assert model.intensity(2, 33.3, ["unheard of"])[0] > 0
    assert model.intensity("nobody", 33.3).shape == (n,)


def test_returning_times_are_those_of_the_intensity(model):
    model.fit(events(8, n=200))
    rng = np.random.default_rng(0)
    waits = np.sort(model._waits(0, 40.5, 4000, rng))
    base = model._base_between(np.array([0]), 0, 1)[0]
    integral = base * waits + sum(rate / w * (1 - np.exp(-w * waits)) for rate, w in model._decaying(0, 40.5))
    assert model.intensity(model.user_ids_[0], 40.5).sum() == pytest.approx(
        base + sum(rate for rate, _ in model._decaying(0, 40.5))
    )
    # time rescaled by the intensity is exponential: Kolmogorov-Smirnov at 1 in 1,000
    rank = (np.arange(waits.size) + 0.5) / waits.size
    assert np.abs(1 - np.exp(-integral) - rank).max() < 1.95 / np.sqrt(waits.size)


def test_score_is_the_likelihood_of_later_events(model):
    data, later = events(9, n=90), events(10, n=30, start=40.0)
    model.fit(data, period=(0.0, 40.0))
    u, p, s = (np.concatenate(each) for each in zip(data, later, strict=True))
    index = model.user_index_.places(u), model.item_index_.places(p), s
    at = index[0][90:], index[1][90:], s[90:]
    alpha = alpha_of(model, part="mean")
    rate = (model.theta_[at[0]] * model.beta_[at[1]]).sum(1)
    rate = rate + excitation(model, index, at, model.phi_, model.tau_, alpha)
    end, w1, w2 = s.max(), model.decay, getattr(model, "decay_items", model.decay)
    expected = (model.theta_ @ model.beta_.sum(0)).sum() * (end - 40.0)
    begin = np.maximum(s, 40.0)
    expected += np.sum(model.tau_[index[0]] * (np.exp(-w1 * (begin - s)) - np.exp(-w1 * (end - s))))
    reach = model.phi_[index[0]] * alpha.sum(1)[index[1]]
    expected += np.sum(reach * (np.exp(-w2 * (begin - s)) - np.exp(-w2 * (end - s))))
    assert model.score(later) == pytest.approx((np.log(rate).sum() - expected) / 30, rel=1e-10)
    strangers = (np.array([99, 0]), np.array([77, 78]), np.array([41.0, 42.0]))
    assert np.isfinite(model.score(strangers))


# --- what excites ------------------------------------------------------------------------------------------


def followed_by_kin(seed: int, n_first: int = 700) -> Events:
    """Users meet items 0-3 or 4-7 at random; half of the time another of the same four follows within the hour."""
    rng = np.random.default_rng(seed)
    user, item, time = rng.integers(15, size=n_first), rng.integers(8, size=n_first), rng.uniform(0, 2000, n_first)
    follows = rng.random(n_first) < 0.5
    kin = item // 4 * 4 + (item + rng.integers(1, 4, n_first)) % 4
    after = time + rng.exponential(0.5, n_first)
    columns = (user, user[follows]), (item, kin[follows]), (time, after[follows])
    user, item, time = (np.concatenate(each) for each in columns)
    order = np.argsort(time)
    return user[order], item[order], time[order]


def test_items_that_follow_one_another_are_told_from_those_that_return():
    u, p, t = followed_by_kin(0)
    n = int(0.8 * t.size)
    train, test = (u[:n], p[:n], t[:n]), (u[n:], p[n:], t[n:])
    clusters = {item: item // 4 for item in range(8)}
    options = {"decay": 2.0, "max_iter": 150, "dtype": "float64"}
    plain, factors = (kind(4, **options).fit(train).score(test) for kind in (HRPF, IIRPF))
    clustered = XIIRPF(4, decay_items=2.0, clusters=clusters, **options).fit(train)
    assert factors > plain + 0.3
    assert clustered.score(test) > plain + 0.3
    within, across = np.diag(clustered.pi_), clustered.pi_[~np.eye(2, dtype=bool)]
    assert within.min() > 5 * across.max()
    # three items are excited alike: in all 0.5 follow an event, of those observed to the end
    branching = clustered.phi_.mean() * within.mean() * 3
    assert 0.25 < branching < 0.6


def test_clusters_are_found_where_none_are_given():
    rng = np.random.default_rng(2)
    user = rng.integers(20, size=3000)
    item = np.where(rng.random(3000) < 0.95, user % 2, 1 - user % 2) * 5 + rng.integers(5, size=3000)
    model = XIIRPF(2, clusters=2, max_iter=40).fit((user, item, np.sort(rng.uniform(0, 1000, 3000))))
    groups = [set(model.cluster_[np.argsort(model.item_ids_)][part]) for part in (slice(0, 5), slice(5, 10))]
    assert [len(group) for group in groups] == [1, 1]
    assert groups[0] != groups[1]


def test_items_that_come_later_join(model):
    model.fit(events(11, n=60))
    before = len(model.elbo_)
    model.partial_fit(events(12, n=40, n_items=9, n_users=6, start=41.0), n_iter=3)
    assert before == 12
    assert model.beta_.shape[0] == 9
    assert model.phi_.shape == (6,)
    found = XIIRPF(2, clusters=3, max_iter=5).fit(events(13))
    found.partial_fit(events(14, n_items=8, start=41.0), n_iter=2)
    assert found.cluster_.shape == (8,)


def test_a_model_is_kept_with_its_clusters(model, tmp_path):
    found = XIIRPF(2, clusters=3, max_iter=5)
    for each in (model, found):
        each.fit(events(13)).partial_fit(events(14, n_items=8, start=41.0), n_iter=2)
        each.save(tmp_path / "model.npz")
        again = type(each).load(tmp_path / "model.npz")
        np.testing.assert_array_equal(again.intensity(2, 90.0), each.intensity(2, 90.0))
        later = events(15, n_items=9, start=90.0)
        assert again.score(later) == each.score(later)


@pytest.mark.parametrize("options", [{}, {"clusters": 3}])
def test_a_fit_goes_on_from_its_checkpoint(options, tmp_path):
    kind = XIIRPF if options else IIRPF
    whole = kind(2, max_iter=9, **options).fit(events(0))
    kind(2, max_iter=4, **options).fit(events(0), checkpoint=tmp_path / "kept.npz")
    again = kind(2, max_iter=9, **options).fit(events(0), checkpoint=tmp_path / "kept.npz")
    np.testing.assert_array_equal(again.beta_, whole.beta_)
    np.testing.assert_array_equal(again.phi_, whole.phi_)


def test_followed_users_excite_too(model):
    u, p, t = events(16, n_users=3, n=150)
    follows = np.isin(p, (1, 4)) & (u == 0)  # what user 0 does with these, user 1 soon does
    again = np.ones(follows.sum(), np.int64), p[follows], t[follows] + 0.05
    u, p, t = (np.concatenate(both) for both in zip((u, p, t), again, strict=True))
    model.decay = 5.0
    edges = {"user": [1, 2], "follows": [0, 0]}
    alone = model.fit((u, p, t)).elbo_[-1]
    elbo = np.array(model.fit((u, p, t), edges).elbo_)
    assert (np.diff(elbo) >= -1e-9 * np.abs(elbo[1:])).all()
    assert elbo[-1] > alone + 10
    assert model.edge_tau_[0] > 3 * model.edge_tau_[1]


def test_parameters_that_events_were_drawn_from_are_found():
    truth = KnownParameters.drawn(
        60, 20, 3, n_events=9000, hours=2000, branching=0.2, item_branching=0.1, hyper_shape=5
    )
    reach = (truth.beta * (truth.beta.sum(0) - truth.beta)).sum(1)
    phi = np.random.default_rng(0).uniform(0.2, 0.6, 60) / reach.max()
    table = simulate(replace(truth, phi=phi, tau=np.full(60, 0.15)), hours=2000, seed=2)
    users, items = (np.asarray(ids, np.int64) for ids in (table.user_ids, table.item_ids))
    plain = HRPF(5, dtype="float64", max_iter=150).fit(table, period=(0, 2000))
    model = IIRPF(5, dtype="float64", max_iter=150).fit(table, period=(0, 2000))
    pairs = model.observed_.pairs
    # events that each event excites: of the same item, and of others
    others = model.phi_[pairs.event_user] * model._reach(model.state_)[pairs.event_item]
    true_others = phi[users[pairs.event_user]] * reach[items[pairs.event_item]]
    own = model.tau_[pairs.event_user].mean()
    assert others.mean() == pytest.approx(true_others.mean(), rel=0.15)
    assert np.corrcoef(others, true_others)[0, 1] > 0.8
    assert own == pytest.approx(0.15, rel=0.15)
    # without excitation by others, some of it is taken for returns
    assert plain.tau_[pairs.event_user].mean() > own


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"clusters": {0: "a"}}, r"no cluster of item \d \(5 items have none\)"),
        ({"clusters": 0}, "clusters must be at least 1"),
        ({"clusters": "ab"}, "clusters must be at least 1, or the cluster of every item by id, not 'ab'"),
        ({"clusters": dict.fromkeys(range(6), 0), "distances": [[1.0, 2.0]]}, "distances must be 1 x 1"),
        ({"decay_items": -1.0}, "decay_items must be a positive number, not -1.0"),
        ({"a_pi": 0.0}, "a_pi must be a positive number"),
    ],
)
def test_bad_clusters_are_said(options, says):
    with pytest.raises(ConfigError, match=says):
        XIIRPF(2, **options).fit(events(0, n=200))
