"""Adapters of timed operators: each figure of a row is one operator on one device under one software.

Such a row may inform constants of a device file (``sandtable calibrate --from-data``), and is then scored in sample;
held out, the same figures are predicted with constants that were fitted without their fold.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sandtable.calibration.fit.operator_fit import OperatorPoint, Predictor, held_out_seconds
from sandtable.demand.operator import Operator, operator_named
from sandtable.demand.shapes import GemmShape
from sandtable.errors import PlanError
from sandtable.hardware import Accelerator
from sandtable.model.fitted_constants import Resolved, fit_of, resolve, values_of
from sandtable.published import systems
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row

# the vendor's library of matrix products
LIBRARY = "cublas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One figure of one row: its operator with the time measured, and how a report names it."""

    metric: str
    point: OperatorPoint
    row_id: str
    group: str


def framework_latency(
    row: Row, system: Accelerator, *, operator: str, dtype: str, shape: Any, label: str, group: str
) -> Timed:
    """Return the ``latency_ms`` of one operator that a serving framework ran on one processor.

    Raises:
        MalformedRow: the time is not positive.
    """
    latency_ms = row.number("latency_ms") or 0.0
    if not latency_ms > 0:
        raise MalformedRow("a time is positive")
    point = OperatorPoint(
        device=system.name,
        software=row.text("framework"),
        operator=operator,
        dtype=dtype,
        shape=shape,
        seconds=1e-3 * latency_ms,
        label=label,
    )
    return Timed(metric="latency_ms", point=point, row_id=f"line {row.line}", group=group)


def product_at_rate(
    row: Row, *, system: str, dtype: str | None, sizes: Sequence[float | None], tflops: float | None, timed: str
) -> Timed | Skipped:
    """Return one product of the vendor's library whose rate is reported, as the time that it takes.

    Args:
        row: Where it stands.
        system: The file's name of the accelerator.
        dtype: Of the operands; None where no law knows it.
        sizes: m, n and k.
        tflops: The rate in TFLOP/s.
        timed: The metric; the group is the accelerator.

    Raises:
        MalformedRow: sizes or rate are not positive.
    """
    found = systems.find(system)
    if isinstance(found, Skipped):
        return found
    if dtype is None:
        return Skipped("element type not modelled")
    if tflops is None or None in sizes:
        return Skipped("no rate or no shape")
    m, n, k = (float(size or 0) for size in sizes)
    if not tflops > 0 or min(m, n, k) < 1:
        raise MalformedRow("sizes and rates are positive")
    point = OperatorPoint(
        device=found.name,
        software=LIBRARY,
        operator="gemm",
        dtype=dtype,
        shape=GemmShape(m, n, k),
        seconds=2 * m * n * k / (1e12 * tflops),
        label=f"{system} {row.text('dtype')} {m:.0f}x{n:.0f}x{k:.0f}",
    )
    return Timed(metric=timed, point=point, row_id=f"line {row.line}", group=system)


