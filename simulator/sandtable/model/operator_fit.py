"""Fit the constants of operator laws to timed operators, on one device or pooled over several."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sandtable.model import fitting
from sandtable.model.fitting import Fit, Parameter
from sandtable.model.law import Columns, LinkSheet, OperatorLaw, Sheet
from sandtable.spec import Estimate, OperatorFit

FloatArray = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorPoint:
    """One timed operator: what ran where, under which software, and its time in seconds.

    ``device`` is the name of the processor's or link's file, ``op`` the kind of `Op`, ``shape`` its numbers in the
    order of `sandtable.plan.OPERATOR_COLUMNS`. ``label`` tells people which row it is.
    """

    device: str
    software: str
    op: str
    dtype: str
    shape: tuple[float, ...]
    seconds: float
    label: str = ""


class Predictor:
    """Predicts many points of one law at once: they are grouped by device, dtype and op, and each group is one call."""

    def __init__(
        self, law: OperatorLaw, points: Sequence[OperatorPoint], sheets: Mapping[str, Sheet | LinkSheet]
    ) -> None:
        self.law = law
        self.n_points = len(points)
        self.measured = np.array([point.seconds for point in points])
        groups: dict[tuple[str, str, str], list[int]] = {}
        for index, point in enumerate(points):
            groups.setdefault((point.device, point.dtype, point.op), []).append(index)
        self.groups: list[tuple[Sheet | LinkSheet, str, str, Indices, Columns]] = []
        for (device, dtype, op), indices in groups.items():
            shapes = np.array([points[index].shape for index in indices], dtype=np.float64)
            columns = law.columns(list(shapes.T))
            self.groups.append((sheets[device], dtype, op, np.array(indices, dtype=np.intp), columns))

    def seconds(self, constants: Mapping[str, float]) -> FloatArray:
        """Return the predicted time of every point, in their order."""
        predicted = np.empty(self.n_points)
        for sheet, dtype, op, indices, columns in self.groups:
            predicted[indices] = self.law.seconds(sheet, constants, columns, dtype=dtype, op=op)
        return predicted

    def residuals(self, constants: Mapping[str, float]) -> FloatArray:
        """Return log(predicted / measured) of every point."""
        return np.asarray(np.log(self.seconds(constants) / self.measured), dtype=np.float64)


def fit_operator(
    law: OperatorLaw,
    points: Sequence[OperatorPoint],
    sheets: Mapping[str, Sheet | LinkSheet],
    *,
    method: str,
    date: dt.date | None = None,
    fit: Callable[[Sequence[Parameter], fitting.Residuals, int], Fit] = fitting.fit_parameters,
) -> OperatorFit:
    """Fit a law's constants to ``points``; several devices among them share the constants.

    Raises:
        CalibrationError: fewer points than constants.
    """
    parameters = [
        Parameter(name=constant.name, start=constant.typical, low=constant.low, high=constant.high)
        for constant in law.constants
    ]
    predictor = Predictor(law, points, sheets)

    def residuals(values: FloatArray, indices: Indices) -> FloatArray:
        return predictor.residuals(_named(law, values))[indices]

    found = fit(parameters, residuals, len(points))
    estimates: dict[str, Estimate[float]] = {
        parameter.name: found.estimate(index) for index, parameter in enumerate(parameters)
    }
    evidence = fitting.evidence(found, method=method, n_samples=len(points), date=date)
    return law.fit(**estimates, evidence=evidence)


def _named(law: OperatorLaw, values: FloatArray) -> dict[str, float]:
    return {constant.name: float(value) for constant, value in zip(law.constants, values, strict=True)}
