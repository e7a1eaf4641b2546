"""Fits of operator laws to timed operators: constants are recovered, intervals hold, outliers and gaps do no harm."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import pytest

from sandtable.calibration.fit import operator_fit
from sandtable.calibration.fit.operator_fit import fit_constants, fit_operator, held_out_seconds
from sandtable.calibration.timing import Timing, stated
from sandtable.demand.operator import operators
from sandtable.errors import CalibrationError
from sandtable.hardware import LinkSheet, Roofline

LAW = operators()["gemm"]
TRUE = {"rate_frac": 0.7, "bandwidth_frac": 0.9, "launch_s": 4e-6, "tile_s": 2e-6, "quantise_passes": 1.5}
SHEET = Roofline(
    name="made_up",
    n_units=108,
    peak_flops_per_s={"bfloat16": 312e12, "fp8": 624e12},
    bandwidth_bytes_per_s=2e12,
    cache_bytes=40e6,
    clock_hz=1.4e9,
)


def sheet_of(timing: Timing) -> Roofline:
    return SHEETS[timing.device]


SHEETS = {"made_up": SHEET, "larger": replace(SHEET, name="larger", n_units=132, bandwidth_bytes_per_s=3.3e12)}


def points(dtypes: tuple[str, ...] = ("bfloat16", "fp8"), noise: float = 0.03, n: int = 80) -> list[Timing]:
    rng = np.random.default_rng(1)
    found = []
    for index in range(n):
        shape = (float(2 ** rng.integers(0, 14)), *(float(64 * rng.integers(8, 200)) for _ in "nk"), 1.0)
        dtype = dtypes[index % len(dtypes)]
        exact = LAW.seconds(SHEET, TRUE, LAW.columns(shape), dtype=dtype)[0]
        seconds = float(exact * np.exp(rng.normal(0, noise)))
        found.append(stated("gemm", shape, seconds, dtype=dtype, device="made_up", software="lib"))
    return found


def test_constants_are_recovered_with_intervals_that_hold_them() -> None:
    fit = fit_operator(points(), sheet_of, method="made up", date=dt.date(2026, 1, 2))
    values = fit.values()
    for name in ("rate_frac", "bandwidth_frac", "launch_s", "quantise_passes"):
        assert values[name] == pytest.approx(TRUE[name], rel=0.1), name
        estimate = fit.constants[name]
        assert estimate.low < estimate.value < estimate.high
        assert estimate.low * 0.97 < TRUE[name] < estimate.high * 1.03, name
    evidence = fit.evidence
    assert evidence.n_points == 80
    assert evidence.date == dt.date(2026, 1, 2)
    assert evidence.median_abs_error_frac < 0.05
    assert (evidence.held_out_median_abs_error_frac or 1) < 0.05
    assert evidence.residual_low_frac < 1 < evidence.residual_high_frac


def test_points_that_follow_no_law_do_not_spoil_the_others() -> None:
    """A fifth of the points take a hundred times as long, as where the host could not issue them faster."""
    timed = points(noise=0.0)
    spoilt = [
        replace(point, passes=((100 * point.seconds,),)) if i % 5 == 0 else point for i, point in enumerate(timed)
    ]
    constants = fit_constants(spoilt, sheet_of)
    residuals = operator_fit.Predictor(timed, sheet_of).residuals(constants)
    assert np.median(np.abs(residuals)) < 0.05


def test_what_the_points_do_not_tell_stays_with_the_siblings() -> None:
    """Nothing is quantised in 16 bits, so such points cannot say what quantising takes."""
    plain = points(("bfloat16",))
    siblings = {**TRUE, "quantise_passes": 3.3}
    fit = fit_operator(plain, sheet_of, method="made up", towards=siblings)
    assert fit.values()["quantise_passes"] == pytest.approx(3.3, rel=0.01)
    alone = fit_operator(plain, sheet_of, method="made up")
    assert alone.values()["quantise_passes"] == pytest.approx(LAW.typical()["quantise_passes"], rel=0.01)


def test_held_out_points_are_predicted_without_themselves() -> None:
    timed = points(noise=0.03)
    timed[7] = replace(timed[7], passes=((50 * timed[7].seconds,),))
    predicted = held_out_seconds(timed, sheet_of)
    ratios = predicted / np.array([point.seconds for point in timed])
    assert not np.isnan(ratios).any()
    assert ratios[7] < 0.1
    assert np.median(np.abs(np.delete(ratios, 7) - 1)) < 0.06


def test_fewer_points_than_constants_is_refused() -> None:
    with pytest.raises(CalibrationError, match="4 measured points cannot fit the 5 constants of gemm"):
        fit_constants(points(n=4), sheet_of)


def test_several_devices_share_constants() -> None:
    """The same constants on another data sheet: pooling finds them again."""
    moved = []
    for point in points():
        columns = LAW.columns(point.op.shape)
        exact = LAW.seconds(SHEETS["larger"], TRUE, columns, dtype=point.op.dtype)[0]
        moved.append(replace(point, device="larger", passes=((float(exact),),)))
    constants = fit_constants([*points(), *moved], sheet_of)
    assert constants["rate_frac"] == pytest.approx(0.7, rel=0.05)
    assert constants["bandwidth_frac"] == pytest.approx(0.9, rel=0.05)


def test_links_weigh_alike_however_often_each_was_timed() -> None:
    law, sheet = operators()["reduce_scatter"], LinkSheet(within_bytes_per_s=400e9, within_latency_s=1e-6)
    shares = {"slow": 0.5, "fast": 0.8}
    times = {
        name: [
            stated("reduce_scatter", shape, float(seconds), dtype="bfloat16", device=name, software="lib")
            for n_ranks in (2.0, 4.0, 8.0)
            for shape in ((2.0**exponent, n_ranks, 8.0) for exponent in range(10, 30, 2))
            for seconds in law.seconds(
                sheet, law.typical() | {"bandwidth_frac": share}, law.columns(shape), dtype=""
            )
        ]
        for name, share in shares.items()
    }
    once = fit_constants([*times["slow"], *times["fast"]], lambda _: sheet)
    often = fit_constants([*times["slow"], *(5 * times["fast"])], lambda _: sheet)
    assert 0.5 < once["bandwidth_frac"] < 0.8
    assert often == pytest.approx(once, rel=1e-2)


@pytest.mark.parametrize("name", [name for name, law in operators().items() if law.constants])
def test_constants_can_be_fitted(name: str) -> None:
    law = operators()[name]
    assert len({constant.name for constant in law.constants}) == len(law.constants) <= 8
    for constant in law.constants:
        assert constant.low < constant.typical < constant.high
    assert law.loss in ("soft_l1", "cauchy")
