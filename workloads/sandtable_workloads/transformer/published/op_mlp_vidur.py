"""Times of the linear layers, norms and element-wise kernels of a decoder layer, by tokens and tensor parallelism.

A row names a model by its sizes; each of its figures is one kernel of one layer on one of ``tp`` devices. Linear layers
run through PyTorch's cuBLAS, norms, rotary embedding and activation as the simple kernels of early vLLM: one block of
threads for each token. Times are rounded to a microsecond, which is as much as the shortest of them take.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from sandtable.calibration.timing import stated
from sandtable.demand.operator_shapes import GemmShape, MemoryBoundShape
from sandtable.hardware import Accelerator
from sandtable.model.laws.memory_bound import BLOCK_THREADS
from sandtable.published import systems
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter
from sandtable.published.rows import MalformedRow, Row

SOFTWARE = "cublas"
ITEM_BYTES = 2.0
ROTARY_THREADS = 512
# a gather of a row waits for the index, then for the row, and writes it; each thread moves one element
GATHER_WAITS = 3.5
# up to this many indices PyTorch's gather goes through them one after the other (aten/src/ATen/native/cuda/Indexing.cu)
FEW_INDICES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Sizes of one layer's share on one of ``tp`` devices."""

    tokens: float
    hidden: float
    query_width: float
    kv_width: float
    ffn: float
    gated: bool

    def demands(self) -> dict[str, GemmShape | MemoryBoundShape]:
        """Return the shape of each timed kernel, by the column of its time without the unit."""
        up = self.ffn * (2 if self.gated else 1)
        # a norm goes over its row twice: for the statistics, and to scale
        norm = self._rows(3 * self.hidden, self.hidden)
        return {
            "emb": self._gather(),
            "input_layernorm": norm,
            "attn_pre_proj": self._linear(self.query_width + 2 * self.kv_width, self.hidden),
            "attn_rope": self._rotary(),
            "attn_post_proj": self._linear(self.hidden, self.query_width),
            "post_attention_layernorm": norm,
            "mlp_up_proj": self._linear(up, self.hidden),
            "mlp_act": self._rows(up + self.ffn, self.ffn, self.tokens * self.ffn),
            "mlp_down_proj": self._linear(self.hidden, self.ffn),
            "add": MemoryBoundShape(3 * self.tokens * self.hidden * ITEM_BYTES),
        }

    def _linear(self, n: float, k: float) -> GemmShape:
        return GemmShape(self.tokens, n, k)

    def _rows(self, moved: float, width: float, special: float = 0.0) -> MemoryBoundShape:
        """A kernel with one block per token that moves ``moved`` elements of it, ``width`` of them at a step each."""
        waits = math.ceil(width / BLOCK_THREADS)
        return MemoryBoundShape(self.tokens * moved * ITEM_BYTES, 1.0, special, self.tokens, waits)

    def _rotary(self) -> MemoryBoundShape:
        """Blocks of half the threads with twice the registers turn pairs of elements: queries first, then keys."""
        moved = self.tokens * 2 * (self.query_width + self.kv_width) * ITEM_BYTES
        waits = sum(math.ceil(width / 2 / ROTARY_THREADS) for width in (self.query_width, self.kv_width))
        return MemoryBoundShape(moved, n_rows=self.tokens, row_waits=waits)

    def _gather(self) -> MemoryBoundShape:
        elements = self.tokens * self.hidden
        few = self.tokens <= FEW_INDICES
        rows = (self.hidden if few else elements) / BLOCK_THREADS
        waits = self.tokens if few else GATHER_WAITS
        return MemoryBoundShape(2 * elements * ITEM_BYTES, n_rows=rows, row_waits=waits)


class OpMlpVidur(OperatorAdapter):
    """Ten kernels of a layer per row."""

    name: ClassVar[str] = "op_mlp_vidur"
    title: ClassVar[str] = "Linear layers, norms and element-wise kernels of decoder layers"
    metrics: ClassVar[tuple[str, ...]] = (
        "emb_ms",
        "input_layernorm_ms",
        "attn_pre_proj_ms",
        "attn_rope_ms",
        "attn_post_proj_ms",
        "post_attention_layernorm_ms",
        "mlp_up_proj_ms",
        "mlp_act_ms",
        "mlp_down_proj_ms",
        "add_ms",
    )
    source: ClassVar[str] = "microsoft/vidur data/profiling/compute @7d475133"

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        system = systems.find(row.text("gpu"))
        if isinstance(system, Skipped):
            return system
        return list(_timed(row, system, _layer(row)))


def _layer(row: Row) -> Layer:
    names = ("tp", "num_tokens", "n_head", "n_kv_head", "hidden", "ffn")
    sizes = {name: row.number(name) for name in names}
    if any(size is None or size < 1 for size in sizes.values()):
        raise MalformedRow("sizes are whole numbers from one on")
    tp, tokens, heads, kv_heads, hidden, ffn = (float(size or 0) for size in sizes.values())
    head = hidden / heads
    return Layer(
        tokens=tokens,
        hidden=hidden,
        query_width=heads / tp * head,
        kv_width=max(1.0, kv_heads / tp) * head,
        ffn=ffn / tp,
        gated=row.text("gated_mlp").lower() == "true",
    )


def _timed(row: Row, system: Accelerator, layer: Layer) -> Iterator[Figure | Skipped]:
    label = f"{row.text('gpu')} {row.text('model')} tp {row.text('tp')}, {row.text('num_tokens')} tokens"
    for name, shape in layer.demands().items():
        metric = f"{name}_ms"
        milliseconds = row.number(metric)
        if milliseconds is None:
            continue
        if not milliseconds > 0:
            yield Skipped("time rounded to nothing", metric)
            continue
        timing = stated(
            "gemm" if isinstance(shape, GemmShape) else "memory_bound",
            shape,
            1e-3 * milliseconds,
            device=system.name,
            software=SOFTWARE,
            dtype="float16",
            label=f"{label}: {name}",
        )
        yield Figure(metric=metric, timing=timing, row_id=f"line {row.line}", group=row.text("gpu"))
