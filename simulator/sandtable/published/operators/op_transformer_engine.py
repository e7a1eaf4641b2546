"""Products and attention of training steps in Transformer Engine, as the authors of SimuMax timed them one by one.

They publish each time as a share of the data sheet's peak, by counts of their own: a product's multiply-adds twice;
of attention two products in the forward pass and five in the backward pass over the whole square, though it is causal.
Products of the weights' gradients add to float32 gradients in place. Those of experts are one product for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from sandtable.calibration.timing import stated
from sandtable.demand.operator_shapes import BACKWARD_PASSES, AttentionShape, GemmShape
from sandtable.published import systems
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter
from sandtable.published.rows import MalformedRow, Row

SOFTWARE, DTYPE = "transformer_engine", "bfloat16"
_PASSES = {"forward": 1.0, "backward": BACKWARD_PASSES}


class OpTransformerEngine(OperatorAdapter):
    """One product, one product for each expert, or one pass of attention per row, with 16-bit elements."""

    name: ClassVar[str] = "op_transformer_engine"
    title: ClassVar[str] = "Products and attention of training in Transformer Engine"
    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    source: ClassVar[str] = "MooreThreads/SimuMax configs/system/a100_pcie.json, b200_bf16_ceperm.json @4dcaae51"

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        system = systems.find(row.text("system"))
        if isinstance(system, Skipped):
            return system
        rate = row.number("tflops_per_s") or 0.0
        operator, shape, flops = _attention(row) if row.text("operator") == "attention" else _product(row)
        if not rate > 0:
            raise MalformedRow("a rate is positive")
        label = f"{row.text('system')} {row.text('operator')} {row.text('pass')} " + " ".join(
            f"{float(size):.0f}" for size in shape[:6]
        )
        names = {"device": system.name, "software": SOFTWARE, "label": label}
        timing = stated(operator, shape, flops / (1e12 * rate), dtype=DTYPE, **names)
        return [Figure(metric="latency_ms", timing=timing, row_id=f"line {row.line}", group=row.text("system"))]


def _product(row: Row) -> tuple[str, Any, float]:
    batch, m, n, k = _sizes(row, "batch_size", "m", "n", "k")
    return "gemm", GemmShape(m, n, k, batch), 2 * batch * m * n * k


def _attention(row: Row) -> tuple[str, Any, float]:
    batch, tokens, heads, kv_heads, width, value = _sizes(
        row, "batch_size", "tokens", "num_heads", "num_kv_heads", "head_dim", "value_dim"
    )
    passes = _PASSES.get(row.text("pass"))
    if passes is None:
        raise MalformedRow("a pass is forward or backward")
    shape = AttentionShape(batch, tokens, tokens, heads, kv_heads, width, value, 1.0, 2.0, passes=passes)
    return "attention", shape, passes * 2 * batch * heads * tokens**2 * (width + value)


def _sizes(row: Row, *names: str) -> list[float]:
    """Return columns that are counts.

    Raises:
        MalformedRow: one is missing or not positive.
    """
    found = [row.number(name) or 0.0 for name in names]
    if min(found) < 1:
        raise MalformedRow("sizes are positive")
    return found
