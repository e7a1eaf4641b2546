"""Fits recover parameters that are known, say how far off they are, and refuse what they cannot know."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sandtable.calibration.fit import least_squares, left_out
from sandtable.calibration.fit.least_squares import Fit, Parameter
from sandtable.calibration.timing import Timing
from sandtable.demand.op import Op, random_read
from sandtable.errors import CalibrationError
from sandtable.hardware import Estimate, StorageFit
from sandtable.model.laws import storage_law as storage_model
from sandtable.model.laws.storage_law import StorageLaw

pytest.importorskip("scipy", reason="fitting needs scipy")

NOISE = 0.05
RATE = Estimate[float](value=6e9, low=5.9e9, high=6.1e9)
TRUE = StorageLaw(
    first_byte_s=118e-6,
    lane_bytes_per_s=1.23e9,
    requests_per_s=156e3,
    bandwidth_bytes_per_s=6.2e9,
    sequential_bytes_per_s=6e9,
    knee=3.5,
    blend=1.6,
    drain=0.5,
    residual_low_frac=1.0,
    residual_high_frac=1.0,
    sequential_low_frac=1.0,
    sequential_high_frac=1.0,
)
STORAGE_CONSTANTS = (
    "first_byte_s",
    "lane_bytes_per_s",
    "requests_per_s",
    "bandwidth_bytes_per_s",
    "knee",
    "blend",
    "drain",
)
# the grid of Fig. 2b of "LLM in a flash": 4 to 64 KiB, 2 to 32 threads; twice, in short and long batches
CHUNKS = (4096, 8192, 16384, 32768, 65536, 131072, 262144)
LANES = (1, 2, 4, 8, 16, 32)


def noisy(seconds: float, rng: np.random.Generator) -> float:
    return float(seconds * np.exp(NOISE * rng.standard_normal()))


def read(n: int, chunk: float, lanes: int, rng: np.random.Generator | None = None) -> Timing:
    seconds = storage_model.batch_s(TRUE, n, chunk, lanes)
    op = random_read("read", n_chunks=n, chunk_bytes=float(chunk), concurrency=lanes)
    return Timing.once(op, seconds if rng is None else noisy(seconds, rng))


def ratios(law: StorageLaw, timings: Sequence[Timing]) -> np.ndarray:
    """Predicted over measured."""
    return np.array([storage_model.batch_s(law, *timing.op.shape) / timing.seconds for timing in timings])


def read_points(n_requests: Sequence[int] = (16, 512), seed: int = 0) -> list[Timing]:
    rng = np.random.default_rng(seed)
    return [read(n, chunk, lanes, rng) for n in n_requests for chunk in CHUNKS for lanes in LANES]


@pytest.fixture(scope="module")
def fitted() -> StorageFit:
    return least_squares.fit_storage(read_points(), sequential_bytes_per_s=RATE, method="made up")


# --- storage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("first_byte_s", 0.10),
        ("lane_bytes_per_s", 0.15),
        ("requests_per_s", 0.15),
        ("bandwidth_bytes_per_s", 0.10),
        ("drain", 0.25),
    ],
)
def test_the_storage_law_is_recovered(fitted: StorageFit, name: str, tolerance: float) -> None:
    estimate = getattr(fitted, name)
    assert estimate.value == pytest.approx(getattr(TRUE, name), rel=tolerance)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.low < estimate.high


def test_the_storage_law_predicts_what_it_has_not_seen(fitted: StorageFit) -> None:
    values = [getattr(fitted, name).value for name in STORAGE_CONSTANTS]
    law = least_squares.storage_law(np.array(values), RATE.value)
    fresh = [read(n, c, k) for n, c, k in [(100, 20480, 12), (300, 49152, 24), (40, 6144, 3), (1000, 100_000, 64)]]
    assert np.abs(ratios(law, fresh) - 1).max() < 0.08


def test_a_storage_fit_states_its_evidence(fitted: StorageFit) -> None:
    evidence = fitted.random_evidence
    assert evidence.n_points == len(read_points())
    assert 0.5 * NOISE < evidence.median_abs_error_frac < 1.0 * NOISE  # two thirds of a standard deviation
    assert evidence.held_out_median_abs_error_frac == pytest.approx(0.67 * NOISE, rel=0.4)
    assert evidence.median_abs_error_frac < evidence.p90_abs_error_frac < 3 * NOISE
    assert evidence.date == dt.date.today()
    assert fitted.sequential_bytes_per_s == RATE


def test_a_storage_interval_covers_nine_of_ten_new_measurements(fitted: StorageFit) -> None:
    evidence = fitted.random_evidence
    values = [getattr(fitted, name).value for name in STORAGE_CONSTANTS]
    ratio = ratios(least_squares.storage_law(np.array(values), RATE.value), read_points(seed=99))
    inside = (ratio >= evidence.residual_low_frac) & (ratio <= evidence.residual_high_frac)
    assert 0.80 < inside.mean() < 0.99


def test_sustained_rates_alone_show_no_drain() -> None:
    points = read_points(n_requests=(4096,))
    fit = least_squares.fit_storage(points, sequential_bytes_per_s=RATE, method="made up")
    assert fit.drain.value == 0
    assert fit.bandwidth_bytes_per_s.value == pytest.approx(TRUE.bandwidth_bytes_per_s, rel=0.1)


def test_no_reads_make_no_law() -> None:
    with pytest.raises(CalibrationError, match="no random reads were measured"):
        least_squares.fit_storage([], sequential_bytes_per_s=RATE, method="made up")


def test_too_few_reads_make_no_law() -> None:
    with pytest.raises(CalibrationError, match="4 measured points cannot fit 6 parameters: measure more"):
        least_squares.fit_storage(read_points((512,))[:4], sequential_bytes_per_s=RATE, method="made up")


# --- operations --------------------------------------------------------------------------------------------

OVERHEAD, PER_ITEM, BANDWIDTH, FLOPS = 20e-6, 50e-9, 12e9, 80e9


def timed(operator: str, seconds: float, n_bytes: float = 0.0, **demand: Any) -> Timing:
    op = Op(name=operator, operator=operator, account="compute", bytes_read=float(n_bytes), **demand)
    return Timing(op=op, passes=((float(seconds),) * 2,))


def op_points(*, per_item: float = 0.0, n: int = 36, noise: float = NOISE, seed: int = 1) -> list[Timing]:
    """Streaming operations from 16 KiB to 256 MiB."""
    rng = np.random.default_rng(seed)
    points = []
    for size in np.geomspace(16e3, 256e6, n):
        items = int(rng.integers(1, 4000)) if per_item else 1
        seconds = OVERHEAD + items * per_item + size / BANDWIDTH
        points.append(timed("copy", seconds * np.exp(noise * rng.standard_normal()), size, n_items=items))
    return points


def roofline_points(*, serial: bool = False, seed: int = 2) -> list[Timing]:
    """Operations on both sides of the corner."""
    rng = np.random.default_rng(seed)
    points = []
    for size in np.geomspace(1e6, 1e8, 8):
        for intensity in (0.5, 2.0, 6.0, 20.0, 100.0):
            terms = (size / BANDWIDTH, intensity * size / FLOPS)
            seconds = noisy(OVERHEAD + (sum(terms) if serial else max(terms)), rng)
            points.append(timed("gemm", seconds, size, flops=intensity * float(size)))
    return points


def test_a_streaming_law_is_recovered() -> None:
    fit = least_squares.fit_op(op_points(), method="made up")
    assert fit.overhead_s.value == pytest.approx(OVERHEAD, rel=0.1)
    assert fit.bandwidth_bytes_per_s is not None
    assert fit.bandwidth_bytes_per_s.value == pytest.approx(BANDWIDTH, rel=0.06)
    assert fit.rate_flops_per_s is None
    assert fit.per_item_s.value == 0
    assert fit.evidence.n_samples == 72
    assert fit.evidence.n_points == 36


def test_a_cost_per_item_is_recovered() -> None:
    fit = least_squares.fit_op(op_points(per_item=PER_ITEM), method="made up")
    assert fit.per_item_s.value == pytest.approx(PER_ITEM, rel=0.2)
    assert fit.bandwidth_bytes_per_s is not None
    assert fit.bandwidth_bytes_per_s.value == pytest.approx(BANDWIDTH, rel=0.06)


@pytest.mark.parametrize("serial", [False, True])
def test_a_roofline_is_recovered_in_the_form_that_it_has(serial: bool) -> None:
    fit = least_squares.fit_op(roofline_points(serial=serial), method="made up")
    assert fit.serial is serial
    assert fit.bandwidth_bytes_per_s is not None
    assert fit.rate_flops_per_s is not None
    assert fit.bandwidth_bytes_per_s.value == pytest.approx(BANDWIDTH, rel=0.12)
    assert fit.rate_flops_per_s.value == pytest.approx(FLOPS, rel=0.12)


def test_held_out_points_are_missed_by_no_less_than_the_fitted_ones() -> None:
    evidence = least_squares.fit_op(op_points(), method="made up").evidence
    assert evidence.held_out_median_abs_error_frac is not None
    assert 0.01 < evidence.held_out_median_abs_error_frac < 0.08
    assert evidence.held_out_median_abs_error_frac > 0.8 * evidence.median_abs_error_frac


def test_one_wild_point_does_not_move_a_fit() -> None:
    points = op_points()
    points[20] = replace(points[20], passes=((10 * points[20].seconds,),))
    fit = least_squares.fit_op(points, method="made up")
    assert fit.bandwidth_bytes_per_s is not None
    assert fit.bandwidth_bytes_per_s.value == pytest.approx(BANDWIDTH, rel=0.08)


def test_a_quieter_machine_gets_a_narrower_interval() -> None:
    loud = least_squares.fit_op(op_points(noise=0.2), method="made up").evidence
    quiet = least_squares.fit_op(op_points(noise=0.01), method="made up").evidence
    assert loud.residual_low_frac < quiet.residual_low_frac <= 1 - 0.9 * left_out.FLOOR
    assert loud.residual_high_frac > quiet.residual_high_frac >= 1 + 0.9 * left_out.FLOOR


def test_repeats_that_disagree_widen_an_interval() -> None:
    steady = least_squares.fit_op(op_points(), method="made up", repeat_spread_frac=0.0).evidence
    shaky = least_squares.fit_op(op_points(), method="made up", repeat_spread_frac=0.3).evidence
    assert shaky.residual_low_frac < steady.residual_low_frac
    assert shaky.residual_high_frac > steady.residual_high_frac
    assert shaky.residual_high_frac >= 1.3


def test_a_known_drift_stands_for_the_spread() -> None:
    """Scatter of single repeats averages out over a run; what the whole machine does, does not."""
    found = [
        least_squares.fit_op(op_points(), method="made up", repeat_spread_frac=0.3, drift_frac=drift).evidence
        for drift in (None, 0.1, 0.0)
    ]
    highs = [evidence.residual_high_frac for evidence in found]
    assert highs == sorted(highs, reverse=True)
    assert highs[0] > highs[1] > max(1.1, highs[2])
    assert [evidence.drift_frac for evidence in found] == [None, 0.1, 0.0]
    assert {evidence.repeat_spread_frac for evidence in found} == {0.3}


def test_the_same_points_give_the_same_fit() -> None:
    first, second = (least_squares.fit_op(op_points(), method="made up") for _ in range(2))
    assert first == second


@pytest.mark.parametrize("n", [1])
def test_too_few_operations_make_no_law(n: int) -> None:
    with pytest.raises(CalibrationError, match="cannot fit 2 parameters: measure more"):
        least_squares.fit_op(op_points(n=n), method="made up")


def test_as_many_points_as_parameters_fit_without_held_out_error() -> None:
    evidence = least_squares.fit_op(op_points(n=2), method="made up").evidence
    assert evidence.held_out_median_abs_error_frac is None
    assert evidence.residual_low_frac < 1 < evidence.residual_high_frac


def test_an_estimate_without_draws_is_a_point() -> None:
    nothing = np.empty(0)
    fit = Fit(values=np.array([2.0]), draws=nothing, residuals=nothing, held_out=nothing)
    assert fit.estimate(0) == Estimate[float](value=2.0, low=2.0, high=2.0)


def test_parameters_stay_within_their_bounds() -> None:
    parameters = [Parameter(name="x", start=1.0, low=0.5, high=2.0)]
    fit = least_squares.fit_parameters(
        parameters, lambda values, i: np.log(values[0] / 100.0) * np.ones(len(i)), 12
    )
    assert fit.values[0] == pytest.approx(2.0, rel=1e-6)
