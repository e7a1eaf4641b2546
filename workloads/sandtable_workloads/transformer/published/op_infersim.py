"""Times of products and attention on accelerators made for export, by the kernels that serving there uses.

The rows are of several kinds of operator, told apart by the column ``op``; `READERS` translates each kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from sandtable.calibration.timing import Timing, stated
from sandtable.demand.operator_shapes import AttentionShape, GemmShape
from sandtable.hardware import DTYPE_BYTES, Accelerator
from sandtable.published import systems
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter
from sandtable.published.rows import MalformedRow, Row

GEMM_SOFTWARE = "deepgemm"
# the kernels that the source names for attention
PREFILL_SOFTWARE, DECODE_SOFTWARE, LATENT_SOFTWARE = "flash_attention_3", "flashinfer", "flash_mla"

Parameters = Mapping[str, Any]
Reader = Callable[[Row, Accelerator, Parameters, float], Timing | Skipped]


class OpInfersim(OperatorAdapter):
    """One operator per row, whose sizes are in the column ``parameters`` as JSON."""

    name: ClassVar[str] = "op_infersim"
    title: ClassVar[str] = "Products and attention on export variants of accelerators"
    metrics: ClassVar[tuple[str, ...]] = ("latency_us",)
    unit: ClassVar[str] = "us"
    unit_s: ClassVar[float] = 1e-6
    source: ClassVar[str] = "alibaba/InferSim bench_data @f2293dab"

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
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
        timing = reader(row, system, _parameters(row), 1e-6 * latency)
        if isinstance(timing, Skipped):
            return timing
        group = f"{row.text('gpu')} {row.text('op')}"
        return [Figure(metric="latency_us", timing=timing, row_id=f"line {row.line}", group=group)]


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


def _gemm(row: Row, system: Accelerator, parameters: Parameters, seconds: float) -> Timing | Skipped:
    """A product of fp8 tensors with block scales, both quantised before: the rates given are shares of the fp8 peak."""
    m, n, k = (size(parameters, name) for name in "mnk")
    return stated(
        "gemm",
        GemmShape(m, n, k),
        seconds,
        device=system.name,
        software=GEMM_SOFTWARE,
        dtype="fp8_block",
        label=f"{row.text('gpu')} gemm {m:.0f}x{n:.0f}x{k:.0f}",
    )


def _grouped_gemm(row: Row, system: Accelerator, parameters: Parameters, seconds: float) -> Timing | Skipped:
    """The product into the gated neurons of each expert of one rank, all experts in one kernel.

    The source times it apart from the product back (``latency2_us``); experts have the stated rows within 30 %.
    """
    names = ("tokens_per_expert", "hidden_size", "intermediate_size", "num_local_experts")
    if any(name not in parameters for name in names):
        return Skipped("sizes of a grouped product not stated")
    if parameters["tokens_per_expert"] == 0:
        return Skipped("no rows in a grouped product")
    m, k, neurons, groups = (size(parameters, name) for name in names)
    n = 2 * neurons / (size(parameters, "tp_size") if "tp_size" in parameters else 1.0)
    return stated(
        "gemm",
        GemmShape(m, n, k, groups),
        seconds,
        device=system.name,
        software=GEMM_SOFTWARE,
        dtype="fp8_block",
        label=f"{row.text('gpu')} {row.text('op')} {groups:.0f} of {m:.0f}x{n:.0f}x{k:.0f}",
    )


def _mha(row: Row, system: Accelerator, parameters: Parameters, seconds: float) -> Timing | Skipped:
    """Grouped or multi-head attention; the file is named after query heads, key heads and width."""
    n_heads, n_kv_heads, width = _numbers(row, 3)
    heads = (n_heads, n_kv_heads, width, width)
    if row.text("phase") == "prefill":
        return _attention(row, system, parameters, seconds, PREFILL_SOFTWARE, _prompt(parameters), heads)
    return _attention(row, system, parameters, seconds, DECODE_SOFTWARE, _token(parameters), heads)


def _mla(row: Row, system: Accelerator, parameters: Parameters, seconds: float) -> Timing | Skipped:
    """Latent attention; the file is named after heads, width without positions, and width of positions.

    A prompt has keys and values of its own for each head; a new token meets the latents, which all heads share.
    """
    n_heads, width, turned = _numbers(row, 3)
    if row.text("phase") == "prefill":
        heads = (n_heads, n_heads, width + turned, width)
        return _attention(row, system, parameters, seconds, PREFILL_SOFTWARE, _prompt(parameters), heads)
    heads = (n_heads, 1.0, width + turned, width)
    return _attention(row, system, parameters, seconds, LATENT_SOFTWARE, _token(parameters), heads)


def _dsa(row: Row, system: Accelerator, parameters: Parameters, seconds: float) -> Timing | Skipped:
    """Sparse attention: each query meets as many latents as the file's name ends with, chosen before.

    All latents together fit in the cache or nearly so; what binds are the products, which `kv_tokens` counts.
    """
    if row.text("shape_from_file_name").startswith("logits"):
        return Skipped("scores of an indexer, without softmax")
    n_heads, width, chosen = _numbers(row, 3)
    tokens = (1.0, size(parameters, "s_q"), min(chosen, size(parameters, "s_kv")), 0.0)
    heads = (n_heads, 1.0, width, width - _TURNED)
    return _attention(row, system, parameters, seconds, LATENT_SOFTWARE, tokens, heads)


# width of the positions' part of a latent key (DeepSeek-V2, arXiv 2405.04434, section 3.1.2)
_TURNED = 64.0
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8"}


def _numbers(row: Row, count: int) -> list[float]:
    """Return the numbers in the name of the file that a row is from."""
    found = [float(part) for part in row.text("shape_from_file_name").split("-") if part.isdigit()]
    if len(found) != count or min(found) < 1:
        raise MalformedRow(f"shape_from_file_name: {row.text('shape_from_file_name')!r}")
    return found


def _prompt(parameters: Parameters) -> tuple[float, ...]:
    """Return sequences, queries, keys and whether they are masked causally, of a prompt."""
    batch = size(parameters, "batch_size") if "batch_size" in parameters else 1.0
    return batch, size(parameters, "seq_len"), size(parameters, "seq_len"), 1.0


def _token(parameters: Parameters) -> tuple[float, ...]:
    """Return sequences, queries, keys and whether they are masked causally, of one new token per sequence."""
    return size(parameters, "batch_size"), 1.0, size(parameters, "kv_len"), 0.0


def _attention(
    row: Row,
    system: Accelerator,
    parameters: Parameters,
    seconds: float,
    software: str,
    tokens: tuple[float, ...],
    heads: tuple[float, float, float, float],
) -> Timing | Skipped:
    dtype = _DTYPES.get(str(parameters.get("dtype")))
    cache = _DTYPES.get(str(parameters.get("kv_dtype", parameters.get("dtype"))))
    if dtype is None or cache is None:
        return Skipped("element type not modelled")
    batch, queries, keys, causal = tokens
    sizes = "x".join(f"{value:.0f}" for value in (*tokens[:3], *heads))
    return stated(
        "attention",
        AttentionShape(batch, queries, keys, *heads, causal, DTYPE_BYTES[cache]),
        seconds,
        device=system.name,
        software=software,
        dtype=dtype,
        label=f"{row.text('gpu')} {row.text('op')} {row.text('phase')} {sizes}",
    )


# by the column `op`; kinds that are missing here are counted as not modelled
READERS: dict[str, Reader] = {"gemm": _gemm, "grouped_gemm": _grouped_gemm, "mha": _mha, "mla": _mla, "dsa": _dsa}
