"""The laws of vision networks on a CPU against closed forms: shares of cores, caches, packing, and monotony."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_devices import FOUR_CORES

from sandtable.demand.operator import Operator, operator_named
from sandtable.hardware import Roofline
from sandtable_kernels.pytorch import vision_demand as demand
from sandtable_kernels.pytorch.core_law import Cores, joined
from sandtable_kernels.pytorch.vision_demand import Maps, Setting
from sandtable_kernels.pytorch.vision_law import ConvolutionShape, ImageLinearShape, StreamShape

SHEET = replace(FOUR_CORES, peak_flops_per_s={"float32": 400e9, "bfloat16": 1600e9})
HUGE = {"cache_speedup": 1.0, "cache_bytes": 1e6}
LINEAR = {
    "launch_s": 1e-6,
    "rate_frac": 0.5,
    "bandwidth_frac": 0.5,
    "edge_rows": 4.0,
    "pack_passes": 2.0,
    "join_s": 0.0,
} | HUGE
STREAM = {"launch_s": 1e-6, "special_s": 1e-9, "bandwidth_frac": 0.5} | HUGE
CONVOLUTION = LINEAR | {"edge_depth": 8.0}


def seconds(name: str, constants: dict[str, float], shape: Any, dtype: str = "float32") -> float:
    law: Operator[Roofline] = operator_named(name)
    return float(law.seconds(SHEET, constants, law.columns(shape), dtype=dtype)[0])


def test_a_row_reads_its_weights_where_they_lie() -> None:
    """A thousand by a thousand: 8.008 MB at 20 GB/s beside 2 MFLOP at 200 GFLOP/s."""
    moving, computing = 4 * (1e6 + 2000) / 20e9, 2e6 / 200e9
    assert seconds("image_linear", LINEAR, ImageLinearShape(1, 1000, 1000)) == pytest.approx(
        1e-6 + (moving**1.5 + computing**1.5) ** (1 / 1.5)
    )


def test_more_rows_pack_weights_and_fill_up() -> None:
    moving, computing = 4 * (3e6 + 16 * 2000) / 20e9, 2e6 * (16 + 4) / 200e9
    assert seconds("image_linear", LINEAR, ImageLinearShape(16, 1000, 1000)) == pytest.approx(
        1e-6 + (moving**1.5 + computing**1.5) ** (1 / 1.5)
    )


def test_a_narrow_row_is_packed_as_well() -> None:
    one = ImageLinearShape(1, 1000, 1000)
    moving, computing = 2 * (3e6 + 2000) / 20e9, 2e6 * 5 / 800e9
    assert seconds("image_linear", LINEAR, one, "bfloat16") == pytest.approx(
        1e-6 + (moving**1.5 + computing**1.5) ** (1 / 1.5)
    )


def test_a_core_has_its_share() -> None:
    """Without launches, one of four cores takes four times as long, and more cores than there are as long as all."""
    free = LINEAR | {"launch_s": 0.0}
    one, all_, more = (
        seconds("image_linear", free, ImageLinearShape(64, 512, 512, 1, cores)) for cores in (1, 0, 9)
    )
    assert one == pytest.approx(4 * all_)
    assert more == pytest.approx(all_)


def test_cores_join_only_where_that_is_worth_it() -> None:
    free = LINEAR | {"launch_s": 0.0, "join_s": 1e-3}
    for rows, joins in ((4, False), (4000, True)):
        one, all_ = (seconds("image_linear", free, ImageLinearShape(rows, 512, 512, 1, cores)) for cores in (1, 0))
        assert all_ == pytest.approx(one / 4 + 1e-3 if joins else one)


def test_outputs_lie_in_whole_vectors() -> None:
    eight, sixteen, more = (
        seconds("convolution", CONVOLUTION | {"bandwidth_frac": 1e6}, ConvolutionShape(8, 64, 64, 3, n, 3, 2))
        for n in (8, 16, 17)
    )
    assert eight == pytest.approx(sixteen, rel=1e-3)
    assert more - 1e-6 == pytest.approx(2 * (sixteen - 1e-6), rel=1e-3)


def test_small_tensors_are_one_cores() -> None:
    free = STREAM | {"launch_s": 0.0}
    small, large = demand_s(free, 32768), demand_s(free, 4 * 32768)
    assert small == pytest.approx(2 * 4 * 32768 / 5e9)
    assert large == pytest.approx(small)


def demand_s(constants: dict[str, float], n_elements: float) -> float:
    return seconds("image_stream", constants, StreamShape(n_elements, 8 * n_elements))


def test_what_fits_the_caches_of_the_cores_streams_from_there() -> None:
    cores = Cores.of(SHEET, STREAM | {"cache_speedup": 5.0}, operator_named("image_stream").columns((1, 1))[4])
    assert cores.near_bytes == pytest.approx(4e6)
    for working, times in ((1e6, 5.0), (2e6, 5.0), (6e6, 1.0), (60e6, 1.0)):
        assert float(cores.moving_s(1e6, working)[0]) == pytest.approx(1e6 / 20e9 / times)  # type: ignore[arg-type]


def test_a_depthwise_convolution_reads_more_than_it_writes_with_a_stride() -> None:
    constants = {"launch_s": 0.0, "rate_frac": 1.0, "bandwidth_frac": 0.5} | HUGE
    shape = ConvolutionShape(1, 100, 100, 64, 64, 1, 2)
    moving, computing = 4 * 640_000 * 5 / 20e9, 2 * 640_000 / 400e9
    assert seconds("depthwise", constants, shape) == pytest.approx((moving**1.5 + computing**1.5) ** (1 / 1.5))


def test_joined_times_lie_between_the_longer_and_the_sum() -> None:
    columns = operator_named("image_stream").columns(([1.0, 0.0, 2.0], [1.0, 3.0, 0.0]))
    assert list(joined(columns[0], columns[1])) == pytest.approx([2 ** (1 / 1.5), 3.0, 2.0])


COUNT = st.integers(1, 2000)


@given(rows=COUNT, n_in=COUNT, n_out=COUNT, cores=st.integers(0, 4))
def test_larger_products_take_longer(rows: int, n_in: int, n_out: int, cores: int) -> None:
    base = seconds("image_linear", LINEAR, ImageLinearShape(rows, n_in, n_out, 1, cores))
    for larger in ((rows + 1, n_in, n_out), (rows, n_in + 1, n_out), (rows, n_in, n_out + 1)):
        assert seconds("image_linear", LINEAR, ImageLinearShape(*larger, 1, cores)) >= base > 0


@given(
    batch=st.integers(1, 64), side=st.integers(1, 64), n_in=COUNT, n_out=COUNT, kernel=st.sampled_from((1, 3, 5))
)
@pytest.mark.parametrize("name", ["convolution", "pointwise", "depthwise", "convolution backward"])
def test_larger_convolutions_take_longer(
    name: str, batch: int, side: int, n_in: int, n_out: int, kernel: int
) -> None:
    base = seconds(name, CONVOLUTION, ConvolutionShape(batch, side, side, n_in, n_out, kernel))
    wider = ConvolutionShape(batch, side, side, n_in + 1, n_out + 1, kernel)
    more = ConvolutionShape(batch + 1, side, side + 1, n_in, n_out, kernel)
    assert min(seconds(name, CONVOLUTION, wider), seconds(name, CONVOLUTION, more)) > base > 0


# --- what layers ask for -----------------------------------------------------------------------------------------


def test_pytorch_multiplies_itself_on_one_thread_and_for_a_lone_small_image() -> None:
    def operators(maps: Maps, cores: int, kernel: int = 1) -> list[str]:
        ops = demand.convolution("c", maps, 256, 64, Setting(n_cores=cores), kernel=kernel)
        return [op.operator for op in ops]

    assert operators(Maps(8, 14, 14), 1) == ["convolution native"]
    assert operators(Maps(16, 14, 14), 1) == ["pointwise"]
    assert operators(Maps(8, 14, 14), 0) == ["pointwise"]
    assert operators(Maps(1, 14, 14), 2) == ["pointwise"]
    assert operators(Maps(1, 8, 8), 2) == ["convolution native"]
    assert operators(Maps(1, 8, 8), 2, kernel=3) == ["image_stream", "convolution native"]
    assert operators(Maps(8, 8, 8), 1, kernel=3) == ["convolution"]


def test_an_accelerator_has_operators_of_the_core() -> None:
    how = Setting(on="accelerator", dtype="bfloat16")
    layers = [
        *demand.convolution("c", Maps(8, 14, 14), 64, 128, how, kernel=3),
        *demand.depthwise("d", Maps(8, 14, 14), 64, how),
        *demand.batch_norm("n", Maps(8, 14, 14), 64, how),
    ]
    assert [(op.operator, op.on) for op in layers] == [
        ("gemm", "accelerator"),
        ("memory_bound", "accelerator"),
        ("memory_bound", "accelerator"),
    ]
    assert layers[0].shape.k == 9 * 64
    assert layers[0].shape.m == 8 * 14 * 14


@pytest.mark.parametrize("n_cores", [0, 1])
def test_backward_multiplies_twice(n_cores: int) -> None:
    maps, args = Maps(16, 14, 14), (64, 128)
    forward = demand.convolution("c", maps, *args, Setting(n_cores=n_cores))
    backward = demand.convolution("c", maps, *args, Setting(n_cores=n_cores, training=True, backward=True))
    assert sum(op.flops for op in backward) == 2 * sum(op.flops for op in forward)
    assert [op.operator for op in backward] == ["pointwise backward"]
