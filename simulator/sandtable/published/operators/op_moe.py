"""Times of mixtures of experts in serving frameworks, by device, framework, element type, and routing.

A row with expert parallelism times one of the ranks, the busiest: all tokens are routed, and it serves its experts'
share. ``power_law_a`` draws the load of experts from a power law of exponent a (`sandtable.model.laws.experts_law`).

Constants belong to the kernels that a framework runs, see `sandtable.published.operators.experts_kernels`.

The rows of vLLM and SGLang with 256 experts were routed with a limit on groups of experts, which a "balanced" choice
defeats by its ties: half of the experts are never chosen (16 and 256 tokens take half of what all weights need), and
the rank that is timed serves five of each token's eight choices instead of one (63 % of the time of all experts). A
single token is sent there the same way. Such rows are skipped: their label does not say how they were routed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

from sandtable.demand.operator_shapes import ExpertsShape
from sandtable.hardware import Accelerator
from sandtable.published import systems
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter, framework_latency
from sandtable.published.operators.experts_kernels import FRAMEWORKS, Choice, is_tuned, kernels_of
from sandtable.published.rows import MalformedRow, Row

# the source's names of element types -> ours. w4a16: weights of 4 bits, multiplied in 16; w4a8: in 8
_DTYPES = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "fp8": "fp8",
    "fp8_static": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "fp4",
    "w4a16_mxfp4": "int4_weight_only",
    "w4a8_mxfp4_mxfp8": "mxfp4",
    "int4_wo": "int4_weight_only",
    "int8_wo": "int8_weight_only",
}
_WIDE = ("bfloat16", "float16")
_SHAPE = ("num_tokens", "hidden_size", "intermediate_size", "top_k", "num_experts", "moe_tp", "moe_ep")


class OpMoe(OperatorAdapter):
    """One layer of experts per row: routed tokens in, tokens out, without the router and without moving tokens."""

    name: ClassVar[str] = "op_moe"
    title: ClassVar[str] = "Mixtures of experts of serving frameworks"
    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    source: ClassVar[str] = "ai-dynamo/aiconfigurator systems/data/*/moe @095f58a51c4c"

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        system = systems.find(row.text("system"))
        if isinstance(system, Skipped):
            return system
        dtype, skew = _dtype(row, system), _skew(row.text("routing"))
        if dtype is None:
            return Skipped("element type not modelled")
        if skew is None:
            return Skipped("routing not modelled")
        if _mislabelled(row):
            return Skipped("routing is not what its label says")
        latency, sizes = row.number("latency_ms"), [row.number(name) for name in _SHAPE]
        if latency is None or None in sizes:
            return Skipped("no time or no shape")
        numbers = [float(size or 0) for size in sizes]
        if min(numbers) < 1:
            raise MalformedRow("sizes are positive")
        choice = _choice(row, dict(zip(_SHAPE, numbers, strict=True)))
        if choice.framework not in FRAMEWORKS:
            return Skipped("kernels not known")
        tuned = float(is_tuned(choice, wide=dtype in _WIDE))
        shape = ExpertsShape._make((*numbers, skew, tuned))
        names = {"label": _label(row), "group": row.text("system"), "software": kernels_of(choice)}
        return [framework_latency(row, system, operator="moe", dtype=dtype, shape=shape, **names)]


def _choice(row: Row, sizes: Mapping[str, float]) -> Choice:
    return Choice(
        framework=row.text("framework"),
        version=row.text("version"),
        system=row.text("system"),
        dtype=row.text("dtype"),
        n_neurons=sizes["intermediate_size"],
        n_experts=sizes["num_experts"],
        n_ranks=sizes["moe_ep"],
    )


def _dtype(row: Row, system: Accelerator) -> str | None:
    """Return the element type: SGLang widens 4-bit weights when it loads them on a device that cannot multiply them.

    On an H100 its times are those of 16-bit weights: 2.9 ms for 128 experts of 50 MB each.
    """
    narrow = "fp4" in system.datasheet.peak_flops_per_s
    if row.text("framework") == "sglang" and row.text("dtype") == "w4a16_mxfp4" and not narrow:
        return "bfloat16"
    return _DTYPES.get(row.text("dtype"))


def _skew(routing: str) -> float | None:
    """Return the exponent of the loads' power law, zero for an even load."""
    if routing == "balanced":
        return 0.0
    match = re.fullmatch(r"power_law_(\d+(?:\.\d+)?)", routing)
    return None if match is None else float(match[1])


def _mislabelled(row: Row) -> bool:
    grouped = row.text("num_experts") == "256" and row.text("framework") in ("vllm", "sglang")
    alone = row.text("num_tokens") == "1" and row.text("moe_ep") != "1"
    return grouped and (row.text("routing") == "balanced" or alone)


def _label(row: Row) -> str:
    sizes = "x".join(row.text(name) for name in _SHAPE)
    return f"{row.text('system')} {row.text('framework')} {row.text('dtype')} {sizes} {row.text('routing')}"
