"""The dense matrix, asked like one with structure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sandtable_kernels.structured.baselines.structured_product import StructuredProduct, Weights
from sandtable_kernels.support import F32, Array


@dataclass(frozen=True)
class Dense(StructuredProduct):
    """``y = W x``."""

    structure: ClassVar[str] = "dense"

    @property
    def weights_shapes(self) -> tuple[tuple[int, ...], ...]:
        """W."""
        return ((self.n_out, self.n_in),)

    @property
    def sums(self) -> int:
        """Outputs."""
        return self.n_out

    @property
    def multiplications(self) -> int:
        """As many as weights."""
        return self.parameters

    def calls(self, n_rows: int) -> int:
        """One product."""
        return 1

    @property
    def spreads(self) -> tuple[float, ...]:
        """One over the root of the inputs."""
        return (1 / math.sqrt(self.n_in),)

    @classmethod
    def choices(cls, n_in: int, n_out: int) -> Iterable[Self]:
        """The only one."""
        return [cls(n_in, n_out)]

    def rows(self, x: F32, weights: Weights, out: F32, n_threads: int) -> None:
        """See `StructuredProduct.rows`."""
        np.matmul(x, weights[0].T, out=out)

    def reference_rows(self, x: Array, weights: Weights) -> Array:
        """See `StructuredProduct.reference_rows`."""
        result: Array = x @ weights[0].T
        return result
