"""A block-diagonal matrix whose outputs are shuffled among the blocks, as grouped pointwise convolutions are used.

Zhang et al., "ShuffleNet", CVPR 2018, arXiv 1707.01083, section 3.1: outputs [groups, n] are transposed to [n, groups],
so that each group of the next layer gets some of every group's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sandtable.errors import ConfigError
from sandtable_kernels.structured.baselines.structured_product import (
    StructuredProduct,
    Weights,
    padded,
    row_blocks,
)
from sandtable_kernels.support import F32, Array


@dataclass(frozen=True)
class BlockShuffle(StructuredProduct):
    """``n_groups`` blocks [width_out, width_in] for any sizes: inputs are padded with zeros, further outputs cut."""

    structure: ClassVar[str] = "block_shuffle"

    n_groups: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_groups > min(self.n_in, self.n_out):
            raise ConfigError(
                f"{self.n_groups} groups cannot share {self.n_in} inputs and {self.n_out} outputs: "
                f"there are at most {min(self.n_in, self.n_out)}"
            )

    @property
    def width_in(self) -> int:
        """Inputs of a group."""
        return -(-self.n_in // self.n_groups)

    @property
    def width_out(self) -> int:
        """Outputs of a group."""
        return -(-self.n_out // self.n_groups)

    @property
    def weights_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The blocks."""
        return ((self.n_groups, self.width_out, self.width_in),)

    @property
    def sums(self) -> int:
        """Outputs."""
        return self.n_groups * self.width_out

    @property
    def multiplications(self) -> int:
        """As many as weights."""
        return self.parameters

    def calls(self, n_rows: int) -> int:
        """Every group, for each block of rows."""
        return self.n_groups * len(self._row_blocks(n_rows))

    @property
    def spreads(self) -> tuple[float, ...]:
        """One over the root of the inputs of a group."""
        return (math.sqrt(self.n_groups / self.n_in),)

    @classmethod
    def choices(cls, n_in: int, n_out: int) -> Iterable[Self]:
        """Every number of groups."""
        return (cls(n_in, n_out, n_groups) for n_groups in range(1, min(n_in, n_out) + 1))

    def rows(self, x: F32, weights: Weights, out: F32, n_threads: int) -> None:
        """See `StructuredProduct.rows`; the shuffle is on the way from a block in cache to ``out``."""
        g = self.n_groups
        for block in self._row_blocks(len(x)):
            rows = padded(x[block], g * self.width_in).reshape(-1, g, self.width_in)
            outputs = np.matmul(rows.transpose(1, 0, 2), weights[0].transpose(0, 2, 1))
            out[block] = outputs.transpose(1, 2, 0).reshape(len(rows), -1)[:, : self.n_out]

    def _row_blocks(self, n_rows: int) -> list[slice]:
        # wide groups: so many rows that reading a group's weights is not what takes the time
        return row_blocks(n_rows, self.n_groups * (self.width_in + self.width_out), least=256)

    def reference_rows(self, x: Array, weights: Weights) -> Array:
        """See `StructuredProduct.reference_rows`."""
        inputs = padded(x, self.n_groups * self.width_in).reshape(len(x), self.n_groups, self.width_in)
        result: Array = np.einsum("rgi,goi->rog", inputs, weights[0]).reshape(len(x), -1)[:, : self.n_out]
        return result
