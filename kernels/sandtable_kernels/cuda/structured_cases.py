"""Structured products as cases of `torch_cases`, on the device that this process uses. Imported only to be timed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sandtable_kernels.pytorch.torch_cases import DTYPES, Dims, Timed, copies, filled, timed
from sandtable_kernels.structured.baselines.monarch import Monarch
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.structured.torch_butterfly import butterfly as transform
from sandtable_kernels.structured.torch_structures import multiply


def butterfly(dims: Dims) -> Timed:
    """Rows through a butterfly with its residual."""
    layout = ButterflyLayout(dims["n"], dims["n"], dims["base"])
    return _timed(dims, (layout.weights_shape,), lambda item: (transform(item[0], item[1], layout),))


def monarch(dims: Dims) -> Timed:
    """Rows through both factors of a Monarch matrix."""
    product = Monarch.cheapest(dims["n"], dims["n"])
    return _timed(dims, product.weights_shapes, lambda item: (multiply(product, item[0], item[1:]),))


def _timed(
    dims: Dims, shapes: tuple[tuple[int, ...], ...], forward: Callable[[tuple[Tensor, ...]], tuple[Tensor]]
) -> Timed:
    rows, n, dtype, back = dims["rows"], dims["n"], dims["dtype"], dims["pass"] == "backward"
    n_items = 4 * rows * n + 2 * sum(torch.Size(shape).numel() for shape in shapes)
    sizes = ((rows, n), *shapes)
    inputs = [
        tuple(filled(*size, dtype=dtype, grad=back) for size in sizes)
        for _ in range(copies(dims, n_items * DTYPES[dtype].itemsize))
    ]
    return timed(inputs, forward, backward=back)


CASES: dict[str, Callable[[Dims], Timed]] = {"butterfly": butterfly, "monarch": monarch}
