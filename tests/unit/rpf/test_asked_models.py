"""What is asked of a model before a fit, at odd times, with ids of several types, and after a fit by batches."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint
from sandtable_workloads.rpf.estimators.poisson_estimator import NotFitted
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.scaled.stochastic_fit import StochasticOptions, fit_stochastic

MIXED = ["a", "b", "a", "b", 3], ["x", 0, 0, "y", (1, 2)], [0.0, 1, 2, 3, 4]
DATED = ["a", "b", "a"], ["x", "x", "y"], np.array(["2024-01-01", "2024-01-02", "2024-01-03T12"], "datetime64[s]")


@pytest.mark.parametrize("name", ["theta_", "user_ids_", "recommend", "score", "returning_time", "save"])
def test_before_a_fit_a_sentence_says_so(name: str) -> None:
    arguments = {"recommend": ("a", 1.0), "score": (MIXED,), "returning_time": ("a", 1.0), "save": ("m.npz",)}
    with pytest.raises(NotFitted, match=r"HRPF is not fitted, and has no .*_: call fit first"):
        getattr(HRPF(2), name)(*arguments.get(name, ()))
    assert not hasattr(HRPF(2), "theta_")
    with pytest.raises(AttributeError, match="no attribute 'thetas'"):
        HRPF(2).thetas  # noqa: B018


def test_ids_of_several_types_are_found() -> None:
    model = HRPF(2, max_iter=5).fit(MIXED)
    every = dict(zip(model.item_ids_.tolist(), model.intensity("a", 5.0), strict=True))
    asked = [0, "x", (1, 2)]
    assert model.intensity("a", 5.0, items=asked).tolist() == pytest.approx([every[item] for item in asked])
    assert model.intensity("a", 5.0, items=[(1, 2)]) == pytest.approx([every[1, 2]])
    assert {item for item, _ in model.recommend("a", 5.0, exclude=[0, (1, 2)])} == {"x", "y"}
    assert pickle.loads(pickle.dumps(model)).recommend(3, 5.0) == model.recommend(3, 5.0)


def test_times_are_hours_or_dates() -> None:
    model = HRPF(2, max_iter=5).fit(DATED)
    later = model.period_[1] + 12
    for date in (np.datetime64("2024-01-04"), "2024-01-04T00:00Z", "2024-01-04T02:00+02:00"):
        assert model.recommend("a", date) == model.recommend("a", later)
    assert model.returning_time("a", "2024-01-04") == model.returning_time("a", later)
    with pytest.raises(ConfigError, match="not 'soon'"):
        model.recommend("a", "soon")
    with pytest.raises(ConfigError, match="not 'nan'"):
        model.returning_time("a", np.nan)
    with pytest.raises(ConfigError, match="events had hours"):
        HRPF(2, max_iter=2).fit(MIXED).intensity("a", "2024-01-04")


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_a_number_of_items_that_cannot_be(n: Any) -> None:
    with pytest.raises(ConfigError, match="whole number of at least 1"):
        HRPF(2, max_iter=2).fit(MIXED).recommend("a", 5.0, n)


def test_a_warm_start_of_another_size_is_refused() -> None:
    model = HRPF(2, max_iter=2, warm_start=True).fit(MIXED)
    with pytest.raises(ConfigError, match="as many components and features"):
        model.set_params(n_components=1).fit(MIXED)


def test_two_events_at_the_very_end_give_no_rate_beyond_measure() -> None:
    for gap in (0.0, 1e-9):
        events = (["a", "b", "b"], ["x", "x", "y"], [0.0, 10 - gap, 10.0])
        assert 0 < HRPF(1, max_iter=50).fit(events).intensity("b", 10.0).max() < 1e3


def test_a_user_with_one_event_is_near_all_others_and_knows_its_item() -> None:
    rng = np.random.default_rng(0)
    user, item = np.append(rng.integers(0, 20, 500), 99), np.append(rng.integers(0, 9, 500), 4)
    model = HRPF(2, max_iter=30).fit((user, item, np.append(np.sort(rng.random(500)) * 200, 100.0)))
    base = model.intensity(99, 1e4)
    assert model.intensity(99, 100.1)[model.item_index_.place(4)] > base[model.item_index_.place(4)]
    assert 0 < base.sum() < 10 * model.intensity("nobody", 1e4).sum()
    assert np.isfinite(model.returning_time(99, 200.0))


# --- after a fit by batches ------------------------------------------------------------------------------------


def by_batches(decay: float = 2.0) -> tuple[HRPF, EventTable]:
    rng = np.random.default_rng(1)
    user, item, time = rng.integers(0, 30, 3000), rng.integers(0, 9, 3000), np.sort(rng.random(3000)) * 400
    events = EventTable.of((user, item, time))
    options = StochasticOptions(n_epochs=2, batch_events=500)
    return fit_stochastic(HRPF(2, decay=decay), events, options=options), events


def test_a_fit_by_batches_is_right_from_its_end_on_and_says_when_it_is_not(tmp_path: Path) -> None:
    model, events = by_batches()
    model.save(tmp_path / "model.npz")
    again = HRPF.load(tmp_path / "model.npz")
    whole = HRPF(2, decay=2.0, max_iter=1).fit(events)
    for name in ("theta_", "beta_", "tau_"):
        setattr(whole, name, getattr(model, name))
    for each in (model, again):
        for hour in (events.end, events.end + 0.1):
            np.testing.assert_allclose(each.intensity(3, hour), whole.intensity(3, hour), rtol=1e-12)
        assert each.intensity(3, events.end, items=[77])[0] == model.intensity(3, events.end, items=[77])[0]
        with pytest.raises(
            ConfigError, match=r"keeps only what still excites at its end: ask for that, hour 399\.\d+"
        ):
            each.recommend(3, 200.0)
        with pytest.raises(ConfigError, match=r"keeps no event before hour 379\.\d+, and so cannot go on"):
            each.partial_fit(([3], [4], [500.0]))


def test_a_fit_by_batches_that_kept_all_goes_on_with_more() -> None:
    model, events = by_batches(decay=0.01)
    assert model.observed_.pairs.n_events == len(events)
    model.recommend(3, 200.0)
    assert model.partial_fit(([3], [4], [500.0])).period_[1] == 500.0


# --- interruptions ---------------------------------------------------------------------------------------------


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take interrupts, which a process in the background of a shell ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_fit_loses_no_iteration(tmp_path: Path, interruptible: None) -> None:
    rng = np.random.default_rng(2)
    events = rng.integers(0, 9, 300), rng.integers(0, 9, 300), rng.random(300) * 99
    keeper = FitCheckpoint(path=tmp_path / "fit.npz", every_s=1e9)

    def ended(done: Any) -> None:
        if done.number == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as interrupted:
        HRPF(2, max_iter=20, tol=1e-12).fit(events, checkpoint=keeper, progress=ended)
    assert interrupted.value.__notes__ == [f"the fit is kept in {keeper.path}, and the same command goes on there"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    done: list[int] = []
    resumed = HRPF(2, max_iter=20, tol=1e-12)
    resumed.fit(events, checkpoint=keeper, progress=lambda each: done.append(each.number))
    assert done[0] == 8
    whole = HRPF(2, max_iter=20, tol=1e-12).fit(events)
    np.testing.assert_array_equal(resumed.theta_, whole.theta_)
