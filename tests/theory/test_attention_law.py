"""The law of attention against counts that can be done by hand, its limits, and what may never be slower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_devices import CPU, GPU, TWO_CORES

from sandtable.demand.operator_shapes import AttentionShape
from sandtable.hardware import LawSettings, Roofline
from sandtable.model.laws.attention_law import (
    SMALL_TILE,
    TILE,
    Attention,
    vanilla_traffic,
)

LAW = Attention()
SHEET = replace(GPU, clock_hz=1.5e9)
# no clock: exponentials take no time
GIVEN = SHEET.given("attention")
BARE = replace(GPU, cache_bytes=0.0, clock_hz=None)
# reaches everything and adds nothing
IDEAL = {"rate_frac": 1.0, "bandwidth_frac": 1.0, "launch_s": 0.0, "item_s": 0.0, "narrow_gain": 1.0}

DEFAULTS = {
    "batch": 1.0,
    "query_tokens": 1.0,
    "kv_tokens": 1024.0,
    "n_heads": 32.0,
    "n_kv_heads": 8.0,
    "head_dim": 128.0,
    "value_dim": 128.0,
    "causal": 0.0,
    "kv_item_bytes": 2.0,
    "flash": 1.0,
    "passes": 1.0,
    "cached": 0.0,
    "fused_softmax": 0.0,
    "dropout": 0.0,
}


def seconds(
    *, sheet: Roofline = SHEET, constants: dict[str, float] | None = None, dtype: str = "bfloat16", **sizes: float
) -> float:
    values = {**DEFAULTS, **sizes}
    columns = LAW.columns(AttentionShape(**values))
    return float(LAW.seconds(sheet, constants or LAW.typical(), columns, dtype=dtype)[0])


def prefill(tokens: float, **more: float) -> dict[str, Any]:
    return {"query_tokens": tokens, "kv_tokens": tokens, "causal": 1.0, **more}


class TestLimits:
    def test_decoding_many_long_sequences_takes_the_bytes_of_the_cache_over_the_bandwidth(self) -> None:
        found = seconds(sheet=BARE, constants=IDEAL, batch=64, kv_tokens=131072)
        n_bytes = 64 * 131072 * 8 * 256 * 2
        assert found == pytest.approx(n_bytes / 3e12, rel=0.02)

    @pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
    def test_a_long_prompt_takes_its_products_over_the_rate(self, dtype: str) -> None:
        tokens = 65536.0
        flops = 4 * 32 * tokens**2 * 128 / 2
        found = seconds(sheet=BARE, constants=IDEAL, dtype=dtype, **prefill(tokens))
        assert found == pytest.approx(flops / BARE.peak(dtype), rel=0.03)

    def test_exponentials_bind_where_products_are_fast(self) -> None:
        fast = replace(
            BARE,
            peak_flops_per_s={"bfloat16": 1e18},
            bandwidth_bytes_per_s=1e15,
            clock_hz=1e9,
            exponentials_per_clock=16,
        )
        tokens = 65536.0
        assert seconds(sheet=fast, constants=IDEAL, **prefill(tokens)) == pytest.approx(
            32 * tokens**2 / 2 / (100 * 16 * 1e9), rel=0.02
        )

    def test_a_mask_halves_a_long_prompt(self) -> None:
        masked = seconds(constants=IDEAL, **prefill(32768))
        assert masked / seconds(constants=IDEAL, **prefill(32768, causal=0.0)) == pytest.approx(0.5, rel=0.03)

    def test_the_tiles_on_the_diagonal_are_whole(self) -> None:
        # one head of two tiles, on two units: the longer one takes two steps, and three of four are taken
        two = replace(BARE, n_units=2, peak_flops_per_s={"bfloat16": 1e12}, bandwidth_bytes_per_s=1e18)
        step = 4 * TILE**2 * 128 / 5e11
        found = seconds(sheet=two, constants=IDEAL, n_heads=1, n_kv_heads=1, **prefill(2 * TILE))
        assert found == pytest.approx(step * np.hypot(1.5, 2.0))

    def test_a_unit_that_keeps_two_tiles_of_queries_walks_over_both(self) -> None:
        """As many steps where heads are many; of one head with two tiles, one unit takes what two would share."""
        paired = replace(BARE, laws={"attention": LawSettings(settings={"query_tile": 2.0 * TILE})})
        sizes: dict[str, Any] = {"query_tokens": 2.0 * TILE, "kv_tokens": 100.0 * TILE}
        for heads, ratio in ((1.0, 2.0), (3200.0, 1.0)):
            one, two = (
                seconds(sheet=sheet, constants=IDEAL, n_heads=heads, n_kv_heads=1, **sizes)
                for sheet in (BARE, paired)
            )
            assert two == pytest.approx(ratio * one, rel=0.02)

    def test_an_empty_device_costs_a_launch(self) -> None:
        constants = {**IDEAL, "launch_s": 1e-5}
        assert seconds(constants=constants, kv_tokens=1, n_heads=1, n_kv_heads=1) == pytest.approx(1e-5, rel=0.1)


class TestDecoding:
    def test_a_long_sequence_is_split_over_idle_units(self) -> None:
        one: dict[str, Any] = {"n_heads": 1.0, "n_kv_heads": 1.0, "kv_tokens": 131072.0}
        alone = 131072 / TILE * SMALL_TILE / TILE * 4 * TILE**2 * 128 / 1e13
        assert seconds(sheet=BARE, constants=IDEAL, **one) < 0.2 * alone

    def test_heads_that_share_keys_share_their_reads(self) -> None:
        many = seconds(constants=IDEAL, batch=64, kv_tokens=16384, n_kv_heads=32)
        assert seconds(constants=IDEAL, batch=64, kv_tokens=16384, n_kv_heads=4) < 0.2 * many

    def test_a_narrow_cache_halves_the_reads(self) -> None:
        wide = seconds(constants=IDEAL, batch=64, kv_tokens=16384)
        assert seconds(constants=IDEAL, batch=64, kv_tokens=16384, kv_item_bytes=1) == pytest.approx(
            wide / 2, rel=0.1
        )

    def test_a_cache_that_has_to_be_widened_can_be_slower(self) -> None:
        constants = {**IDEAL, "narrow_gain": 0.1}
        sizes: dict[str, Any] = {"batch": 64.0, "kv_tokens": 16384.0}
        assert seconds(constants=constants, kv_item_bytes=1, **sizes) > seconds(constants=IDEAL, **sizes)

    def test_keys_that_fit_the_last_level_cache_come_from_there(self) -> None:
        sizes: dict[str, Any] = {"batch": 8.0, "kv_tokens": 1024.0}  # 34 MB of 50
        cold = replace(BARE, peak_flops_per_s={"bfloat16": 1e18})
        warm = replace(cold, cache_bytes=5e7)
        ratio = seconds(sheet=cold, constants=IDEAL, **sizes) / seconds(sheet=warm, constants=IDEAL, **sizes)
        assert ratio == pytest.approx(GIVEN["cache_speedup"], rel=0.02)

    def test_a_latent_holds_its_values(self) -> None:
        # DeepSeek-V2: 576 numbers a token, of which the first 512 are the values
        sizes: dict[str, Any] = {"batch": 64.0, "kv_tokens": 131072.0, "n_heads": 1.0, "n_kv_heads": 1.0}
        latent = seconds(sheet=BARE, constants=IDEAL, head_dim=576, value_dim=512, **sizes)
        assert latent == pytest.approx(64 * 131072 * 576 * 2 / 3e12, rel=0.05)


class TestTraining:
    def test_the_backward_pass_has_five_products_at_a_lower_rate(self) -> None:
        sizes = prefill(65536)
        forward = seconds(sheet=BARE, constants=IDEAL, **sizes)
        backward = seconds(sheet=BARE, constants=IDEAL, passes=2.5, **sizes)
        assert backward / forward == pytest.approx(2.5 * 73 / 63, rel=0.01)

    @pytest.mark.parametrize(
        ("item_bytes", "fused", "dropout", "forward", "backward", "saved"),
        [
            # counted in Transformers 4.40 with PyTorch's dispatcher, bfloat16
            (2, False, False, 32, 36, 6),
            (4, False, False, 32, 36, 4),
            (2, True, False, 8, 14, 2),
            # Korthikanti et al. (arXiv 2205.05198), section 4.1: 5 a s^2 b bytes are kept
            (2, True, True, 13, 19, 5),
        ],
    )
    def test_passes_over_the_scores(
        self, item_bytes: float, fused: bool, dropout: bool, forward: float, backward: float, saved: float
    ) -> None:
        count = vanilla_traffic(item_bytes, fused=fused, dropout=dropout)
        assert (count.forward, count.backward, count.saved) == (forward, backward, saved)

    def test_a_softmax_that_widens_its_input_saves_two_passes_in_float32(self) -> None:
        apart, joint = vanilla_traffic(2), vanilla_traffic(2, widens=True)
        assert (apart.forward - joint.forward, apart.backward - joint.backward) == (8, 8)
        assert vanilla_traffic(4) == vanilla_traffic(4, widens=True)
        sizes = prefill(2048, flash=0.0, batch=8)
        sheet = replace(SHEET, peak_flops_per_s={"bfloat16": 1e15, "float16": 1e15})
        assert seconds(sheet=sheet, dtype="float16", **sizes) < seconds(sheet=sheet, **sizes)

    @pytest.mark.parametrize("passes", [1.0, 2.5])
    def test_scores_through_memory_cost_at_least_their_traffic(self, passes: float) -> None:
        tokens = 4096.0
        sizes = prefill(tokens, batch=8, passes=passes)
        spilled = seconds(constants=IDEAL, flash=0, **sizes)
        count = vanilla_traffic(2)
        assert spilled > 8 * 32 * tokens**2 * (count.forward if passes == 1 else count.backward) / 3e12
        assert spilled > 3 * seconds(constants=IDEAL, **sizes)

    def test_products_spend_clocks_on_scores_however_fast_memory_is(self) -> None:
        tokens, sizes = 4096.0, prefill(4096, batch=8, flash=0.0)
        fast = replace(SHEET, bandwidth_bytes_per_s=1e18, peak_flops_per_s={"bfloat16": 1e21})
        for passes, products in ((1.0, 2), (2.5, 4)):
            clocks = products * GIVEN["clocks_per_score"] * 8 * 32 * tokens**2
            exponentials = 8 * 32 * tokens**2 / 16
            assert seconds(sheet=fast, constants=IDEAL, passes=passes, **sizes) == pytest.approx(
                (clocks + exponentials) / (100 * 1.5e9), rel=0.02
            )

    def test_fewer_passes_take_less_and_dropout_takes_more(self) -> None:
        sizes = prefill(2048, flash=0.0, batch=8)
        fused = seconds(fused_softmax=1, **sizes)
        assert fused < seconds(fused_softmax=1, dropout=1, **sizes) < seconds(**sizes) < seconds(dropout=1, **sizes)


shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 64).map(float),
        "kv_tokens": st.integers(1, 20000).map(float),
        "n_kv_heads": st.sampled_from([1.0, 2.0, 8.0, 16.0]),
        "head_dim": st.sampled_from([64.0, 128.0, 256.0]),
        "causal": st.sampled_from([0.0, 1.0]),
        "kv_item_bytes": st.sampled_from([1.0, 2.0]),
        "flash": st.sampled_from([0.0, 1.0]),
        "passes": st.sampled_from([1.0, 2.5]),
        "cached": st.sampled_from([0.0, 1.0]),
    }
)


def complete(shape: dict[str, float], share: float, group: float) -> dict[str, Any]:
    return {
        **shape,
        "query_tokens": max(1.0, float(int(share * shape["kv_tokens"]))),
        "n_heads": group * shape["n_kv_heads"],
        "value_dim": shape["head_dim"],
    }


@given(
    shape=shapes,
    share=st.sampled_from([0.0, 0.1, 1.0]),
    group=st.sampled_from([1.0, 4.0, 8.0]),
    name=st.sampled_from(["batch", "kv_tokens", "query_tokens", "heads", "head_dim", "value_dim", "kv_item_bytes"]),
    factor=st.sampled_from([1.01, 2.0, 3.0]),
)
def test_no_size_makes_it_faster(
    shape: dict[str, float], share: float, group: float, name: str, factor: float
) -> None:
    small = complete(shape, share, group)
    large = dict(small)
    for column in ("n_heads", "n_kv_heads") if name == "heads" else (name,):
        large[column] = float(np.ceil(small[column] * factor))
    if name == "heads":
        large["n_heads"] = group * large["n_kv_heads"]
    large["query_tokens"] = min(large["query_tokens"], large["kv_tokens"])
    if name in ("head_dim", "value_dim"):  # values narrower than one shared head's keys are a latent's
        large["head_dim"] = large["value_dim"] = max(large["head_dim"], large["value_dim"])
    constants = {**LAW.typical(), "narrow_gain": 1.0}
    assert seconds(constants=constants, **large) >= seconds(constants=constants, **small) * (1 - 1e-9)


@given(shape=shapes, share=st.sampled_from([0.0, 0.1, 1.0]), group=st.sampled_from([2.0, 4.0, 8.0]))
def test_sharing_keys_is_never_slower(shape: dict[str, float], share: float, group: float) -> None:
    grouped = complete(shape, share, group)
    assert seconds(**grouped) <= seconds(**{**grouped, "n_kv_heads": grouped["n_heads"]}) * (1 + 1e-9)


@given(shape=shapes, share=st.sampled_from([0.0, 0.1, 1.0]), group=st.sampled_from([1.0, 8.0]))
def test_scores_on_chip_are_never_slower_forward(shape: dict[str, float], share: float, group: float) -> None:
    sizes: dict[str, Any] = {**complete(shape, share, group), "passes": 1.0}
    assert seconds(**{**sizes, "flash": 1.0}) <= seconds(**{**sizes, "flash": 0.0}) * (1 + 1e-9)


@given(shape=shapes, share=st.sampled_from([0.0, 1.0]), group=st.sampled_from([1.0, 8.0]))
def test_a_faster_device_is_never_slower(shape: dict[str, float], share: float, group: float) -> None:
    sizes = complete(shape, share, group)
    faster = replace(
        SHEET,
        peak_flops_per_s={key: 2 * value for key, value in SHEET.peak_flops_per_s.items()},
        bandwidth_bytes_per_s=2 * SHEET.bandwidth_bytes_per_s,
        cache_bytes=2 * SHEET.cache_bytes,
        exponentials_per_clock=32,
    )
    assert seconds(sheet=faster, **sizes) <= seconds(**sizes) * (1 + 1e-9)


def test_many_at_once_equal_one_at_a_time() -> None:
    tokens = np.array([1.0, 128.0, 129.0, 4096.0])
    values: list[Any] = [*AttentionShape(**DEFAULTS)]
    values[1] = tokens
    values[2] = 4096.0
    found = LAW.seconds(SHEET, LAW.typical(), LAW.columns(values), dtype="bfloat16")
    single = [seconds(query_tokens=float(t), kv_tokens=4096) for t in tokens]
    assert found == pytest.approx(single)


def test_the_same_work_on_a_processor() -> None:
    cpu = replace(CPU, n_units=16, peak_flops_per_s={"float32": 1e12}, cache_bytes=3e7, clock_hz=2.5e9)
    found = seconds(sheet=cpu, dtype="float32", kv_item_bytes=4, **prefill(2048))
    assert found > 4 * 32 * 2048**2 * 128 / 2 / 1e12


class TestCores:
    """CPUs take blocks of 32 queries, and multiply as many rows and keys as there are."""

    TWO = replace(TWO_CORES, peak_flops_per_s={"float32": 1e11}, bandwidth_bytes_per_s=1e18)
    # two products over 32 numbers and what else a score needs, of a core with half of the peak
    SCORE_S = (4 * 32 + 180) / 5e10

    def on_cores(self, constants: dict[str, float] = IDEAL, **sizes: float) -> float:
        shape: dict[str, float] = {"batch": 16.0, "n_heads": 2.0, "n_kv_heads": 2.0, "kv_item_bytes": 4.0}
        heads = {"head_dim": 32.0, "value_dim": 32.0}
        return seconds(sheet=self.TWO, constants=constants, dtype="float32", **shape, **heads, **sizes)

    def test_one_query_computes_a_score_of_each_key(self) -> None:
        assert self.on_cores(kv_tokens=40.0) == pytest.approx(16 * self.SCORE_S * 40)

    @pytest.mark.parametrize(
        ("tokens", "scores"),
        [(8, 8 * 8), (32, 32 * 32), (48, 32 * 32 + 16 * 48), (96, 32 * (32 + 64 + 96))],
    )
    def test_a_block_sees_the_keys_up_to_its_last_query(self, tokens: float, scores: float) -> None:
        assert self.on_cores(**prefill(tokens)) == pytest.approx(16 * self.SCORE_S * scores)

    def test_scores_that_are_written_out_are_all_computed(self) -> None:
        whole, seen = (self.on_cores(**prefill(96.0, flash=flash)) for flash in (0.0, 1.0))
        assert whole > 1.4 * seen

    def test_every_block_is_begun(self) -> None:
        begun = {**IDEAL, "item_s": 1e-3}
        assert self.on_cores(begun, kv_tokens=40.0) == pytest.approx(16e-3, rel=0.01)
        assert self.on_cores(begun, **prefill(48.0)) == pytest.approx(32e-3, rel=0.01)

    def test_what_else_a_score_needs_is_as_much_in_the_backward_pass(self) -> None:
        forward, backward = (self.on_cores(**prefill(96.0, passes=passes)) for passes in (1.0, 2.5))
        given_ = self.TWO.given("attention")
        slower = given_["forward_percent"] / given_["backward_percent"]
        assert backward / forward == pytest.approx((2.5 * slower * 4 * 32 + 180) / (4 * 32 + 180))

    def test_a_lone_block_has_one_core(self) -> None:
        one = {"batch": 1.0, "n_heads": 1.0, "n_kv_heads": 1.0, "kv_tokens": 40.0, "kv_item_bytes": 4.0}
        found = seconds(sheet=self.TWO, constants=IDEAL, dtype="float32", head_dim=32.0, value_dim=32.0, **one)
        assert found == pytest.approx(self.SCORE_S * 40)
