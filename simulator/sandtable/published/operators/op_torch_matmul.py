"""Rates of square products in plain PyTorch, as owners of GPUs that no operator data set holds reported them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter, product_at_rate
from sandtable.published.rows import Row

_DTYPES = ("bfloat16", "float16")


class OpTorchMatmul(OperatorAdapter):
    """One product per row, ``y[m, n] = x[m, k] w[k, n]``, by the vendor's library."""

    name: ClassVar[str] = "op_torch_matmul"
    title: ClassVar[str] = "Square products in PyTorch"
    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    source: ClassVar[str] = (
        "zzc0721/torch-performance-test-data issue 78, mli/transformers-benchmarks issue 4 @2026-11-24"
    )

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        dtype = row.text("dtype")
        found = product_at_rate(
            row,
            system=row.text("system"),
            dtype=dtype if dtype in _DTYPES else None,
            sizes=[row.number(name) for name in "mnk"],
            tflops=row.number("tflops_per_s"),
            timed="latency_ms",
        )
        return found if isinstance(found, Skipped) else [found]
