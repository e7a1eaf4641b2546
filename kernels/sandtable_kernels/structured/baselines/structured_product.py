"""What every structured matrix answers: its weights, its arithmetic, and how it multiplies rows.

A product takes rows ``x`` [r, n_in] to ``y`` [r, n_out], both row-major float32; ``y = x @ dense.T`` for the dense
matrix [n_out, n_in] that it is equal to. Products go through the BLAS that NumPy brings, which has threads of its own
(set ``OPENBLAS_NUM_THREADS``); only transforms (`circulant`, `toeplitz`) heed ``n_threads``.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from sandtable.errors import ConfigError
from sandtable_kernels.support import F32, Array

Weights = Sequence[Array]
# float32 numbers of a block of rows that is worked on at a time, small enough for a core's second-level cache
BLOCK_ITEMS = 1 << 17


@dataclass(frozen=True)
class StructuredProduct(ABC):
    """One structured matrix of ``n_out`` rows and ``n_in`` columns; further fields are the options of its kind.

    Raises:
        ConfigError: sizes below one, or options that its kind cannot have.
    """

    structure: ClassVar[str]

    n_in: int
    n_out: int

    def __post_init__(self) -> None:
        check_positive(self.structure, dataclasses.asdict(self))

    @property
    def options(self) -> dict[str, Any]:
        """The options of its kind by name, such as the rank of a low-rank product."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("n_in", "n_out")}

    @property
    @abstractmethod
    def weights_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of its weights, in the order in which they are applied."""

    @property
    def parameters(self) -> int:
        """Numbers that are learned."""
        return sum(math.prod(shape) for shape in self.weights_shapes)

    @property
    @abstractmethod
    def multiplications(self) -> int:
        """Multiply-accumulates for one row, as executed: on padded sizes, transforms of the weights left out."""

    @property
    @abstractmethod
    def sums(self) -> int:
        """Sums of products that one row takes, of both factors where there are two; none where it is transformed."""

    @property
    def weights_multiplications(self) -> int:
        """Multiply-accumulates that a call spends on the weights alone, whatever the rows."""
        return 0

    @abstractmethod
    def calls(self, n_rows: int) -> int:
        """Return how many calls of a library the fast path makes for so many rows."""

    @property
    @abstractmethod
    def spreads(self) -> tuple[float, ...]:
        """Standard deviation of each of `initial_weights`: outputs then vary as much as independent inputs."""

    @classmethod
    @abstractmethod
    def choices(cls, n_in: int, n_out: int) -> Iterable[Self]:
        """Yield the products of this size that its options allow."""

    @abstractmethod
    def rows(self, x: F32, weights: Weights, out: F32, n_threads: int) -> None:
        """Multiply checked rows ``x`` into ``out``."""

    @abstractmethod
    def reference_rows(self, x: Array, weights: Weights) -> Array:
        """Multiply float64 rows plainly, one factor after the other."""

    def forward(self, x: Array, weights: Weights, *, out: F32 | None = None, n_threads: int = 1) -> F32:
        """Multiply rows by the fast path.

        Args:
            x: Rows, float32 [r, n_in]; rows that do not lie one after the other are copied first.
            weights: Float32, of `weights_shapes`.
            out: Where to write, contiguous float32 [r, n_out].
            n_threads: For transforms.

        Returns:
            Float32 [r, n_out].

        Raises:
            ConfigError: shapes or types that do not fit.
            NoDevice: a transform, and SciPy is not installed.
        """
        self._check(x, weights)
        result = np.empty((len(x), self.n_out), np.float32) if out is None else out
        if result.shape != (len(x), self.n_out) or result.dtype != np.float32 or not result.flags.c_contiguous:
            raise ConfigError(f"out must be contiguous float32 of shape {(len(x), self.n_out)}")
        self.rows(np.ascontiguousarray(x), weights, result, n_threads)
        return result

    def reference(self, x: Array, weights: Weights) -> F32:
        """Compute what `forward` does, plainly in NumPy, summing in float64."""
        self._check(x, weights)
        wide = [weight.astype(np.float64) for weight in weights]
        result: F32 = self.reference_rows(x.astype(np.float64), wide).astype(np.float32)
        return result

    def dense(self, weights: Weights) -> F32:
        """Return the dense matrix that it is equal to, float32 [n_out, n_in]."""
        result: F32 = np.ascontiguousarray(self.reference(np.eye(self.n_in, dtype=np.float32), weights).T)
        return result

    def initial_weights(self, rng: np.random.Generator) -> tuple[F32, ...]:
        """Return normal weights with which the variance of outputs is that of independent inputs."""
        return tuple(
            rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)
            for shape, spread in zip(self.weights_shapes, self.spreads, strict=True)
        )

    def _check(self, x: Array, weights: Weights) -> None:
        if x.ndim != 2 or x.shape[1] != self.n_in or x.dtype != np.float32:
            raise ConfigError(
                f"a {self.structure} product takes float32 rows of shape [rows, {self.n_in}], "
                f"not {x.dtype} of shape {list(x.shape)}"
            )
        found = tuple((weight.shape, str(weight.dtype)) for weight in weights)
        if found != tuple((shape, "float32") for shape in self.weights_shapes):
            shapes = " and ".join(str(list(shape)) for shape in self.weights_shapes)
            given = " and ".join(f"{dtype} {list(shape)}" for shape, dtype in found) or "none"
            raise ConfigError(f"this {self.structure} product takes float32 weights {shapes}, not {given}")


def check_positive(structure: str, numbers: Mapping[str, Any]) -> None:
    """Refuse sizes and options below one; switches are none.

    Raises:
        ConfigError: naming the first.
    """
    for name, value in numbers.items():
        if not isinstance(value, bool) and value < 1:
            raise ConfigError(f"{name} of a {structure} product must be at least 1, not {value}")


def padded(x: Array, width: int) -> Array:
    """Return rows with zeros behind them up to ``width``; the rows themselves where they are as wide."""
    if x.shape[1] == width:
        return x
    wide = np.zeros((len(x), width), x.dtype)
    wide[:, : x.shape[1]] = x
    return wide


def row_blocks(n_rows: int, width: int, least: int = 16) -> list[slice]:
    """Return blocks of ``least`` rows or more, of ``width`` numbers: they stay in cache from factor to factor."""
    step = max(least, BLOCK_ITEMS // width)
    return [slice(low, min(low + step, n_rows)) for low in range(0, n_rows, step)]
