"""Times of attention in serving frameworks, prefill and decode, by device, framework and element types.

Prefill: all tokens of a prompt attend to it, causally. Decode: one new token per sequence attends to a cache. In both
the frameworks put new keys and values into the cache within the time measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from sandtable.demand.operator_shapes import AttentionShape
from sandtable.published import systems
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter, framework_latency
from sandtable.published.rows import MalformedRow, Row

DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "fp8": "fp8"}
CACHE_BYTES = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0}
_PHASES = ("prefill", "decode")
_SIZES = ("batch_size", "query_tokens", "kv_tokens", "num_heads", "num_kv_heads", "head_dim")


class OpAttention(OperatorAdapter):
    """One layer's attention per row, between its projections."""

    name: ClassVar[str] = "op_attention"
    title: ClassVar[str] = "Attention of serving frameworks, prefill and decode"
    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    source: ClassVar[str] = "ai-dynamo/aiconfigurator systems/data/*/attention @095f58a51c4c"

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        system = systems.find(row.text("system"))
        if isinstance(system, Skipped):
            return system
        dtype, cache = DTYPES.get(row.text("attn_dtype")), CACHE_BYTES.get(row.text("kv_dtype"))
        if dtype is None or cache is None:
            return Skipped("element type not modelled")
        if row.text("phase") not in _PHASES:
            return Skipped("neither prefill nor decode")
        latency, sizes = row.number("latency_ms"), [row.number(name) for name in _SIZES]
        if latency is None or None in sizes:
            return Skipped("no time or no shape")
        shape = _shape([float(size or 0) for size in sizes], cache, causal=row.text("phase") == "prefill")
        group = f"{row.text('system')} {row.text('phase')}"
        return [
            framework_latency(
                row, system, operator="attention", dtype=dtype, shape=shape, label=_label(row), group=group
            )
        ]


def _shape(sizes: list[float], cache_bytes: float, *, causal: bool) -> AttentionShape:
    batch, query_tokens, kv_tokens, n_heads, n_kv_heads, head_dim = sizes
    if min(sizes) < 1 or query_tokens > kv_tokens or n_heads % n_kv_heads:
        raise MalformedRow("sizes are positive, queries are among the keys, key heads divide query heads")
    heads = (n_heads, n_kv_heads, head_dim, head_dim)
    return AttentionShape(batch, query_tokens, kv_tokens, *heads, float(causal), cache_bytes, cached=1.0)


def _label(row: Row) -> str:
    heads = f"{row.text('num_heads')}/{row.text('num_kv_heads')}x{row.text('head_dim')}"
    tokens = f"{row.text('batch_size')}x{row.text('query_tokens')}:{row.text('kv_tokens')}"
    types = f"{row.text('attn_dtype')}/{row.text('kv_dtype')}"
    return f"{row.text('system')} {row.text('framework')} {row.text('phase')} {types} {tokens} {heads}"
