"""Times of matrix products in the kernels of serving frameworks, by device, framework and element type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar

from sandtable.calibration.timing import Timing
from sandtable.demand.operator_shapes import GemmShape
from sandtable.hardware import DTYPE_BYTES, Accelerator
from sandtable.model.laws.gemm_law import FORMATS
from sandtable.published import systems
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter, framework_latency
from sandtable.published.rows import MalformedRow, Row

# the source's names of element types -> ours; "sq" is SmoothQuant: int8 weights and int8 activations
DTYPES = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "fp8": "fp8",
    "fp8_ootb": "fp8",
    # scales that are known before are applied in one pass, as block scales are
    "fp8_static": "fp8_block",
    "fp8_block": "fp8_block",
    "nvfp4": "fp4",
    "mxfp4": "mxfp4",
    "int8_wo": "int8_weight_only",
    "int4_wo": "int4_weight_only",
    "w4a16_mxfp4": "int4_weight_only",
    "sq": "int8",
}
# what a framework does in calls of its own, which keep the host busy for longer than the device, has constants of its
# own: vLLM 0.24 on a B200 takes 156 to 190 us for any product with block scales that the device finishes in less
OWN_CALLS = {("vllm", "fp8_block"): "vllm_fp8_block"}
# frameworks leave products of these types to the vendor's library
LIBRARY_DTYPES = ("bfloat16", "float16")


class OpGemm(OperatorAdapter):
    """One product per row: ``y[m, n] = x[m, k] w[k, n]``."""

    name: ClassVar[str] = "op_gemm"
    title: ClassVar[str] = "Matrix products of serving frameworks"
    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    source: ClassVar[str] = "ai-dynamo/aiconfigurator systems/data/*/gemm @095f58a51c4c"

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        system = systems.find(row.text("system"))
        if isinstance(system, Skipped):
            return system
        dtype = DTYPES.get(row.text("dtype"))
        if dtype is None:
            return Skipped("element type not modelled")
        latency, sizes = row.number("latency_ms"), [row.number(name) for name in "mnk"]
        if latency is None or None in sizes:
            return Skipped("no time or no shape")
        shape = GemmShape(*(float(size or 0) for size in sizes))
        if min(shape[:3]) < 1:
            raise MalformedRow("sizes are positive")
        shape = shape._replace(in_turn=_in_turn(row, system, dtype, shape))
        sizes_text = f"{shape.m:.0f}x{shape.n:.0f}x{shape.k:.0f}"
        label = f"{row.text('system')} {row.text('framework')} {row.text('dtype')} {sizes_text}"
        names = {"label": label, "group": row.text("system")}
        names["software"] = OWN_CALLS.get((row.text("framework"), row.text("dtype")), "")
        return [framework_latency(row, system, operator="gemm", dtype=dtype, shape=shape, **names)]

    def timings(self, rows: Iterable[Row]) -> Iterator[Timing]:
        """Return the products, those in 16 bits on NVIDIA devices also under the library that all frameworks call."""
        for timing in super().timings(rows):
            yield timing
            if timing.op.dtype in LIBRARY_DTYPES and timing.device.startswith("nvidia_"):
                yield replace(timing, software="cublas")


def _in_turn(row: Row, system: Accelerator, dtype: str, shape: GemmShape) -> float:
    """Return how many products, each with weights of its own, the source times in turn (its scripts in collector/).

    For TensorRT-LLM they are as many as fill the last-level cache, at most five.
    """
    framework = row.text("framework")
    if framework == "trtllm":
        weight_bytes = shape.n * shape.k * (FORMATS[dtype].weight if dtype in FORMATS else DTYPE_BYTES[dtype])
        return float(min(5, math.ceil((system.datasheet.last_level_cache_bytes or 0.0) / weight_bytes) or 1))
    return 1.0 if framework == "vllm" and dtype in ("fp8_block", "fp4") else 6.0
