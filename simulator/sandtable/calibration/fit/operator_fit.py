"""Fit the constants of operator laws to timed operators, on one device or pooled over several.

Residuals are logarithms of predicted over measured, since times span decades, and large ones count less than their
square (see `Operator.loss`). A fit is refitted five times with a fifth of the points kept out; intervals of the
constants come from a bootstrap that takes one Gauss-Newton step per draw.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.calibration.fit import least_squares
from sandtable.calibration.fit.least_squares import Fit
from sandtable.demand.operator import Columns, Operator, operator_named
from sandtable.errors import CalibrationError, missing_extra
from sandtable.hardware import Evidence, LinkSheet, OperatorFit, Roofline

FloatArray = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Sheets = Mapping[str, Roofline | LinkSheet]

N_FOLDS = 5
N_DRAWS = 200
# beyond this log error a point counts by its size, not by its square
ROBUST = 0.1
# step of the logarithms for the Jacobian: larger than the jumps of a law that counts whole tiles and waves
STEP = 1e-3
N_STARTS = 2

# loss of a squared residual, and its slope, as scipy.optimize.least_squares defines them
_LOSSES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "soft_l1": lambda squares: 2 * (np.sqrt(1 + squares) - 1),
    "cauchy": np.log1p,
}
_WEIGHTS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "soft_l1": lambda squares: 1 / np.sqrt(1 + squares),
    "cauchy": lambda squares: 1 / (1 + squares),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorPoint:
    """One timed operator: what ran where, under which software, and its time in seconds.

    ``device`` is the name of the accelerator's or link's file whose constants it informs, ``operator`` and ``shape``
    are those of an `Op`. ``beside`` names the link within machines that completes the data sheet of a link between
    machines; empty for none. ``label`` tells people which row it is.
    """

    device: str
    software: str
    operator: str
    dtype: str
    shape: Any
    seconds: float
    label: str = ""
    beside: str = ""

    @property
    def sheet(self) -> str:
        """Key of the data sheet that it needs: the device, and what stands beside it."""
        return f"{self.device}+{self.beside}" if self.beside else self.device


class Predictor:
    """Predicts many points at once: they are grouped by device, dtype and operator, and each group is one call.

    ``sheets`` holds one data sheet for each `OperatorPoint.sheet`.
    """

    def __init__(self, points: Sequence[OperatorPoint], sheets: Sheets) -> None:
        self.n_points = len(points)
        self.measured = np.array([point.seconds for point in points])
        groups: dict[tuple[str, str, str], list[int]] = {}
        for index, point in enumerate(points):
            groups.setdefault((point.sheet, point.dtype, point.operator), []).append(index)
        self.groups: list[tuple[Operator[Any], Roofline | LinkSheet, str, Indices, Columns]] = []
        for (sheet, dtype, name), indices in groups.items():
            operator = operator_named(name)
            shapes = np.array([points[index].shape for index in indices], dtype=np.float64)
            columns = operator.columns(shapes.T)
            self.groups.append((operator, sheets[sheet], dtype, np.array(indices, dtype=np.intp), columns))

    def seconds(self, constants: Mapping[str, float]) -> FloatArray:
        """Return the predicted time of every point, in their order."""
        predicted = np.empty(self.n_points)
        for operator, sheet, dtype, indices, columns in self.groups:
            predicted[indices] = operator.seconds(sheet, constants, columns, dtype=dtype)
        return predicted

    def residuals(self, constants: Mapping[str, float]) -> FloatArray:
        """Return log(predicted / measured) of every point."""
        return np.asarray(np.log(self.seconds(constants) / self.measured), dtype=np.float64)


class Fitting:
    """Least squares for one law and one set of points. Constants are fitted as logarithms between their bounds.

    ``towards`` are constants of siblings: what the points say nothing of stays there, or at the typical values.
    """

    def __init__(
        self,
        law: Operator[Any],
        points: Sequence[OperatorPoint],
        sheets: Sheets,
        towards: Mapping[str, float] | None = None,
    ) -> None:
        if len(points) < len(law.constants):
            raise CalibrationError(
                f"{len(points)} measured points cannot fit the {len(law.constants)} constants of {law.fitted_as}"
            )
        self.law = law
        self.points, self.sheets, self.towards = points, sheets, towards
        self.predictor = Predictor(points, sheets)
        self.low = np.log([constant.low for constant in law.constants])
        self.high = np.log([constant.high for constant in law.constants])
        centre = law.typical() if towards is None else towards
        self.typical = np.log([centre[constant.name] for constant in law.constants])
        # a constant with further starts has no slope: it stays where a start puts it
        self.prior = np.array([0.0 if constant.starts else law.prior for constant in law.constants])

    def residuals(self, logs: FloatArray) -> FloatArray:
        """Return log(predicted / measured) of every point for logarithms of constants."""
        return self.predictor.residuals(_named(self.law, np.exp(logs)))

    def jacobian(self, logs: FloatArray) -> FloatArray:
        """Return the change of the residuals with each logarithm, by central differences within the bounds."""
        columns = []
        for index in range(len(logs)):
            up, down = logs.copy(), logs.copy()
            up[index] = min(logs[index] + STEP, self.high[index])
            down[index] = max(logs[index] - STEP, self.low[index])
            columns.append((self.residuals(up) - self.residuals(down)) / (up[index] - down[index]))
        return np.array(columns).T

    def solve(self, start: FloatArray, tolerance: float = 1e-6) -> FloatArray:
        """Return the logarithms that fit best, from ``start``."""
        try:
            from scipy.optimize import least_squares
        except ImportError:
            raise missing_extra("scipy", "run") from None
        prior = np.diag(self.prior)
        solution = least_squares(
            lambda logs: np.concatenate([self.residuals(logs), prior @ (logs - self.typical)]),
            np.clip(start, self.low + 1e-9, self.high - 1e-9),
            jac=lambda logs: np.concatenate([self.jacobian(logs), prior]),  # pyright: ignore[reportArgumentType]
            bounds=(self.low, self.high),
            loss=self.law.loss,
            f_scale=ROBUST,
            ftol=tolerance,
            xtol=tolerance,
            max_nfev=60,
        )
        return np.asarray(solution.x, dtype=np.float64)

    def best(self) -> FloatArray:
        """Return the logarithms that fit best, from the typical constants and from a few places around them."""
        rng = np.random.default_rng(0)
        starts = [self.typical]
        for _ in range(N_STARTS - 1):
            around = np.where(self.prior > 0, rng.normal(0.0, 0.4, len(self.typical)), 0.0)
            starts.append(np.clip(self.typical + around, self.low, self.high))
        plain = min((self.solve(start) for start in starts), key=self.loss)
        others = [self.solve(start) for start in self.further_starts()]
        best = min([plain, *others], key=self.loss)
        # a constant away from its typical value has to earn its keep (half of what the Bayesian criterion asks for)
        return best if self.loss(plain) - self.loss(best) > 0.5 * np.log(self.predictor.n_points) else plain

    def further_starts(self) -> list[FloatArray]:
        """Return the typical constants with one of them at each of the further values that its law names."""
        found = []
        for index, constant in enumerate(self.law.constants):
            for value in constant.starts:
                found.append(self.typical.copy())
                found[-1][index] = np.log(value)
        return found

    def loss(self, logs: FloatArray) -> float:
        """Return the loss that `solve` minimises."""
        residuals = np.concatenate([self.residuals(logs), self.prior * (logs - self.typical)])
        return float(np.sum(_LOSSES[self.law.loss]((residuals / ROBUST) ** 2)))

    def held_out(self, logs: FloatArray) -> FloatArray:
        """Return each point's residual under constants fitted without its fold; NaN if too few points remain."""
        n_points = self.predictor.n_points
        order = np.random.default_rng(0).permutation(n_points)
        n_folds = min(N_FOLDS, n_points)
        found = np.full(n_points, np.nan)
        if n_points - -(-n_points // n_folds) < len(logs):
            return found
        for fold in range(n_folds):
            outside = order[fold::n_folds]
            inside = np.setdiff1d(np.arange(n_points), outside)
            others = Fitting(self.law, [self.points[i] for i in inside], self.sheets, self.towards)
            found[outside] = self.residuals(others.solve(logs, 1e-4))[outside]
        return found

    def draws(self, logs: FloatArray) -> FloatArray:
        """Return constants of bootstrap samples of the points: one Gauss-Newton step from the solution for each."""
        residuals, jacobian = self.residuals(logs), self.jacobian(logs)
        n_points, n_constants = jacobian.shape
        rng = np.random.default_rng(0)
        counts = rng.multinomial(n_points, np.full(n_points, 1 / n_points), N_DRAWS)
        weights = counts * _WEIGHTS[self.law.loss]((residuals / ROBUST) ** 2)
        normal = np.einsum("bn,ni,nj->bij", weights, jacobian, jacobian) + 1e-9 * np.eye(n_constants)
        slope = np.einsum("bn,ni,n->bi", weights, jacobian, residuals)
        steps = -np.linalg.solve(normal, slope[..., None])[..., 0]
        # about the mean step, which only says that the solver stopped a little early
        return np.asarray(np.exp(np.clip(logs + steps - steps.mean(axis=0), self.low, self.high)))


def fit_constants(
    law: Operator[Any],
    points: Sequence[OperatorPoint],
    sheets: Sheets,
    towards: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the constants that fit ``points`` best, without intervals; see `Fitting` for ``towards``.

    Raises:
        CalibrationError: fewer points than constants.
    """
    return _named(law, np.exp(Fitting(law, points, sheets, towards).best()))


def held_out_seconds(
    law: Operator[Any],
    points: Sequence[OperatorPoint],
    sheets: Sheets,
    towards: Mapping[str, float] | None = None,
) -> FloatArray:
    """Predict each point with constants fitted without its fold, a fifth of the points; NaN if too few remain."""
    fitting_ = Fitting(law, points, sheets, towards)
    return np.asarray(fitting_.predictor.measured * np.exp(fitting_.held_out(fitting_.best())), dtype=np.float64)


def fit_operator(
    law: Operator[Any],
    points: Sequence[OperatorPoint],
    sheets: Sheets,
    *,
    method: str,
    date: dt.date | None = None,
    towards: Mapping[str, float] | None = None,
) -> OperatorFit:
    """Fit a law's constants to ``points``, with intervals; several devices among them share the constants.

    See `Fitting` for ``towards``.

    Raises:
        CalibrationError: fewer points than constants.
    """
    fitting_ = Fitting(law, points, sheets, towards)
    logs = fitting_.best()
    held_out = fitting_.held_out(logs)
    found = Fit(
        values=np.exp(logs),
        draws=fitting_.draws(logs),
        residuals=fitting_.residuals(logs),
        held_out=held_out[~np.isnan(held_out)],
    )
    return as_operator_fit(
        law, found, least_squares.evidence(found, method=method, n_samples=len(points), date=date)
    )


def as_operator_fit(law: Operator[Any], found: Fit, evidence: Evidence) -> OperatorFit:
    """Return a fit in the form that a device file keeps."""
    estimates = {constant.name: found.estimate(index) for index, constant in enumerate(law.constants)}
    return OperatorFit(constants=estimates, evidence=evidence)


def _named(law: Operator[Any], values: FloatArray) -> dict[str, float]:
    return {constant.name: float(value) for constant, value in zip(law.constants, values, strict=True)}
