"""A device left out of constants and interval alike: nothing of it reaches what is tested on it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sandtable.calibration.fit import left_out
from sandtable.published import nested
from sandtable.published.nested import Missed


def missed(device: str, scatter: float, siblings: tuple[float, ...], operator: str = "gemm") -> Missed:
    rng = np.random.default_rng(len(device))
    residuals = rng.normal(0, scatter, 400)
    return Missed(operator, device, residuals, tuple(rng.normal(0, s, 400) for s in siblings))


def test_the_interval_of_a_device_does_not_depend_on_what_it_is_missed_by() -> None:
    others = [missed("b", 0.1, (0.1, 0.2)), missed("c", 0.2, (0.1, 0.1))]
    near, far = (nested.half_widths([missed("a", own, (0.1, 0.2)), *others])[0] for own in (0.05, 5.0))
    assert near == far


def test_more_devices_that_agree_make_it_narrower_and_one_that_is_off_wider() -> None:
    two, four, off = (
        nested.half_width([np.random.default_rng(1).normal(0, s, 500) for s in scatters], 0.1)
        for scatters in ((0.1, 0.1), (0.1,) * 4, (0.1, 0.1, 0.1, 0.6))
    )
    assert four < two < off


def test_a_lone_device_gets_what_is_usual() -> None:
    assert nested.half_width([], 0.2) == pytest.approx(0.2 * left_out.student_95(left_out.DEGREES))


def test_the_table_counts_points_inside() -> None:
    members = [missed("a", 0.1, (0.1, 0.1)), missed("bb", 0.1, (0.1, 0.1)), missed("ccc", 0.1, (0.1, 0.1))]
    (row,) = nested.table(members).rows
    assert row[:3] == ["gemm", 3, 1200]
    assert float(str(row[5])) > 90
    widths = nested.half_widths(members)
    assert float(str(row[6])) == pytest.approx(100 * np.mean(np.expm1(widths)), abs=0.1)
    far = [item._replace(residuals=item.residuals + math.log(9)) for item in members[:1]]
    (row,) = nested.table([*far, *members[1:]]).rows
    assert 55 < float(str(row[5])) < 70
