"""How rows of published attention are translated: serving, kernels of export variants, and training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandtable.calibration.timing import Timing
from sandtable.published.adapter import Adapter, Skipped
from sandtable.published.operator_rows import OperatorAdapter
from sandtable.published.operators.op_flash_attention import OpFlashAttention
from sandtable.published.rows import MalformedRow, Row
from sandtable_workloads.transformer.published.op_attention import OpAttention
from sandtable_workloads.transformer.published.op_infersim import OpInfersim

SERVING = {
    "phase": "prefill",
    "system": "h100_sxm",
    "framework": "vllm",
    "version": "0.24.0",
    "batch_size": "8",
    "query_tokens": "1024",
    "kv_tokens": "1024",
    "num_heads": "32",
    "num_kv_heads": "8",
    "head_dim": "128",
    "attn_dtype": "bfloat16",
    "kv_dtype": "fp8",
    "latency_ms": "0.5",
    "source": "",
}
EXPORT = {
    "gpu": "H20",
    "op": "mha",
    "phase": "prefill",
    "shape_from_file_name": "32-4-128",
    "parameters": json.dumps({"dtype": "bf16", "seq_len": 4096}),
    "latency_us": "1000",
}
TRAINING = {
    "system": "h100_sxm",
    "kernel": "flash_attention_2",
    "pass": "backward",
    "batch_size": "2",
    "tokens": "8192",
    "num_heads": "16",
    "head_dim": "128",
    "causal": "1",
    "tflops_per_s": "250",
}


def translate(adapter: OperatorAdapter, cells: dict[str, str]) -> Timing | str:
    found = adapter.timed(Row(line=2, cells=cells))
    if isinstance(found, Skipped):
        return found.reason
    (item,) = found
    assert not isinstance(item, Skipped)
    return item.timing


def columns(point: Timing | str) -> dict[str, float]:
    assert isinstance(point, Timing)
    return point.op.shape._asdict()


class TestServing:
    def test_a_prompt_attends_to_itself_and_fills_the_cache(self) -> None:
        point = translate(OpAttention(), SERVING)
        assert isinstance(point, Timing)
        assert (point.device, point.software, point.op.dtype) == ("nvidia_h100_sxm", "vllm", "bfloat16")
        assert point.seconds == pytest.approx(5e-4)
        found = columns(point)
        assert (found["batch"], found["query_tokens"], found["kv_tokens"]) == (8, 1024, 1024)
        assert (found["causal"], found["kv_item_bytes"], found["cached"], found["flash"]) == (1, 1, 1, 1)

    def test_a_new_token_sees_the_whole_cache(self) -> None:
        found = columns(translate(OpAttention(), {**SERVING, "phase": "decode", "query_tokens": "1"}))
        assert (found["query_tokens"], found["kv_tokens"], found["causal"]) == (1, 1024, 0)

    @pytest.mark.parametrize(
        ("cells", "why"),
        [
            ({"system": "abacus"}, "no device file"),
            ({"attn_dtype": "quaternion"}, "element type not modelled"),
            ({"kv_dtype": "quaternion"}, "element type not modelled"),
            ({"phase": "afterwards"}, "neither prefill nor decode"),
            ({"latency_ms": ""}, "no time or no shape"),
            ({"head_dim": ""}, "no time or no shape"),
        ],
    )
    def test_what_cannot_be_translated_says_why(self, cells: dict[str, str], why: str) -> None:
        assert translate(OpAttention(), {**SERVING, **cells}) == why


class TestExportVariants:
    def test_grouped_heads_are_in_the_name_of_the_file(self) -> None:
        point = translate(OpInfersim(), EXPORT)
        assert isinstance(point, Timing)
        assert (point.device, point.software) == ("nvidia_h20", "flash_attention_3")
        assert point.op.shape[:9] == (1, 4096, 4096, 32, 4, 128, 128, 1, 2)

    def test_a_prompt_with_latents_has_keys_of_its_own_for_each_head(self) -> None:
        cells = {**EXPORT, "op": "mla", "shape_from_file_name": "128-128-64"}
        point = translate(OpInfersim(), cells)
        assert isinstance(point, Timing)
        assert point.op.shape[3:7] == (128, 128, 192, 128)

    def test_a_new_token_meets_one_latent_for_all_heads(self) -> None:
        parameters = json.dumps({"dtype": "bf16", "kv_dtype": "fp8", "batch_size": 16, "kv_len": 8192})
        cells = {"op": "mla", "phase": "decode", "shape_from_file_name": "128-512-64", "parameters": parameters}
        point = translate(OpInfersim(), {**EXPORT, **cells})
        assert isinstance(point, Timing)
        assert point.software == "flash_mla"
        assert point.op.shape[:9] == (16, 1, 8192, 128, 1, 576, 512, 0, 1)

    def test_sparse_attention_sees_as_many_keys_as_were_chosen(self) -> None:
        parameters = json.dumps({"dtype": "bf16", "s_q": 4096, "s_kv": 65536})
        cells = {"op": "dsa", "shape_from_file_name": "attn-128-576-2048", "parameters": parameters}
        point = translate(OpInfersim(), {**EXPORT, **cells})
        assert isinstance(point, Timing)
        assert point.op.shape[:8] == (1, 4096, 2048, 128, 1, 576, 512, 0)

    @pytest.mark.parametrize(
        ("cells", "why"),
        [
            ({"op": "dsa", "shape_from_file_name": "logits-64-128"}, "scores of an indexer, without softmax"),
            ({"parameters": json.dumps({"dtype": "int3", "seq_len": 8})}, "element type not modelled"),
            ({"op": "convolution"}, "kind of operator not modelled"),
        ],
    )
    def test_what_cannot_be_translated_says_why(self, cells: dict[str, str], why: str) -> None:
        assert translate(OpInfersim(), {**EXPORT, **cells}) == why


class TestTraining:
    def test_a_rate_becomes_a_time_by_the_products_that_the_source_counts(self) -> None:
        point = translate(OpFlashAttention(), TRAINING)
        assert isinstance(point, Timing)
        assert point.seconds == pytest.approx(2.5 * 4 * 2 * 16 * 8192**2 * 128 / 2 / 250e12)
        assert columns(point)["passes"] == 2.5

    def test_plain_pytorch_writes_its_scores_out(self) -> None:
        found = columns(translate(OpFlashAttention(), {**TRAINING, "kernel": "vanilla"}))
        assert (found["flash"], found["fused_softmax"]) == (0, 1)

    @pytest.mark.parametrize(
        ("cells", "why"),
        [({"system": "abacus"}, "no device file"), ({"pass": "sideways"}, "no rate or no shape")],
    )
    def test_what_cannot_be_translated_says_why(self, cells: dict[str, str], why: str) -> None:
        assert translate(OpFlashAttention(), {**TRAINING, **cells}) == why


@pytest.mark.parametrize(
    ("adapter", "cells"),
    [
        (OpAttention(), {**SERVING, "latency_ms": "0"}),
        (OpAttention(), {**SERVING, "batch_size": "many"}),
        (OpAttention(), {**SERVING, "query_tokens": "2048"}),
        (OpAttention(), {**SERVING, "num_kv_heads": "5"}),
        (OpInfersim(), {**EXPORT, "shape_from_file_name": "32-4"}),
        (OpInfersim(), {**EXPORT, "shape_from_file_name": "a-b-c"}),
        (OpInfersim(), {**EXPORT, "parameters": json.dumps({"dtype": "bf16"})}),
        (OpFlashAttention(), {**TRAINING, "tflops_per_s": "-1"}),
        (OpFlashAttention(), {**TRAINING, "tokens": "0"}),
    ],
)
def test_nonsense_is_malformed(adapter: OperatorAdapter, cells: dict[str, str]) -> None:
    with pytest.raises(MalformedRow):
        adapter.timed(Row(line=2, cells=cells))


def test_reported_rates_ship_with_the_package_and_all_are_translated() -> None:
    adapter: Adapter = OpFlashAttention()
    folder = adapter.shipped()
    assert isinstance(folder, Path)
    rows = list(adapter.read(folder))
    assert len(rows) == len(list(adapter.timings(rows))) > 50
