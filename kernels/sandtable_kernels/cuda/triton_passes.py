"""The kernels of a butterfly's passes, in Triton: compose matrices, multiply rows by them, and both backward.

Names in capitals are what a kernel is compiled for. Tensors are pointers to contiguous memory.
"""

# What Triton compiles is a language of its own, whose values are not what Python's types say.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _level_matrix(
    weights: tl.tensor,
    group: tl.tensor,
    index: tl.tensor,
    BASE: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
) -> Any:
    """Return what one level does to a group, [TILE, TILE], and where in it the weights of each row begin and step."""
    step = tl.full((), SIZE, tl.int32)
    for _ in range(index + 1):
        step = step // BASE
    # the last level may overlap the one before it
    step = tl.maximum(step, 1)
    i = tl.arange(0, TILE)
    start = i // (BASE * step) * (BASE * step) + i % step
    position = group // STRIDE * (SIZE * STRIDE) + i * STRIDE + group % STRIDE
    matrix = tl.zeros((TILE, TILE), tl.float32)
    for j in tl.static_range(BASE):
        weight = tl.load(weights + position * BASE + j, mask=i < SIZE, other=0.0).to(tl.float32)
        there = i[None, :] == (start + j * step)[:, None]
        matrix += tl.where(there, weight[:, None], 0.0)
    return matrix, start, step, position


