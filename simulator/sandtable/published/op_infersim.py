"""Times of products and attention on accelerators made for export, by the kernels that serving there uses.

The rows are of several kinds of operator, told apart by the column ``op``; `READERS` translates each kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from sandtable.model.operator_fit import OperatorPoint
from sandtable.published import systems
from sandtable.published.base import MalformedRow, Row, Skipped
from sandtable.published.operators import OperatorAdapter, Timed
from sandtable.published.systems import System

GEMM_SOFTWARE = "deepgemm"

Parameters = Mapping[str, Any]
Reader = Callable[[Row, System, Parameters, float], OperatorPoint | Skipped]


class OpInfersim(OperatorAdapter):
    """One operator per row, whose sizes are in the column ``parameters`` as JSON."""

    name: ClassVar[str] = "op_infersim"
    title: ClassVar[str] = "Products and attention on export variants of accelerators"
    metrics: ClassVar[tuple[str, ...]] = ("latency_us",)
    unit: ClassVar[str] = "us"
    unit_s: ClassVar[float] = 1e-6
    source: ClassVar[str] = "alibaba/InferSim bench_data @f2293dab"

    def timed(self, row: Row) -> Iterable[Timed | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        system = systems.find(row.text("gpu"))
        if isinstance(system, Skipped):
            return system
        reader = READERS.get(row.text("op"))
        if reader is None:
            return Skipped("kind of operator not modelled")
        latency = row.number("latency_us")
        if latency is None:
            return Skipped("no time in the row")
        if not latency > 0:
            raise MalformedRow("a time is positive")
        point = reader(row, system, _parameters(row), 1e-6 * latency)
        if isinstance(point, Skipped):
            return point
        group = f"{row.text('gpu')} {row.text('op')}"
        return [Timed(metric="latency_us", point=point, row_id=f"line {row.line}", group=group)]


def _parameters(row: Row) -> Parameters:
    try:
        found = json.loads(row.text("parameters"))
    except json.JSONDecodeError:
        raise MalformedRow("parameters: not JSON") from None
    if not isinstance(found, dict):
        raise MalformedRow("parameters: not a JSON object")
    return found


def size(parameters: Parameters, name: str) -> float:
    """Return one size of a row.

    Raises:
        MalformedRow: it is missing, or not a number from one on.
    """
    value = parameters.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise MalformedRow(f"parameters: {name!r} is {value!r}, not a size")
    return float(value)


def _gemm(row: Row, system: System, parameters: Parameters, seconds: float) -> OperatorPoint | Skipped:
    """A product of fp8 tensors with block scales, both quantised before: the rates given are shares of the fp8 peak."""
    m, n, k = (size(parameters, name) for name in "mnk")
    return OperatorPoint(
        device=system.processor,
        software=GEMM_SOFTWARE,
        op="gemm",
        dtype="fp8_block",
        shape=(m, n, k, 1.0),
        seconds=seconds,
        label=f"{row.text('gpu')} gemm {m:.0f}x{n:.0f}x{k:.0f}",
        beside=system.memory,
    )


# by the column `op`; kinds that are missing here are counted as not modelled
READERS: dict[str, Reader] = {"gemm": _gemm}
