"""Fit the storage law to the measured points that device files carry, and write the ``fitted`` block.

`refit` is for one device. With many points it fits the law freely; with few it starts from the device's data sheet in
the shape of the generic drive and moves each parameter only as far as the points ask for (a log-normal prior, widths
in `PRIOR_SPREADS`). `fit_shape` is for the generic drive: the shape that drives have in common, with how far off it was
on each drive when that drive was left out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.calibration import write
from sandtable.calibration.fit.least_squares import fit_storage
from sandtable.calibration.timing import Timing
from sandtable.demand.op import random_read
from sandtable.errors import CalibrationError, missing_extra
from sandtable.hardware import Estimate, Evidence, Storage, StorageFit, StoragePoint, library
from sandtable.model.laws import storage_law as storage_model
from sandtable.model.laws.storage_law import StorageLaw, law_of

FloatArray = npt.NDArray[np.float64]
# from this many random points on, all parameters are free
FREE_FIT_POINTS = 12
# a published point is taken to be this exact: digitised figures, rounded tables
POINT_SPREAD = 0.06
# widths (of the logarithm) within which a data sheet's promises and the generic shape are believed
PRIOR_SPREADS = {
    "first_byte_s": 0.3,
    "lane_bytes_per_s": 0.5,
    "requests_per_s": 0.7,
    "bandwidth_bytes_per_s": 0.15,
    "knee": 0.3,
    "blend": 0.3,
}
# the generic shape before any drive is seen, with the width in which it is believed: a lane takes a quarter of the
# bandwidth; knee and blend are the starting values of the storage fit. Width 0.1 gave the smallest error left out.
SHAPE_PRIOR = {"lane_frac": (0.25, 0.5), "knee": (2.5, 0.1), "blend": (1.5, 0.1)}
N_BATCH = 4096  # requests per point, so many that the rate is the sustained one


def refit(storage: Storage, *, date: dt.date | None = None) -> Storage:
    """Return the device with a ``fitted`` block from its own ``measurements``.

    Raises:
        CalibrationError: fewer than two measured points of random reads.
    """
    points = random_points(storage)
    if len(points) < 2:
        raise CalibrationError(
            f"{storage.name} has {len(points)} measured random reads: two are the least for a fit"
        )
    free = len(points) >= FREE_FIT_POINTS
    fitted = _free(storage, points, date) if free else _anchored(storage, points, date)
    source = str(storage.sources.get("measurements", "the points under 'measurements'"))
    sources = {**storage.sources, "fitted": f"fitted to the points under 'measurements': {source}"}
    return storage.model_copy(update={"fitted": fitted, "sources": sources, "like": None})


def random_points(storage: Storage) -> list[StoragePoint]:
    """Return the measured points of random reads."""
    return [point for point in storage.measurements if point.access == "random"]


def _free(storage: Storage, points: Sequence[StoragePoint], date: dt.date | None) -> StorageFit:
    return fit_storage(
        [_timing(storage, point) for point in points],
        sequential_bytes_per_s=_sequential(storage),
        method=f"all parameters free, {len(points)} points",
        date=date,
    )


def _timing(storage: Storage, point: StoragePoint) -> Timing:
    """Return a rate as the time of a long batch."""
    op = random_read("read", n_chunks=N_BATCH, chunk_bytes=point.chunk_bytes, concurrency=point.concurrency)
    return Timing.once(op, op.bytes_read / point.read_bytes_per_s, device=storage.name)


def _sequential(storage: Storage) -> Estimate[float]:
    """Return the fastest measured sequential rate, or the data sheet's where none was measured."""
    rates = [point.read_bytes_per_s for point in storage.measurements if point.access == "sequential"]
    value = max(rates, default=storage.datasheet.sequential_read_bytes_per_s)
    return Estimate[float](value=value, low=value, high=value)


def _time_errors(law: StorageLaw, points: Sequence[StoragePoint]) -> FloatArray:
    """Return log(predicted / measured) of the time of each point."""
    chunk = np.array([point.chunk_bytes for point in points])
    concurrency = np.array([point.concurrency for point in points], dtype=float)
    measured = np.array([point.read_bytes_per_s for point in points])
    return np.asarray(np.log(measured / storage_model.throughput_bytes_per_s(law, chunk, concurrency)))


