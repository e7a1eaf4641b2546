"""The butterfly transform, asked like any other structure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from sandtable_kernels.structured.baselines.structured_product import StructuredProduct, Weights
from sandtable_kernels.structured.butterfly import butterfly, butterfly_reference, initial_weights
from sandtable_kernels.structured.butterfly_layout import BASES, ButterflyLayout
from sandtable_kernels.support import F32, Array


@dataclass(frozen=True)
class ButterflyProduct(StructuredProduct):
    """See `ButterflyLayout`; with ``residual`` the input of each square transform is added to its output."""

    structure: ClassVar[str] = "butterfly"

    base: int = 4
    residual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.layout

    @cached_property
    def layout(self) -> ButterflyLayout:
        """Its levels and strides."""
        return ButterflyLayout(self.n_in, self.n_out, self.base)

    @property
    def weights_shapes(self) -> tuple[tuple[int, ...], ...]:
        """All levels of all square transforms."""
        return (self.layout.weights_shape,)

    @property
    def multiplications(self) -> int:
        """As many as weights."""
        return self.layout.multiplications

    @property
    def sums(self) -> int:
        """One of ``base`` products for each position of each level."""
        return self.parameters // self.base

    @property
    def spreads(self) -> tuple[float, ...]:
        """That of `initial_weights`: an entry of the matrix has the mean size of Xavier's, and varies more."""
        n_levels, bound = self.layout.n_levels, math.sqrt(6 / (self.n_in + self.n_out))
        return (2 * (bound / 2) ** (1 / n_levels) / math.sqrt(3),)

    @classmethod
    def choices(cls, n_in: int, n_out: int) -> Iterable[Self]:
        """Every base, with residual; four first, the paper's best, as two takes as many multiplications."""
        return (cls(n_in, n_out, base) for base in sorted(BASES, key=lambda base: base != 4))

    def calls(self, n_rows: int) -> int:
        """One loop over all levels."""
        return 1

    def rows(self, x: F32, weights: Weights, out: F32, n_threads: int) -> None:
        """See `StructuredProduct.rows`."""
        butterfly(x, weights[0], self.layout, residual=self.residual, out=out, n_threads=n_threads)

    def reference_rows(self, x: Array, weights: Weights) -> Array:
        """See `StructuredProduct.reference_rows`."""
        return butterfly_reference(x, weights[0], self.layout, residual=self.residual)

    def initial_weights(self, rng: np.random.Generator) -> tuple[F32, ...]:
        """Return the paper's uniform weights."""
        return (initial_weights(self.layout, rng),)
