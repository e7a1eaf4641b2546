"""The butterfly transform on NVIDIA GPUs, in Triton: forward, and backward by input and weights.

Levels run together in passes (`sandtable_kernels.cuda.butterfly_passes`): sides up to 128 in one, up to 4096 in two
for bases 2, 4 and 8. A pass's matrices are composed from its levels' weights on chip (`compose`), and all rows are
multiplied by them on the tensor cores (`multiply`). Backward runs the passes in reverse order with matrices
transposed; gradients by the matrices (`outer`) go back to the levels' weights on chip (`decompose`). Sums are
float32; between two passes activations have the element type of the input.

Products of float32 are exact to float32's rounding (three products of tf32), unless PyTorch was told that less is
enough (`torch.set_float32_matmul_precision`). Needs Triton, and compute capability 8.0 or later;
``TRITON_INTERPRET=1`` runs it on the host, for tests.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import knobs

from sandtable_kernels.cuda import triton_passes
from sandtable_kernels.cuda.butterfly_passes import MOST_NEIGHBOURS, Pass, Side, passes_of, sides_of
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout

kernels: Any = triton_passes
# neighbouring groups are loaded together for as many bytes of a row, half of what memory gives at once
PIECE_BYTES = 16
ROWS_NEIGHBOURS, ROWS_APART = 64, 32
# programs that keep a large GPU busy: several for each of its 132 processors; each takes all rows of its share
PROGRAMS = 1056
# parts that the rows are summed in for gradients by weights, and rows that are worth one
MOST_PARTS, LEAST_ROWS = 16, 512
# Triton's interpreter knows no products of bfloat16, and those of float32 only as the host multiplies them
INTERPRETED = bool(knobs.runtime.interpret)
# float32 to its own rounding on units that round to tf32: three products of them
EXACT = "ieee" if INTERPRETED else "tf32x3"


def _shape(layout: ButterflyLayout, one: Pass) -> dict[str, Any]:
    # fused: a product and its sum round once
    shape = {"SIDE": layout.size, "SIZE": one.size, "STRIDE": one.stride, "TILE": one.tile}
    return {**shape, "enable_fp_fusion": True}


def of_levels(layout: ButterflyLayout, one: Pass) -> dict[str, Any]:
    """Return what the kernels between levels and matrices are made for."""
    levels = {"FIRST": one.first, "LEVELS": one.last - one.first, "BASE": layout.base}
    return {
        **_shape(layout, one),
        **levels,
        "PRECISION": EXACT,
        "num_warps": 4 if one.tile < 128 else 8,
        "num_stages": 1,
    }


def of_rows(layout: ButterflyLayout, one: Pass, dtype: torch.dtype) -> dict[str, Any]:
    """Return how much a program holds at once, what fits its registers on compute capability 8 and 9, and how.

    Loads of the next rows overlap with the products of these where there is shared memory for both.
    """
    wide, apart = dtype == torch.float32, one.stride > 1
    batch = min(PIECE_BYTES // dtype.itemsize, 1 << (one.stride - 1).bit_length())
    rows = ROWS_APART if apart or (wide and one.tile == MOST_NEIGHBOURS) else ROWS_NEIGHBOURS
    enough = torch.get_float32_matmul_precision() != "highest" and not INTERPRETED
    held = {"BATCH": batch, "ROWS": rows, "BLOCKS": layout.n_blocks, "num_stages": 1 if wide and apart else 2}
    how = {"PRECISION": "tf32" if enough else EXACT, "WIDEN": INTERPRETED, "num_warps": 8}
    return {**_shape(layout, one), **held, **how}


def _programs(layout: ButterflyLayout, one: Pass, batch: int) -> int:
    """Return how many programs share a row: one for every few neighbouring groups of every block."""
    return layout.n_blocks * (layout.size // (one.size * one.stride)) * math.ceil(one.stride / batch)


def compose(weights: Tensor, layout: ButterflyLayout, one: Pass) -> Tensor:
    """Return a pass's matrices [blocks, groups, tile (to), tile (from)] from weights of the layout's shape."""
    n_groups = layout.size // one.size
    matrices = weights.new_empty(layout.n_blocks, n_groups, one.tile, one.tile)
    kernels.compose[(layout.n_blocks * n_groups,)](weights, matrices, layout.n_levels, **of_levels(layout, one))
    return matrices


def multiply(
    x: Tensor,
    matrices: Tensor,
    layout: ButterflyLayout,
    one: Pass,
    sides: tuple[Side, Side],
    *,
    transposed: bool = False,
    added: tuple[Tensor, Side] | None = None,
) -> Tensor:
    """Return one pass over ``x`` [r, columns of the first side] as [r, columns of the second].

    ``transposed`` multiplies with transposed matrices; ``added`` is a tensor, and how it lies, that is added to the
    result at the same positions.
    """
    source, target = sides
    n_rows = x.shape[0]
    y = x.new_empty(n_rows, target.columns)
    tiles = of_rows(layout, one, x.dtype)
    summed = layout.n_blocks if target.step == 0 else 1
    across = _programs(layout, one, tiles["BATCH"]) // summed
    rows_each = tiles["ROWS"] * math.ceil(n_rows / tiles["ROWS"] / max(1, PROGRAMS // across))
    more, how = added or (x, source)
    kernels.multiply[(across * math.ceil(n_rows / rows_each),)](
        x,
        matrices,
        more,
        y,
        n_rows,
        rows_each,
        *source,
        *how,
        *target,
        SUMMED=summed,
        TRANSPOSED=transposed,
        ADDED=added is not None,
        **tiles,
    )
    return y


def gradient(x: Tensor, grad: Tensor, layout: ButterflyLayout, one: Pass, sides: tuple[Side, Side]) -> Tensor:
    """Return the gradients by the matrices of a pass, float32, from its input and the gradient of its output."""
    n_rows = x.shape[0]
    tiles = of_rows(layout, one, x.dtype)
    across = _programs(layout, one, tiles["BATCH"])
    most = max(1, min(MOST_PARTS, n_rows // LEAST_ROWS, PROGRAMS // across))
    # whole steps: a part sees no row of the next
    rows_each = tiles["ROWS"] * math.ceil(n_rows / most / tiles["ROWS"])
    parts = math.ceil(n_rows / rows_each)
    shape = (parts, layout.n_blocks, layout.size // one.size, one.tile, one.tile)
    sums = torch.empty(shape, dtype=torch.float32, device=x.device)
    source, target = sides
    kernels.outer[(across * parts,)](
        x, grad, sums, n_rows, rows_each, *source, *target, **(tiles | {"num_stages": 1 if one.stride > 1 else 2})
    )
    return sums.sum(0)


def decompose(
    grad_matrices: Tensor, weights: Tensor, grad_weights: Tensor, layout: ButterflyLayout, one: Pass
) -> None:
    """Write a pass's part of ``grad_weights`` from the gradients by its matrices."""
    grid = (layout.n_blocks * (layout.size // one.size),)
    kernels.decompose[grid](weights, grad_matrices, grad_weights, layout.n_levels, **of_levels(layout, one))


class OnGpu(torch.autograd.Function):
    """The passes as a function that autograd knows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, layout: ButterflyLayout, residual: bool) -> Tensor:
        """Return rows [r, n_out] for ``x`` [r, n_in]; what is between two passes is kept for backward."""
        passes = passes_of(layout)
        outside, between, result = sides_of(layout)
        matrices = [compose(weights, layout, one) for one in passes]
        values = [x]
        for index, (one, matrix) in enumerate(zip(passes, matrices, strict=True)):
            last = index == len(passes) - 1
            sides = (between if index else outside, result if last else between)
            added = (x, outside) if residual and last else None
            values.append(multiply(values[-1], matrix, layout, one, sides, added=added))
        ctx.layout, ctx.residual = layout, residual
        ctx.save_for_backward(weights, *values[:-1], *matrices)
        return values[-1]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None]:
        """Return gradients by the input and by the weights."""
        layout = ctx.layout
        passes = passes_of(layout)
        outside, between, result = sides_of(layout)
        weights, *saved = ctx.saved_tensors
        values, matrices = saved[: len(passes)], saved[len(passes) :]
        grad_weights = torch.empty_like(weights) if ctx.needs_input_grad[1] else None
        first = grad = grad_outputs[0].contiguous()
        for index in reversed(range(len(passes))):
            one, last = passes[index], index == len(passes) - 1
            sides = (between if index else outside, result if last else between)
            if grad_weights is not None:
                by_matrices = gradient(values[index], grad, layout, one, sides)
                decompose(by_matrices, weights, grad_weights, layout, one)
            added = (first, result) if ctx.residual and not index else None
            grad = multiply(grad, matrices[index], layout, one, (sides[1], sides[0]), transposed=True, added=added)
        return grad, grad_weights, None, None
