"""A matrix of low rank: two thin products, one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sandtable.errors import ConfigError
from sandtable_kernels.structured.baselines.structured_product import StructuredProduct, Weights
from sandtable_kernels.support import F32, Array


@dataclass(frozen=True)
class LowRank(StructuredProduct):
    """``y = U (V x)`` with V [rank, n_in] and U [n_out, rank]."""

    structure: ClassVar[str] = "low_rank"

    rank: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank > min(self.n_in, self.n_out):
            raise ConfigError(
                f"the rank of a {self.n_out} x {self.n_in} matrix is at most {min(self.n_in, self.n_out)}, "
                f"not {self.rank}"
            )

    @property
    def weights_shapes(self) -> tuple[tuple[int, ...], ...]:
        """V and U."""
        return (self.rank, self.n_in), (self.n_out, self.rank)

    @property
    def sums(self) -> int:
        """Those between the factors, and outputs."""
        return self.rank + self.n_out

    @property
    def multiplications(self) -> int:
        """As many as weights."""
        return self.parameters

    def calls(self, n_rows: int) -> int:
        """Both products."""
        return 2

    @property
    def spreads(self) -> tuple[float, ...]:
        """One over the root of what each factor sums up."""
        return 1 / math.sqrt(self.n_in), 1 / math.sqrt(self.rank)

    @classmethod
    def choices(cls, n_in: int, n_out: int) -> Iterable[Self]:
        """Every rank."""
        return (cls(n_in, n_out, rank) for rank in range(1, min(n_in, n_out) + 1))

    def rows(self, x: F32, weights: Weights, out: F32, n_threads: int) -> None:
        """See `StructuredProduct.rows`."""
        first, second = weights
        np.matmul(x @ first.T, second.T, out=out)

    def reference_rows(self, x: Array, weights: Weights) -> Array:
        """See `StructuredProduct.reference_rows`."""
        first, second = weights
        result: Array = (x @ first.T) @ second.T
        return result
