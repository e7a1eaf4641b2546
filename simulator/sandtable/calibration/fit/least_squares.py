"""Fit the laws of `sandtable.model` to measurements: least squares on log residuals, intervals by bootstrap.

Times span decades, so linear residuals would fit only the slow points. Every fit reports its error on points that
were held out (five folds), and the 90 % interval of a prediction is taken from those held-out residuals, see
`sandtable.calibration.fit.left_out`, together with the spread of repeats.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.calibration.fit import left_out
from sandtable.calibration.timing import Timing
from sandtable.demand.operator import Bound, Operator, PlainOperator, plain_seconds
from sandtable.demand.operator_shapes import RandomReadShape
from sandtable.errors import CalibrationError, missing_extra
from sandtable.hardware import Estimate, Evidence, OpFit, StorageFit
from sandtable.model import extrapolation
from sandtable.model.laws import storage_law as storage_model
from sandtable.model.laws.storage_law import StorageLaw

FloatArray = npt.NDArray[np.float64]
Residuals = Callable[[FloatArray, npt.NDArray[np.intp]], FloatArray]
N_BOOTSTRAP = 40
# refits start at the solution and only have to show how far it moves
ROUGH = 1e-4


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a law: fitted as its logarithm between bounds."""

    name: str
    start: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fitted parameters, their bootstrap draws, and log(predicted / measured) in sample and held out.

    ``n_folds`` is how many different shapes were held out, where some were timed more than once.
    """

    values: FloatArray
    draws: FloatArray
    residuals: FloatArray
    held_out: FloatArray
    weights: FloatArray | None = None
    n_folds: int | None = None

    @property
    def miss(self) -> float:
        """Root mean square of the log error, on held-out points where there are any."""
        outside = self.held_out if len(self.held_out) else self.residuals
        return float(np.sqrt(np.mean(outside**2)))

    def estimate(self, index: int) -> Estimate[float]:
        """Return one parameter with its 90 % bootstrap interval."""
        value = float(self.values[index])
        low, high = np.percentile(self.draws[:, index], [5, 95]) if len(self.draws) else (value, value)
        return Estimate[float](value=value, low=min(float(low), value), high=max(float(high), value))


def fit_parameters(parameters: Sequence[Parameter], residuals: Residuals, n_points: int, seed: int = 0) -> Fit:
    """Fit ``parameters`` so that ``residuals(values, indices)``, log(predicted / measured), is small.

    Raises:
        CalibrationError: fewer points than parameters.
    """
    if n_points < len(parameters):
        raise CalibrationError(f"{n_points} measured points cannot fit {len(parameters)} parameters: measure more")
    rng = np.random.default_rng(seed)
    everything = np.arange(n_points)
    start = np.log([p.start for p in parameters])
    values = _solve(parameters, residuals, everything, start)
    held_out = np.full(n_points, np.nan)
    order = rng.permutation(n_points)
    # five folds; with few points, each on its own, as long as the rest still determines the law
    n_folds = left_out.N_FOLDS if n_points >= 2 * left_out.N_FOLDS else n_points
    if n_points - -(-n_points // n_folds) >= len(parameters):
        for fold in range(n_folds):
            outside = order[fold::n_folds]
            inside = np.setdiff1d(everything, outside)
            held_out[outside] = residuals(np.exp(_solve(parameters, residuals, inside, values, ROUGH)), outside)
    draws = [
        np.exp(_solve(parameters, residuals, rng.integers(0, n_points, n_points), values, ROUGH))
        for _ in range(N_BOOTSTRAP if n_points > len(parameters) else 0)
    ]
    return Fit(
        values=np.exp(values),
        draws=np.array(draws),
        residuals=residuals(np.exp(values), everything),
        held_out=held_out[~np.isnan(held_out)],
    )


def _solve(
    parameters: Sequence[Parameter],
    residuals: Residuals,
    indices: npt.NDArray[np.intp],
    start: FloatArray,
    tolerance: float = 1e-8,
) -> FloatArray:
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise missing_extra("scipy", "run") from None
    low, high = np.log([p.low for p in parameters]), np.log([p.high for p in parameters])
    solution = least_squares(
        lambda logs: residuals(np.exp(logs), indices),
        np.clip(start, low + 1e-9, high - 1e-9),
        bounds=(low, high),
        loss="soft_l1",
        f_scale=0.1,
        ftol=tolerance,
        xtol=tolerance,
    )
    return np.asarray(solution.x, dtype=np.float64)


def weight_of(seconds: float | FloatArray) -> float | FloatArray:
    """Return how much a point counts for intervals: one from a millisecond on, less below.

    The relative error of a call of microseconds is the scheduler's, and such calls carry no step's time.
    """
    return np.clip(np.asarray(seconds) / 1e-3, 0.02, 1.0)


def evidence(
    fit: Fit,
    *,
    timings: Sequence[Timing],
    method: str,
    repeat_spread_frac: float | None = None,
    drift_frac: float | None = None,
    date: dt.date | None = None,
) -> Evidence:
    """Describe a fit to ``timings``: errors in sample and held out, and the interval that predictions from it get.

    The interval joins two independent sources of error, in squares: what the law misses at shapes that it has not
    seen, and how far the machine wanders between now and then. The latter is ``drift_frac``; where it is not known,
    all of the repeats' spread stands in for it, although most of that comes and goes within seconds.
    """
    # the law of storage has its own way to leave its points
    known = () if timings[0].op.resource == "storage" else [timing.op for timing in timings]
    kinds, shapes = extrapolation.stated(known)
    spread = np.log1p((repeat_spread_frac if drift_frac is None else drift_frac) or 0.0)
    half = float(np.hypot(_missed(fit, timings[0].law), spread))
    errors = np.abs(np.expm1(fit.residuals))
    return Evidence(
        date=date or dt.date.today(),
        n_points=len(fit.residuals),
        n_samples=sum(timing.n_samples for timing in timings),
        method=method,
        median_abs_error_frac=float(np.median(errors)),
        p90_abs_error_frac=float(np.percentile(errors, 90)),
        held_out_median_abs_error_frac=(
            float(np.median(np.abs(np.expm1(fit.held_out)))) if len(fit.held_out) else None
        ),
        residual_low_frac=math.exp(-half),
        residual_high_frac=math.exp(half),
        repeat_spread_frac=repeat_spread_frac,
        drift_frac=drift_frac,
        again_frac=seen_again(timings, fit.held_out),
        n_disturbed=sum(timing.n_left_out > 0 for timing in timings) or None,
        n_unsettled=sum(not timing.settled for timing in timings) or None,
        kinds=kinds,
        shapes=shapes,
    )


def _missed(fit: Fit, law: Operator[Any]) -> float:
    """Return half the 90 % interval of what a law misses, in logarithms."""
    if not len(fit.held_out):
        return left_out.half_width(0.0, 0, law.scatter.own)
    weights = np.ones(len(fit.held_out))
    if fit.weights is not None and len(fit.weights) == len(weights):
        weights = fit.weights
    # points that count little add little to what is known (Kish, "Survey Sampling", 1965, section 11.7)
    n_folds = fit.n_folds or float(weights.sum() ** 2 / (weights**2).sum())
    return left_out.half_width(left_out.scatter_of(fit.held_out, weights), n_folds, law.scatter.own)


def seen_again(timings: Sequence[Timing], missed: FloatArray) -> float | None:
    """Return what of the square of points' misses is seen again when they are timed again; None where nobody did.

    A law that is off at a shape is off in every pass, the scatter of a timing is another one in each. The correlation
    of what two halves of the passes miss is the former's part of a half's square, and by the formula of Spearman and
    Brown (British Journal of Psychology 3, 1910) twice that over one more its part of the whole's.

    Args:
        timings: What was timed.
        missed: log(predicted / measured) of each.
    """
    if len(missed) != len(timings) or any(len(timing.passes) < 2 for timing in timings):
        return None
    whole = np.array([timing.seconds for timing in timings])
    first, second = (
        missed + np.log(whole) - [np.mean([np.log(np.median(part)) for part in t.passes[half::2]]) for t in timings]
        for half in (0, 1)
    )
    weights = np.asarray(weight_of(whole))
    scale = np.sqrt(np.sum(weights * first**2) * np.sum(weights * second**2))
    found = max(0.0, float(np.sum(weights * first * second) / scale)) if scale > 0 else 0.0
    return min(1.0, 2 * found / (1 + found))  # rounding may leave it a little above


# --- storage -----------------------------------------------------------------------------------------------

_STORAGE_PARAMETERS = (
    Parameter(name="first_byte_s", start=1e-4, low=2e-6, high=2e-2),
    Parameter(name="lane_bytes_per_s", start=1e9, low=2e7, high=3e10),
    Parameter(name="requests_per_s", start=2e5, low=5e2, high=2e7),
    Parameter(name="bandwidth_bytes_per_s", start=3e9, low=2e7, high=1e11),
    Parameter(name="knee", start=2.5, low=1.0, high=6.0),
    Parameter(name="blend", start=1.5, low=1.0, high=6.0),
)
_DRAIN = Parameter(name="drain", start=0.5, low=0.02, high=20.0)


def fit_storage(
    timings: Sequence[Timing],
    *,
    sequential_bytes_per_s: Estimate[float],
    method: str,
    sequential: Evidence | None = None,
    repeat_spread_frac: float | None = None,
    drift_frac: float | None = None,
    cold_factor: Estimate[float] | None = None,
    date: dt.date | None = None,
) -> StorageFit:
    """Fit the storage law to timed batches of random reads.

    The drain is fitted only when batches of different length were timed at the same chunk and concurrency; a curve
    of sustained rates cannot show it.
    """
    if not timings:
        raise CalibrationError("no random reads were measured")
    reads: list[RandomReadShape] = [timing.op.shape for timing in timings]
    columns, seconds = np.array(reads, dtype=np.float64).T, np.array([timing.seconds for timing in timings])
    has_drain = len(set(reads)) > len({(read.chunk_bytes, read.concurrency) for read in reads})
    parameters = _storage_start(columns, seconds) + ((_DRAIN,) if has_drain else ())
    measured = np.log(seconds)

    def residuals(values: FloatArray, indices: npt.NDArray[np.intp]) -> FloatArray:
        law = storage_law(values, sequential_bytes_per_s.value)
        predicted = storage_model.batch_s(law, *columns[:, indices])
        return np.asarray(np.log(predicted) - measured[indices], dtype=np.float64)

    fit = fit_parameters(parameters, residuals, len(timings))
    names = [parameter.name for parameter in parameters]
    estimates = {name: fit.estimate(index) for index, name in enumerate(names)}
    extra = {} if cold_factor is None else {"cold_factor": cold_factor}
    return StorageFit(
        **estimates,
        **extra,
        sequential_bytes_per_s=sequential_bytes_per_s,
        random_evidence=evidence(
            fit,
            timings=timings,
            method=method,
            repeat_spread_frac=repeat_spread_frac,
            drift_frac=drift_frac,
            date=date,
        ),
        sequential_evidence=sequential,
    )


def _storage_start(columns: FloatArray, seconds: FloatArray) -> tuple[Parameter, ...]:
    """Start from what the points show: the fastest rate, the most requests, the quickest single read."""
    n_chunks, chunk_bytes, concurrency = columns
    starts = {
        "bandwidth_bytes_per_s": np.max(n_chunks * chunk_bytes / seconds),
        "requests_per_s": np.max(n_chunks / seconds),
        "first_byte_s": 0.7 * np.min(seconds * np.minimum(concurrency, n_chunks) / n_chunks),
    }
    return tuple(replace(p, start=float(starts.get(p.name, p.start))) for p in _STORAGE_PARAMETERS)


def storage_law(values: FloatArray, sequential_bytes_per_s: float) -> StorageLaw:
    """Build a law from fitted values, in the order of the storage parameters (the drain may be missing)."""
    names = [p.name for p in (*_STORAGE_PARAMETERS, _DRAIN)]
    fields = dict(zip(names, (float(v) for v in values), strict=False))
    return StorageLaw(
        **({"drain": 0.0} | fields),
        sequential_bytes_per_s=sequential_bytes_per_s,
        residual_low_frac=1.0,
        residual_high_frac=1.0,
        sequential_low_frac=1.0,
        sequential_high_frac=1.0,
    )


# --- operations --------------------------------------------------------------------------------------------


def fit_op(
    timings: Sequence[Timing],
    *,
    method: str,
    repeat_spread_frac: float | None = None,
    drift_frac: float | None = None,
) -> OpFit:
    """Fit the constants of `sandtable.demand.operator.plain_seconds` to timings of one plain operation.

    For a roofline, adding the two terms is tried as well, and the form that misses held-out points less is kept.

    Args:
        timings: What was measured.
        method: How, for the evidence.
        repeat_spread_frac: How far repeats of a point lie apart.
        drift_frac: How far the machine as a whole wanders.
    """
    operator = timings[0].law
    bound_by = operator.bound_by if isinstance(operator, PlainOperator) else "bandwidth"
    columns = _OpColumns.of(timings)
    parameters = _op_parameters(columns, bound_by)
    forms = (False, True) if bound_by == "both" else (False,)
    fits = {
        serial: fit_parameters(parameters, columns.residuals(parameters, serial), len(timings)) for serial in forms
    }
    serial = min(fits, key=lambda form: fits[form].miss)
    fit = replace(fits[serial], weights=np.asarray(weight_of(columns.seconds), dtype=np.float64))
    estimates = {parameter.name: fit.estimate(index) for index, parameter in enumerate(parameters)}
    return OpFit(
        **estimates,  # pyright: ignore[reportArgumentType]
        serial=serial,
        evidence=evidence(
            fit,
            timings=timings,
            method=method,
            repeat_spread_frac=repeat_spread_frac,
            drift_frac=drift_frac,
        ),
    )


@dataclass(frozen=True)
class _OpColumns:
    """Timed operations as arrays of equal length."""

    n_items: FloatArray
    n_bytes: FloatArray
    flops: FloatArray
    n_special: FloatArray
    seconds: FloatArray

    @classmethod
    def of(cls, timings: Sequence[Timing]) -> _OpColumns:
        """Gather them."""
        rows = [(t.op.n_items, t.op.bytes_moved, t.op.flops, t.op.n_special, t.seconds) for t in timings]
        return cls(*np.array(rows, dtype=np.float64).T)

    def residuals(self, parameters: Sequence[Parameter], serial: bool) -> Residuals:
        """Return log(predicted / measured) as a function of the parameters' values and the points."""
        names = [parameter.name for parameter in parameters]

        def residuals(values: FloatArray, indices: npt.NDArray[np.intp]) -> FloatArray:
            predicted = plain_seconds(
                dict(zip(names, values, strict=True)),
                n_items=self.n_items[indices],
                n_special=self.n_special[indices],
                n_bytes=self.n_bytes[indices],
                flops=self.flops[indices],
                serial=serial,
            )
            return np.asarray(np.log(predicted) - np.log(self.seconds[indices]), dtype=np.float64)

        return residuals


def _op_parameters(columns: _OpColumns, bound_by: Bound) -> list[Parameter]:
    """Start from what the points show: half the quickest call, the best rates."""
    seconds = columns.seconds
    parameters = [Parameter(name="overhead_s", start=max(1e-7, 0.5 * seconds.min()), low=1e-8, high=1e-1)]
    if len(set(columns.n_items)) > 1 and bound_by == "bandwidth" and len(seconds) > 3:
        parameters.append(Parameter(name="per_item_s", start=1e-8, low=1e-11, high=1e-3))
    if columns.n_special.any():
        parameters.append(Parameter(name="per_special_s", start=1e-9, low=1e-13, high=1e-5))
    if bound_by in ("bandwidth", "both"):
        start = float(np.max(columns.n_bytes / seconds))
        parameters.append(Parameter(name="bandwidth_bytes_per_s", start=start, low=1e7, high=1e14))
    if bound_by in ("rate", "both"):
        start = float(np.max(columns.flops / seconds))
        parameters.append(Parameter(name="rate_flops_per_s", start=start, low=1e7, high=1e17))
    return parameters
