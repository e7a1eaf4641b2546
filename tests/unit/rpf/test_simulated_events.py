"""Simulated events have the law of their parameters: closed forms, exponential rescaled gaps, two ways to draw them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.feature_clock import FeatureClock
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.simulated_events import KnownParameters, simulate, thinned

Floats = NDArray[np.float64]


def hawkes(tau: float, n: int = 4000, rate: float = 0.5, decay: float = 0.8) -> KnownParameters:
    """Return n users on one item, all alike, each excited by themselves."""
    own = np.arange(n)
    theta, beta = np.full((n, 1), rate), np.ones((1, 1))
    return KnownParameters(theta=theta, beta=beta, decay=decay, source=own, target=own, tau=np.full(n, tau))


def social(seed: int = 1, **more: float) -> KnownParameters:
    drawn = KnownParameters.drawn(
        6, 5, 3, n_events=900, hours=200.0, branching=0.6, mean_degree=1.5, hyper_shape=4.0, seed=seed, **more
    )
    assert (drawn.sources != drawn.targets).sum() >= 5
    return drawn


def by_the_clock() -> KnownParameters:
    clock = FeatureClock.of("2024-01-03 07:30")
    return KnownParameters.drawn(5, 4, 2, n_events=900, hours=400.0, hyper_shape=4.0, clock=clock, seed=2)


def between_items() -> KnownParameters:
    return KnownParameters.drawn(
        5, 6, 2, n_events=900, hours=300.0, branching=0.2, item_branching=0.5, hyper_shape=4.0, seed=3
    )


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.7])
def test_the_expected_number_of_events_is_that_of_the_closed_form(tau: float) -> None:
    hours, rate, decay = 40.0, 0.5, 0.8
    counts = simulate(hawkes(tau), hours, seed=5).events_per_user
    slow = decay * (1 - tau)
    expected = rate * hours / (1 - tau) - rate * tau / (1 - tau) / slow * -np.expm1(-slow * hours)
    assert abs(counts.mean() - expected) < 4 * counts.std() / np.sqrt(counts.size)
    # long records have base T / (1 - tau) events, spread by 1 / (1 - tau)^2 times a Poisson process'
    longer = simulate(hawkes(tau, 1000), 800.0, seed=6).events_per_user
    assert longer.mean() == pytest.approx(rate * 800 / (1 - tau), rel=0.01)
    assert longer.var() / longer.mean() == pytest.approx((1 - tau) ** -2, rel=0.2)


def integrals(parameters: KnownParameters, table: EventTable) -> list[Floats]:
    """Return the gaps of each (user, item) in units of its intensity's integral, by all pairs of events."""
    gaps = []
    for user in range(parameters.n_users):
        for item in range(parameters.n_items):
            own = table.time[(table.user_code == user) & (table.item_code == item)]
            gaps.append(np.diff(integral(parameters, table, user, item, own), prepend=0.0))
    return gaps


def integral(parameters: KnownParameters, table: EventTable, user: int, item: int, at: Floats) -> Floats:
    if parameters.clock is None:
        total = parameters.base()[user, item] * at
    else:
        bases = np.array([parameters.base(b)[user, item] for b in range(parameters.clock.n_bins)])
        total = np.array([(parameters.clock.exposure(0.0, t) @ bases)[0] for t in at])
    for source, target, tau in zip(parameters.sources, parameters.targets, parameters.taus, strict=True):
        if target == user:
            heard = table.time[(table.user_code == source) & (table.item_code == item)]
            total = total + tau * released(parameters, heard, at)
    if parameters.phi is not None:
        for other in set(range(parameters.n_items)) - {item}:
            weight = parameters.phi[user] * (parameters.beta[other] @ parameters.beta[item])
            heard = table.time[(table.user_code == user) & (table.item_code == other)]
            total = total + weight * released(parameters, heard, at)
    return total


def released(parameters: KnownParameters, heard: Floats, at: Floats) -> Floats:
    return -np.expm1(-parameters.decay * np.maximum(at[:, None] - heard[None, :], 0.0)).sum(1)


@pytest.mark.parametrize("draw", [simulate, thinned])
@pytest.mark.parametrize("model", [social, by_the_clock, between_items])
def test_gaps_in_units_of_the_integrated_intensity_are_exponential(model, draw) -> None:  # type: ignore[no-untyped-def]
    parameters = model()
    hours = {social: 200.0, by_the_clock: 400.0, between_items: 300.0}[model]
    table = draw(parameters, hours, seed=11)
    assert len(table) > 500
    gaps = np.concatenate([gaps for gaps in integrals(parameters, table) if gaps.size > 8])
    assert stats.kstest(gaps, "expon").pvalue > 0.01


