"""How much wider an interval is where a law was not fitted: beyond the shapes, or for other types than, a fit has seen.

A fit states what it has seen in its evidence; the distance of a shape from that counts doublings, over all columns::

    distance = |log2 of each column, less the end of its range where it lies outside|
    extra = `NORMAL_95` |(per_doubling * distance, new_kind where operator or type were not fitted)|

in logarithms, to be joined in squares with the interval that holds within. By how much more a law misses is in its
`sandtable.demand.operator.Scatter`. What is not asked for, a column of zero, lies nowhere. A fit that states nothing
widens nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import FloatArray, Operator, operator_named
from sandtable.hardware import Evidence
from sandtable.results import NORMAL_95

# no further than where nothing was ever fitted, see `sandtable.model.fitted_constants.UNFITTED_HIGH_FRAC`
MOST = math.log(2)


def columns_of(op: Op) -> dict[str, Any]:
    """Return the columns of a demand by name: of its shape, else what a plain operation counts."""
    if op.shape is not None:
        return dict(operator_named(op.operator).Shape(*op.shape)._asdict())
    return {"n_bytes": op.bytes_moved, "flops": op.flops, "n_items": op.n_items, "n_special": op.n_special}


def kind_of(op: Op) -> str:
    """Return the operator and element type of a demand, as evidence names them."""
    return f"{op.operator} {op.dtype}"


def stated(ops: Sequence[Op]) -> tuple[str, str]:
    """Return what `Evidence` says of the demands that were fitted: their ``kinds`` and ``shapes``."""
    columns: dict[str, list[float]] = {}
    for op in ops:
        for name, column in columns_of(op).items():
            columns.setdefault(name, []).append(float(column))
    shapes = (f"{name} {_written(min(values))} to {_written(max(values))}" for name, values in columns.items())
    return ", ".join(dict.fromkeys(map(kind_of, ops))), ", ".join(shapes)


def beyond(
    law: Operator[Any], evidence: Evidence | None, kind: str, columns: Mapping[str, Any]
) -> FloatArray | float:
    """Return half of what the 90 % interval has in addition, in logarithms; columns may be arrays."""
    if evidence is None or not evidence.shapes:
        return 0.0
    squares: Any = 0.0 if kind in evidence.kinds.split(", ") else law.scatter.new_kind**2
    for name, (low, high) in ranges(evidence.shapes).items():
        if name in columns:
            place = np.log2(np.maximum(1.0, columns[name]))
            outside = np.where(columns[name] == 0, 0.0, np.maximum(0.0, np.maximum(low - place, place - high)))
            squares = squares + (law.scatter.per_doubling * outside) ** 2
    return np.asarray(np.minimum(MOST, NORMAL_95 * np.sqrt(squares)), dtype=np.float64)


@lru_cache(maxsize=4096)
def ranges(shapes: str) -> dict[str, tuple[float, float]]:
    """Return the binary logarithms of the ends of each column that evidence states."""
    found = {}
    for column in shapes.split(", "):
        name, low, _, high = column.split(" ")
        found[name] = math.log2(max(1.0, float(low))), math.log2(max(1.0, float(high)))
    return found


def _written(number: float) -> str:
    return f"{number:.6g}"
