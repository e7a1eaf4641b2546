"""How rates of products and attention in Transformer Engine are translated."""

from __future__ import annotations

import pytest

from sandtable.demand.operator_shapes import BACKWARD_PASSES, AttentionShape, GemmShape
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure
from sandtable.published.operators.op_transformer_engine import OpTransformerEngine
from sandtable.published.rows import MalformedRow, Row

PRODUCT = {
    "system": "a100_pcie",
    "operator": "product",
    "pass": "outputs",
    "batch_size": "1",
    "tflops_per_s": "240",
}
SIZES = {"m": "4096", "n": "1536", "k": "5120"}
ATTENTION = {
    "system": "b200_sxm",
    "operator": "attention",
    "pass": "backward",
    "batch_size": "1",
    "tokens": "4096",
    "num_heads": "64",
    "num_kv_heads": "8",
    "head_dim": "192",
    "value_dim": "128",
    "tflops_per_s": "1500",
}


def figure(cells: dict[str, str]) -> Figure:
    found = OpTransformerEngine().timed(Row(line=2, cells=cells))
    assert not isinstance(found, Skipped)
    (item,) = found
    assert not isinstance(item, Skipped)
    return item


def test_a_rate_of_a_product_becomes_a_time() -> None:
    found = figure(PRODUCT | SIZES | {"operator": "grouped products", "batch_size": "20"}).timing
    assert found.op.shape == GemmShape(4096, 1536, 5120, 20)
    assert found.seconds == pytest.approx(20 * 2 * 4096 * 1536 * 5120 / 240e12)
    assert (found.device, found.software) == ("nvidia_a100_pcie", "transformer_engine")


def test_attention_is_counted_over_the_whole_square() -> None:
    found = figure(ATTENTION).timing
    sizes = (1, 4096, 4096, 64, 8, 192, 128)
    assert found.op.shape == AttentionShape(*sizes, causal=1.0, kv_item_bytes=2.0, passes=BACKWARD_PASSES)
    assert found.seconds == pytest.approx(5 * 64 * 4096**2 * (192 + 128) / 1500e12)


def test_an_unknown_device_is_counted() -> None:
    assert isinstance(OpTransformerEngine().timed(Row(line=2, cells=PRODUCT | SIZES | {"system": "x"})), Skipped)


@pytest.mark.parametrize("changes", [{"tflops_per_s": ""}, {"k": "0"}, {"batch_size": ""}])
def test_a_product_without_sizes_or_rate_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(MalformedRow):
        figure(PRODUCT | SIZES | changes)


@pytest.mark.parametrize("changes", [{"pass": "sideways"}, {"tokens": ""}])
def test_attention_without_sizes_or_pass_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(MalformedRow):
        figure(ATTENTION | changes)
