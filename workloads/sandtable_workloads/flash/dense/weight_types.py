"""Types of stored weights, and the mixtures of them that llama.cpp calls by one name, such as Q4_K_M.

A mixture gives each matrix a type by what it is and where: the output projection of a 4-bit model has 6 bits, and so
have the down and value projections of some layers. The rules are those of ``llama_tensor_get_type`` in llama.cpp's
src/llama-quant.cpp (commit 007dbbf3, without an importance matrix), for models built like Llama. A matrix whose
columns fill no whole blocks falls back to a type that does, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, get_args

from sandtable.errors import did_you_mean
from sandtable.hardware import DTYPE_BLOCKS, DTYPE_BYTES
from sandtable_workloads.transformer.shapes import ModelShape

FloatWeights = Literal["float32", "bfloat16", "float16"]
WeightType = Literal[
    "float32",
    "bfloat16",
    "float16",
    "q8_0",
    "q6_K",
    "q5_K_M",
    "q5_K_S",
    "q5_1",
    "q5_0",
    "q4_K_M",
    "q4_K_S",
    "q4_1",
    "q4_0",
    "q3_K_L",
    "q3_K_M",
    "q3_K_S",
    "q2_K",
]
FLOATS: Final[tuple[str, ...]] = get_args(FloatWeights)
WEIGHT_TYPES: Final[tuple[str, ...]] = get_args(WeightType)
# what people run: the smallest whose loss of quality is called small by llama.cpp's own table (tools/quantize)
USUAL: Final = "q4_K_M"
_OTHER_NAMES: Final = {
    "f32": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "fp16": "float16",
    "half": "float16",
    "q4_k": "q4_K_M",
    "q5_k": "q5_K_M",
    "q3_k": "q3_K_M",
    "4bit": USUAL,
    "8bit": "q8_0",
    "16bit": "float16",
    "int4": USUAL,
    "int8": "q8_0",
}
_FALLBACK: Final = {"q2_K": "q4_0", "q3_K": "q4_0", "q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0"}


def weight_type(name: object) -> object:
    """Return a type by any of its names, in any case: ``Q4_K_M``, ``f16``, ``4bit``.

    Raises:
        ValueError: no such type, with those that are like it.
    """
    if not isinstance(name, str):
        return name
    plain = name.strip().lower().replace("-", "_")
    known = {each.lower(): each for each in WEIGHT_TYPES} | _OTHER_NAMES
    found = known.get(plain) or known.get(plain.replace("_", ""))
    if found is None:
        raise ValueError(
            f"no weights are called {name!r}{did_you_mean(name, WEIGHT_TYPES)}: write one of f32, f16, "
            "bf16, q8_0, q6_K, q5_K_M, q5_0, q4_K_M, q4_K_S, q4_0, q3_K_M, q2_K"
        )
    return found


def matrix_type(mixture: str, role: str, layer: int, columns: int, shape: ModelShape) -> str:
    """Return the type of one matrix.

    Args:
        mixture: A `WeightType`.
        role: "embedding", "head", "q", "k", "v", "output", "up", "gate", "down", or "other".
        layer: Of the matrix, from 0; -1 for those of no layer.
        columns: Elements of a row.
        shape: The model.
    """
    if mixture in FLOATS:
        return mixture
    base = mixture.removesuffix("_S").removesuffix("_M").removesuffix("_L")
    if role == "head" or (role == "embedding" and shape.tied):
        return base if base == "q8_0" else "q8_0" if columns % DTYPE_BLOCKS[base][0] else fitting("q6_K", columns)
    rule = _RULES.get(role)
    return fitting(base if rule is None else rule(mixture, base, layer, shape), columns)


def fitting(dtype: str, columns: int) -> str:
    """Return ``dtype``, or what stands in for it where a row of ``columns`` elements fills no whole blocks."""
    if columns % DTYPE_BLOCKS[dtype][0] == 0:
        return dtype
    other = _FALLBACK.get(dtype)
    return "float16" if other is None or columns % DTYPE_BLOCKS[other][0] else other


def row_bytes(dtype: str, columns: int) -> int:
    """Return the bytes of a row of ``columns`` stored elements; whole blocks."""
    return round(DTYPE_BYTES[dtype] * columns)


# --- the rules of the mixtures ---------------------------------------------------------------------------------


def _more_bits(layer: int, n_layers: int) -> bool:
    """Whether a layer is one of those that get more bits: the first and last eighth, and every third between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _value(mixture: str, base: str, layer: int, shape: ModelShape) -> str:
    if shape.moe is not None and shape.moe.n_experts == 8:
        return "q8_0"
    grouped = shape.n_heads >= 4 * shape.n_kv_heads
    found = base
    if mixture == "q2_K":
        found = "q4_K" if grouped else "q3_K"
    elif mixture == "q3_K_M":
        found = "q5_K" if layer < 2 else "q4_K"
    elif mixture == "q3_K_L" or (mixture == "q4_K_S" and layer < 4):
        found = "q5_K"
    elif mixture in ("q4_K_M", "q5_K_M") and _more_bits(layer, shape.n_layers):
        found = "q6_K"
    # the 70B models: eight heads share these weights, so that more bits cost little
    large = shape.n_layers == 80 and shape.n_kv_heads < shape.n_heads
    return "q5_K" if large and found in ("q3_K", "q4_K") else found


def _key(mixture: str, base: str, layer: int, shape: ModelShape) -> str:
    return "q8_0" if shape.moe is not None and shape.moe.n_experts == 8 else base


def _attention_output(mixture: str, base: str, layer: int, shape: ModelShape) -> str:
    if shape.moe is not None and shape.moe.n_experts == 8:
        return "q5_K" if base in ("q2_K", "q3_K", "q4_K") else base
    return {"q2_K": "q3_K", "q3_K_M": "q4_K", "q3_K_L": "q5_K"}.get(mixture, base)


def _down(mixture: str, base: str, layer: int, shape: ModelShape) -> str:
    n_layers = shape.n_layers
    if mixture == "q2_K":
        return "q3_K"
    if mixture == "q3_K_M":
        return "q5_K" if layer < n_layers // 16 else "q4_K"
    if mixture == "q3_K_L" or (mixture == "q4_K_S" and layer < n_layers // 8):
        return "q5_K"
    if mixture in ("q4_K_M", "q5_K_M") and _more_bits(layer, n_layers):
        return "q6_K"
    return base


_RULES: Final[dict[str, Callable[[str, str, int, ModelShape], str]]] = {
    "v": _value,
    "k": _key,
    "output": _attention_output,
    "down": _down,
}
