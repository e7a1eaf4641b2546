"""A timing is what all fits take: how its time is read, and what it shares constants with."""

from __future__ import annotations

import pytest

from sandtable.calibration import host_fit
from sandtable.calibration.timing import HOST, Timing, grouped, stated
from sandtable.demand.op import Op, new_files
from sandtable.demand.operator_shapes import GemmShape
from sandtable_kernels.pytorch.torch_operators import TorchAttention

COPY = Op(name="copy", operator="copy", account="memory", bytes_read=1e6)


@pytest.mark.parametrize(
    ("passes", "seconds", "n_samples"),
    [
        (((2.0,),), 2.0, 1),
        (((1.0, 9.0, 2.0),), 2.0, 3),
        (((1.0, 1.0, 1.0, 1.0), (3.0,), (2.0, 8.0, 2.0)), 2.0, 8),
    ],
)
def test_a_time_is_the_median_pass_of_median_calls(
    passes: tuple[tuple[float, ...], ...], seconds: float, n_samples: int
) -> None:
    timing = Timing(op=COPY, passes=passes)
    assert (timing.seconds, timing.n_samples) == (seconds, n_samples)


def test_timings_of_one_device_software_and_law_share_constants() -> None:
    shape = GemmShape(8, 8, 8)
    first, second, other = (
        stated("gemm", shape, 1e-6, dtype=dtype, device=device, software="cublas")
        for dtype, device in (("bfloat16", "a"), ("fp8", "a"), ("bfloat16", "b"))
    )
    assert grouped([first, other, second]) == {first.group: [first, second], other.group: [other]}
    assert first.group.path == "fitted.operators.gemm.cublas"


def test_a_kernel_s_constants_go_under_its_software_variant_and_sharing() -> None:
    kernel = TorchAttention()
    timings = [Timing.of_kernel(kernel, dims, [[1e-3]]) for dims in kernel.grid(quick=False)]
    names = {(bool(t.op.shape.flash), t.op.sharing > 1): t.software for t in timings}
    assert names[True, False] == "pytorch_cpu"
    assert names[False, False] == "pytorch_cpu_vanilla"
    assert names.get((True, True), "pytorch_cpu_shared") == "pytorch_cpu_shared"
    assert {t.device for t in timings} == {HOST}


def test_a_file_takes_the_median_call_and_lies_between_nearly_all() -> None:
    calls = tuple(0.002 * (1 + number) for number in range(21))
    found = host_fit.new_file([Timing(op=new_files("f", n_files=2), passes=(calls[:9], calls[9:]))])
    assert found is not None
    assert (found.low, found.value, found.high) == pytest.approx((0.002, 0.011, 0.02))
    assert host_fit.new_file([Timing(op=COPY, passes=((1.0,),))]) is None
