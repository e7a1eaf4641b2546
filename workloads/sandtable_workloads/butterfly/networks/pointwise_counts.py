"""Weights and multiplications of a pointwise layer's matrix, by its structure."""

from __future__ import annotations

from typing import NamedTuple

from sandtable.errors import ConfigError, UnknownName

STRUCTURES = ("dense", "butterfly")


class PointwiseCounts(NamedTuple):
    """Of one matrix: weights held, multiplications per pixel as executed, and as the paper counts them."""

    parameters: int
    multiplications: int
    paper_multiplications: int


def pointwise_counts(
    structure: str, n_in: int, n_out: int, base: int = 4, options: tuple[tuple[str, int], ...] = ()
) -> PointwiseCounts:
    """Return the counts of an ``n_out`` x ``n_in`` matrix of that structure."""
    if structure == "dense":
        return PointwiseCounts(*[n_in * n_out] * 3)
    if structure == "butterfly":
        return _butterfly(n_in, n_out, base)
    raise UnknownName("structure of a pointwise layer", structure, STRUCTURES)


def _butterfly(n_in: int, n_out: int, base: int) -> PointwiseCounts:
    """Section 3.2 of arXiv 1906.02256: base * n * log_base(n) of a square transform, one per multiple of its side."""
    if base < 2:
        raise ConfigError(f"a butterfly of base {base} has no levels: write 2, 4, 8 or 16")
    side, blocks = min(n_in, n_out), -(-max(n_in, n_out) // min(n_in, n_out))
    levels, reach = 1, base
    while reach < side:
        levels, reach = levels + 1, reach * base
    step = base ** (levels - 1)
    padded = step * max(2, -(-side // step)) if side > 1 else side
    return PointwiseCounts(
        blocks * base * padded * levels, blocks * base * padded * levels, blocks * base * side * levels
    )
