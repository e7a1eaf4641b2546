"""Rows of padded matrices as vectors: dot products and sums that keep their speed at any width.

A compiler that does not know how long rows are leaves those of twenty numbers to scalar code. Here a row is a whole
number of vectors of `ROW_BYTES`, its last numbers zero. Importing this module needs numba.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic

# numba's helpers have no annotations
cgutils: Any = untyped_cgutils

ROW_BYTES = 32
_LINE_BYTES = 64
# the smallest: a loop may keep a row of its own anywhere
_ALIGN = 4
_INT = ir.IntType(64)
_FAST = ("contract", "nsz", "reassoc")


def padded_width(n: int, dtype: Any) -> int:
    """Return the width of padded rows of ``n`` numbers."""
    lanes = ROW_BYTES // int(np.dtype(dtype).itemsize)
    return -(-n // lanes) * lanes


def padded_zeros(n_rows: int, n: int, dtype: Any) -> Any:
    """Return zeros [n_rows, padded width of ``n``] that begin at a cache line, so that a row lies in few of them."""
    width, size = padded_width(n, dtype), np.dtype(dtype).itemsize
    raw = np.zeros(n_rows * width + _LINE_BYTES // size, dtype)
    skipped = (-raw.ctypes.data % _LINE_BYTES) // size
    return raw[skipped : skipped + n_rows * width].reshape(n_rows, width)


class _Rows:
    """Vector code over a row of each of several matrices of one width."""

    def __init__(self, context: Any, builder: Any, kinds: Any, values: Any) -> None:
        self.context, self.builder = context, builder
        self.scalar = context.get_value_type(kinds[0].dtype)
        lanes = ROW_BYTES * 8 // kinds[0].dtype.bitwidth
        self.vector, self.lanes = ir.VectorType(self.scalar, lanes), lanes
        self.arrays = [context.make_array(k)(context, builder, v) for k, v in zip(kinds, values, strict=True)]
        self.width = builder.extract_value(self.arrays[0].shape, 1)

    def start(self, number: int, row: Any) -> Any:
        """Return the address of a row."""
        at = self.builder.mul(row, self.width)
        return self.builder.gep(self.arrays[number].data, [at])

    def pointer(self, start: Any, index: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(start, [index]), self.vector.as_pointer())

    def load(self, start: Any, index: Any) -> Any:
        return self.builder.load(self.pointer(start, index), align=_ALIGN)

    def store(self, value: Any, start: Any, index: Any) -> None:
        self.builder.store(value, self.pointer(start, index), align=_ALIGN)

    def splat(self, value: Any) -> Any:
        one = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
        )
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, one, mask)

    @contextmanager
    def steps(self) -> Iterator[Any]:
        first, step = (ir.Constant(_INT, value) for value in (0, self.lanes))
        with cgutils.for_range_slice(self.builder, first, self.width, step) as (index, _):
            yield index

    def sum(self, value: Any) -> Any:
        """Return the sum of a vector's numbers: halves are added until one is left."""
        lanes = self.lanes
        while lanes > 1:
            lanes //= 2
            low, high = (
                ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(at, at + lanes))) for at in (0, lanes)
            )
            halves = [self.builder.shuffle_vector(value, value, mask) for mask in (low, high)]
            value = self.builder.fadd(*halves, flags=_FAST)
        return self.builder.extract_element(value, ir.Constant(ir.IntType(32), 0))


def _row_dot(typing_context: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _Rows(context, builder, (signature.args[0], signature.args[2]), (args[0], args[2]))
        x, y = rows.start(0, args[1]), rows.start(1, args[3])
        total = cgutils.alloca_once_value(builder, ir.Constant(rows.vector, [0.0] * rows.lanes))
        with rows.steps() as index:
            product = builder.fmul(rows.load(x, index), rows.load(y, index), flags=_FAST)
            builder.store(builder.fadd(builder.load(total), product, flags=_FAST), total)
        return rows.sum(builder.load(total))

    return a.dtype(a, types.intp, b, types.intp), emit


def _row_add(typing_context: Any, target: Any, i: Any, factor: Any, source: Any, j: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _Rows(context, builder, (signature.args[0], signature.args[3]), (args[0], args[3]))
        to, from_, scale = rows.start(0, args[1]), rows.start(1, args[4]), rows.splat(args[2])
        with rows.steps() as index:
            term = builder.fmul(rows.load(from_, index), scale, flags=_FAST)
            rows.store(builder.fadd(rows.load(to, index), term, flags=_FAST), to, index)
        return context.get_dummy_value()

    return types.void(target, types.intp, target.dtype, source, types.intp), emit


def _row_set(typing_context: Any, target: Any, i: Any, factor: Any, source: Any, j: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _Rows(context, builder, (signature.args[0], signature.args[3]), (args[0], args[3]))
        to, from_, scale = rows.start(0, args[1]), rows.start(1, args[4]), rows.splat(args[2])
        with rows.steps() as index:
            rows.store(builder.fmul(rows.load(from_, index), scale, flags=_FAST), to, index)
        return context.get_dummy_value()

    return types.void(target, types.intp, target.dtype, source, types.intp), emit


def _row_blend(typing_context: Any, target: Any, i: Any, factor: Any, weight: Any, source: Any, j: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _Rows(context, builder, (signature.args[0], signature.args[4]), (args[0], args[4]))
        to, from_, scales = rows.start(0, args[1]), rows.start(1, args[5]), [rows.splat(args[n]) for n in (2, 3)]
        with rows.steps() as index:
            terms = [
                builder.fmul(rows.load(start, index), scale, flags=_FAST)
                for start, scale in zip((to, from_), scales, strict=True)
            ]
            rows.store(builder.fadd(*terms, flags=_FAST), to, index)
        return context.get_dummy_value()

    dtype = target.dtype
    return types.void(target, types.intp, dtype, dtype, source, types.intp), emit


def _row_prefetch(typing_context: Any, matrix: Any, row: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _Rows(context, builder, signature.args[:1], args[:1])
        start = rows.start(0, args[1])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        line = ir.Constant(_INT, _LINE_BYTES * 8 // signature.args[0].dtype.bitwidth)
        with cgutils.for_range_slice(builder, ir.Constant(_INT, 0), rows.width, line) as (index, _):
            where = builder.bitcast(builder.gep(start, [index]), pointer)
            builder.call(fetch, [where, *(ir.Constant(number, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(matrix, types.intp), emit


def _bits_to_float(typing_context: Any, bits: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), emit


def _float_to_bits(typing_context: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _INT)

    return types.int64(types.float64), emit


# Matrices are C-contiguous and padded, of one width and element type:
#   row_dot(a, i, b, j)              the dot product of a[i] and b[j]
#   row_add(target, i, factor, source, j)   target[i] += factor * source[j]
#   row_set(target, i, factor, source, j)   target[i] = factor * source[j]
#   row_blend(target, i, factor, weight, source, j)   target[i] = factor * target[i] + weight * source[j]
#   row_prefetch(matrix, i)          asks for matrix[i], to be read soon
row_dot: Any = intrinsic(_row_dot)
row_add: Any = intrinsic(_row_add)
row_set: Any = intrinsic(_row_set)
row_blend: Any = intrinsic(_row_blend)
row_prefetch: Any = intrinsic(_row_prefetch)
float_of_bits: Any = intrinsic(_bits_to_float)
bits_of_float: Any = intrinsic(_float_to_bits)
