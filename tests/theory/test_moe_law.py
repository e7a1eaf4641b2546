"""The law of mixtures of experts against counts that can be done by hand, and its limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_devices import GPU

from sandtable.model.laws.experts_law import MixtureOfExperts, _Batch

LAW = MixtureOfExperts()
SHEET = dataclasses.replace(GPU, peak_flops_per_s={"bfloat16": 1e15, "fp8": 2e15})
# reaches everything and adds nothing
IDEAL = {
    "rate_frac": 1.0,
    "bandwidth_frac": 1.0,
    "launch_s": 0.0,
    "passes": 0.0,
    "idle_passes": 0.0,
    "fetched_per_clock": 1e9,
}


def shape(
    n_tokens: float,
    *,
    d_model: float = 4096,
    n_neurons: float = 1536,
    top_k: float = 8,
    n_experts: float = 128,
    tensor_parallel: float = 1,
    expert_parallel: float = 1,
    skew: float = 0,
    tuned: float = 1,
) -> tuple[float, ...]:
    return (n_tokens, d_model, n_neurons, top_k, n_experts, tensor_parallel, expert_parallel, skew, tuned)


def batch(n_tokens: float, **sizes: float) -> _Batch:
    return _Batch.of(LAW.columns(shape(n_tokens, **sizes)))


def seconds(
    n_tokens: float, *, dtype: str = "bfloat16", constants: dict[str, float] | None = None, **s: float
) -> float:
    columns = LAW.columns(shape(n_tokens, **s))
    return float(LAW.seconds(SHEET, constants or LAW.typical(), columns, dtype=dtype)[0])


class TestRouting:
    @pytest.mark.parametrize(("n_tokens", "touched"), [(1, 8), (8, 64), (16, 128), (4096, 128)])
    def test_even_loads_touch_one_expert_per_choice_until_all_are(self, n_tokens: float, touched: float) -> None:
        found = batch(n_tokens)
        assert found.touched[0] == pytest.approx(touched)
        assert found.rows[0] == pytest.approx(8 * n_tokens)

    def test_a_power_law_touches_fewer_and_keeps_the_sum(self) -> None:
        found = batch(16, skew=1.01)
        assert 50 < found.touched[0] < 80
        assert found.rows[0] == pytest.approx(8 * 16)

    def test_the_busiest_rank_has_more_than_its_share(self) -> None:
        even, skewed = (batch(4096, expert_parallel=8, skew=skew).rows[0] for skew in (0, 1.01))
        assert even == pytest.approx(4096)
        assert 1.2 * even < skewed < 2.5 * even

    def test_no_expert_gets_more_than_every_token(self) -> None:
        found = batch(4096, top_k=2, n_experts=8, expert_parallel=8, skew=1.01)
        assert 0.8 * 4096 < found.rows[0] <= 4096

    def test_one_token_wakes_at_least_one_expert_of_the_busiest_rank(self) -> None:
        assert batch(1, expert_parallel=64).touched[0] == 1

    @given(
        n_tokens=st.integers(1, 10_000),
        top_k=st.integers(1, 8),
        experts=st.sampled_from([8, 64, 256]),
        parallel=st.sampled_from([1, 2, 8]),
        skew=st.floats(0, 2),
    )
    def test_loads_are_bounded(self, n_tokens: int, top_k: int, experts: int, parallel: int, skew: float) -> None:
        sizes = {"top_k": top_k, "n_experts": experts, "expert_parallel": parallel, "skew": skew}
        found = batch(n_tokens, **sizes)
        held = experts / parallel
        assert np.count_nonzero(found.loads) * found.alike[0] <= held
        assert found.loads.max() <= n_tokens
        assert 1 <= found.touched[0] <= held
        assert found.rows[0] + found.idle_rows[0] == pytest.approx(n_tokens * top_k)


class TestTime:
    def test_few_tokens_stream_the_weights_of_the_experts_touched(self) -> None:
        touched = 8
        n_bytes = touched * 3 * 4096 * 1536 * 2
        assert seconds(1, constants=IDEAL) == pytest.approx(n_bytes / 3e12, rel=0.02)
        assert seconds(16, constants=IDEAL) == pytest.approx(16 * n_bytes / 3e12, rel=0.02)

    def test_many_tokens_are_bound_by_arithmetic(self) -> None:
        flops = 2 * 8 * 3 * 4096 * 1536 * 1e6
        took = seconds(1e6, constants=IDEAL)
        assert flops / 1e15 <= took < 1.05 * flops / 1e15

    def test_rows_are_rounded_up_to_whole_tiles_per_expert(self) -> None:
        # so much is fetched that tiles of 128 rows are the smallest that do not wait
        fetching = {**IDEAL, "fetched_per_clock": 90.0}
        whole, one_more = (
            seconds(n, constants=fetching, n_neurons=16384, top_k=2, n_experts=2) for n in (4096, 4097)
        )
        assert one_more / whole == pytest.approx(33 / 32, rel=0.01)

    def test_a_launch_is_the_least(self) -> None:
        assert seconds(1, n_neurons=64, d_model=64) == pytest.approx(LAW.typical()["launch_s"], rel=0.1)

    def test_tensor_parallel_ranks_share_the_neurons(self) -> None:
        whole, half = (seconds(16, constants=IDEAL, tensor_parallel=t) for t in (1, 2))
        assert half == pytest.approx(whole / 2, rel=0.05)

    def test_skew_costs_where_experts_are_spread_over_ranks(self) -> None:
        even, skewed = (seconds(4096, expert_parallel=8, skew=skew) for skew in (0, 1.2))
        assert skewed > 1.2 * even

    def test_rows_of_other_ranks_cost_only_wide_types(self) -> None:
        wide, narrow = (
            [
                seconds(4096, dtype=dtype, constants={**LAW.typical(), "idle_passes": passes}, expert_parallel=8)
                for passes in (0.0, 1.0)
            ]
            for dtype in ("bfloat16", "fp8")
        )
        assert wide[1] > wide[0]
        assert narrow[1] == narrow[0]

    def test_a_single_expert_is_a_dense_gated_block(self) -> None:
        dense = 2 * 3 * 4096 * 16384 * 65536 / 1e15
        took = seconds(65536, constants=IDEAL, n_neurons=16384, top_k=1, n_experts=1)
        assert took == pytest.approx(dense, rel=0.02)

    def test_sums_that_are_scaled_by_hand_slow_the_products(self) -> None:
        slow = dataclasses.replace(SHEET, peak_flops_per_s={**SHEET.peak_flops_per_s, "float32": 50e12})
        columns = LAW.columns(shape(1e6))
        by_hand, whole = (LAW.seconds(slow, IDEAL, columns, dtype=dtype)[0] for dtype in ("fp8_block", "fp8"))
        assert 1.2 < by_hand / whole < 2.5

    @given(n_tokens=st.floats(1, 1e4), factor=st.floats(1, 10), skew=st.sampled_from([0.0, 1.01, 1.2]))
    def test_more_tokens_never_take_less(self, n_tokens: float, factor: float, skew: float) -> None:
        if skew and n_tokens * 8 <= 128 < factor * n_tokens * 8:
            return  # the spread of loads is drawn otherwise from here on
        few, many = (seconds(n, skew=skew) for n in (n_tokens, factor * n_tokens))
        assert many >= few * (1 - 2e-2 * bool(skew) - 1e-9)

    def test_columns_may_be_arrays_of_different_layers(self) -> None:
        experts = np.array([8.0, 128.0, 256.0])
        columns = LAW.columns((64.0, 4096.0, 1536.0, 2.0, experts, 1.0, 1.0, 0.0, 1.0))
        found = LAW.seconds(SHEET, LAW.typical(), columns, dtype="bfloat16")
        alone = [seconds(64, top_k=2, n_experts=count) for count in experts]
        assert found == pytest.approx(alone)


class TestFetching:
    """Of operands: a + b elements of each step of a tile's depth, for a b multiply-adds."""

    BYTES_PER_CLOCK = 16.0

    def took(self, n_tokens: float = 65536, *, dtype: str = "bfloat16", **sizes: float) -> float:
        return seconds(
            n_tokens, dtype=dtype, constants={**IDEAL, "fetched_per_clock": self.BYTES_PER_CLOCK}, **sizes
        )

    def fetching(self, rows: float, columns: float, item_bytes: float, products: float) -> float:
        n_bytes = item_bytes * products * (rows + columns) / (rows * columns)
        return n_bytes / (self.BYTES_PER_CLOCK * 1.8e9 * SHEET.n_units)

    @pytest.mark.parametrize(("tuned", "rows", "columns"), [(1, 128, 256), (0, 64, 64)])
    @pytest.mark.parametrize(("dtype", "item_bytes"), [("bfloat16", 2), ("fp8", 1)])
    def test_units_that_multiply_fast_wait_for_operands(
        self, dtype: str, item_bytes: float, tuned: float, rows: float, columns: float
    ) -> None:
        products = 8 * 3 * 4096 * 1536 * 65536
        expected = self.fetching(rows, columns, item_bytes, products)
        assert self.took(dtype=dtype, tuned=tuned) == pytest.approx(expected, rel=0.03)

    def test_small_tiles_cost_little_where_weights_stream(self) -> None:
        few, many = (self.took(n, tuned=0) / self.took(n) for n in (1, 65536))
        assert 1 <= few < 1.12
        assert many > 2

    def test_a_slower_unit_of_the_same_clock_does_not_wait(self) -> None:
        slow = dataclasses.replace(SHEET, peak_flops_per_s={"bfloat16": 1e13})
        columns = LAW.columns(shape(65536))
        waits, none = (
            LAW.seconds(slow, {**IDEAL, "fetched_per_clock": bytes_}, columns, dtype="bfloat16")[0]
            for bytes_ in (self.BYTES_PER_CLOCK, 1e9)
        )
        assert waits == none


def test_types_that_gate_first_write_fewer_neurons() -> None:
    """Beyond the model's rows, which both move alike: ten bytes and what is read against one written and one read."""
    passes = {**IDEAL, "rate_frac": 1e9, "bandwidth_frac": 1e-3, "passes": 1.0}
    sizes = {"n_neurons": 65536, "d_model": 64, "n_experts": 1, "top_k": 1}
    moved = [
        seconds(1e5, dtype=dtype, constants=passes, **sizes)
        - seconds(1e5, dtype=dtype, constants={**passes, "passes": 0.0}, **sizes)
        for dtype in ("bfloat16", "fp8")
    ]
    assert moved[0] / moved[1] == pytest.approx(12 / 2, rel=0.02)
