"""What a chip's clock, power limit and last-level cache do to kernels, against closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_devices import GPU

from sandtable.hardware import Roofline, library
from sandtable.model.laws import chip

GIVEN = {
    "reference_clock_hz": 2e9,
    "flop_energy_j": 1e-12,
    "energy_of_width": 0.5,
    "power_of_clock": 2.0,
    "cache_speedup": 2.0,
    "cache_whole": 1.0,
    "cache_reach": 1.2,
}
SHEET = replace(GPU, clock_hz=2e9, power_w=1000.0)
WAITS = {"launch_s": 4e-6, "rate_frac": 0.8}


def share(sheet: Roofline, dtype: str = "bfloat16", item_bytes: float = 2.0, **changed: float) -> float:
    return chip.powered_share(sheet, dtype, item_bytes, {**GIVEN, **changed})


class TestClock:
    def test_what_waits_takes_twice_as_long_at_half_the_clock(self) -> None:
        slow = replace(SHEET, clock_hz=1e9)
        assert chip.waits_in_clocks(slow, WAITS, ("launch_s",), GIVEN) == {"launch_s": 8e-6, "rate_frac": 0.8}
        assert chip.waits_in_clocks(SHEET, WAITS, ("launch_s",), GIVEN) == WAITS

    def test_nothing_changes_where_the_clock_or_the_reference_is_not_stated(self) -> None:
        assert chip.waits_in_clocks(replace(SHEET, clock_hz=None), WAITS, ("launch_s",), GIVEN) == WAITS
        assert chip.waits_in_clocks(SHEET, WAITS, ("launch_s",), {**GIVEN, "reference_clock_hz": 0.0}) == WAITS


class TestPower:
    def test_the_peak_is_reached_where_its_power_is_there(self) -> None:
        assert share(SHEET) == 1.0
        assert share(replace(SHEET, power_w=5000.0)) == 1.0

    def test_a_quarter_of_the_power_halves_a_clock_that_power_is_the_square_of(self) -> None:
        assert share(replace(SHEET, power_w=250.0)) == pytest.approx(0.5)

    def test_a_higher_clock_takes_more_energy_per_flop(self) -> None:
        # the same peak at twice the clock: twice the voltage's share of the energy, here to the first power
        assert share(replace(SHEET, clock_hz=4e9)) == pytest.approx(0.5**0.5)

    def test_narrower_types_double_their_rate_and_do_not_halve_their_energy(self) -> None:
        assert share(SHEET, "fp8", 1.0) == pytest.approx((0.5 / 0.5**0.5) ** 0.5)

    def test_without_a_limit_nothing_is_held(self) -> None:
        hungry = replace(SHEET, power_w=1.0)
        assert share(replace(hungry, power_w=None)) == share(hungry, flop_energy_j=0.0) == 1.0

    @given(power_w=st.floats(1.0, 1e4), more=st.floats(1.0, 10.0))
    def test_power_drawn_is_never_above_the_limit_and_more_never_slows(self, power_w: float, more: float) -> None:
        limited = replace(SHEET, power_w=power_w)
        drawn = GIVEN["flop_energy_j"] * 1000e12 * share(limited) ** GIVEN["power_of_clock"]
        assert drawn <= power_w * (1 + 1e-9)
        assert share(replace(SHEET, power_w=power_w * more)) >= share(limited)

    def test_an_export_variant_has_the_power_that_its_parent_lacks(self) -> None:
        """H20 and H800: a seventh of the rate with more than half of the power."""
        shares = {}
        for name in ("nvidia_h20", "nvidia_h800", "nvidia_b200_sxm"):
            device = library.load_accelerator(name)
            sheet = Roofline.of(device, device.memory)
            shares[name] = chip.powered_share(sheet, "fp8", 1.0, sheet.given("gemm"))
        assert shares["nvidia_h20"] == 1.0
        assert 0.6 < shares["nvidia_b200_sxm"] < shares["nvidia_h800"] < 0.95

    def test_a_cpu_is_not_held(self) -> None:
        cpu = replace(SHEET, family="cpu", power_w=1.0)
        assert chip.powered_share(cpu, "bfloat16", 2.0, cpu.given("gemm")) == 1.0


class TestCache:
    def test_what_fits_is_read_faster_and_what_is_far_larger_is_not(self) -> None:
        n_bytes = np.array([10e6, 50e6, 55e6, 60e6, 1e9])
        found = chip.cached(n_bytes, SHEET, GIVEN)
        assert found / n_bytes == pytest.approx([0.5, 0.5, 0.75, 1.0, 1.0])

    def test_what_is_gone_through_meanwhile_pushes_it_out(self) -> None:
        assert chip.cached(np.array([10e6]), SHEET, GIVEN, np.array([60e6])) == pytest.approx([10e6])

    def test_without_a_cache_all_comes_from_memory(self) -> None:
        assert chip.cached(np.array([1e3]), replace(SHEET, cache_bytes=0.0), GIVEN) == pytest.approx([1e3])
