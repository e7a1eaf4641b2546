"""How rates of square products in PyTorch are translated."""

from __future__ import annotations

import pytest

from sandtable.demand.operator_shapes import GemmShape
from sandtable.published.adapter import Skipped
from sandtable.published.operators.op_torch_matmul import OpTorchMatmul
from sandtable.published.rows import MalformedRow, Row

CELLS = {"system": "rtx_4090", "dtype": "bfloat16", "m": "8192", "n": "4096", "k": "2048", "tflops_per_s": "160"}


def row(**changes: str) -> Row:
    return Row(line=2, cells=CELLS | changes)


def test_a_rate_becomes_a_time() -> None:
    found = OpTorchMatmul().timed(row())
    assert not isinstance(found, Skipped)
    (item,) = found
    assert not isinstance(item, Skipped)
    assert item.timing.seconds == pytest.approx(2 * 8192 * 4096 * 2048 / 160e12)
    assert item.timing.op.shape == GemmShape(8192, 4096, 2048)
    assert (item.timing.device, item.timing.software, item.timing.op.dtype) == (
        "nvidia_rtx_4090",
        "cublas",
        "bfloat16",
    )


@pytest.mark.parametrize("changes", [{"system": "unheard_of"}, {"dtype": "fp3"}, {"tflops_per_s": ""}, {"k": ""}])
def test_what_cannot_be_compared_is_counted(changes: dict[str, str]) -> None:
    assert isinstance(OpTorchMatmul().timed(row(**changes)), Skipped)


@pytest.mark.parametrize("changes", [{"tflops_per_s": "0"}, {"m": "0"}])
def test_nonsense_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(MalformedRow):
        OpTorchMatmul().timed(row(**changes))