def _least_squares(residuals: Callable[[FloatArray], FloatArray], start: FloatArray) -> Any:
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise missing_extra("scipy", "run") from None
    return least_squares(residuals, start, loss="soft_l1")


# --- few points: anchored to the data sheet and the generic shape ------------------------------------------


def _anchored(storage: Storage, points: Sequence[StoragePoint], date: dt.date | None) -> StorageFit:
    anchor = law_of(_sheet_only(storage))
    values, spreads = _moved(anchor, points)
    law = _law(anchor, values)
    estimates = {
        name: Estimate[float](value=value, low=value * np.exp(-1.645 * s), high=value * np.exp(1.645 * s))
        for name, value, s in zip(PRIOR_SPREADS, values, spreads, strict=True)
    }
    left_out = np.concatenate(
        [
            _time_errors(_law(anchor, _moved(anchor, [*points[:i], *points[i + 1 :]])[0]), [point])
            for i, point in enumerate(points)
        ]
    )
    return StorageFit(
        **estimates,  # pyright: ignore[reportArgumentType]
        sequential_bytes_per_s=_sequential(storage),
        random_evidence=_anchored_evidence(anchor, _time_errors(law, points), left_out, date),
    )


def _sheet_only(storage: Storage) -> Storage:
    like = storage.like or library.load_component("storage", library.GENERIC_STORAGE)
    return storage.model_copy(update={"fitted": None, "like": like})


def _moved(anchor: StorageLaw, points: Sequence[StoragePoint]) -> tuple[FloatArray, FloatArray]:
    """Return the parameters that fit the points without moving further from the anchor than they must.

    Second come the standard deviations of their logarithms.
    """
    start = np.log([getattr(anchor, name) for name in PRIOR_SPREADS])
    widths = np.array(list(PRIOR_SPREADS.values()))

    def residuals(logs: FloatArray) -> FloatArray:
        law = _law(anchor, np.exp(logs))
        return np.concatenate([_time_errors(law, points) / POINT_SPREAD, (logs - start) / widths])

    solution = _least_squares(residuals, start)
    covariance = np.linalg.inv(solution.jac.T @ solution.jac)
    return np.exp(solution.x), np.sqrt(np.diag(covariance))


def _law(anchor: StorageLaw, values: FloatArray) -> StorageLaw:
    return replace(anchor, **{name: float(v) for name, v in zip(PRIOR_SPREADS, values, strict=True)})


def _anchored_evidence(
    anchor: StorageLaw, inside: FloatArray, left_out: FloatArray, date: dt.date | None
) -> Evidence:
    """Describe an anchored fit: few points say little of other sizes, so half of the anchor's interval stays."""
    low, high = np.percentile(left_out, [5, 95])
    low = min(float(low), 0.5 * float(np.log(anchor.residual_low_frac)))
    high = max(float(high), 0.5 * float(np.log(anchor.residual_high_frac)))
    return _evidence(
        inside,
        left_out,
        (low, high),
        date,
        f"{len(inside)} points, anchored to the data sheet in the generic shape; held out one by one",
    )


def _evidence(
    inside: FloatArray,
    outside: FloatArray,
    interval: tuple[float, float],
    date: dt.date | None,
    method: str,
    weights: FloatArray | None = None,
) -> Evidence:
    errors, held_out = np.abs(np.expm1(inside)), np.abs(np.expm1(outside))
    even = np.ones(len(errors)) if weights is None else weights
    return Evidence(
        date=date or dt.date.today(),
        n_points=len(inside),
        n_samples=len(inside),
        method=method,
        median_abs_error_frac=round(_quantile(errors, 0.5, even), 4),
        p90_abs_error_frac=round(_quantile(errors, 0.9, even), 4),
        held_out_median_abs_error_frac=(
            round(_quantile(held_out, 0.5, even), 4) if len(outside) == len(even) else None
        ),
        residual_low_frac=round(float(np.exp(min(interval[0], 0.0))), 4),
        residual_high_frac=round(float(np.exp(max(interval[1], 0.0))), 4),
    )


