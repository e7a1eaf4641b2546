"""The butterfly's law against closed forms: passes, rounds of blocks on cores, launches on GPUs, and monotony."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_devices import FOUR_CORES

from sandtable.demand.operator import Columns, Operator, operator_named
from sandtable.hardware import Roofline
from sandtable_kernels.pytorch.vision_demand import Setting
from sandtable_kernels.structured.butterfly_law import (
    ButterflyShape,
    butterfly_op,
    copied,
    levels_worked,
    passes,
    sweeps,
)
from sandtable_kernels.structured.butterfly_layout import BASES, ButterflyLayout

GPU = replace(FOUR_CORES, family="gpu", n_units=100)
CONSTANTS = {
    "launch_s": 1e-6,
    "among_s": 1e-5,
    "rate_frac": 0.5,
    "bandwidth_frac": 0.5,
    "turn_rows": 4.0,
    "copy_s": 1e-10,
    "cache_speedup": 1.0,
    "cache_bytes": 1e6,
}


def seconds(
    shape: ButterflyShape, *, device: Roofline = FOUR_CORES, name: str = "butterfly", **other: float
) -> float:
    law: Operator[Roofline] = operator_named(name)
    found = law.seconds(device, CONSTANTS | other, law.columns(shape), dtype="float32")
    return float(found[0])


def shape_of(layout: ButterflyLayout, rows: int, n_cores: int = 0) -> ButterflyShape:
    shape: ButterflyShape = butterfly_op("b", layout, rows, Setting(n_cores=n_cores)).shape
    return shape


@pytest.mark.parametrize(
    ("base", "levels", "launched", "swept"),
    [(2, 10, 3, 7), (4, 5, 3, 4), (4, 2, 1, 1), (8, 4, 4, 4), (16, 3, 3, 3), (2, 1, 1, 1)],
)
def test_levels_that_fit_registers_together_are_one_pass(base: int, levels: int, launched: int, swept: int) -> None:
    assert (passes(base, levels), sweeps(base, levels)) == (launched, swept)


def test_one_core_s_rows() -> None:
    """40 rows of 1024, base 4, 5 levels: 4 sweeps, and blocks of 16 rows read weights three times."""
    computing = 2 * (40 + 3 * 4) * 5 * 4 * 1024 / (0.5 * 100e9)
    swept, weights, given = 2 * 4 * 40 * 4 * 1024, 3 * 4 * 5 * 4 * 1024, 4 * 40 * 2048
    moving = (swept + weights + given) / (0.5 * 10e9)
    found = seconds(shape_of(ButterflyLayout(1024, 1024), 40, 1))
    assert found == pytest.approx(1e-6 + (computing**1.5 + moving**1.5) ** (1 / 1.5))


def test_cores_share_rows_and_each_reads_all_weights() -> None:
    layout = ButterflyLayout(1024, 1024)
    one, four = (seconds(shape_of(layout, 256, cores), launch_s=1e-12) for cores in (1, 4))
    assert one == pytest.approx(4 * four)
    # 81 rows on four cores take about as long as 84: one core has 21
    fewer, more = (seconds(shape_of(layout, rows), launch_s=1e-12) for rows in (81, 84))
    assert fewer == pytest.approx(more, rel=0.01)


def test_a_row_alone_has_one_core_and_its_bandwidth() -> None:
    one, all_ = (seconds(shape_of(ButterflyLayout(1024, 1024), 1, cores)) for cores in (1, 0))
    assert one == pytest.approx(all_)


def test_small_transforms_are_one_core_s() -> None:
    """64 rows of 1024 are 1.3 million products: worth three threads of four."""
    layout = ButterflyLayout(1024, 1024)
    three, all_ = (seconds(shape_of(layout, 64, cores)) for cores in (3, 0))
    assert three == pytest.approx(all_)
    one, few = (seconds(shape_of(layout, 30, cores)) for cores in (1, 0))
    assert one == pytest.approx(few)


def test_rows_are_copied_where_squares_do_not_hold_them() -> None:
    """Padded, of a narrow type, or summed from blocks; each copy of a row begins as 40 numbers are copied."""
    columns = operator_named("butterfly").columns
    plain, padded, summed, spread = (
        columns(shape_of(ButterflyLayout(*sides), 1)) for sides in ((192, 192), (200, 200), (384, 192), (192, 384))
    )

    def row_copied(c: Columns, *, narrow: bool) -> float:
        return float(np.asarray(copied(c, narrow=narrow))[0])

    assert row_copied(plain, narrow=False) == row_copied(spread, narrow=False) == 0
    assert row_copied(plain, narrow=True) == 2 * (192 + 40)
    assert row_copied(padded, narrow=False) == (256 + 40) + (200 + 40)
    assert row_copied(summed, narrow=False) == 2 * 192 + 192 + 3 * 40
    moved, free = (seconds(shape_of(ButterflyLayout(200, 200), 1000, 1), copy_s=rate) for rate in (1e-10, 1e-20))
    assert moved - free == pytest.approx(1e-10 * 1000 * 536)


@pytest.mark.parametrize(
    ("base", "size", "levels", "worked"),
    [
        (4, 1024, 5, 5.0),
        (4, 192, 4, 4.0),  # the last three levels combine whole vectors, though their strides are none
        (8, 256, 3, 3 + 0.27 * 3),  # strides 32, 4, 1: the second takes vectors of four
        (16, 192, 2, 2 + 0.27 * 15),  # stride 12: one number at a time
        (16, 256, 2, 2.0),
        (4, 12, 2, 2 + 2 * 0.5 * 15),  # no whole vector at all
    ],
)
def test_lanes_that_stand_alone_count_besides(base: int, size: int, levels: int, worked: float) -> None:
    assert float(levels_worked(base, size, levels)) == pytest.approx(worked)


def test_few_rows_are_bound_by_turning_weights() -> None:
    layout = ButterflyLayout(1024, 1024)
    one, two = (seconds(shape_of(layout, rows, 1), bandwidth_frac=1e6) - 1e-6 for rows in (1, 2))
    assert two / one == pytest.approx(6 / 5, rel=1e-3)


def test_a_gpu_launches_and_sweeps_the_activation_in_every_pass() -> None:
    rows, layout = 65536, ButterflyLayout(1024, 1024)
    moving, computing = 3 * 2 * 4 * rows * 1024 / 20e9, 2 * rows * layout.multiplications / 200e9
    found = seconds(shape_of(layout, rows), device=GPU)
    assert found == pytest.approx(3 * 1e-6 + (computing**1.5 + moving**1.5) ** (1 / 1.5))
    assert seconds(shape_of(ButterflyLayout(16, 16), 1), device=GPU) == pytest.approx(1e-6, rel=0.01)


def test_a_module_adds_its_call() -> None:
    shape = shape_of(ButterflyLayout(64, 64), 16)
    assert seconds(shape._replace(among=1.0)) - seconds(shape) == pytest.approx(1e-5)


def test_counts_are_those_of_the_layout() -> None:
    layout = ButterflyLayout(96, 384, 4)
    op = butterfly_op("b", layout, 10)
    assert op.flops == 2 * 10 * layout.multiplications
    assert op.bytes_read == 4 * (10 * 96 + layout.parameters)
    assert op.bytes_written == 4 * 10 * 384
    back = butterfly_op("b", layout, 10, Setting(backward=True))
    assert back.operator == "butterfly backward"
    assert back.flops == 3 * op.flops


SIDES = st.integers(1, 3000)


@given(rows=st.integers(1, 5000), n_in=SIDES, n_out=SIDES, base=st.sampled_from(BASES))
@pytest.mark.parametrize("name", ["butterfly", "butterfly backward"])
def test_more_takes_no_less(name: str, rows: int, n_in: int, n_out: int, base: int) -> None:
    """On one core and on a GPU: more cores begin to help where there is more to do, whole vectors where sides grow."""
    layout = ButterflyLayout(n_in, n_out, base)
    shape = shape_of(layout, rows, 1)
    wider = {"n_in": n_in + layout.side} if n_in > n_out else {"n_out": n_out + layout.side}
    larger = [
        shape._replace(rows=rows + 1),
        shape._replace(levels=float(shape.levels) + 1),
        shape._replace(blocks=float(shape.blocks) + 1, **wider),
    ]
    for device in (FOUR_CORES, GPU):
        for speedup in (1.0, 5.0):
            least = seconds(shape, device=device, name=name, cache_speedup=speedup)
            for more in larger:
                assert seconds(more, device=device, name=name, cache_speedup=speedup) >= least * (1 - 1e-9)
