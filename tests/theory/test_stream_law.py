"""The law of element-wise work against closed forms: launches, traffic, and round trips to memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_devices import GPU

from sandtable.model.laws.memory_bound import MemoryBound

LAW = MemoryBound()
SHEET = replace(GPU, bandwidth_bytes_per_s=2e12, clock_hz=2e9)
CONSTANTS = {"bandwidth_frac": 0.5, "launch_s": 3e-6, "special_s": 1e-9, "wait_clocks": 1000.0}
GIVEN = SHEET.given("memory_bound")
AT_ONCE = 100 * GIVEN["resident_blocks"]


def seconds(*shape: float) -> float:
    return float(LAW.seconds(SHEET, CONSTANTS, LAW.columns(shape), dtype="bfloat16")[0])


def test_traffic_and_launches_add() -> None:
    assert seconds(1e9, 2) == pytest.approx(2 * 3e-6 + 1e9 / 1e12)


def test_what_fits_the_cache_of_an_accelerator_moves_faster() -> None:
    assert seconds(20e6, 0) == pytest.approx(20e6 / 1e12 / GIVEN["cache_speedup"])
    assert seconds(75e6, 0) == pytest.approx(75e6 / 1e12)
    columns = LAW.columns((20e6, 0))
    cpu = LAW.seconds(replace(SHEET, family="cpu"), CONSTANTS, columns, dtype="bfloat16")
    assert float(cpu[0]) == pytest.approx(20e6 / 1e12)


def test_special_functions_are_shared_by_all_units() -> None:
    assert seconds(1e9, 1, 1e6) - seconds(1e9, 1) == pytest.approx(1e6 * 1e-9 / 100)


def test_few_rows_wait_as_long_as_one() -> None:
    """A wait is a thousand clocks of 0.5 ns; eight in turn are 4 us, for one row and for as many as fit at a time."""
    assert seconds(0, 1, 0, 1, 8) == pytest.approx(3e-6 + 4e-6)
    assert seconds(0, 1, 0, AT_ONCE, 8) == pytest.approx(3e-6 + 4e-6)
    assert seconds(0, 1, 0, 10 * AT_ONCE, 8) == pytest.approx(3e-6 + 40e-6)


def test_streaming_and_waiting_overlap_in_part() -> None:
    streaming, waiting, power = 4e-6, 4e-6, GIVEN["overlap"]
    both = seconds(6e6, 0, 0, 1, 8)  # a cached byte counts two thirds
    assert max(streaming, waiting) < both < streaming + waiting
    assert both == pytest.approx((streaming**power + waiting**power) ** (1 / power))


def test_trailing_columns_may_be_left_out_and_no_others() -> None:
    assert seconds(1e6) == seconds(1e6, 1, 0, 0, 0)
    with pytest.raises(TypeError, match="n_bytes"):
        LAW.columns(())


@given(st.lists(st.floats(0, 1e9), min_size=5, max_size=5), st.integers(0, 4), st.floats(1, 3))
def test_more_of_anything_is_never_faster(shape: list[float], index: int, factor: float) -> None:
    more = [value * factor if place == index else value for place, value in enumerate(shape)]
    assert seconds(*more) >= seconds(*shape) * (1 - 1e-9)