def _quantile(values: FloatArray, share: float, weights: FloatArray) -> float:
    """Return the quantile of weighted values, interpolated between the centres of their weights."""
    order = np.argsort(values)
    centres = np.cumsum(weights[order]) - 0.5 * weights[order]
    return float(np.interp(share, centres / weights.sum(), values[order]))


# --- the generic drive -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What drives have in common: a lane's share of the bandwidth, the knee, the blend; and typical scales."""

    lane_frac: float
    knee: float
    blend: float
    first_byte_s: float = 1e-4
    requests_per_byte: float = 3e-5


def fit_shape(
    devices: Sequence[Storage], reference_bytes_per_s: float, *, date: dt.date | None = None
) -> StorageFit:
    """Fit the shape that ``devices`` have in common, as the law of a drive of ``reference_bytes_per_s``.

    Each device keeps its own data sheet, whose IOPS and latency may be off within `PRIOR_SPREADS`. The interval comes
    from leaving one device out at a time and predicting its points from its data sheet alone; each device weighs the
    same, however many points it has.
    """
    shape, spreads = _common_shape(devices)
    inside, outside, weights = [], [], []
    for device in devices:
        points = random_points(device)
        others, _ = _common_shape([other for other in devices if other is not device])
        inside.append(_time_errors(_shaped(device, shape), points))
        outside.append(_time_errors(_shaped(device, others), points))
        weights.append(np.full(len(points), 1 / len(points)))
    left_out, weight = np.concatenate(outside), np.concatenate(weights)
    interval = (_quantile(left_out, 0.05, weight), _quantile(left_out, 0.95, weight))
    method = f"common shape of {len(devices)} drives with published curves; held out drive by drive"
    reference = {
        "first_byte_s": shape.first_byte_s,
        "lane_bytes_per_s": shape.lane_frac * reference_bytes_per_s,
        "requests_per_s": shape.requests_per_byte * reference_bytes_per_s,
        "bandwidth_bytes_per_s": reference_bytes_per_s,
        "knee": shape.knee,
        "blend": shape.blend,
    }
    estimates = {
        name: Estimate[float](
            value=value, low=value * np.exp(-1.645 * spreads[name]), high=value * np.exp(1.645 * spreads[name])
        )
        for name, value in reference.items()
    }
    exact = Estimate[float](value=reference_bytes_per_s, low=reference_bytes_per_s, high=reference_bytes_per_s)
    return StorageFit(
        **estimates,
        sequential_bytes_per_s=exact,
        random_evidence=_evidence(np.concatenate(inside), left_out, interval, date, method, weight),
        sequential_evidence=_sequential_evidence(library_storage(), date),
    )


def _common_shape(devices: Sequence[Storage]) -> tuple[Shape, dict[str, float]]:
    """Fit the shape, and every device's own deviation from its data sheet; also return log standard deviations."""
    centres = np.log([centre for centre, _ in SHAPE_PRIOR.values()])
    widths = np.array([width for _, width in SHAPE_PRIOR.values()])
    n = len(centres)
    own_widths = np.array([PRIOR_SPREADS["requests_per_s"], PRIOR_SPREADS["first_byte_s"]])

    def residuals(x: FloatArray) -> FloatArray:
        shape = Shape(**dict(zip(SHAPE_PRIOR, map(float, np.exp(x[:n])), strict=True)))
        parts = [(x[:n] - centres) / widths]
        for device, own in zip(devices, x[n:].reshape(-1, 2), strict=True):
            points = random_points(device)
            # a long curve must not outvote the others: at most four points' worth per device
            weight = POINT_SPREAD * np.sqrt(max(1.0, len(points) / 4))
            parts += [_time_errors(_shaped(device, shape, *np.exp(own)), points) / weight, own / own_widths]
        return np.concatenate(parts)

    solution = _least_squares(residuals, np.concatenate([centres, np.full(2 * len(devices), 0.01)]))
    deviations = np.sqrt(np.diag(np.linalg.inv(solution.jac.T @ solution.jac)))
    shape = Shape(**dict(zip(SHAPE_PRIOR, map(float, np.exp(solution.x[:n])), strict=True)))
    laws = [
        _shaped(device, shape, *np.exp(own))
        for device, own in zip(devices, solution.x[n:].reshape(-1, 2), strict=True)
    ]
    first = np.log([law.first_byte_s for law in laws])
    requests = np.log([law.requests_per_s / law.bandwidth_bytes_per_s for law in laws])
    shape = replace(
        shape, first_byte_s=float(np.exp(first.mean())), requests_per_byte=float(np.exp(requests.mean()))
    )
    spreads = dict(zip(("lane_bytes_per_s", "knee", "blend"), map(float, deviations[:n]), strict=True))
    # a drive of which nothing but the bandwidth is known lies anywhere among these
    spreads |= {"first_byte_s": float(first.std(ddof=1)), "requests_per_s": float(requests.std(ddof=1))}
    return shape, spreads | {"bandwidth_bytes_per_s": 0.0}


