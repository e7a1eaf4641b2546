"""Do intervals hold on a device that nobody fitted? Each is left out, of the constants and of the interval alike.

A device is predicted with constants fitted to its siblings, and its interval follows from leaving out each of those in
turn, beside what is usual on all other devices. So nothing of the device is in what is tested on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sandtable.calibration.fit import left_out
from sandtable.demand.operator import operators
from sandtable.table import Table

FloatArray = npt.NDArray[np.float64]


class Missed(NamedTuple):
    """What a device is missed by under one software: log(predicted / measured) of its points.

    ``siblings`` is what each of its siblings is missed by when it is left out as well.
    """

    operator: str
    device: str
    residuals: FloatArray
    siblings: tuple[FloatArray, ...]

    @property
    def scatter(self) -> float:
        """Standard deviation about zero."""
        return left_out.scatter_of(self.residuals)


def half_width(missed: Sequence[FloatArray], usual: float) -> float:
    """Return half the 90 % interval on a further device, in logarithms, from what each of some was missed by."""
    squares = [left_out.scatter_of(residuals) ** 2 for residuals in missed]
    return left_out.half_width(float(np.sqrt(np.mean(squares))) if squares else 0.0, len(squares), usual)


def half_widths(missed: Sequence[Missed]) -> list[float]:
    """Return half the interval of each device of one operator, made without it."""
    scatters = [(item.device, item.scatter) for item in missed]
    found = []
    for item in missed:
        others = [scatter for device, scatter in scatters if device != item.device]
        known = usual_of(item.operator)
        found.append(half_width(item.siblings, left_out.usual(others) if others else known))
    return found


def usual_of(fitted_as: str) -> float:
    """Return what the laws of an operator state for devices left out."""
    return next(law.scatter.siblings for law in operators().values() if law.fitted_as == fitted_as)


def table(missed: Sequence[Missed]) -> Table:
    """Return how far devices left out are missed, by operator, and how many points lie in intervals made so."""
    rows: list[list[object]] = []
    for operator in dict.fromkeys(item.operator for item in missed):
        members = [item for item in missed if item.operator == operator]
        halves = half_widths(members)
        residuals = np.abs(np.concatenate([item.residuals for item in members]))
        widths = np.repeat(halves, [len(item.residuals) for item in members])
        errors = np.abs(np.expm1(np.concatenate([item.residuals for item in members])))
        cells = (
            np.median(errors),
            np.percentile(errors, 90),
            np.mean(residuals <= widths),
            np.mean(np.expm1(widths)),
        )
        usual = left_out.usual([item.scatter for item in members])
        rows.append([operator, len(members), len(errors), *(f"{100 * cell:.1f}" for cell in cells), f"{usual:.3f}"])
    return Table(
        columns=("operator", "left out", "points", "median error", "p90 error", "inside", "half width", "scatter"),
        units=("", "devices", "", "%", "%", "%", "%", "log"),
        rows=rows,
        title="Intervals made without the device",
    )
