"""The law of matrix products against closed forms and limits: roofline, tiles and waves, narrow types."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_devices import GPU, TWO_CORES

from sandtable.hardware import DTYPE_BYTES, Roofline
from sandtable.model.laws import gemm_law
from sandtable.model.laws.gemm_law import Gemm

LAW = Gemm()
# every constant where it changes nothing, so that closed forms hold
IDEAL = {"rate_frac": 1.0, "bandwidth_frac": 1.0, "launch_s": 1e-12, "tile_s": 1e-15, "quantise_passes": 1.0}
RATES = {"float32": 50e12, "bfloat16": 800e12, "fp8": 1600e12, "int8": 1600e12, "fp4": 3200e12}
SHEET = replace(GPU, peak_flops_per_s=RATES)
OLDER = replace(SHEET, peak_flops_per_s={"float32": 20e12, "bfloat16": 300e12, "int8": 600e12})
SIZES = st.integers(1, 20_000).map(float)
DTYPES = sorted(set(DTYPE_BYTES) - {"tf32", "float16", "float64"})


def seconds(
    m: float,
    n: float,
    k: float,
    batch: float = 1,
    *,
    dtype: str = "bfloat16",
    sheet: Roofline = SHEET,
    **constants: float,
) -> float:
    columns = LAW.columns((m, n, k, batch))
    return float(LAW.seconds(sheet, {**IDEAL, **constants}, columns, dtype=dtype)[0])


def test_a_large_product_takes_its_arithmetic_over_the_rate() -> None:
    m = n = k = 25_600.0  # 100 x 200 tiles of 256 x 128: whole waves
    edge = 1 + SHEET.given("gemm")["edge"] * (1 / 256 + 1 / 128)
    assert seconds(m, n, k) == pytest.approx(2 * m * n * k / 800e12 * edge, rel=0.01)
    assert seconds(m, n, k, rate_frac=0.5) == pytest.approx(2 * seconds(m, n, k), rel=0.01)


def test_a_product_with_few_rows_streams_its_weights() -> None:
    n = k = 16_384.0
    assert seconds(1, n, k) == pytest.approx(2 * n * k / 3e12, rel=0.05)
    assert seconds(1, n, k, bandwidth_frac=0.5) == pytest.approx(2 * seconds(1, n, k), rel=0.05)


def test_a_tiny_product_takes_a_launch() -> None:
    assert seconds(1, 16, 16, launch_s=5e-6, tile_s=1e-6) == pytest.approx(6e-6, rel=0.05)


def test_one_tile_more_than_the_units_hold_takes_another_wave() -> None:
    """Smaller tiles and split depths soften the step; block-scaled products have neither."""
    fast = replace(SHEET, bandwidth_bytes_per_s=1e16)
    times = {
        (dtype, n_tiles): seconds(256, 128 * n_tiles, 16_384, dtype=dtype, sheet=fast, quantise_passes=1e-9)
        for dtype in ("fp4", "bfloat16")
        for n_tiles in (100, 101)
    }
    assert times["fp4", 101] == pytest.approx(1.5 * times["fp4", 100], rel=0.05)
    assert times["bfloat16", 100] < times["bfloat16", 101] < 1.2 * times["bfloat16", 100]


@given(width=st.integers(1, 64).map(lambda n: 32.0 * n))
def test_cores_take_parts_of_tiles(width: float) -> None:
    """No width is better than its neighbours, where a GPU's time rises in steps."""
    cores = replace(TWO_CORES, bandwidth_bytes_per_s=1e18)
    edge = 1 + cores.given("gemm")["edge"] * (1 / 256 + 1 / 128)
    found = seconds(4096, 3 * width, width, dtype="float32", sheet=cores)
    least = 2 * 4096 * 3 * width * width / 2e11
    # the largest tiles have least edge; of narrow products nobody fills them
    assert least < found <= least * (1 + 40 * (edge - 1))
    wider = seconds(4096, 3 * (width + 1), width + 1, dtype="float32", sheet=cores)
    assert wider / found == pytest.approx(((width + 1) / width) ** 2, rel=0.05)


def test_plain_types_split_the_depth_of_a_product_with_few_tiles() -> None:
    """64 x 64 has one tile: without splitting, one of a hundred units would do all the work."""
    alone = 2 * 64 * 64 * 65_536 / (800e12 / 100)
    assert seconds(64, 64, 65_536) < 0.5 * alone
    assert seconds(64, 64, 65_536, dtype="fp8") > 0.9 * alone / 2


