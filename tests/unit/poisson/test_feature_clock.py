"""The clock of features: what holds when, and what accrues between two times."""

from __future__ import annotations

from datetime import datetime
from itertools import islice

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable_kernels.poisson.feature_clock import FeatureClock, phase_of, weekdays_and_hours


def test_the_week_has_one_weekday_and_one_hour_at_a_time():
    table = weekdays_and_hours()
    assert table.shape == (168, 31)
    assert (table[:, :7].sum(1) == 1).all()
    assert (table[:, 7:].sum(1) == 1).all()
    thursday_17 = 3 * 24 + 17
    assert np.flatnonzero(table[thursday_17]).tolist() == [3, 7 + 17]


@pytest.mark.parametrize(
    "origin",
    [
        "2026-11-26 17:30",
        datetime(2026, 11, 26, 17, 30),
        np.datetime64("2026-11-26T17:30"),
        pd.Timestamp("2026-11-26 17:30"),
        pd.Timestamp("2026-11-26 17:30", tz="Europe/Berlin"),
        (3, 17.5),
        3 * 24 + 17.5,
    ],
)
def test_an_origin_is_a_date_or_a_weekday_and_hour(origin):
    assert phase_of(origin) == 3 * 24 + 17.5
    clock = FeatureClock.of(origin)
    assert clock.bins([0.0, 0.6, 24.0, 168.0, -17.5]).tolist() == [89, 90, 89 + 24, 89, 72]


@pytest.mark.parametrize("origin", ["yesterday", (1, 2, 3), {"hour": 3}, np.nan, object()])
def test_another_origin_is_one_sentence(origin):
    with pytest.raises(ValueError, match="clock_origin is the date and time of hour 0"):
        phase_of(origin)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ((np.ones(3), None), "table of bins by features"),
        ((-np.ones((3, 2)), None), "finite and not negative"),
        ((np.array([[1.0], [0.0]]), None), "bin 1 has no feature of users"),
        ((np.ones((3, 2)), np.ones((4, 2))), "3 bins and those of items 4"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(tables, message):
    with pytest.raises(ValueError, match=message):
        FeatureClock.of(None, *tables)


@given(st.floats(-500, 500), st.floats(0, 400), st.integers(1, 9), st.floats(0, 7))
def test_exposure_is_the_time_spent_in_each_bin(start, length, n_bins, phase):
    clock = FeatureClock(np.ones((n_bins, 1)), np.ones((n_bins, 1)), 7.0, phase)
    exposure = clock.exposure(start, start + length)[0]
    assert exposure.sum() == pytest.approx(length, abs=1e-9)
    middles = start + length * (np.arange(4000) + 0.5) / 4000
    counted = np.bincount(clock.bins(middles), minlength=n_bins) * length / 4000
    np.testing.assert_allclose(exposure, counted, atol=400 / 7 * 3 * length / 4000 + 1e-9)


def test_bins_follow_one_another_from_any_time():
    clock = FeatureClock.of((2, 3.25))
    bins = list(islice(clock.ends_from(0.5), 400))
    assert bins[:2] == [(51, 0.75), (52, 1.75)]
    assert bins[-1] == (450 % 168, 399.75)
    starts = np.array([0.5, *(end for _, end in bins[:-1])])
    assert clock.bins(starts + 0.01).tolist() == [index for index, _ in bins]


def test_what_accrues_in_a_period_is_exposure_times_features():
    rng = np.random.default_rng(0)
    clock = FeatureClock(rng.random((6, 3)), rng.random((6, 2)), 12.0)
    totals = rng.random((2, 4))
    accrued = clock.accrued(totals)
    rate = np.einsum("bi,bj,jk->bik", clock.user_table, clock.item_table, totals)
    np.testing.assert_allclose(accrued[-1], 2.0 * rate.sum(0))
    np.testing.assert_allclose(accrued[2] - accrued[1], 2.0 * rate[1])
