"""Fit the constants of operator laws to timings, on one device or pooled over several.

`fit_groups` is the road that all timings take to ``fitted.operators``: those of the host, of GPUs, of recordings and
of published rows.

Residuals are logarithms of predicted over measured, since times span decades, and large ones count less than their
square (see `Operator.loss`). A fit is refitted five times with a fifth of the shapes kept out; intervals of the
constants come from a bootstrap that takes one Gauss-Newton step per draw.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.calibration.fit import least_squares, left_out
from sandtable.calibration.fit.least_squares import Fit
from sandtable.calibration.timing import Group, Timing, grouped
from sandtable.demand.operator import Columns, Operator
from sandtable.errors import CalibrationError, missing_extra
from sandtable.hardware import LinkSheet, OperatorFit, OperatorFits, Roofline

FloatArray = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Sheet = Roofline | LinkSheet
SheetOf = Callable[[Timing], Sheet]

N_DRAWS = 200
# beyond this log error a point counts by its size, not by its square
ROBUST = 0.1
# step of the logarithms for the Jacobian: larger than the jumps of a law that counts whole tiles and waves
STEP = 1e-3
N_STARTS = 2

# loss of a squared residual, its slope and its curvature, as scipy.optimize.least_squares defines them
_LOSSES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "soft_l1": lambda squares: 2 * (np.sqrt(1 + squares) - 1),
    "cauchy": np.log1p,
}
_WEIGHTS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "soft_l1": lambda squares: 1 / np.sqrt(1 + squares),
    "cauchy": lambda squares: 1 / (1 + squares),
}
_CURVATURES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "soft_l1": lambda squares: -0.5 * (1 + squares) ** -1.5,
    "cauchy": lambda squares: -((1 + squares) ** -2),
}


class Predictor:
    """Predicts many timings at once: they are grouped by data sheet, dtype and operator, and each group is one call.

    ``sheet_of`` gives the data sheet that a timing's law reads.
    """

    def __init__(self, timings: Sequence[Timing], sheet_of: SheetOf) -> None:
        self.n_points = len(timings)
        self.measured = np.array([timing.seconds for timing in timings])
        groups: dict[tuple[tuple[str, str, int], str, str], list[int]] = {}
        for index, timing in enumerate(timings):
            groups.setdefault((timing.sheet, timing.op.dtype, timing.op.operator), []).append(index)
        self.groups: list[tuple[Operator[Any], Sheet, str, Indices, Columns]] = []
        for (_, dtype, _), indices in groups.items():
            first = timings[indices[0]]
            shapes = np.array([timings[index].op.shape for index in indices], dtype=np.float64)
            columns = first.law.columns(shapes.T)
            self.groups.append((first.law, sheet_of(first), dtype, np.array(indices, dtype=np.intp), columns))

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
    """Least squares for timings of one law. Constants are fitted as logarithms between their bounds.

    ``towards`` are constants of siblings: what the timings say nothing of stays there, or at the typical values.
    """

    def __init__(
        self, timings: Sequence[Timing], sheet_of: SheetOf, towards: Mapping[str, float] | None = None
    ) -> None:
        law = timings[0].law
        if len(timings) < len(law.constants):
            raise CalibrationError(
                f"{len(timings)} measured points cannot fit the {len(law.constants)} constants of {law.fitted_as}"
            )
        self.law = law
        self.timings, self.sheet_of, self.towards = timings, sheet_of, towards
        self.predictor = Predictor(timings, sheet_of)
        self.weights = _even(timings) if law.devices_weigh_alike else np.ones(len(timings))
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
            loss=self._weighted,  # pyright: ignore[reportArgumentType]
            f_scale=ROBUST,
            ftol=tolerance,
            xtol=tolerance,
            max_nfev=60,
        )
        return np.asarray(solution.x, dtype=np.float64)

    def _weighted(self, squares: FloatArray) -> FloatArray:
        """Return loss, slope and curvature, (3, n), for squares of all residuals, the prior's last."""
        weights = np.concatenate([self.weights, np.ones(len(self.prior))])
        kind = self.law.loss
        parts = [of[kind](squares) for of in (_LOSSES, _WEIGHTS, _CURVATURES)]
        return np.asarray(weights * np.array(parts), dtype=np.float64)

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
        return float(np.sum(self._weighted((residuals / ROBUST) ** 2)[0]))

    def held_out(self, logs: FloatArray) -> FloatArray:
        """Return each point's residual under constants fitted without its fold; NaN if too few points remain.

        A fold is a fifth of the shapes.
        """
        fold_of = left_out.folds([_shape(timing) for timing in self.timings])
        found = np.full(self.predictor.n_points, np.nan)
        if len(found) - np.bincount(fold_of).max() < len(logs):
            return found
        for fold in range(fold_of.max() + 1):
            inside, outside = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
            others = Fitting([self.timings[i] for i in inside.tolist()], self.sheet_of, self.towards)
            found[outside] = self.residuals(others.solve(logs, 1e-4))[outside]
        return found

    def draws(self, logs: FloatArray) -> FloatArray:
        """Return constants of bootstrap samples of the points: one Gauss-Newton step from the solution for each."""
        residuals, jacobian = self.residuals(logs), self.jacobian(logs)
        n_points, n_constants = jacobian.shape
        rng = np.random.default_rng(0)
        counts = rng.multinomial(n_points, np.full(n_points, 1 / n_points), N_DRAWS)
        weights = counts * self.weights * _WEIGHTS[self.law.loss]((residuals / ROBUST) ** 2)
        normal = np.einsum("bn,ni,nj->bij", weights, jacobian, jacobian) + 1e-9 * np.eye(n_constants)
        slope = np.einsum("bn,ni,n->bi", weights, jacobian, residuals)
        steps = -np.linalg.solve(normal, slope[..., None])[..., 0]
        # about the mean step, which only says that the solver stopped a little early
        return np.asarray(np.exp(np.clip(logs + steps - steps.mean(axis=0), self.low, self.high)))


