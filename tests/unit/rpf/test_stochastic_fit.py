"""Fits by batches of users: one batch is the fit of all, many come near it, and a kill changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
from sandtable_workloads.rpf.estimators.static_factorization import HPF
from sandtable_workloads.rpf.events.event_store import EventStore
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.generated_events import GeneratedEvents
from sandtable_workloads.rpf.scaled.stochastic_fit import StochasticOptions, fit_stochastic
from sandtable_workloads.rpf.scaled.user_batches import TableBatches, scan

MADE = GeneratedEvents(n_users=120, n_items=30, n_events=6000, days=20.0, seed=3)


def table() -> EventTable:
    made = MADE.table()
    user, item = (pd.factorize(codes)[0] for codes in (made.user_code, made.item_code))  # as they come
    return EventTable.of((user, item, made.time), start=0.0, until=MADE.hours)


def test_one_batch_and_a_whole_step_is_an_iteration() -> None:
    options = StochasticOptions(n_epochs=1, n_rounds=1, batch_events=10**9)
    one = fit_stochastic(HRPF(4, dtype="float64"), table(), options=options)
    whole = HRPF(4, dtype="float64", max_iter=1).fit(table())
    for name in ("theta_", "beta_", "tau_"):
        np.testing.assert_allclose(getattr(one, name), getattr(whole, name), rtol=1e-9)
    np.testing.assert_allclose(one.elbo_[0] - one.state_["beta"].terms, whole.elbo_[0] - start_terms(), rtol=1e-9)


def start_terms() -> float:
    return float(HRPF(4, dtype="float64").begin(table()).state_["beta"].terms)


def groups() -> EventTable:
    """Four groups of users, each with items of its own."""
    rng = np.random.default_rng(8)
    users, items = np.arange(120)[:, None], np.arange(40)
    counts = rng.poisson(np.where(users % 4 == items % 4, 4.0, 0.2))
    user, item = (np.repeat(index, counts.ravel()) for index in np.unravel_index(np.arange(4800), counts.shape))
    return EventTable.of((user, item, rng.uniform(0, 480, user.size)), start=0.0, until=480.0)


@pytest.mark.parametrize("model", [HPF, HRPF])
def test_many_batches_predict_nearly_as_well_as_all_events_at_once(model: type[HPF]) -> None:
    events = groups()
    first = events.time <= 400
    training, later = events.taken(first, end=400.0), events.taken(~first, start=400.0)
    whole = model(4, max_iter=150).fit(training)
    options = StochasticOptions(n_epochs=25, batch_events=600)
    batches = fit_stochastic(model(4), training, options=options, validation=later)
    begun = model(4, max_iter=1).fit(training)
    best, least = whole.score(later), begun.score(later)
    assert abs(best - batches.score(later)) < 0.05 * (best - least)
    assert best - least > 0.3
    assert batches.held_out_[-1] == batches.score(later)
    assert batches.elbo_[-1] > batches.elbo_[0]


def test_a_store_is_fitted_as_the_table_that_it_holds(tmp_path: Path) -> None:
    store = EventStore.of_table(tmp_path / "events", table(), events_per_group=1000)
    in_memory = TableBatches(table(), 1000)
    in_memory._bounds = store.bounds()
    options = StochasticOptions(n_epochs=2)
    read = fit_stochastic(HRPF(3), tmp_path / "events", options=options)
    held = fit_stochastic(HRPF(3), in_memory, options=options)
    np.testing.assert_array_equal(read.theta_, held.theta_)
    np.testing.assert_array_equal(read.beta_, held.beta_)
    assert read.n_iter_ == 2 * store.n_batches > 6
    assert read.recommend(7, MADE.hours, 3) == held.recommend(7, MADE.hours, 3)


def test_a_fit_that_was_broken_off_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    options = StochasticOptions(n_epochs=3, batch_events=1500)
    checkpoint = FitCheckpoint(path=tmp_path / "fit.npz", every_iterations=1)

    def ended(done: Any) -> None:
        if done.number == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_stochastic(HRPF(3), table(), options=options, checkpoint=checkpoint, progress=ended)
    done: list[int] = []
    resumed = fit_stochastic(
        HRPF(3), table(), options=options, checkpoint=checkpoint, progress=lambda i: done.append(i.number)
    )
    whole = fit_stochastic(HRPF(3), table(), options=options)
    assert done == [*range(6, 13)]
    for name in ("theta_", "beta_", "tau_", "elbo_", "n_iter_"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    with pytest.raises(ConfigError, match=r"kappa=0\.7, now 0\.9"):
        fit_stochastic(HRPF(3), table(), options=StochasticOptions(kappa=0.9), checkpoint=checkpoint)
    with pytest.raises(ConfigError, match="is of a HRPF by batches, and this is a fit of HRPF"):
        HRPF(3).fit(table(), checkpoint=checkpoint)


def test_only_events_that_still_excite_stay_in_memory() -> None:
    events = table()
    whole, short = scan(TableBatches(events, 1000), 1e-3, "user"), scan(TableBatches(events, 1000), 1.0, "user")
    assert whole.recent.pairs.n_events == 6000
    assert short.recent.pairs.n_events == (events.time >= events.end - 40).sum() < 1000
    np.testing.assert_array_equal(whole.start, HRPF(3).begin(events).observed_.start)
    by_all = HRPF(3, max_iter=3).fit(events)
    rate = by_all.intensity(7, events.end)
    by_all.observed_ = short.recent
    np.testing.assert_allclose(by_all.intensity(7, events.end), rate, rtol=1e-12)


@pytest.mark.parametrize("wrong", [{"kappa": 0.5}, {"delay": 0.0}, {"n_rounds": 0}, {"n_epochs": 0}])
def test_options_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        StochasticOptions(**wrong)


def test_models_that_need_all_users_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="SRPF is not fitted by batches of users: PF, HPF, HRPF are"):
        fit_stochastic(SRPF(3), table())
