"""How rows of published collectives are translated."""

from __future__ import annotations

import pytest

from sandtable.calibration.timing import Timing
from sandtable.published.adapter import Skipped
from sandtable.published.operators.op_comm import OpComm
from sandtable.published.rows import MalformedRow, Row

ROW = {
    "system": "h100_sxm",
    "library": "nccl",
    "version": "2.29.2",
    "implementation": "NCCL",
    "collective": "all_gather",
    "dtype": "half",
    "num_gpus": "8",
    "devices_per_node": "",
    "message_size_as_published": "1024",
    "message_bytes": "",
    "latency_ms": "0.011",
    "bus_bandwidth_gb_per_s": "",
    "algorithm_bandwidth_gb_per_s": "",
    "notes": "",
    "source": "",
}


def point(**cells: str) -> Timing:
    found = OpComm().timed(Row(line=2, cells={**ROW, **cells}))
    assert not isinstance(found, Skipped)
    (item,) = found
    assert not isinstance(item, Skipped)
    return item.timing


def reason(**cells: str) -> str:
    found = OpComm().timed(Row(line=2, cells={**ROW, **cells}))
    assert isinstance(found, Skipped)
    return found.reason


def test_sizes_without_a_unit_count_elements_of_the_type() -> None:
    assert point().op.shape[:3] == (2048.0, 8.0, 8.0)
    assert point(dtype="float32").op.shape[0] == 4096
    assert point(message_bytes="1000", message_size_as_published="").op.shape[0] == 1000


@pytest.mark.parametrize(
    ("cells", "link", "beside"),
    [
        ({}, "nvlink4", ""),
        ({"system": "8x B200 SXM", "num_gpus": "8"}, "nvlink5", ""),
        ({"system": "gb200", "num_gpus": "72"}, "nvlink5_nvl72", ""),
        ({"system": "h100_pairwise_nvlink", "num_gpus": "2"}, "nvlink4_bridge", ""),
        ({"system": "h100_pairwise_nvlink", "num_gpus": "4"}, "pcie5_x16", "nvlink4_bridge"),
        ({"system": "a40_pairwise_nvlink", "num_gpus": "2"}, "pcie4_x16", ""),
        ({"system": "h100_dgx", "num_gpus": "2", "devices_per_node": "1"}, "infiniband_ndr400", "nvlink4"),
        ({"system": "a100_sxm", "num_gpus": "16", "notes": "p4d, EFA"}, "efa_v1", "nvlink3"),
    ],
)
def test_the_link_follows_from_the_product(cells: dict[str, str], link: str, beside: str) -> None:
    found = point(**cells)
    assert (found.device, found.beside) == (link, beside)


@pytest.mark.parametrize(
    ("library", "implementation", "software"),
    [
        ("nccl", "NCCL", "nccl"),
        ("vidur-nccl", "torch.distributed NCCL", "nccl_torch"),
        ("vllm", "vLLM_custom_eager", "vllm_custom_eager"),
        ("sglang", "SGLang_CustomAllReduce_graph", "sglang_custom_graph"),
        ("trtllm", "trtllm", "trtllm"),
        ("torch.distributed", "all_reduce_bench.py", "nccl"),
        ("oneccl", "oneCCL", "oneccl"),
    ],
)
def test_software_is_the_library_and_how_it_is_called(library: str, implementation: str, software: str) -> None:
    assert point(library=library, implementation=implementation).software == software


def test_a_rate_is_a_time() -> None:
    seconds = 7 / 8 * 1e9 / 100e9
    found = point(latency_ms="", bus_bandwidth_gb_per_s="100", message_bytes="1e9")
    assert found.seconds == pytest.approx(seconds)
    found = point(latency_ms="", algorithm_bandwidth_gb_per_s="100", message_bytes="1e9")
    assert found.seconds == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ({"collective": "broadcast"}, "collective not modelled"),
        ({"system": "abacus"}, "no device file"),
        ({"num_gpus": "1"}, "fewer than two ranks"),
        ({"message_size_as_published": ""}, "size of the message not stated"),
        ({"dtype": "quaternion"}, "element type of the message not known"),
        ({"latency_ms": ""}, "no time and no rate"),
        ({"system": "a40_pairwise_nvlink", "devices_per_node": "1"}, "network between machines not stated"),
    ],
)
def test_what_cannot_be_translated_says_why(cells: dict[str, str], why: str) -> None:
    assert reason(**cells) == why


@pytest.mark.parametrize("cells", [{"latency_ms": "-1"}, {"num_gpus": "many"}, {"message_bytes": "0"}])
def test_nonsense_is_malformed(cells: dict[str, str]) -> None:
    with pytest.raises(MalformedRow):
        OpComm().timed(Row(line=2, cells={**ROW, **cells}))