def fit_constants(
    timings: Sequence[Timing], sheet_of: SheetOf, towards: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the constants that fit ``timings`` best, without intervals; see `Fitting` for ``towards``.

    Raises:
        CalibrationError: fewer points than constants.
    """
    fitting_ = Fitting(timings, sheet_of, towards)
    return _named(fitting_.law, np.exp(fitting_.best()))


def fit_near(
    timings: Sequence[Timing],
    sheet_of: SheetOf,
    start: Mapping[str, float],
    towards: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the constants that fit ``timings`` best near those of a fit to more of them: faster, and no better.

    Raises:
        CalibrationError: fewer points than constants.
    """
    fitting_ = Fitting(timings, sheet_of, towards)
    logs = np.log([start[constant.name] for constant in fitting_.law.constants])
    return _named(fitting_.law, np.exp(fitting_.solve(logs, 1e-4)))


def held_out_seconds(
    timings: Sequence[Timing], sheet_of: SheetOf, towards: Mapping[str, float] | None = None
) -> FloatArray:
    """Predict each timing with constants fitted without its fold, a fifth of the points; NaN if too few remain."""
    fitting_ = Fitting(timings, sheet_of, towards)
    return np.asarray(fitting_.predictor.measured * np.exp(fitting_.held_out(fitting_.best())), dtype=np.float64)


def fit_operator(
    timings: Sequence[Timing],
    sheet_of: SheetOf,
    *,
    method: str,
    date: dt.date | None = None,
    towards: Mapping[str, float] | None = None,
) -> OperatorFit:
    """Fit a law's constants to ``timings``, with intervals; several devices among them share the constants.

    See `Fitting` for ``towards``.

    Raises:
        CalibrationError: fewer points than constants.
    """
    fitting_ = Fitting(timings, sheet_of, towards)
    logs = fitting_.best()
    held_out = fitting_.held_out(logs)
    found = Fit(
        values=np.exp(logs),
        draws=fitting_.draws(logs),
        residuals=fitting_.residuals(logs),
        held_out=held_out[~np.isnan(held_out)],
        n_folds=len({_shape(timing) for timing in timings}),
    )
    estimates = {constant.name: found.estimate(index) for index, constant in enumerate(fitting_.law.constants)}
    evidence = least_squares.evidence(found, timings=timings, method=method, date=date)
    return OperatorFit(constants=estimates, evidence=evidence)


def fit_groups(
    timings: Iterable[Timing],
    sheet_of: SheetOf,
    *,
    method: str,
    date: dt.date | None = None,
    towards: Mapping[str, float] | None = None,
) -> dict[Group, OperatorFit]:
    """Fit a law for all timings that share constants; see `fit_operator`, which does it for each.

    Raises:
        CalibrationError: a group with fewer timings than its law has constants, see `separate`.
    """
    return {
        group: fit_operator(members, sheet_of, method=method, date=date, towards=towards)
        for group, members in grouped(timings).items()
    }


def separate(
    timings: Iterable[Timing], *, spare: int = 0
) -> tuple[dict[Group, list[Timing]], dict[Group, list[Timing]]]:
    """Return the groups that can be fitted, and those with too few timings.

    A group needs as many as its law has constants and ``spare`` ones more.
    """
    enough: dict[Group, list[Timing]] = {}
    few: dict[Group, list[Timing]] = {}
    for group, members in grouped(timings).items():
        kept = enough if len(members) >= len(members[0].law.constants) + spare else few
        kept[group] = members
    return enough, few


def merged(before: OperatorFits, fits: Mapping[Group, OperatorFit]) -> OperatorFits:
    """Return the constants of a device with new ones put over them."""
    found = {name: dict(softwares) for name, softwares in before.items()}
    for group, fit in fits.items():
        found.setdefault(group.operator, {})[group.software] = fit
    return found


def _shape(timing: Timing) -> tuple[Any, ...]:
    return timing.op.operator, timing.op.dtype, timing.op.shape


def _even(timings: Sequence[Timing]) -> FloatArray:
    """Return the weight of each timing under which all devices have the same, and all timings one each on average."""
    count = Counter(timing.device for timing in timings)
    return np.array([len(timings) / len(count) / count[timing.device] for timing in timings])


def _named(law: Operator[Any], values: FloatArray) -> dict[str, float]:
    return {constant.name: float(value) for constant, value in zip(law.constants, values, strict=True)}
