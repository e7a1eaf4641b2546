"""How rows of published mixtures of experts are translated."""

from __future__ import annotations

import pytest

from sandtable.calibration.timing import Timing
from sandtable.published.adapter import Skipped
from sandtable.published.operators.op_moe import OpMoe
from sandtable.published.rows import MalformedRow, Row

ROW = {
    "system": "h100_sxm",
    "framework": "vllm",
    "version": "0.24.0",
    "dtype": "bfloat16",
    "num_tokens": "16",
    "hidden_size": "2048",
    "intermediate_size": "768",
    "top_k": "8",
    "num_experts": "128",
    "moe_tp": "1",
    "moe_ep": "8",
    "routing": "balanced",
    "latency_ms": "0.1",
    "source": "",
}


def point(**cells: str) -> Timing:
    found = OpMoe().timed(Row(line=2, cells={**ROW, **cells}))
    assert not isinstance(found, Skipped)
    (item,) = found
    assert not isinstance(item, Skipped)
    return item.timing


def reason(**cells: str) -> str:
    found = OpMoe().timed(Row(line=2, cells={**ROW, **cells}))
    assert isinstance(found, Skipped)
    return found.reason


def test_a_row_is_one_layer_of_experts() -> None:
    found = point()
    assert found.op.shape == (16, 2048, 768, 8, 128, 1, 8, 0, 1)
    assert (found.device, found.software, found.op.operator) == ("nvidia_h100_sxm", "triton_experts", "moe")
    assert found.seconds == pytest.approx(1e-4)


@pytest.mark.parametrize(("routing", "skew"), [("balanced", 0), ("power_law_1.01", 1.01), ("power_law_1.2", 1.2)])
def test_routing_is_the_exponent_of_the_loads(routing: str, skew: float) -> None:
    assert point(routing=routing).op.shape.skew == skew


@pytest.mark.parametrize(
    ("system", "framework", "dtype", "ours"),
    [
        ("h100_sxm", "vllm", "fp8_block", "fp8_block"),
        ("b200_sxm", "vllm", "nvfp4", "fp4"),
        ("b200_sxm", "sglang", "w4a16_mxfp4", "int4_weight_only"),
        ("h100_sxm", "sglang", "w4a16_mxfp4", "bfloat16"),
        ("h100_sxm", "trtllm", "w4a16_mxfp4", "int4_weight_only"),
    ],
)
def test_element_types(system: str, framework: str, dtype: str, ours: str) -> None:
    assert point(system=system, framework=framework, dtype=dtype).op.dtype == ours


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ({"system": "abacus"}, "no device file"),
        ({"dtype": "quaternion"}, "element type not modelled"),
        ({"routing": "by hand"}, "routing not modelled"),
        ({"framework": "abacus"}, "kernels not known"),
        ({"latency_ms": ""}, "no time or no shape"),
        ({"num_experts": ""}, "no time or no shape"),
        ({"num_experts": "256"}, "routing is not what its label says"),
        (
            {"num_experts": "256", "num_tokens": "1", "routing": "power_law_1.01"},
            "routing is not what its label says",
        ),
    ],
)
def test_what_cannot_be_translated_says_why(cells: dict[str, str], why: str) -> None:
    assert reason(**cells) == why


@pytest.mark.parametrize(
    ("cells", "kernels"),
    [
        ({"framework": "trtllm"}, "cutlass_experts"),
        ({"framework": "trtllm", "dtype": "w4a16_mxfp4"}, "triton_experts"),
        ({"framework": "trtllm", "system": "rtx_pro_6000_server", "dtype": "fp8_block"}, "triton_experts"),
        ({"system": "a100_sxm", "version": "0.14.0"}, "triton_experts"),
        ({"dtype": "fp8"}, "cutlass_experts"),
        ({"dtype": "fp8", "version": "0.14.0"}, "triton_experts"),
        ({"dtype": "fp8_block"}, "cutlass_experts"),
        ({"dtype": "fp8_block", "moe_ep": "1"}, "triton_experts"),
        ({"system": "rtx_pro_6000_server"}, "cutlass_experts"),
        ({"system": "rtx_pro_6000_server", "dtype": "w4a16_mxfp4"}, "triton_experts"),
        ({"system": "gb200", "dtype": "fp8_block"}, "trtllm_gen_experts"),
        ({"system": "gb200", "dtype": "int4_wo"}, "triton_experts"),
        ({"framework": "sglang"}, "triton_experts"),
        ({"framework": "sglang", "system": "b200_sxm", "dtype": "fp8_block"}, "trtllm_gen_experts"),
        (
            {"framework": "sglang", "system": "b200_sxm", "dtype": "fp8_block", "num_experts": "8"},
            "triton_experts",
        ),
        ({"framework": "sglang", "system": "rtx_pro_6000_server", "dtype": "nvfp4"}, "cutlass_experts"),
    ],
)
def test_constants_are_those_of_the_kernels_that_a_framework_runs(cells: dict[str, str], kernels: str) -> None:
    assert point(**cells).software == kernels


@pytest.mark.parametrize(
    ("cells", "tuned"),
    [
        ({"moe_ep": "1"}, True),
        ({}, False),
        ({"moe_ep": "1", "intermediate_size": "1536"}, False),
        ({"moe_ep": "1", "system": "h200_sxm"}, False),
        ({"dtype": "fp8_block"}, True),
        ({"dtype": "w4a16_mxfp4"}, False),
        ({"system": "b200_sxm"}, True),
        ({"framework": "vllm"}, True),
    ],
)
def test_sglang_keeps_tuned_tiles_for_few_sizes_in_16_bits(cells: dict[str, str], tuned: bool) -> None:
    assert point(**{"framework": "sglang", **cells}).op.shape.tuned == tuned


def test_group_limits_spoil_only_some_labels() -> None:
    assert point(num_experts="256", framework="trtllm").op.shape[4] == 256
    assert point(num_experts="256", routing="power_law_1.01").op.shape[4] == 256


@pytest.mark.parametrize("cells", [{"latency_ms": "0"}, {"num_tokens": "none"}, {"top_k": "-8"}])
def test_nonsense_is_malformed(cells: dict[str, str]) -> None:
    with pytest.raises(MalformedRow):
        OpMoe().timed(Row(line=2, cells={**ROW, **cells}))
