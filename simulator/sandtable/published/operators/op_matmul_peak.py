"""Best rates of matrix products that a search over shapes found, by accelerator and element type."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from sandtable.calibration.timing import Timing
from sandtable.demand.operator_shapes import GemmShape
from sandtable.model.fitted_constants import Resolved
from sandtable.published.adapter import Scored, Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter, product_at_rate
from sandtable.published.rows import Row

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8", "fp8_e4m3": "fp8", "int8": "int8"}


class OpMatmulPeak(OperatorAdapter):
    """The rate of the best shape; a maximum over shapes, so no constant is fitted to it."""

    name: ClassVar[str] = "op_matmul_peak"
    title: ClassVar[str] = "Best measured rates of matrix products"
    metrics: ClassVar[tuple[str, ...]] = ("measured_peak_tflops",)
    source: ClassVar[str] = "stas00/ml-engineering compute/accelerator/README.md @744d01e18b79"
    fits: ClassVar[bool] = False

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        found = product_at_rate(
            row,
            system=row.text("accelerator"),
            dtype=DTYPES.get(row.text("dtype")),
            sizes=[row.number(f"best_{name}") for name in "mnk"],
            tflops=row.number("measured_peak_tflops"),
            timed="measured_peak_tflops",
        )
        return found if isinstance(found, Skipped) else [found]

    def constants(self, timing: Timing) -> Resolved:
        """Return the library's constants; the tensors are narrow already, so that none has to be quantised."""
        found = super().constants(timing)
        return replace(found, values={**found.values, "quantise_passes": 0.0})

    def figure(self, item: Figure, seconds: float, low: float, high: float) -> Scored:
        """Return the rate: the product's arithmetic over the time that the law gives it."""
        return _as_rate(super().figure(item, seconds, low, high), item.timing.op.shape)


def _as_rate(item: Scored, shape: GemmShape) -> Scored:
    """Return a score of milliseconds as one of TFLOP/s; the interval's ends change places."""
    gflops = 2e-9 * float(shape.m) * float(shape.n) * float(shape.k)
    return Scored(
        row_id=item.row_id,
        metric=item.metric,
        unit="TFLOP/s",
        predicted=gflops / item.predicted,
        low=gflops / item.high,
        high=gflops / item.low,
        measured=gflops / item.measured,
        label=item.label,
        group=item.group,
    )
