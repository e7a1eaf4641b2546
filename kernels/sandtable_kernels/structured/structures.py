"""Every structure of a matrix by its name: what it holds, what it costs, and which options meet a budget."""

from __future__ import annotations

import dataclasses
from typing import Any

from sandtable.errors import ConfigError, UnknownName
from sandtable_kernels.structured.baselines.block_shuffle import BlockShuffle
from sandtable_kernels.structured.baselines.circulant import Circulant, Toeplitz
from sandtable_kernels.structured.baselines.dense_product import Dense
from sandtable_kernels.structured.baselines.low_rank import LowRank
from sandtable_kernels.structured.baselines.monarch import Monarch
from sandtable_kernels.structured.baselines.structured_product import StructuredProduct, check_positive
from sandtable_kernels.structured.butterfly_product import ButterflyProduct

KINDS: dict[str, type[StructuredProduct]] = {
    kind.structure: kind for kind in (Dense, ButterflyProduct, LowRank, Circulant, Toeplitz, Monarch, BlockShuffle)
}
STRUCTURES = tuple(KINDS)


def kind_named(structure: str) -> type[StructuredProduct]:
    """Return the kind of a name.

    Raises:
        UnknownName: with the nearest name.
    """
    if structure not in KINDS:
        raise UnknownName("structure", structure, STRUCTURES)
    return KINDS[structure]


def option_names(structure: str) -> tuple[str, ...]:
    """Return the names of a structure's options, such as rank."""
    return tuple(
        field.name for field in dataclasses.fields(kind_named(structure)) if field.name not in ("n_in", "n_out")
    )


def structured(structure: str, n_in: int, n_out: int, **options: Any) -> StructuredProduct:
    """Return the product of a structure; without options, a Monarch one takes the blocks that make it cheapest.

    Raises:
        ConfigError: sizes or options that the structure cannot have, or one that it needs.
        UnknownName: no such structure.
    """
    kind, known = kind_named(structure), option_names(structure)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"{structure} has no option {', '.join(unknown)}: it has {', '.join(known) if known else 'none'}"
        )
    check_positive(structure, {"n_in": n_in, "n_out": n_out})
    if kind is Monarch and not options:
        return Monarch.cheapest(n_in, n_out)
    fields = dataclasses.fields(kind)
    missing = [field.name for field in fields if field.name in known and field.default is dataclasses.MISSING]
    if not set(missing) <= set(options):
        raise ConfigError(f"{structure} needs its {' and '.join(missing)}")
    return kind(n_in, n_out, **options)


def matching(structure: str, n_in: int, n_out: int, multiplications: float) -> dict[str, Any]:
    """Return the options with which a structure comes nearest to a budget without exceeding it.

    Args:
        structure: One of `STRUCTURES`.
        n_in: Inputs.
        n_out: Outputs.
        multiplications: Most multiply-accumulates for one row, as executed.

    Raises:
        ConfigError: it cannot be had for so little, or a size below one.
        UnknownName: no such structure.
    """
    check_positive(structure, {"n_in": n_in, "n_out": n_out})
    choices = list(kind_named(structure).choices(n_in, n_out))
    within = [one for one in choices if one.multiplications <= multiplications]
    if not within:
        least = min(one.multiplications for one in choices)
        raise ConfigError(
            f"no {structure} matrix of {n_out} x {n_in} takes as few as {multiplications:g} multiplications "
            f"a row: the least is {least}"
        )
    return max(within, key=lambda one: one.multiplications).options
