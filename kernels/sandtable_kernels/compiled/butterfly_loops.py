"""Compiled loops of the butterfly transform. Importing this module needs numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from sandtable_kernels.compiled.memory_loops import parallel, serial

ZERO = np.float32(0)
# partial sums of gradients: a number that does not depend on the threads, so that results do not either
PARTS = 16


@serial
def _level(x: Any, weights: Any, stride: Any, y: Any) -> None:
    """Apply one level [size, base] to ``x`` [size]."""
    size, base = weights.shape
    for start in range(0, size, base * stride):
        for i in range(start, start + base * stride):
            first, total = start + (i - start) % stride, ZERO
            for j in range(base):
                total += weights[i, j] * x[first + j * stride]
            y[i] = total


@serial
def _level_backward(x: Any, weights: Any, stride: Any, grad: Any, grad_x: Any, grad_weights: Any) -> None:
    """Set ``grad_x`` [size] and add to ``grad_weights`` [size, base] what one level's ``grad`` [size] gives."""
    size, base = weights.shape
    grad_x[:] = ZERO
    for start in range(0, size, base * stride):
        for i in range(start, start + base * stride):
            first = start + (i - start) % stride
            for j in range(base):
                grad_x[first + j * stride] += weights[i, j] * grad[i]
                grad_weights[i, j] += x[first + j * stride] * grad[i]


@serial
def _forward_levels(levels: Any, weights: Any, strides: Any) -> None:
    """Fill ``levels`` [n_levels + 1, size], whose first row is the input."""
    for level in range(len(strides)):
        _level(levels[level], weights[level], strides[level], levels[level + 1])


@serial
def _load(row: Any, low: Any, target: Any) -> None:
    """Set ``target`` [size] to the part of ``row`` from ``low`` on, zeros behind it."""
    n = max(0, min(len(row) - low, len(target)))
    target[:n] = row[low : low + n]
    target[n:] = ZERO


@parallel
def forward(x: Any, weights: Any, strides: Any, residual: Any, out: Any, n_threads: Any) -> None:
    """Transform rows ``x`` [r, n_in] into ``out`` [r, n_out]."""
    n_rows, n_blocks, size = len(x), weights.shape[0], weights.shape[2]
    side, summed = min(x.shape[1], out.shape[1]), x.shape[1] > out.shape[1]
    for thread in prange(n_threads):
        levels = np.empty((len(strides) + 1, size), np.float32)
        for row in range(thread * n_rows // n_threads, (thread + 1) * n_rows // n_threads):
            out[row] = ZERO
            for block in range(n_blocks):
                source, target = (block * side, 0) if summed else (0, block * side)
                _load(x[row, source : source + side], 0, levels[0])
                _forward_levels(levels, weights[block], strides)
                for i in range(min(side, out.shape[1] - target)):
                    out[row, target + i] += levels[-1, i] + (levels[0, i] if residual else ZERO)


@parallel
def backward(
    x: Any,
    weights: Any,
    strides: Any,
    residual: Any,
    grad: Any,
    grad_x: Any,
    sums: Any,
    n_threads: Any,
) -> None:
    """Set the gradient by ``x`` [r, n_in] and add parts of that by ``weights`` to ``sums``, for ``grad`` [r, n_out]."""
    n_rows, n_blocks, n_levels, size = len(x), weights.shape[0], weights.shape[1], weights.shape[2]
    side, summed = min(x.shape[1], grad.shape[1]), x.shape[1] > grad.shape[1]
    for part in prange(PARTS):
        levels = np.empty((n_levels + 1, size), np.float32)
        grads = np.empty((n_levels + 1, size), np.float32)
        for row in range(part * n_rows // PARTS, (part + 1) * n_rows // PARTS):
            grad_x[row] = ZERO
            for block in range(n_blocks):
                source, target = (block * side, 0) if summed else (0, block * side)
                _load(x[row, source : source + side], 0, levels[0])
                _load(grad[row, target : target + side], 0, grads[n_levels])
                _forward_levels(levels, weights[block], strides)
                for level in range(n_levels - 1, -1, -1):
                    _level_backward(
                        levels[level],
                        weights[block, level],
                        strides[level],
                        grads[level + 1],
                        grads[level],
                        sums[part, block, level],
                    )
                for i in range(min(side, x.shape[1] - source)):
                    grad_x[row, source + i] += grads[0, i] + (grads[n_levels, i] if residual else ZERO)