class OperatorAdapter(Adapter):
    """An adapter whose figures are operators. Subclasses translate a row; all else is here.

    ``unit`` is that of all figures, ``unit_s`` how many seconds it has. ``source`` names the public data, for the
    device files fitted to it. ``fits`` tells whether the figures may inform constants.
    """

    unit: ClassVar[str] = "ms"
    unit_s: ClassVar[float] = 1e-3
    source: ClassVar[str]
    fits: ClassVar[bool] = True

    @abstractmethod
    def timed(self, row: Row) -> Iterable[Timed | Skipped] | Skipped:
        """Translate one row: for each figure its operator, or why there is none.

        Raises:
            MalformedRow: the row cannot be read.
        """

    def predict(self, row: Row) -> Outcome:
        """Predict each figure with the constants of the device, else of its siblings under that software."""
        (found,) = self.predict_all([row])
        if isinstance(found, MalformedRow):
            raise found
        return found

    def predict_all(self, rows: Iterable[Row]) -> Iterator[Outcome | MalformedRow]:
        """Predict rows in order: what shares a device, software and operator in one call."""
        translated = [self._translated(row) for row in rows]
        groups: dict[tuple[str, str, str], list[Timed]] = {}
        for items in translated:
            for item in items if isinstance(items, list) else ():
                if isinstance(item, Timed):
                    point = item.point
                    groups.setdefault((point.device, point.software, point.operator), []).append(item)
        scored: dict[int, Scored | Skipped] = {
            id(item): figure for items in groups.values() for item, figure in self._together(items)
        }
        for items in translated:
            if isinstance(items, list):
                yield [item if isinstance(item, Skipped) else scored[id(item)] for item in items]
            else:
                yield items

    def _translated(self, row: Row) -> list[Timed | Skipped] | Skipped | MalformedRow:
        try:
            found = self.timed(row)
        except MalformedRow as error:
            return error
        return found if isinstance(found, Skipped) else list(found)

    def _together(self, items: Sequence[Timed]) -> Iterator[tuple[Timed, Scored | Skipped]]:
        """Predict figures of one operator that share their constants."""
        points = [item.point for item in items]
        try:
            constants = self.constants(points[0])
            predicted = Predictor(points, sheets_of(points)).seconds(constants.values)
        except PlanError as error:
            yield from ((item, Skipped(f"no law: {error}", item.metric)) for item in items)
            return
        low, high = constants.residual_high_frac, constants.residual_low_frac
        for item, seconds in zip(items, predicted.tolist(), strict=True):
            yield item, self.figure(item, seconds, seconds / low, seconds / high)

    def constants(self, point: OperatorPoint) -> Resolved:
        """Return the constants that a point is predicted with: see `constants_of`."""
        return constants_of(point)

    def figure(self, item: Timed, seconds: float, low: float, high: float) -> Scored:
        """Return what a report shows of one figure, which is predicted to take ``seconds``, between two ends."""
        return Scored(
            row_id=item.row_id,
            metric=item.metric,
            unit=self.unit,
            predicted=seconds / self.unit_s,
            low=low / self.unit_s,
            high=high / self.unit_s,
            measured=item.point.seconds / self.unit_s,
            label=item.point.label,
            group=item.group,
        )

    def operator_points(self, rows: Iterable[Row]) -> Iterator[OperatorPoint]:
        """Return the timed operators that constants may be fitted to."""
        if self.fits:
            yield from (item.point for item in self._all(rows))

    def _all(self, rows: Iterable[Row]) -> Iterator[Timed]:
        for row in rows:
            try:
                found = self.timed(row)
            except MalformedRow:
                continue
            if not isinstance(found, Skipped):
                yield from (item for item in found if isinstance(item, Timed))

    def held_out(self, rows: Iterable[Row]) -> list[Scored]:
        """Predict each figure with constants fitted to the other four fifths of its device's and software's."""
        if not self.fits:
            return []
        groups: dict[tuple[str, str, str], list[Timed]] = {}
        for item in self._all(rows):
            groups.setdefault(group_of(item.point), []).append(item)
        scored: list[Scored] = []
        for items in groups.values():
            law = operator_of(items[0].point)
            points = [item.point for item in items]
            if len(points) <= len(law.constants) or constants_of(points[0]).origin != "device":
                continue
            siblings = siblings_of(points[0])
            seconds = held_out_seconds(law, points, sheets_of(points), siblings)
            low, high = _interval(seconds / np.array([point.seconds for point in points]))
            for item, value in zip(items, seconds, strict=True):
                if not np.isnan(value):
                    scored.append(self.figure(item, float(value), float(value / high), float(value / low)))
        return scored


def _interval(ratios: np.typing.NDArray[np.float64]) -> tuple[float, float]:
    """Return the 5th and 95th percentile of predicted over measured, 1 and 1 where nothing was predicted."""
    known = ratios[~np.isnan(ratios)]
    low, high = np.percentile(known, [5, 95]) if len(known) else (1.0, 1.0)
    return float(low), float(high)


def operator_of(point: OperatorPoint) -> Operator[Any]:
    """Return the operator that a point timed.

    Raises:
        PlanError: no installed package declares it.
    """
    return operator_named(point.operator)


def constants_of(point: OperatorPoint) -> Resolved:
    """Return the constants that the library holds for a point: its device's, else those of siblings, else typical."""
    device = systems.device_named(point.device)
    return resolve(operator_of(point), device, point.software, systems.stack_of(point.software))


def siblings_of(point: OperatorPoint) -> Mapping[str, float] | None:
    """Return the constants pooled for a point's software, None if there are none."""
    operator, stack = operator_of(point), systems.stack_of(point.software)
    fit = fit_of(operator, stack, point.software)
    return None if fit is None else values_of(operator, fit, point.software, point.software)


def group_of(point: OperatorPoint) -> tuple[str, str, str]:
    """Return what shares constants: device, software and operator."""
    return point.device, point.software, operator_of(point).fitted_as


def sheets_of(points: Iterable[OperatorPoint]) -> dict[str, systems.AnySheet]:
    """Return the data sheets that points need, by `OperatorPoint.sheet`."""
    return {point.sheet: systems.sheet_of(point) for point in points}


def seconds_of(point: OperatorPoint, constants: Mapping[str, float]) -> float:
    """Predict one point with given constants."""
    operator = operator_of(point)
    columns = operator.columns(point.shape)
    return float(operator.seconds(systems.sheet_of(point), constants, columns, dtype=point.dtype)[0])
