"""Rates of square products in plain PyTorch, as owners of GPUs that no operator data set holds reported them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from sandtable.model.operator_fit import OperatorPoint
from sandtable.published import systems
from sandtable.published.base import MalformedRow, Row, Skipped
from sandtable.published.operators import OperatorAdapter, Timed

_DTYPES = ("bfloat16", "float16")


class OpTorchMatmul(OperatorAdapter):
    """One product per row, ``y[m, n] = x[m, k] w[k, n]``, by the vendor's library."""

    name: ClassVar[str] = "op_torch_matmul"
    title: ClassVar[str] = "Square products in PyTorch"
    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    source: ClassVar[str] = (
        "zzc0721/torch-performance-test-data issue 78, mli/transformers-benchmarks issue 4 @2026-11-24"
    )

    def shipped(self) -> Path | None:
        """Return the package's own data folder."""
        return Path(__file__).parent / "data"

    def timed(self, row: Row) -> Iterable[Timed | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        system = systems.find(row.text("system"))
        if isinstance(system, Skipped):
            return system
        dtype, rate = row.text("dtype"), row.number("tflops_per_s")
        sizes = [row.number(name) for name in "mnk"]
        if dtype not in _DTYPES or rate is None or None in sizes:
            return Skipped("no rate, no shape, or an element type not modelled")
        m, n, k = (float(size or 0) for size in sizes)
        if not rate > 0 or min(m, n, k) < 1:
            raise MalformedRow("sizes and rates are positive")
        point = OperatorPoint(
            device=system.processor,
            software="cublas",
            op="gemm",
            dtype=dtype,
            shape=(m, n, k, 1.0),
            seconds=2 * m * n * k / (1e12 * rate),
            label=f"{row.text('system')} {dtype} {m:.0f}x{n:.0f}x{k:.0f}",
            beside=system.memory,
        )
        return [Timed(metric="latency_ms", point=point, row_id=f"line {row.line}", group=row.text("system"))]