def test_a_batch_of_products_fills_the_device_as_one_does() -> None:
    one = seconds(1024, 1024, 1024)
    assert one < seconds(1024, 1024, 1024, 16) <= 16 * one * 1.0001


def test_transposing_a_product_changes_little() -> None:
    """What a backward pass multiplies are permutations of the forward sizes."""
    assert seconds(4096, 11_008, 8192) == pytest.approx(seconds(11_008, 4096, 8192), rel=0.02)


def test_narrow_types_are_faster_where_the_device_multiplies_in_them() -> None:
    times = [seconds(16_384, 16_384, 16_384, dtype=dtype) for dtype in ("float32", "bfloat16", "fp8", "fp4")]
    assert times == sorted(times, reverse=True)


def test_quantising_sweeps_the_activations() -> None:
    """With one output column there is hardly a product, but all activations are read in 16 bits and written in 8."""
    m, k = 8192.0, 8192.0
    extra = seconds(m, 64, k, dtype="fp8_block") - seconds(m, 64, k, dtype="fp8_block", quantise_passes=1e-9)
    assert extra == pytest.approx(3 * m * k / 3e12, rel=0.01)
    twice = seconds(m, 64, k, dtype="fp8") - seconds(m, 64, k, dtype="fp8", quantise_passes=1e-9)
    assert twice == pytest.approx(2 * extra, rel=0.01)


@pytest.mark.parametrize("dtype", ["fp8", "fp8_block", "fp4", "mxfp4"])
def test_without_its_arithmetic_a_narrow_type_only_saves_weight_bytes(dtype: str) -> None:
    assert gemm_law.format_of(OLDER, dtype).passes == 0
    wide = seconds(8192, 8192, 8192, sheet=OLDER)
    assert seconds(8192, 8192, 8192, sheet=OLDER, dtype=dtype) == pytest.approx(wide, rel=0.05)
    few = seconds(1, 16_384, 16_384, sheet=OLDER)
    assert seconds(1, 16_384, 16_384, sheet=OLDER, dtype=dtype) < 0.6 * few


def test_integers_do_not_stand_in_for_floats() -> None:
    assert OLDER.arithmetic("fp8") == "bfloat16"
    assert OLDER.arithmetic("int8") == "int8"
    assert OLDER.arithmetic("int8_weight_only") == "bfloat16"
    assert SHEET.arithmetic("fp8_block") == "fp8"


@given(SIZES, SIZES, SIZES, st.sampled_from(DTYPES), st.sampled_from("mnk"), st.floats(1.0, 3.0))
def test_more_work_is_never_faster(m: float, n: float, k: float, dtype: str, grown: str, factor: float) -> None:
    # rows that start at odd elements are slower than longer ones that do not: whole steps of 16 keep them aligned
    sizes = {"m": 16 * m, "n": 16 * n, "k": 16 * k}
    more = {**sizes, grown: 16 * np.ceil(sizes[grown] / 16 * factor)}
    typical = LAW.typical()
    assert seconds(*more.values(), dtype=dtype, **typical) >= seconds(*sizes.values(), dtype=dtype, **typical) * (
        1 - 1e-9
    )


@given(SIZES, SIZES, SIZES, st.sampled_from(DTYPES), st.floats(1.0, 10.0))
def test_a_faster_device_is_never_slower(m: float, n: float, k: float, dtype: str, factor: float) -> None:
    faster = replace(
        SHEET,
        peak_flops_per_s={name: factor * rate for name, rate in SHEET.peak_flops_per_s.items()},
        bandwidth_bytes_per_s=factor * SHEET.bandwidth_bytes_per_s,
    )
    assert seconds(m, n, k, dtype=dtype, sheet=faster) <= seconds(m, n, k, dtype=dtype) * (1 + 1e-9)


@given(SIZES, SIZES, SIZES, st.sampled_from(DTYPES))
def test_no_product_beats_the_roofline(m: float, n: float, k: float, dtype: str) -> None:
    form = gemm_law.format_of(SHEET, dtype)
    computing = 2 * m * n * k / SHEET.peak(dtype)
    streaming = (form.weight * n * k + form.activation * m * k + gemm_law.output_bytes(dtype) * m * n) / 3e12
    assert seconds(m, n, k, dtype=dtype) >= max(computing, streaming)


