"""Monarch matrices: two block-diagonal factors with a transposition between them.

Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate Training", ICML 2022, arXiv 2204.00595:
for n = m^2 each factor has m blocks of m x m, so that every input reaches every output once, with 2 n sqrt(n) weights.
Their order of outputs (one more transposition) is that of the next layer's inputs here: it would only move them.
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
class Monarch(StructuredProduct):
    """``n_blocks`` blocks in each factor, for any sizes: inputs are padded with zeros, further outputs cut.

    The first factor's blocks [hidden, width_in] each give ``share`` numbers to every block [width_out, hidden] of the
    second, where ``hidden`` is ``n_blocks * share``.
    """

    structure: ClassVar[str] = "monarch"

    n_blocks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        most = most_blocks(self.n_in, self.n_out)
        if self.n_blocks > most:
            raise ConfigError(
                f"a {self.n_out} x {self.n_in} Monarch matrix has at most {most} blocks in a factor, as each of the "
                f"first gives to each of the second, not {self.n_blocks}"
            )

    @property
    def width_in(self) -> int:
        """Inputs of a block of the first factor."""
        return -(-self.n_in // self.n_blocks)

    @property
    def width_out(self) -> int:
        """Outputs of a block of the second factor."""
        return -(-self.n_out // self.n_blocks)

    @property
    def share(self) -> int:
        """Numbers that a block of the first factor gives to a block of the second."""
        return -(-min(self.width_in, self.width_out) // self.n_blocks)

    @property
    def weights_shapes(self) -> tuple[tuple[int, ...], ...]:
        """First and second factor."""
        hidden = self.n_blocks * self.share
        return (self.n_blocks, hidden, self.width_in), (self.n_blocks, self.width_out, hidden)

    @property
    def sums(self) -> int:
        """Those between the factors, and outputs."""
        return self.n_blocks * (self.n_blocks * self.share + self.width_out)

    @property
    def multiplications(self) -> int:
        """As many as weights."""
        return self.parameters

    def calls(self, n_rows: int) -> int:
        """Every block of both factors, for each block of rows."""
        return 2 * self.n_blocks * len(self._row_blocks(n_rows))

    @property
    def spreads(self) -> tuple[float, ...]:
        """One over the root of what a block sums up; padded inputs count for nothing."""
        return math.sqrt(self.n_blocks / self.n_in), 1 / math.sqrt(self.n_blocks * self.share)

    @classmethod
    def choices(cls, n_in: int, n_out: int) -> Iterable[Self]:
        """Every number of blocks."""
        return (cls(n_in, n_out, n_blocks) for n_blocks in range(1, most_blocks(n_in, n_out) + 1))

    @classmethod
    def cheapest(cls, n_in: int, n_out: int) -> Self:
        """Return the one with the fewest multiplications, of those whose blocks fill both sides if there are any."""
        filling = [one for one in cls.choices(n_in, n_out) if not (n_in % one.n_blocks or n_out % one.n_blocks)]
        useful = [one for one in filling if one.n_blocks > 1] or list(cls.choices(n_in, n_out))
        return min(useful, key=lambda one: one.multiplications)

    def rows(self, x: F32, weights: Weights, out: F32, n_threads: int) -> None:
        """See `StructuredProduct.rows`.

        Between the factors lie hidden numbers with the rows of a block side by side: the transposition then moves
        none of them, or whole runs of rows.
        """
        first, second = weights
        b, share, width = self.n_blocks, self.share, self.width_out * self.n_blocks
        exact = width == self.n_out
        for block in self._row_blocks(len(x)):
            rows = padded(x[block], b * self.width_in)
            hidden = np.matmul(first, rows.reshape(-1, b, self.width_in).transpose(1, 2, 0))
            mixed = hidden.reshape(b, b, share, len(rows)).transpose(1, 3, 0, 2).reshape(b, len(rows), b * share)
            target = out[block] if exact else np.empty((len(rows), width), np.float32)
            np.matmul(
                mixed,
                second.transpose(0, 2, 1),
                out=target.reshape(len(rows), b, self.width_out).transpose(1, 0, 2),
            )
            if not exact:
                out[block] = target[:, : self.n_out]

    def _row_blocks(self, n_rows: int) -> list[slice]:
        return row_blocks(n_rows, self.n_blocks * (2 * self.width_in + self.width_out))

    def reference_rows(self, x: Array, weights: Weights) -> Array:
        """See `StructuredProduct.reference_rows`."""
        first, second = weights
        b, share = self.n_blocks, self.share
        inputs = padded(x, b * self.width_in).reshape(-1, b, self.width_in)
        hidden = np.einsum("rbi,bhi->rbh", inputs, first).reshape(-1, b, b, share)
        outputs = np.einsum("rbh,boh->rbo", hidden.transpose(0, 2, 1, 3).reshape(-1, b, b * share), second)
        result: Array = outputs.reshape(len(x), -1)[:, : self.n_out]
        return result


def most_blocks(n_in: int, n_out: int) -> int:
    """Return the largest number of blocks whose sides are no smaller than that number."""
    small = min(n_in, n_out)
    most = max(1, math.isqrt(small))
    while -(-small // (most + 1)) >= most + 1:
        most += 1
    return most
