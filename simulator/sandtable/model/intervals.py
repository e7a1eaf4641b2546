"""How the misses of several laws join into the interval of a sum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, overload

import numpy as np

from sandtable.demand.operator import FloatArray


@overload
def joined(misses: Iterable[tuple[float, float]]) -> float: ...


@overload
def joined(misses: Iterable[tuple[FloatArray, FloatArray | float]]) -> FloatArray: ...


def joined(misses: Iterable[tuple[Any, Any]]) -> Any:
    """Return by how far a sum may miss, from (miss, part of it that all share) of each law.

    Operators of one law share its error, so that the misses of theirs add up before they come here. The errors of
    different laws were found on different measurements and are taken as independent: theirs is the root of the sum of
    squares (JCGM 100:2008, "Guide to the expression of uncertainty in measurement", section 5.1.2). What the machine
    as a whole drifts is shared by all of them and adds up again. Numbers or arrays, one entry per configuration.
    """
    pairs = list(misses)
    own = sum(miss**2 - shared**2 for miss, shared in pairs)
    drifted = sum(shared for _, shared in pairs) ** 2
    if isinstance(own, np.ndarray):
        return np.sqrt(np.maximum(0.0, own) + drifted)
    return math.sqrt(max(0.0, own) + drifted)
