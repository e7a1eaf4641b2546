"""Structured layers of PyTorch as kernels: what ``sandtable calibrate --only vision`` measures of them on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.pytorch.vision_demand import Setting
from sandtable_kernels.pytorch.vision_operators import CORES, PASSES, VisionKernel, points
from sandtable_kernels.structured.baselines.structured_demand import structured_op, typical_options
from sandtable_kernels.structured.baselines.structured_product import StructuredProduct
from sandtable_kernels.structured.structures import structured
from sandtable_kernels.support import Array, seeded

MEASURED = ("low_rank", "circulant", "toeplitz", "monarch", "block_shuffle")
# rows (pixels), channels in and out
SIZES = ((144, 464, 464), (2300, 104, 104), (600, 232, 464), (16, 960, 960))
MORE_SIZES = ((2300, 96, 48), (49, 960, 960), (144, 928, 928))
TRAINED = ((600, 232, 232), (2300, 104, 104), (144, 464, 464))


def product_of(dims: Dims) -> StructuredProduct:
    """Return the matrix of a point."""
    structure, n_in, n_out = dims["structure"], dims["n_in"], dims["n_out"]
    return structured(structure, n_in, n_out, **typical_options(structure, n_in, n_out))


class TorchStructured(VisionKernel):
    """Rows times a structured matrix in PyTorch, with far fewer multiplications than a dense one has."""

    name: ClassVar[str] = "torch_structured"
    case: ClassVar[str] = "structured"
    names: ClassVar[str] = "structure rows n_in n_out among"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Layers of vision networks, alone and in networks: many pixels of few channels to few of many."""
        sizes = SIZES if quick else SIZES + MORE_SIZES
        alone, trained = (SIZES[:1], TRAINED[:1]) if quick else (SIZES[:2], TRAINED)
        found: list[Dims] = []
        for structure in MEASURED:
            found += points(self.names, [(structure, *size, False) for size in sizes], PASSES[:1], CORES[1:])
            found += points(self.names, [(structure, *size, True) for size in sizes], PASSES[:1], CORES[1:])
            found += points(self.names, [(structure, *size, False) for size in alone], PASSES[:1], CORES[:1])
            found += points(self.names, [(structure, *size, True) for size in trained], PASSES[1:], CORES[1:])
        return found

    def demand(self, dims: Dims, how: Setting) -> list[Op]:
        """See `structured_demand.structured_op`."""
        return [structured_op("structured", product_of(dims), dims["rows"], how, among=dims["among"])]

    def example(self) -> Dims:
        """A Monarch matrix of odd sides."""
        row = dict(zip(self.names.split(), ("monarch", 5, 39, 57, False), strict=True))
        return {**row, "dtype": "float32", "pass": "inference", "n_cores": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return rows [rows, n_in] and weights."""
        weights = product_of(dims).initial_weights(np.random.default_rng(seed))
        return [seeded((dims["rows"], dims["n_in"]), seed + 1), *weights]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the product."""
        from sandtable_kernels.structured.torch_structures import multiply

        return multiply(product_of(dims), tensors[0], tensors[1:])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64."""
        x, *weights = self.inputs(dims, context.seed)
        return product_of(dims).reference(x, weights)