def test_many_products_in_one_call_cost_what_they_cost_alone() -> None:
    sizes = np.array([[1, 4096, 4096], [512, 1024, 8192], [8192, 8192, 128]], dtype=float)
    columns = LAW.columns([*sizes.T, 1.0])
    together = LAW.seconds(SHEET, LAW.typical(), columns, dtype="bfloat16")
    alone = [seconds(*row, **LAW.typical()) for row in sizes]
    assert together == pytest.approx(alone)


@pytest.mark.parametrize(("sheet", "slowest"), [(OLDER, 5.0), (SHEET, 8.0)])
def test_rows_that_start_at_odd_elements_cost_a_multiple(sheet: Roofline, slowest: float) -> None:
    """A width of 4147 in 16 bits, as an FFN of int(2.7 D) has, against 4144 (whole 16 bytes) and 4146."""
    whole, even, odd = (seconds(16384, n, 1536, sheet=sheet) for n in (4144, 4146, 4147))
    assert whole <= even < odd
    assert 2 < odd / whole < slowest
    # the depth starts rows too
    assert 2 < seconds(16384, 1536, 4147, sheet=sheet) / seconds(16384, 1536, 4144, sheet=sheet) < slowest
    # a count of tokens starts none, and rows of float32 start at whole words
    assert seconds(16383, 4144, 1536, sheet=sheet) == pytest.approx(whole, rel=1e-3)
    wide = [seconds(16384, n, 1536, dtype="float32", sheet=sheet) for n in (4144, 4147)]
    assert wide[1] == pytest.approx(wide[0], rel=0.05)


def test_loads_weigh_more_the_faster_a_device_multiplies() -> None:
    """Elements loaded two by two: triple the time of a head on Hopper, see `devices/families/gpu.yaml`."""
    older, newer = (
        seconds(16384, 4146, 1536, sheet=sheet) / seconds(16384, 4144, 1536, sheet=sheet)
        for sheet in (OLDER, SHEET)
    )
    assert 1.2 < older < newer
    assert newer == pytest.approx(3.0, rel=0.2)


def test_a_vector_has_no_rows_that_start_anywhere() -> None:
    assert seconds(16384, 1, 1536) < 1.5 * seconds(16384, 8, 1536)


def test_weights_that_a_timing_keeps_in_the_cache_come_faster() -> None:
    """Two products in turn with 8 MB of weights each fit in half of 50 MB; eight do not, and a model's never do."""
    n, k = 2048.0, 2048.0
    cold, two, eight = (
        float(LAW.seconds(SHEET, IDEAL, LAW.columns((1, n, k, 1, 0, in_turn)), dtype="bfloat16")[0])
        for in_turn in (0, 2, 8)
    )
    assert cold == eight == pytest.approx(2 * n * k / 3e12, rel=0.05)
    assert two == pytest.approx(cold / SHEET.given("gemm")["cache_speedup"], rel=0.05)


def test_sums_that_are_scaled_by_hand_cost_more_the_slower_the_device_adds() -> None:
    m = n = k = 25_600.0
    # but for edges and starts, scaling takes as long as multiplying on the one, and a twentieth on the other
    vector = SHEET.given("gemm")["scaling_ops"] / 128 / (2 / 1600e12)
    slow = replace(SHEET, peak_flops_per_s={**SHEET.peak_flops_per_s, "float32": 20 * vector})
    even_sheet = replace(SHEET, peak_flops_per_s={**SHEET.peak_flops_per_s, "float32": vector})
    fast, even = (
        seconds(m, n, k, dtype="fp8_block", sheet=sheet, quantise_passes=1e-9)
        / seconds(m, n, k, dtype="fp8", sheet=sheet, quantise_passes=1e-9)
        for sheet in (even_sheet, slow)
    )
    scaling = gemm_law.scaling_s(SHEET, gemm_law.FORMATS["fp8_block"], np.array([m * n * k]), SHEET.given("gemm"))
    assert scaling == pytest.approx(SHEET.given("gemm")["scaling_ops"] * m * n * k / 128 / (50e12 / 100))
    assert even == pytest.approx(1.0, abs=0.01)
    assert fast == pytest.approx(2 ** (1 / 3), rel=0.03)


def test_a_product_is_held_by_the_power_limit_and_waits_for_the_clock() -> None:
    hungry = replace(SHEET, power_w=100.0)
    assert seconds(16_384, 16_384, 16_384, sheet=hungry) > 1.5 * seconds(16_384, 16_384, 16_384)
    slow = replace(SHEET, clock_hz=0.9e9)
    assert seconds(1, 16, 16, launch_s=5e-6, tile_s=1e-6, sheet=slow) == pytest.approx(12e-6, rel=0.05)
