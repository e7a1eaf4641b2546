"""Weights and multiplications of a pointwise layer's matrix, by its structure."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from sandtable.errors import ConfigError, UnknownName
from sandtable_kernels.structured import structures
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout

Options = tuple[tuple[str, int], ...]


class PointwiseCounts(NamedTuple):
    """Of one matrix: weights held, multiplications per pixel as executed, and as papers count them."""

    parameters: int
    multiplications: int
    paper_multiplications: int


@lru_cache(maxsize=4096)
def pointwise_counts(
    structure: str, n_in: int, n_out: int, base: int = 4, options: Options = ()
) -> PointwiseCounts:
    """Return the counts of an ``n_out`` x ``n_in`` matrix of that structure.

    Raises:
        ConfigError: a base or options that it cannot have.
        UnknownName: no such structure.
    """
    if structure == "butterfly":
        layout = ButterflyLayout(n_in, n_out, base)
        return PointwiseCounts(layout.parameters, layout.multiplications, layout.paper_multiplications)
    product = structures.structured(structure, n_in, n_out, **dict(options))
    return PointwiseCounts(product.parameters, product.multiplications, product.multiplications)


@lru_cache(maxsize=4096)
def equal_options(structure: str, n_in: int, n_out: int, base: int) -> Options:
    """Return the options with which a structure takes as many multiplications as a butterfly of that base, or fewer.

    Where all take more, as Monarch matrices from some size on, those with which it takes the fewest.
    """
    if structure in ("dense", "butterfly"):
        return ()
    budget = pointwise_counts("butterfly", n_in, n_out, base).paper_multiplications
    try:
        options = structures.matching(structure, n_in, n_out, budget)
    except ConfigError:  # none takes so few
        choices = structures.kind_named(structure).choices(n_in, n_out)
        options = min(choices, key=lambda choice: choice.multiplications).options
    return tuple(options.items())


def check_structure(structure: str, base: int) -> None:
    """Refuse what is no structure.

    Raises:
        ConfigError: a butterfly cannot have this base.
        UnknownName: with the nearest name.
    """
    if structure not in structures.STRUCTURES:
        raise UnknownName("structure of a pointwise layer", structure, structures.STRUCTURES)
    ButterflyLayout(1, 1, base)
