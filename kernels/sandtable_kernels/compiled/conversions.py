"""Compiled conversions between stored bits and float32. Importing this module needs numba.

Each is an intrinsic, a few LLVM instructions at the place of use, so that a loop around it still vectorises: on x86
``f16_to_f32`` in a reduction becomes ``vcvtph2ps``, ``bf16_to_f32`` a widening move and a shift.

============== =========================================================================
``bf16_to_f32``  bits of a bfloat16 (uint16) to float32, exactly
``f16_to_f32``   bits of a float16 (uint16) to float32, exactly
``f32_to_f32``   the identity, so that code can be generic over the element type
``f32_to_bf16``  float32, not NaN, to nearest even; returns bits (uint16)
``f32_to_f16``   float32 to nearest even; returns bits (uint16)
============== =========================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def _widen_bf16(typing_context: Any, bits: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(types.uint16), emit


def _widen_f16(typing_context: Any, bits: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


def _round_f16(typing_context: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), emit


def _bits_of_f32(typing_context: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), emit


def _identity(value: Any) -> Any:
    return value


def _round_bf16(value: Any) -> Any:
    bits = f32_bits(value)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16((bits + half) >> np.uint32(16))


# `Any`, because a type checker sees the signature of the emitter, not that of the compiled function
bf16_to_f32: Any = intrinsic(_widen_bf16)
f16_to_f32: Any = intrinsic(_widen_f16)
f32_to_f16: Any = intrinsic(_round_f16)
f32_bits: Any = intrinsic(_bits_of_f32)
f32_to_f32: Any = njit(inline="always")(_identity)
f32_to_bf16: Any = njit(inline="always")(_round_bf16)
