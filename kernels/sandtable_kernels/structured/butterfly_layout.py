"""The shape of a butterfly transform: its levels, strides, weights and arithmetic.

Alizadeh vahid et al., "Butterfly Transform: An Efficient FFT Based Neural Architecture Design", CVPR 2020,
arXiv 1906.02256. A square transform of side n and base k has ``L = ceil(log_k n)`` levels of k n weights each. Where n
is a power of k, exactly one path joins each input to each output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from sandtable.errors import ConfigError

BASES: Final = (2, 4, 8, 16)


@dataclass(frozen=True)
class ButterflyLayout:
    """A butterfly transform from ``n_in`` numbers to ``n_out``.

    Level l joins the k positions ``start + j * strides[l]`` of each group; ``w[block, l, i, j]`` is the weight from the
    j-th position of i's group to position i. Strides fall by the factor k, and the last is 1. Where the side is
    ``k**(L-1) * m`` with m < k, the last level overlaps the one before it, so that every level still has k weights a
    position. Sides that no such number equals are padded with zeros.

    Where sizes differ, the larger side is split into as many square transforms of the smaller side as it takes, each
    with a residual of its own: their outputs are concatenated and cut, or their inputs are padded with zeros and their
    results summed.

    Args:
        n_in: Inputs.
        n_out: Outputs.
        base: k, one of `BASES`.
        padded: Allow sides that need padding.

    Raises:
        ConfigError: a size below one, another base, or a side that needs padding where that is not allowed.
    """

    n_in: int
    n_out: int
    base: int = 4
    padded: bool = True

    def __post_init__(self) -> None:
        for name, value in (("n_in", self.n_in), ("n_out", self.n_out)):
            if value < 1:
                raise ConfigError(f"{name} of a butterfly must be at least 1, not {value}")
        if self.base not in BASES:
            raise ConfigError(
                f"the base of a butterfly is {', '.join(map(str, BASES[:-1]))} or 16, not {self.base}"
            )
        if not self.padded and self.size != self.side:
            below = _largest_up_to(self.side, self.base)
            near = f"{below} or {self.size}" if below else f"{self.size}"
            raise ConfigError(
                f"a butterfly of base {self.base} has no side of {self.side} without padding: take {near}"
            )

    @property
    def side(self) -> int:
        """The smaller of both sizes, which the square transforms have."""
        return min(self.n_in, self.n_out)

    @cached_property
    def n_levels(self) -> int:
        """L, at least 1."""
        return _levels(self.side, self.base)

    @cached_property
    def size(self) -> int:
        """Side of one square transform with its padding."""
        return _padded_size(self.side, self.base)

    @property
    def n_blocks(self) -> int:
        """How many square transforms there are."""
        return -(-max(self.n_in, self.n_out) // self.side)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Distance of neighbours in a group, for each level."""
        return (*(self.size // self.base**level for level in range(1, self.n_levels)), 1)

    @property
    def weights_shape(self) -> tuple[int, int, int, int]:
        """[blocks, levels, size, base]."""
        return (self.n_blocks, self.n_levels, self.size, self.base)

    @property
    def parameters(self) -> int:
        """Numbers that are learned, those of padding included."""
        return math.prod(self.weights_shape)

    @property
    def multiplications(self) -> int:
        """Multiply-accumulates for one row, as executed: on the padded size."""
        return self.parameters

    @property
    def paper_multiplications(self) -> int:
        """Multiply-accumulates for one row as the paper counts them, without padding."""
        return self.n_blocks * self.n_levels * self.side * self.base


def _levels(n: int, base: int) -> int:
    levels = 1
    while base**levels < n:
        levels += 1
    return levels


def _padded_size(n: int, base: int) -> int:
    """Return the least ``base**(levels-1) * m`` that is not below ``n``, with 1 < m <= base; ``base`` for one level."""
    unit = base ** (_levels(n, base) - 1)
    return base if unit == 1 else unit * -(-n // unit)


def _largest_up_to(n: int, base: int) -> int:
    """Return the largest size without padding that is at most ``n``; 0 where there is none."""
    unit = base ** (_levels(n, base) - 1)
    return unit * (n // unit) if unit > 1 else 0
