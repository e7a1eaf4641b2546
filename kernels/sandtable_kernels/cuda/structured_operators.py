"""Structured products on NVIDIA GPUs as kernels, for ``sandtable calibrate --only gpu``.

The butterfly as Triton runs it, and a Monarch matrix as two batched products with the transposition between. Both are
square, with cold weights, as `CudaGemm` times a dense layer. `sandtable_kernels.cuda.structured_cases` is what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from sandtable.demand.kernel import Dims, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.cuda.cuda_operators import CudaKernel
from sandtable_kernels.pytorch.torch_operators import ITEM_BYTES, PASSES
from sandtable_kernels.pytorch.vision_demand import Setting
from sandtable_kernels.structured.baselines.monarch import Monarch
from sandtable_kernels.structured.baselines.structured_law import CODES, StructuredShape
from sandtable_kernels.structured.butterfly import butterfly_reference
from sandtable_kernels.structured.butterfly_law import butterfly_op
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.support import Array, seeded

DTYPES = ("float32", "bfloat16")
SIDES, MORE_SIDES = (256, 1024, 4096), (512, 2048, 8192)
ROWS, MORE_ROWS = (256, 16384), (4096, 65536)


class CudaStructured(CudaKernel):
    """A square structured matrix times rows; dims rows, n, dtype, pass, processes."""

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Sides and rows from those that launches dominate to those that memory does."""
        sides, rows = (SIDES, ROWS) if quick else (SIDES + MORE_SIDES, ROWS + MORE_ROWS)
        return [
            point(self.example(), rows=r, n=n, dtype=dtype, **{"pass": which})
            for n in sides
            for r in rows
            for dtype in DTYPES
            for which in PASSES
        ]


def point(example: Dims, **changes: Any) -> Dims:
    """Return a point with the dims of the example."""
    return {**example, **changes}


class CudaButterfly(CudaStructured):
    """The butterfly transform with its residual, in Triton; dims also have its base."""

    name: ClassVar[str] = "triton_butterfly"
    case: ClassVar[str] = "butterfly"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Base 4 everywhere, others at one size."""
        others = [] if quick else [{"n": 1024, "rows": 16384, "base": base, "dtype": "bfloat16"} for base in (2, 8)]
        return [*super().grid(quick=quick), *(point(self.example(), **other) for other in others)]

    def cost(self, dims: Dims) -> Op:
        """See `butterfly_op`."""
        how = Setting(dtype=dims["dtype"], on="accelerator", backward=dims["pass"] == "backward")
        return butterfly_op("butterfly", _layout(dims), dims["rows"], how)

    def example(self) -> Dims:
        """A side with padding."""
        return {"rows": 9, "n": 44, "base": 4, "dtype": "float32", "pass": "forward", "processes": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return rows and weights."""
        return [seeded((dims["rows"], dims["n"]), seed), seeded(_layout(dims).weights_shape, seed + 1, scale=0.5)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the transform of the rows."""
        from sandtable_kernels.structured.torch_butterfly import butterfly

        x, weights = tensors
        return butterfly(x, weights, _layout(dims))

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in NumPy."""
        x, weights = self.inputs(dims, context.seed)
        return butterfly_reference(x, weights, _layout(dims))


def _layout(dims: Dims) -> ButterflyLayout:
    return ButterflyLayout(dims["n"], dims["n"], dims["base"])


class CudaMonarch(CudaStructured):
    """A Monarch matrix by two batched products, of as many blocks as make it cheapest."""

    name: ClassVar[str] = "torch_cuda_monarch"
    case: ClassVar[str] = "monarch"

    def cost(self, dims: Dims) -> Op:
        """Two products and a copy before each and behind; backward two products and the copies for each."""
        product, rows, item = _monarch(dims), dims["rows"], ITEM_BYTES[dims["dtype"]]
        times = 2 if dims["pass"] == "backward" else 1
        hidden = product.n_blocks**2 * product.share
        through = rows * (product.n_in + 2 * hidden + product.n_out)
        n_bytes = times * item * (2 * through + product.parameters)
        flops = times * 2 * rows * product.multiplications
        written = item * rows * dims["n"]
        return Op(
            name="monarch",
            operator="structured_product",
            account="compute",
            dtype=dims["dtype"],
            flops=flops,
            bytes_read=n_bytes - written,
            bytes_written=written,
            shape=StructuredShape(CODES.index("monarch"), flops, times * rows * product.sums, n_bytes, 4 * times),
            on="accelerator",
        )

    def example(self) -> Dims:
        """A side that its blocks do not fill."""
        return {"rows": 9, "n": 44, "dtype": "float32", "pass": "forward", "processes": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return rows and both factors."""
        shapes = _monarch(dims).weights_shapes
        scales = _monarch(dims).spreads
        weights = [seeded(s, seed + 1 + i, scale=c) for i, (s, c) in enumerate(zip(shapes, scales, strict=True))]
        return [seeded((dims["rows"], dims["n"]), seed), *weights]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the product."""
        from sandtable_kernels.structured.torch_structures import multiply

        return multiply(_monarch(dims), tensors[0], tensors[1:])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in NumPy."""
        rows, *weights = self.inputs(dims, context.seed)
        return _monarch(dims).reference(rows, weights)


def _monarch(dims: Dims) -> Monarch:
    return Monarch.cheapest(dims["n"], dims["n"])
