"""How rows of published grouped products are translated."""

from __future__ import annotations

import json

import pytest

from sandtable.demand.operator_shapes import GemmShape
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure
from sandtable.published.rows import Row
from sandtable_workloads.transformer.published.op_infersim import OpInfersim

SIZES = {
    "num_experts": 256,
    "num_gpus": 8,
    "num_local_experts": 32,
    "topk": 8,
    "hidden_size": 7168,
    "intermediate_size": 2048,
    "batch_size_per_gpu": 64,
    "tokens_per_expert": 16,
}


def timed(**sizes: int) -> list[Figure | Skipped] | Skipped:
    cells = {
        "gpu": "H20",
        "op": "grouped_gemm",
        "phase": "decode",
        "shape_from_file_name": "",
        "parameters": json.dumps(SIZES | sizes),
        "latency_us": "200",
        "latency2_us": "100",
    }
    found = OpInfersim().timed(Row(line=2, cells=cells))
    return found if isinstance(found, Skipped) else list(found)


@pytest.mark.parametrize(("tp_size", "columns"), [(1, 4096), (2, 2048)])
def test_it_is_one_product_per_expert_of_the_rank(tp_size: int, columns: int) -> None:
    found = timed(tp_size=tp_size)
    assert not isinstance(found, Skipped)
    (item,) = found
    assert isinstance(item, Figure)
    assert item.timing.op.operator == "gemm"
    assert item.timing.op.shape == GemmShape(16, columns, 7168, 32)
    assert item.timing.seconds == pytest.approx(2e-4)


def test_experts_without_rows_are_left_out() -> None:
    assert timed(tokens_per_expert=0) == Skipped("no rows in a grouped product")
