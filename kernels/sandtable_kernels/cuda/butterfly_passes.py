"""Which levels of a butterfly run together on a GPU, and where each side of such a pass lies. Needs no GPU.

What neighbouring levels do to the positions that they mix is one small dense matrix. A pass multiplies all rows by
these matrices on the tensor cores, and reads and writes every activation once.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

from sandtable_kernels.structured.butterfly_layout import ButterflyLayout

# positions that one pass mixes at most: of neighbours, and of others, of which several groups are held together so
# that memory is read in whole sectors
MOST_NEIGHBOURS, MOST_APART = 128, 64
# the least that tensor cores multiply
LEAST_TILE = 16


class Pass(NamedTuple):
    """Levels ``first`` to before ``last`` as one product: groups of ``size`` positions, ``stride`` apart."""

    first: int
    last: int
    size: int
    stride: int

    @property
    def tile(self) -> int:
        """Return the side of the group's matrix as it is stored and multiplied."""
        return max(LEAST_TILE, 1 << (self.size - 1).bit_length())

    def matrix_items(self, layout: ButterflyLayout) -> int:
        """Return how many numbers the matrices of all groups hold: multiplications for one row, as executed."""
        return layout.n_blocks * (layout.size // self.size) * self.tile**2


@lru_cache(maxsize=256)
def passes_of(layout: ButterflyLayout) -> tuple[Pass, ...]:
    """Return the fewest passes that do all levels, and of these the ones with the smallest matrices."""
    strides, base = layout.strides, layout.base

    @lru_cache(maxsize=layout.n_levels + 1)
    def best(first: int) -> tuple[int, int, tuple[Pass, ...]]:
        if first == layout.n_levels:
            return 0, 0, ()
        found = []
        for last in range(first + 1, layout.n_levels + 1):
            stride = strides[last - 1]
            one = Pass(first, last, base * strides[first] // stride, stride)
            if one.size <= (MOST_NEIGHBOURS if stride == 1 else MOST_APART) or last == first + 1:
                n, total, others = best(last)
                found.append((n + 1, total + one.tile, (one, *others)))
        return min(found)

    return best(0)[2]


class Side(NamedTuple):
    """How the activations on one side of a pass lie: block b's position p is column ``b * step + p``.

    Positions from ``used`` on, and columns from ``columns`` on, are padding. ``step`` 0: all blocks share one.
    """

    step: int
    used: int
    columns: int


def sides_of(layout: ButterflyLayout) -> tuple[Side, Side, Side]:
    """Return the sides of the input, of what is between two passes, and of the output."""
    used = layout.side
    steps = (used if layout.n_in > layout.n_out else 0, used if layout.n_out > layout.n_in else 0)
    between = Side(layout.size, layout.size, layout.n_blocks * layout.size)
    return Side(steps[0], used, layout.n_in), between, Side(steps[1], used, layout.n_out)


class PassDemand(NamedTuple):
    """What passes do: arithmetic as executed, the sums that it consists of, bytes to memory and back, kernels."""

    flops: float
    sums: float
    n_bytes: float
    kernels: float


def demand_of(layout: ButterflyLayout, n_rows: int, item_bytes: int, *, backward: bool = False) -> PassDemand:
    """Return what a transform of ``n_rows`` demands of a GPU, forward, or backward by input and weights.

    Every pass reads and writes its activations once, and its matrices: composed by a kernel of its own. Backward it
    also meets its input with the gradient of its output, and sums over parts of the rows what goes back to weights.
    """
    widths = [layout.n_in, *[layout.n_blocks * layout.size] * (len(passes_of(layout)) - 1), layout.n_out]
    items = [one.matrix_items(layout) for one in passes_of(layout)]
    through = sum(read + written for read, written in itertools.pairwise(widths))
    forward = PassDemand(
        2.0 * n_rows * sum(items),
        n_rows * sum(widths[1:]),
        item_bytes * (n_rows * through + 2 * sum(items) + layout.parameters),
        2.0 * len(items),
    )
    if not backward:
        return forward
    matrices = 4 * 2 * sum(items) + item_bytes * (sum(items) + 2 * layout.parameters)
    n_bytes = 2 * item_bytes * n_rows * through + matrices
    return PassDemand(2 * forward.flops, n_rows * sum(widths[:-1]) + sum(items), n_bytes, 4.0 * len(items))