@triton.jit
def _product(
    first: tl.tensor,
    group: tl.tensor,
    n_levels: tl.tensor,
    SIDE: tl.constexpr,
    BASE: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> Any:
    """Return the product of a group's first levels, whose weights lie one after another; the identity of none."""
    i = tl.arange(0, TILE)
    product = ((i[:, None] == i[None, :]) & (i < SIZE)[None, :]).to(tl.float32)
    for index in range(n_levels):
        matrix, _, _, _ = _level_matrix(first + index * SIDE * BASE, group, index, BASE, SIZE, STRIDE, TILE)
        product = tl.dot(matrix, product, input_precision=PRECISION)
    return product


@triton.jit
def compose(
    weights: tl.tensor,
    matrices: tl.tensor,
    n_levels: tl.tensor,
    FIRST: tl.constexpr,
    LEVELS: tl.constexpr,
    SIDE: tl.constexpr,
    BASE: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write the matrix of each group, the product of its levels: one program for each group of each block."""
    pid = tl.program_id(0)
    n_groups = SIDE // SIZE
    block, group = pid // n_groups, pid % n_groups
    first = weights + (block * n_levels + FIRST) * SIDE * BASE
    product = _product(first, group, LEVELS, SIDE, BASE, SIZE, STRIDE, TILE, PRECISION)
    i = tl.arange(0, TILE)
    place = matrices + pid.to(tl.int64) * TILE * TILE + i[:, None] * TILE + i[None, :]
    tl.store(place, product.to(matrices.dtype.element_ty))


@triton.jit
def decompose(
    weights: tl.tensor,
    grad_matrices: tl.tensor,
    grad_weights: tl.tensor,
    n_levels: tl.tensor,
    FIRST: tl.constexpr,
    LEVELS: tl.constexpr,
    SIDE: tl.constexpr,
    BASE: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write the gradients by the levels' weights from those by the groups' matrices."""
    pid = tl.program_id(0)
    n_groups = SIDE // SIZE
    block, group = pid // n_groups, pid % n_groups
    i = tl.arange(0, TILE)
    grad = tl.load(grad_matrices + pid.to(tl.int64) * TILE * TILE + i[:, None] * TILE + i[None, :])
    for back in range(LEVELS):
        index = LEVELS - 1 - back
        first = weights + (block * n_levels + FIRST) * SIDE * BASE
        before = _product(first, group, index, SIDE, BASE, SIZE, STRIDE, TILE, PRECISION)
        by_matrix = tl.dot(grad, tl.trans(before), input_precision=PRECISION)
        at = (block * n_levels + FIRST + index) * SIDE * BASE
        matrix, start, step, position = _level_matrix(weights + at, group, index, BASE, SIZE, STRIDE, TILE)
        for j in tl.static_range(BASE):
            there = i[None, :] == (start + j * step)[:, None]
            value = tl.sum(tl.where(there, by_matrix, 0.0), axis=1)
            tl.store(
                grad_weights + at + position * BASE + j, value.to(grad_weights.dtype.element_ty), mask=i < SIZE
            )
        grad = tl.dot(tl.trans(matrix), grad, input_precision=PRECISION)


@triton.jit
def _places(
    rows: tl.tensor,
    n_rows: tl.tensor,
    block: tl.tensor,
    outer: tl.tensor,
    inner: tl.tensor,
    step: tl.tensor,
    used: tl.tensor,
    columns: tl.tensor,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    BATCH: tl.constexpr,
) -> Any:
    """Return offsets [BATCH, rows, TILE] of the activations of neighbouring groups, and which are no padding."""
    within = inner + tl.arange(0, BATCH)[:, None, None]
    j = tl.arange(0, TILE)[None, None, :]
    position = outer * (SIZE * STRIDE) + within + j * STRIDE
    column = block * step + position
    real = (within < STRIDE) & (j < SIZE) & (position < used) & (column < columns)
    r = rows[None, :, None]
    return r.to(tl.int64) * columns + column, real & (r < n_rows)


@triton.jit
def _dot(
    a: tl.tensor, b: tl.tensor, acc: tl.tensor, BATCH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr
) -> Any:
    """Add the products of ``BATCH`` pairs of matrices to ``acc``, all of them with three axes."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if BATCH == 1:
        left, right = tl.reshape(a, (a.shape[1], a.shape[2])), tl.reshape(b, (b.shape[1], b.shape[2]))
        one = tl.dot(left, right, input_precision=PRECISION)
        result = acc + tl.reshape(one, (1, a.shape[1], b.shape[2]))
    else:
        result = tl.dot(a, b, acc, input_precision=PRECISION)
    return result


@triton.jit
def _matrices(
    matrices: tl.tensor,
    block: tl.tensor,
    outer: tl.tensor,
    inner: tl.tensor,
    SIDE: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    BATCH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
) -> Any:
    """Return the matrices [BATCH, from, to] of neighbouring groups; backward goes from their outputs to inputs."""
    i = tl.arange(0, TILE)
    within = inner + tl.arange(0, BATCH)[:, None, None]
    at = block * (SIDE // SIZE) + outer * STRIDE + within
    here = matrices + at.to(tl.int64) * (TILE * TILE)
    if TRANSPOSED:
        here = here + i[None, :, None] * TILE + i[None, None, :]
    else:
        here = here + i[None, :, None] + i[None, None, :] * TILE
    return tl.load(here, mask=within < STRIDE, other=0.0)


@triton.jit
def multiply(
    x: tl.tensor,
    matrices: tl.tensor,
    added: tl.tensor,
    y: tl.tensor,
    n_rows: tl.tensor,
    rows_each: tl.tensor,
    x_step: tl.tensor,
    x_used: tl.tensor,
    x_columns: tl.tensor,
    added_step: tl.tensor,
    added_used: tl.tensor,
    added_columns: tl.tensor,
    y_step: tl.tensor,
    y_used: tl.tensor,
    y_columns: tl.tensor,
    SIDE: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SUMMED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """One pass over ``rows_each`` rows of ``BATCH`` groups; ``SUMMED`` blocks meet in one output."""
    tiles: tl.constexpr = (STRIDE + BATCH - 1) // BATCH
    n_outer: tl.constexpr = SIDE // (SIZE * STRIDE)
    pid = tl.program_id(0)
    inner, pid = pid % tiles * BATCH, pid // tiles
    outer, pid = pid % n_outer, pid // n_outer
    block, share = pid % (BLOCKS // SUMMED), pid // (BLOCKS // SUMMED)
    if SUMMED == 1:
        kept = _matrices(matrices, block, outer, inner, SIDE, SIZE, STRIDE, TILE, BATCH, TRANSPOSED)
    for row in range(share * rows_each, tl.minimum((share + 1) * rows_each, n_rows), ROWS):
        rows = row + tl.arange(0, ROWS)
        acc = tl.zeros((BATCH, ROWS, TILE), tl.float32)
        for other in range(SUMMED):
            of = block + other
            at, real = _places(rows, n_rows, of, outer, inner, x_step, x_used, x_columns, SIZE, STRIDE, TILE, BATCH)
            values = tl.load(x + at, mask=real, other=0.0)
            if SUMMED == 1:
                matrix = kept
            else:
                matrix = _matrices(matrices, of, outer, inner, SIDE, SIZE, STRIDE, TILE, BATCH, TRANSPOSED)
            acc = _dot(values, matrix, acc, BATCH, PRECISION, WIDEN)
            if ADDED:
                at, real = _places(
                    rows,
                    n_rows,
                    of,
                    outer,
                    inner,
                    added_step,
                    added_used,
                    added_columns,
                    SIZE,
                    STRIDE,
                    TILE,
                    BATCH,
                )
                acc += tl.load(added + at, mask=real, other=0.0).to(tl.float32)
        at, real = _places(rows, n_rows, block, outer, inner, y_step, y_used, y_columns, SIZE, STRIDE, TILE, BATCH)
        tl.store(y + at, acc.to(y.dtype.element_ty), mask=real)


@triton.jit
def outer(
    x: tl.tensor,
    grad: tl.tensor,
    sums: tl.tensor,
    n_rows: tl.tensor,
    rows_each: tl.tensor,
    x_step: tl.tensor,
    x_used: tl.tensor,
    x_columns: tl.tensor,
    grad_step: tl.tensor,
    grad_used: tl.tensor,
    grad_columns: tl.tensor,
    SIDE: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Write gradients by the matrices [part, block, group, to, from], each part the sum over its ``rows_each`` rows."""
    tiles: tl.constexpr = (STRIDE + BATCH - 1) // BATCH
    n_outer: tl.constexpr = SIDE // (SIZE * STRIDE)
    pid = tl.program_id(0)
    inner, pid = pid % tiles * BATCH, pid // tiles
    outer, pid = pid % n_outer, pid // n_outer
    block, part = pid % BLOCKS, pid // BLOCKS
    acc = tl.zeros((BATCH, TILE, TILE), tl.float32)
    for row in range(part * rows_each, tl.minimum((part + 1) * rows_each, n_rows), ROWS):
        rows = row + tl.arange(0, ROWS)
        at, real = _places(rows, n_rows, block, outer, inner, x_step, x_used, x_columns, SIZE, STRIDE, TILE, BATCH)
        values = tl.load(x + at, mask=real, other=0.0)
        at, real = _places(
            rows, n_rows, block, outer, inner, grad_step, grad_used, grad_columns, SIZE, STRIDE, TILE, BATCH
        )
        grads = tl.load(grad + at, mask=real, other=0.0)
        acc = _dot(tl.permute(grads, (0, 2, 1)), values, acc, BATCH, PRECISION, WIDEN)
    i = tl.arange(0, TILE)
    within = inner + tl.arange(0, BATCH)[:, None, None]
    group = (part * BLOCKS + block) * (SIDE // SIZE) + outer * STRIDE + within
    at = group.to(tl.int64) * (TILE * TILE) + i[None, :, None] * TILE + i[None, None, :]
    tl.store(sums + at, acc, mask=within < STRIDE)
