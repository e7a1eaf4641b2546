"""Adapters of timed operators: rows become shapes by arithmetic, and what cannot be read is skipped under a reason."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from sandtable.calibration.fit.operator_fit import Predictor
from sandtable.calibration.timing import Timing
from sandtable.demand.operator_shapes import GemmShape
from sandtable.published import scoring, systems
from sandtable.published.adapter import Scored, Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter, constants_of
from sandtable.published.operators.op_gemm import OpGemm
from sandtable.published.operators.op_matmul_peak import OpMatmulPeak
from sandtable.published.rows import MalformedRow, Row
from sandtable_workloads.transformer.published.op_infersim import OpInfersim
from sandtable_workloads.transformer.published.op_mlp_vidur import OpMlpVidur

GEMM = {"system": "h100_sxm", "framework": "vllm", "dtype": "fp8", "m": "8", "n": "4096", "k": "7168"}
VIDUR = {
    "gpu": "a100",
    "model": "some/model",
    "tp": "4",
    "num_tokens": "100",
    "n_head": "64",
    "n_kv_head": "8",
    "hidden": "8192",
    "ffn": "28672",
    "vocab": "32000",
    "gated_mlp": "True",
}
PEAK = {
    "accelerator": "NVIDIA A100 SXM",
    "dtype": "bf16",
    "measured_peak_tflops": "271.2",
    "best_m": "1024",
    "best_n": "10240",
    "best_k": "5120",
}
INFERSIM = {
    "gpu": "H20",
    "op": "gemm",
    "parameters": json.dumps({"m": 512, "k": 2048, "n": 6144}),
    "latency_us": "52.5",
}


def row(cells: dict[str, str], **more: str) -> Row:
    return Row(line=2, cells={**cells, **more})


def points(adapter: OperatorAdapter, cells: dict[str, str], **more: str) -> dict[str, Timing]:
    found = adapter.timed(row(cells, **more))
    assert not isinstance(found, Skipped), found
    return {item.metric: item.timing for item in found if isinstance(item, Figure)}


def reason(adapter: OperatorAdapter, cells: dict[str, str], **more: str) -> str:
    found = adapter.predict(row(cells, **more))
    assert isinstance(found, Skipped)
    return found.reason


def vidur(**more: str) -> dict[str, Timing]:
    times = dict.fromkeys(OpMlpVidur.metrics, "0.5")
    return points(OpMlpVidur(), VIDUR, **{**times, **more})


class TestGemm:
    def test_a_row_is_a_product(self) -> None:
        point = points(OpGemm(), GEMM, latency_ms="0.02")["latency_ms"]
        assert point.device == "nvidia_h100_sxm"
        assert (point.software, point.op.dtype, point.op.shape) == (
            "vllm",
            "fp8",
            GemmShape(8, 4096, 7168, in_turn=6),
        )
        assert point.seconds == pytest.approx(2e-5)

    def test_it_is_predicted_in_milliseconds_within_an_interval(self) -> None:
        outcome = OpGemm().predict(row(GEMM, latency_ms="0.02"))
        assert not isinstance(outcome, Skipped)
        (scored,) = outcome
        assert isinstance(scored, Scored)
        assert scored.unit == "ms"
        assert scored.low < scored.predicted < scored.high
        point = points(OpGemm(), GEMM, latency_ms="0.02")["latency_ms"]
        assert scored.predicted == pytest.approx(
            1e3 * Predictor([point], systems.sheet_of).seconds(constants_of(point).values)[0]
        )

    def test_rows_together_are_predicted_as_each_alone(self) -> None:
        kinds = ({}, {"m": "64"}, {"m": "0"}, {"dtype": "bfloat16"}, {"system": "abacus"}, {"framework": "sglang"})
        rows = [row(GEMM, **{"latency_ms": "0.02", **more}) for more in kinds]
        together = list(OpGemm().predict_all(rows))
        assert [type(found) for found in together] == [list, list, MalformedRow, list, Skipped, list]
        for one, found in zip(rows, together, strict=True):
            if not isinstance(found, MalformedRow):
                assert OpGemm().predict(one) == found

    def test_a_row_of_an_operator_without_a_law_does_not_take_the_others_along(self) -> None:
        class WithAbacus(OpGemm):
            def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
                found = super().timed(row)
                assert not isinstance(found, Skipped)
                items = [item for item in found if isinstance(item, Figure)]
                operator = "abacus" if row.text("m") == "9" else "gemm"
                return [
                    replace(item, timing=replace(item.timing, op=replace(item.timing.op, operator=operator)))
                    for item in items
                ]

        rows = [row(GEMM, latency_ms="0.02", m=m) for m in ("8", "9", "10")]
        good, bad, fine = WithAbacus().predict_all(rows)
        assert isinstance(good, list)
        assert isinstance(fine, list)
        assert isinstance(bad, list)
        assert all(isinstance(item, Scored) for item in (*good, *fine))
        assert [item.reason[:6] for item in bad if isinstance(item, Skipped)] == ["no law"]

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"system": "abacus"}, "no device file"),
            ({"dtype": "ternary"}, "element type not modelled"),
            ({"latency_ms": ""}, "no time or no shape"),
            ({"k": ""}, "no time or no shape"),
        ],
    )
    def test_why_a_row_is_skipped(self, more: dict[str, str], words: str) -> None:
        assert reason(OpGemm(), GEMM, **{"latency_ms": "1", **more}) == words

    @pytest.mark.parametrize("more", [{"m": "0"}, {"latency_ms": "-1"}, {"n": "wide"}])
    def test_what_is_malformed(self, more: dict[str, str]) -> None:
        with pytest.raises(MalformedRow):
            OpGemm().timed(row(GEMM, **{"latency_ms": "1", **more}))

    def test_products_in_16_bits_also_inform_the_library_that_all_call(self) -> None:
        found = OpGemm().timings([row(GEMM, latency_ms="1"), row(GEMM, dtype="bfloat16", latency_ms="1")])
        assert [(point.software, point.op.dtype) for point in found] == [
            ("vllm", "fp8"),
            ("vllm", "bfloat16"),
            ("cublas", "bfloat16"),
        ]

    def test_an_unknown_framework_still_gets_a_prediction(self) -> None:
        assert isinstance(OpGemm().predict(row(GEMM, framework="homemade", latency_ms="1")), list)
        point = points(OpGemm(), GEMM, framework="homemade", latency_ms="1")["latency_ms"]
        assert constants_of(point).origin == "typical"


class TestVidur:
    def test_linear_layers_are_sharded(self) -> None:
        """64 heads of 128 on four devices, with two of eight key-value heads each; gate and up are one product."""
        found = vidur()
        assert found["attn_pre_proj_ms"].op.shape == GemmShape(100, (16 + 2 * 2) * 128, 8192)
        assert found["attn_post_proj_ms"].op.shape == GemmShape(100, 8192, 2048)
        assert found["mlp_up_proj_ms"].op.shape == GemmShape(100, 2 * 7168, 8192)
        assert found["mlp_down_proj_ms"].op.shape == GemmShape(100, 8192, 7168)
        assert {point.software for point in found.values()} == {"cublas"}

    def test_key_value_heads_are_repeated_where_there_are_too_few(self) -> None:
        assert vidur(tp="8", n_kv_head="1")["attn_pre_proj_ms"].op.shape[1] == (8 + 2) * 128

    def test_norms_and_sums_are_not_sharded(self) -> None:
        found = vidur()
        assert found["input_layernorm_ms"].op.shape == (3 * 100 * 8192 * 2, 1, 0, 100, 8)
        assert found["add_ms"].op.shape[0] == 3 * 100 * 8192 * 2

    def test_an_activation_reads_gate_and_up_and_writes_one(self) -> None:
        assert vidur()["mlp_act_ms"].op.shape[:3] == (3 * 100 * 7168 * 2, 1, 100 * 7168)
        plain = vidur(gated_mlp="False")
        assert plain["mlp_act_ms"].op.shape[0] == 2 * 100 * 7168 * 2
        assert plain["mlp_up_proj_ms"].op.shape[1] == 7168

    def test_few_indices_are_gathered_one_after_the_other(self) -> None:
        assert vidur(num_tokens="16")["emb_ms"].op.shape[3:] == (8, 16)
        assert vidur(num_tokens="17")["emb_ms"].op.shape[3:] == (17 * 8, 3.5)

    def test_a_figure_without_a_time_is_no_figure(self) -> None:
        assert "add_ms" not in vidur(add_ms="")
        found = OpMlpVidur().timed(row(VIDUR, **{**dict.fromkeys(OpMlpVidur.metrics, ""), "add_ms": "0"}))
        assert found == [Skipped("time rounded to nothing", "add_ms")]

    def test_sizes_are_checked(self) -> None:
        with pytest.raises(MalformedRow, match="sizes"):
            vidur(tp="0")


class TestMatmulPeak:
    def test_the_rate_is_the_arithmetic_over_the_time(self) -> None:
        outcome = OpMatmulPeak().predict(row(PEAK))
        assert not isinstance(outcome, Skipped)
        (scored,) = outcome
        assert isinstance(scored, Scored)
        assert scored.unit == "TFLOP/s"
        assert scored.measured == pytest.approx(271.2)
        assert 150 < scored.low < scored.predicted < scored.high < 400

    def test_nothing_is_fitted_to_a_maximum(self) -> None:
        assert list(OpMatmulPeak().timings([row(PEAK)])) == []

    def test_narrow_tensors_are_not_quantised_again(self) -> None:
        point = points(OpMatmulPeak(), PEAK, accelerator="NVIDIA H100 SXM", dtype="fp8_e4m3")[
            "measured_peak_tflops"
        ]
        assert OpMatmulPeak().constants(point).values["quantise_passes"] == 0

    def test_an_unknown_type_is_skipped(self) -> None:
        assert reason(OpMatmulPeak(), PEAK, dtype="posit8") == "element type not modelled"


class TestInfersim:
    def test_a_product_is_of_tensors_with_block_scales(self) -> None:
        point = points(OpInfersim(), INFERSIM)["latency_us"]
        assert (point.software, point.op.dtype, point.op.shape) == (
            "deepgemm",
            "fp8_block",
            GemmShape(512, 6144, 2048),
        )
        assert point.seconds == pytest.approx(52.5e-6)

    def test_other_kinds_of_operator_are_counted(self) -> None:
        assert reason(OpInfersim(), INFERSIM, op="knitting") == "kind of operator not modelled"

    @pytest.mark.parametrize("parameters", ["", "[1]", '{"m": 1, "n": 2}', '{"m": 1, "n": 2, "k": "wide"}'])
    def test_parameters_are_checked(self, parameters: str) -> None:
        with pytest.raises(MalformedRow, match="parameters"):
            OpInfersim().timed(row(INFERSIM, parameters=parameters))


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("a100_sxm", "nvidia_a100_sxm"),
        ("NVIDIA A100 PCIe", "nvidia_a100_pcie"),
        ("Intel Gaudi 3", "intel_gaudi3"),
        ("AMD MI300X", "amd_mi300x"),
        ("rtx_pro_6000_server", "nvidia_rtx_pro_6000"),
        ("H20", "nvidia_h20"),
    ],
)
def test_names_in_files_find_their_devices(text: str, device: str) -> None:
    system = systems.find(text)
    assert not isinstance(system, Skipped)
    assert system.name == device


def test_a_name_that_no_device_file_has_is_a_reason() -> None:
    assert systems.find("Abacus 3000") == systems.NO_DEVICE


def test_every_adapter_of_operators_states_its_public_source() -> None:
    adapters = [a for a in scoring.adapters().values() if isinstance(a, OperatorAdapter)]
    assert len(adapters) >= 4
    for adapter in adapters:
        assert "@" in adapter.source
