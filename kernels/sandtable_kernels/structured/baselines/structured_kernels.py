"""The structured products of NumPy and SciPy as kernels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.structured.baselines.block_shuffle import BlockShuffle
from sandtable_kernels.structured.baselines.circulant import Circulant, CyclicProduct, Toeplitz
from sandtable_kernels.structured.baselines.low_rank import LowRank
from sandtable_kernels.structured.baselines.monarch import Monarch
from sandtable_kernels.structured.baselines.structured_law import CODES, StructuredShape
from sandtable_kernels.structured.baselines.structured_product import StructuredProduct
from sandtable_kernels.support import Array, cold_copies, cycling, seeded

SIZES = ((64, 64), (256, 256), (512, 256), (1024, 1024))
MORE_SIZES = ((128, 512), (2048, 2048), (4096, 4096))
ROWS = (16, 256, 2048)


class StructuredKernel(Kernel):
    """Rows times a structured matrix; dims rows, n_in, n_out, and what its structure needs.

    No workload runs these, so calibration leaves them alone: layers of networks are `torch_structured`.
    """

    @abstractmethod
    def product(self, dims: Dims) -> StructuredProduct:
        """Return the matrix that is meant."""

    def option(self, n_in: int) -> dict[str, int]:
        """Return the dims of the structure for a grid's point."""
        return {}

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Widths of the pointwise layers of vision networks and beyond, a few rows to many."""
        sizes = SIZES if quick else SIZES + MORE_SIZES
        return [
            {"rows": rows, "n_in": n_in, "n_out": n_out, **self.option(n_in)}
            for n_in, n_out in sizes
            for rows in ROWS
        ]

    def example(self) -> Dims:
        """Odd sides."""
        return {"rows": 37, "n_in": 53, "n_out": 97, **self.option(53)}

    def cost(self, dims: Dims) -> Op:
        """Rows and weights are read once, results are written once; the rest stays in cache."""
        product, rows = self.product(dims), dims["rows"]
        read, written = 4 * (rows * product.n_in + product.parameters), 4 * rows * product.n_out
        flops = 2 * (rows * product.multiplications + product.weights_multiplications)
        shape = StructuredShape(
            CODES.index(self.name), flops, rows * product.sums, read + written, product.calls(rows), kept=1
        )
        return Op(
            name=self.name,
            operator="structured_product",
            account="compute",
            flops=flops,
            bytes_read=read,
            bytes_written=written,
            n_items=rows,
            shape=shape,
        )

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold rows, as those of a layer are that were written by the one before."""
        product, rows = self.product(dims), dims["rows"]
        weights = product.initial_weights(np.random.default_rng(context.seed))
        pool = np.empty((cold_copies(4 * rows * product.n_in), rows, product.n_in), np.float32)
        pool[:] = seeded((rows, product.n_in), context.seed + 1)
        out = np.empty((rows, product.n_out), np.float32)
        return cycling(pool, lambda x: product.forward(x, weights, out=out, n_threads=context.n_threads))

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the results of the fast path, float32 [rows, n_out]."""
        product, x, weights = self._problem(dims, context)
        return product.forward(x, weights, n_threads=context.n_threads)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the results summed in float64, float32 [rows, n_out]."""
        product, x, weights = self._problem(dims, context)
        return product.reference(x, weights)

    def _problem(self, dims: Dims, context: KernelContext) -> tuple[StructuredProduct, Array, tuple[Array, ...]]:
        product = self.product(dims)
        weights = product.initial_weights(np.random.default_rng(context.seed))
        return product, seeded((dims["rows"], product.n_in), context.seed + 1), weights


class LowRankKernel(StructuredKernel):
    """Two thin products; dims rank beside the common ones."""

    name: ClassVar[str] = "low_rank"

    def product(self, dims: Dims) -> StructuredProduct:
        """See `StructuredKernel.product`."""
        return LowRank(dims["n_in"], dims["n_out"], min(dims["rank"], dims["n_in"], dims["n_out"]))

    def option(self, n_in: int) -> dict[str, int]:
        """A sixteenth of the full rank."""
        return {"rank": max(1, n_in // 16)}


class CyclicKernel(StructuredKernel):
    """Matrices that are multiplied by way of transforms."""

    kind: ClassVar[type[CyclicProduct]]

    def product(self, dims: Dims) -> StructuredProduct:
        """See `StructuredKernel.product`."""
        return self.kind(dims["n_in"], dims["n_out"])


class CirculantKernel(CyclicKernel):
    """A circulant matrix, multiplied by way of transforms."""

    name: ClassVar[str] = "circulant"
    kind: ClassVar[type[CyclicProduct]] = Circulant


class ToeplitzKernel(CyclicKernel):
    """A Toeplitz matrix, multiplied by way of transforms of twice its side."""

    name: ClassVar[str] = "toeplitz"
    kind: ClassVar[type[CyclicProduct]] = Toeplitz


class MonarchKernel(StructuredKernel):
    """Two block-diagonal factors with a transposition between, of as many blocks as make it cheapest."""

    name: ClassVar[str] = "monarch"

    def product(self, dims: Dims) -> StructuredProduct:
        """See `StructuredKernel.product`."""
        return Monarch.cheapest(dims["n_in"], dims["n_out"])


class BlockShuffleKernel(StructuredKernel):
    """Groups of ``group`` inputs each, and their outputs shuffled."""

    name: ClassVar[str] = "block_shuffle"

    def product(self, dims: Dims) -> StructuredProduct:
        """See `StructuredKernel.product`."""
        n_groups = min(-(-dims["n_in"] // dims["group"]), dims["n_out"])
        return BlockShuffle(dims["n_in"], dims["n_out"], n_groups)

    def option(self, n_in: int) -> dict[str, int]:
        """Eight groups."""
        return {"group": max(1, n_in // 8)}
