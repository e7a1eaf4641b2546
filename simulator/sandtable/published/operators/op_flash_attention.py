"""Rates of FlashAttention-2 and 3 and of plain PyTorch in training, as users and authors of the first reported them.

The source gives rates; the products it counts are those of its benchmark: two in the forward pass, five in the
backward pass, and half of them where the mask is causal. Which H100 it was is not always said: the rates are those of
the SXM module. Plain PyTorch is the benchmark's own: products with the scale in them, and a softmax in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from sandtable.calibration.timing import stated
from sandtable.demand.operator_shapes import BACKWARD_PASSES, AttentionShape
from sandtable.published import systems
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter
from sandtable.published.rows import MalformedRow, Row

_PASSES = {"forward": 1.0, "backward": BACKWARD_PASSES}
_SIZES = ("batch_size", "tokens", "num_heads", "head_dim")


class OpFlashAttention(OperatorAdapter):
    """One pass of one layer's attention per row, with 16-bit elements."""

    name: ClassVar[str] = "op_flash_attention"
    title: ClassVar[str] = "Attention in training, forward and backward"
    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    source: ClassVar[str] = "Dao-AILab/flash-attention issues 1310, 1589 and pulls 1075, 1791, 2688 @2026-11-24"

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        system = systems.find(row.text("system"))
        if isinstance(system, Skipped):
            return system
        passes, rate = _PASSES.get(row.text("pass")), row.number("tflops_per_s")
        sizes = [row.number(name) for name in _SIZES]
        if passes is None or rate is None or None in sizes:
            return Skipped("no rate or no shape")
        batch, tokens, heads, width = (float(size or 0) for size in sizes)
        causal = float(row.text("causal") == "1")
        if not rate > 0 or min(batch, tokens, heads, width) < 1:
            raise MalformedRow("sizes and rates are positive")
        flash = float(row.text("kernel") != "vanilla")
        sizes_of_one = (batch, tokens, tokens, heads, heads, width, width, causal, 2.0)
        shape = AttentionShape(*sizes_of_one, flash=flash, passes=passes, fused_softmax=1 - flash)
        flops = passes * 4 * batch * heads * tokens**2 * width * (1 - causal / 2)
        timing = stated(
            "attention",
            shape,
            flops / (1e12 * rate),
            device=system.name,
            software=row.text("kernel"),
            dtype="bfloat16",
            label=f"{row.text('system')} {row.text('kernel')} {row.text('pass')} "
            f"{batch:.0f}x{tokens:.0f} {heads:.0f}x{width:.0f}{' causal' if causal else ''}",
        )
        return [Figure(metric="latency_ms", timing=timing, row_id=f"line {row.line}", group=row.text("system"))]