def test_rescaling_tells_a_wrong_model() -> None:
    """The test above can fail: as a process of another excitation the same events are not exponential."""
    parameters = social()
    table = simulate(parameters, 200.0, seed=11)
    without = dataclasses.replace(parameters, tau=0 * parameters.taus)
    gaps = np.concatenate([gaps for gaps in integrals(without, table) if gaps.size > 8])
    assert stats.kstest(gaps / gaps.mean(), "expon").pvalue < 1e-3


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_the_wait_after_an_event_has_its_survival(tau: float) -> None:
    """Long records, so that hardly a wait is cut off: exp(-rate x - tau (1 - exp(-decay x)))."""
    pairs = simulate(hawkes(tau), 60.0, seed=2).pairs()
    begin = pairs.event_start[:-1][np.diff(pairs.event_start) > 1]
    assert begin.size > 3990
    assert stats.kstest(pairs.time[begin], stats.expon(scale=1 / 0.5).cdf).pvalue > 0.01
    waits = pairs.time[begin + 1] - pairs.time[begin]
    assert stats.kstest(waits, lambda x: -np.expm1(-0.5 * x + tau * np.expm1(-0.8 * x))).pvalue > 0.01


def test_without_excitation_counts_are_poisson() -> None:
    table = simulate(hawkes(0.0, 3000), 30.0, seed=2)
    counts = np.bincount(table.events_per_user, minlength=40)[:40]
    expected = 3000 * stats.poisson(15).pmf(np.arange(40))
    assert ((counts - expected) ** 2 / np.maximum(expected, 1)).sum() < 75


@pytest.mark.parametrize("model", [social, by_the_clock, between_items])
def test_both_ways_to_draw_agree(model) -> None:  # type: ignore[no-untyped-def]
    parameters = model()
    n = 60 if parameters.clock else 300
    many = np.array([simulate(parameters, 25.0, seed=s).events_per_user for s in range(n)])
    few = np.array([thinned(parameters, 25.0, seed=s).events_per_user for s in range(60)])
    spread = np.sqrt(many.var(0) / len(many) + few.var(0) / len(few))
    assert np.all(np.abs(many.mean(0) - few.mean(0)) < 4.5 * np.maximum(spread, 0.02))


def test_dynamic_events_follow_the_clock() -> None:
    clock = FeatureClock.of()
    theta = np.zeros((1, 31, 1))
    theta[0, [2, 7 + 9]] = 1.0  # Wednesdays and nine o'clock
    beta = np.zeros((1, 31, 1))
    beta[0, 7:] = 1.0
    table = simulate(KnownParameters(theta=theta, beta=beta, clock=clock), 168.0 * 50, seed=1)
    hour, day = np.floor(table.time).astype(int) % 24, np.floor(table.time).astype(int) // 24 % 7
    assert np.all((hour == 9) | (day == 2))
    # 23 hours at rate 1, 6 at rate 1 and one at rate 2 a week
    assert len(table) == pytest.approx(50 * 31, rel=0.1)
    assert np.mean((hour == 9) & (day == 2)) == pytest.approx(2 / 31, abs=0.02)


def test_drawn_parameters_have_the_branching_and_the_events_asked_for() -> None:
    parameters = social()
    assert parameters.branching() == pytest.approx(0.6, rel=0.01)
    matrix = np.zeros((6, 6))
    matrix[parameters.sources, parameters.targets] = parameters.taus
    assert np.abs(np.linalg.eigvals(matrix)).max() == pytest.approx(0.6, rel=0.01)
    counts = [len(simulate(parameters, 200.0, seed=s)) for s in range(40)]
    assert np.mean(counts) == pytest.approx(900, rel=0.1)
    assert between_items().branching() == pytest.approx(0.7, rel=0.01)
    assert np.mean([len(simulate(by_the_clock(), 400.0, seed=s)) for s in range(5)]) == pytest.approx(900, rel=0.15)


def test_the_seed_decides_and_the_edges_are_those_of_estimators() -> None:
    parameters = social()
    one, again = simulate(parameters, 100.0, seed=1), simulate(parameters, 100.0, seed=1)
    np.testing.assert_array_equal(one.time, again.time)
    assert len(simulate(parameters, 100.0, seed=2)) != len(one)
    assert (one.start, one.end, one.n_users, one.n_items) == (0.0, 100.0, 6, 5)
    edges = parameters.edges
    assert not np.any(edges["user"] == edges["follows"])
    assert parameters.own_tau.sum() + sum(
        t for s, d, t in zip(parameters.sources, parameters.targets, parameters.taus, strict=True) if s != d
    ) == pytest.approx(parameters.taus.sum())


def test_what_never_ends_or_is_no_process_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"brings about up to 1\.20 others"):
        simulate(hawkes(1.2, 5), 200.0, most_events=20_000)
    with pytest.raises(ConfigError, match="not negative"):
        hawkes(-0.1, 5)
    with pytest.raises(ConfigError, match="no factors of one model"):
        KnownParameters(theta=np.ones((3, 2)), beta=np.ones((3, 4)))
    assert len(simulate(KnownParameters(theta=np.zeros((3, 2)), beta=np.ones((2, 2))), 10.0)) == 0
    assert len(thinned(KnownParameters(theta=np.zeros((3, 2)), beta=np.ones((2, 2))), 10.0)) == 0