def _shaped(device: Storage, shape: Shape, requests_factor: float = 1.0, latency_factor: float = 1.0) -> StorageLaw:
    """Return the law of a device from its data sheet, changed by factors, in a shape."""
    sheet = device.datasheet
    changed = sheet.model_copy(
        update={
            "random_read_per_s": None
            if sheet.random_read_per_s is None
            else sheet.random_read_per_s * requests_factor,
            "read_latency_s": None if sheet.read_latency_s is None else sheet.read_latency_s * latency_factor,
        }
    )
    bandwidth = sheet.sequential_read_bytes_per_s
    law = StorageLaw(
        first_byte_s=shape.first_byte_s,
        lane_bytes_per_s=shape.lane_frac * bandwidth,
        requests_per_s=shape.requests_per_byte * bandwidth,
        bandwidth_bytes_per_s=bandwidth,
        sequential_bytes_per_s=bandwidth,
        knee=shape.knee,
        blend=shape.blend,
        **{field.name: 1.0 for field in fields(StorageLaw) if field.name.endswith("_frac")},
        drain=0.0,
    )
    return storage_model.scaled_law(law, bandwidth, changed)


def _sequential_evidence(devices: Sequence[Storage], date: dt.date | None) -> Evidence | None:
    """Describe how far measured sequential rates lie from data sheets, over the drives with both."""
    ratios = []
    for device in devices:
        rates = [point.read_bytes_per_s for point in device.measurements if point.access == "sequential"]
        if rates:
            ratios.append(np.log(max(rates) / device.datasheet.sequential_read_bytes_per_s))
    if len(ratios) < 3:
        return None
    errors = np.array(ratios)
    low, high = np.percentile(errors, [5, 95])
    return _evidence(
        errors, np.array([]), (low, high), date, f"data sheets of {len(ratios)} drives against their points"
    )


def library_storage() -> list[Storage]:
    """Return the library's storage devices that carry measured points, without the generic one."""
    found = [library.load_file(path, "storage") for path in library.device_files("storage").values()]
    return [d for d in found if isinstance(d, Storage) and d.measurements and d.name != library.GENERIC_STORAGE]


# --- files -------------------------------------------------------------------------------------------------


def refit_file(path: Path, *, date: dt.date | None = None) -> Storage:
    """Fit the device file at ``path`` to its own points and write ``fitted`` into it, keeping its comments.

    The generic drive is fitted to the points of all drives of the library.

    Raises:
        ConfigError: not a storage file.
        CalibrationError: too few points.
    """
    device = library.load_file(path, "storage")
    assert isinstance(device, Storage)
    if device.name == library.GENERIC_STORAGE:
        drives = [d for d in library_storage() if len(random_points(d)) >= 2]
        fitted = fit_shape(drives, device.datasheet.sequential_read_bytes_per_s, date=date)
        source = "the points under 'measurements' of " + ", ".join(drive.name for drive in drives)
        refitted = device.model_copy(
            update={"fitted": fitted, "sources": {**device.sources, "fitted": f"fitted to {source}"}}
        )
    else:
        refitted = refit(device, date=date)
    assert refitted.fitted is not None
    write.put_fit(path, write.SECTION, refitted.fitted, str(refitted.sources[write.SECTION]))
    return refitted
