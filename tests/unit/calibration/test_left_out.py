"""Intervals from what was left out: few folds, equal shapes together, and what they cover of what comes next."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.calibration.fit import left_out
from sandtable.results import NORMAL_95


def test_a_shape_timed_twice_is_left_out_once() -> None:
    keys = ["a", "b", "a", "c", "d", "b", "e", "f"]
    found = left_out.folds(keys, 5)
    assert found[0] == found[2]
    assert found[1] == found[5]
    assert set(found) == set(range(5))
    assert set(left_out.folds(["a", "a", "b"], 5)) == {0, 1}


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(1, 100))
def test_an_interval_lies_between_the_usual_and_that_of_its_folds(scatter: float, usual: float, n: int) -> None:
    found = left_out.half_width(scatter, n, usual)
    factor = left_out.student_95(left_out.DEGREES + n)
    assert found >= left_out.FLOOR
    assert min(scatter, usual) * factor * 0.999 <= max(found, left_out.FLOOR)
    assert found <= max(left_out.FLOOR, max(scatter, usual) * factor * 1.001)


def test_without_folds_the_usual_is_all_there_is_and_with_many_it_is_forgotten() -> None:
    assert left_out.half_width(9.9, 0, 0.2) == pytest.approx(0.2 * left_out.student_95(left_out.DEGREES))
    assert left_out.half_width(0.1, 100_000, 5.0) == pytest.approx(0.1 * NORMAL_95, rel=0.05)


def test_points_that_lie_on_their_law_promise_little_when_they_are_few() -> None:
    exact = [left_out.half_width(0.0, n, 0.1) for n in (2, 5, 10, 100)]
    assert exact == sorted(exact, reverse=True)
    assert exact[0] > 0.15
    assert exact[-1] == left_out.FLOOR


def test_the_scatter_holds_nine_tenths_and_no_single_point_decides_it() -> None:
    rng = np.random.default_rng(0)
    residuals = rng.normal(0, 0.1, 4000)
    assert left_out.scatter_of(residuals) == pytest.approx(0.1, rel=0.05)
    residuals[0] = 50.0
    assert left_out.scatter_of(residuals) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("n_devices", [0, 1, 2, 5])
def test_nine_tenths_of_the_points_of_a_further_device_lie_inside(n_devices: int) -> None:
    """Devices whose scatter differs, as those of published timings do; the percentiles of few hold far less."""
    rng, usual, inside, by_percentiles = np.random.default_rng(1), 0.2, [], []
    for _ in range(1500):
        scatters = usual * np.sqrt(left_out.DEGREES / rng.chisquare(left_out.DEGREES, n_devices + 1))
        points = [rng.normal(0, scatter, 60) for scatter in scatters]
        known = [left_out.scatter_of(residuals) for residuals in points[1:]]
        mean = math.sqrt(np.mean(np.square(known))) if known else 0.0
        inside.append(np.mean(np.abs(points[0]) <= left_out.half_width(mean, n_devices, usual)))
        if known:
            low, high = np.percentile(np.concatenate(points[1:]), [5, 95])
            by_percentiles.append(np.mean((low <= points[0]) & (points[0] <= high)))
    assert 0.88 < np.mean(inside) < 0.95
    assert not by_percentiles or n_devices > 2 or np.mean(by_percentiles) < 0.86


def test_what_is_usual_is_found_among_fits_of_which_one_is_far_off() -> None:
    rng = np.random.default_rng(2)
    scatters = 0.2 * np.sqrt(left_out.DEGREES / rng.chisquare(left_out.DEGREES, 4000))
    assert left_out.usual(list(scatters)) == pytest.approx(0.2, rel=0.05)
    assert left_out.usual([*scatters[:40], 30.0]) < 1.5 * left_out.usual(list(scatters[:40]))
