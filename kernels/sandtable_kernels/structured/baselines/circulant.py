"""Circulant and Toeplitz matrices, multiplied by way of the fast Fourier transform of real numbers.

Arithmetic is counted as executed. A transform of N real numbers takes 2.5 N log2 N operations, half of the 5 N log2 N
of complex ones by which FFTW states speeds (http://www.fftw.org/speed/method.html); a multiply-accumulate is two
operations. One row takes a transform, one back, and (N / 2 + 1) products of complex numbers of four multiplications.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np

from sandtable.errors import missing_extra
from sandtable_kernels.structured.baselines.structured_product import StructuredProduct, Weights, row_blocks
from sandtable_kernels.support import F32, Array

OPERATIONS_PER_STEP = 2.5


def fft() -> Any:
    """Import SciPy's transforms, which keep float32 and have threads.

    Raises:
        NoDevice: it is not installed.
    """
    try:
        from scipy import fft as module
    except ImportError:
        raise missing_extra("scipy", "run") from None
    return module


@lru_cache(maxsize=256)
def fast_length(least: int) -> int:
    """Return the smallest length from ``least`` on with no prime factor above 5: transforms of others are slow."""
    best = 1 << max(0, least - 1).bit_length()
    fives = [5**i for i in range(best.bit_length())]
    for odd in (five * 3**i for five in fives for i in range(best.bit_length()) if five * 3**i <= best):
        best = min(best, odd << max(0, -(-least // odd) - 1).bit_length())
    return best


def transform_multiplications(length: int) -> float:
    """Return the multiply-accumulates of one transform of so many real numbers."""
    return OPERATIONS_PER_STEP / 2 * length * math.log2(length) if length > 1 else 0.0


@dataclass(frozen=True)
class CyclicProduct(StructuredProduct):
    """A matrix whose entries repeat along its diagonals: a window of a circulant matrix of side `length`."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Side of the circulant matrix in which it is embedded."""

    @abstractmethod
    def weight_of(self, offset: Array) -> Array:
        """Return which weight stands on the diagonals ``i - j = offset``."""

    def column_index(self) -> Array:
        """Return which weight each entry of that matrix' first column is [length]; `parameters` for a zero."""
        offset, index = np.arange(1 - self.n_in, self.n_out), np.full(self.length, self.parameters)
        index[offset % self.length] = self.weight_of(offset)
        return index

    def column(self, weight: Array) -> Array:
        """Return the first column of that circulant matrix [length]."""
        result: Array = np.append(weight, weight.dtype.type(0))[self.column_index()]
        return result

    @property
    def sums(self) -> int:
        """None."""
        return 0

    @property
    def multiplications(self) -> int:
        """Two transforms and the products between them."""
        return math.ceil(2 * transform_multiplications(self.length) + 4 * (self.length // 2 + 1))

    @property
    def weights_multiplications(self) -> int:
        """A transform."""
        return math.ceil(transform_multiplications(self.length))

    def calls(self, n_rows: int) -> int:
        """A transform of the weights, and two of each block of rows."""
        return 1 + 2 * len(row_blocks(n_rows, self.length))

    @property
    def spreads(self) -> tuple[float, ...]:
        """One over the root of the inputs, each of which comes into each output once."""
        return (1 / math.sqrt(self.n_in),)

    @classmethod
    def choices(cls, n_in: int, n_out: int) -> Iterable[Self]:
        """The only one."""
        return [cls(n_in, n_out)]

    def rows(self, x: F32, weights: Weights, out: F32, n_threads: int) -> None:
        """See `StructuredProduct.rows`; a block of rows stays in cache from one transform to the other."""
        module, length = fft(), self.length
        spectrum = module.rfft(self.column(weights[0]))
        for block in row_blocks(len(x), length):
            # zeros go behind the rows by themselves
            spectra = module.rfft(x[block], length, axis=1, workers=n_threads)
            spectra *= spectrum
            whole = module.irfft(spectra, length, axis=1, workers=n_threads, overwrite_x=True)
            out[block] = whole[:, : self.n_out]

    def reference_rows(self, x: Array, weights: Weights) -> Array:
        """See `StructuredProduct.reference_rows`: by the definition, no transform."""
        i, j = np.arange(self.n_out)[:, None], np.arange(self.n_in)
        result: Array = x @ weights[0][self.weight_of(i - j)].T
        return result


@dataclass(frozen=True)
class Circulant(CyclicProduct):
    """``y[i] = sum_j c[(i - j) mod n] x[j]`` with n the larger side; missing inputs are zeros, further outputs cut.

    A side for which transforms are slow is embedded in one for which they are fast.
    """

    structure: ClassVar[str] = "circulant"

    @property
    def side(self) -> int:
        """The larger side."""
        return max(self.n_in, self.n_out)

    @property
    def weights_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The first column."""
        return ((self.side,),)

    @property
    def length(self) -> int:
        """See `CyclicProduct.length`."""
        return self.side if fast_length(self.side) == self.side else fast_length(self.n_in + self.n_out - 1)

    def weight_of(self, offset: Array) -> Array:
        """See `CyclicProduct.weight_of`."""
        return offset % self.side


@dataclass(frozen=True)
class Toeplitz(CyclicProduct):
    """``y[i] = sum_j t[n_in - 1 + i - j] x[j]``: every diagonal has a number of its own."""

    structure: ClassVar[str] = "toeplitz"

    @property
    def weights_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The diagonals, from the upper right corner to the lower left."""
        return ((self.n_in + self.n_out - 1,),)

    @property
    def length(self) -> int:
        """See `CyclicProduct.length`."""
        return fast_length(self.n_in + self.n_out - 1)

    def weight_of(self, offset: Array) -> Array:
        """See `CyclicProduct.weight_of`."""
        result: Array = offset + self.n_in - 1
        return result
