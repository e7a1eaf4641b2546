"""Adapters of timed operators: each figure of a row is one operator on one device under one software.

Such a row may inform constants of a device file (``sandtable calibrate --from-data``), and is then scored in sample;
held out, the same figures are predicted with constants that were fitted without their fold.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sandtable.calibration.fit.operator_fit import Predictor, held_out_seconds
from sandtable.calibration.timing import Group, Timing, stated
from sandtable.demand.operator import FloatArray
from sandtable.demand.operator_shapes import GemmShape
from sandtable.errors import PlanError
from sandtable.hardware import Accelerator
from sandtable.model import fitted_constants
from sandtable.model.extrapolation import columns_of, kind_of
from sandtable.model.fitted_constants import Resolved, fit_of, resolve, values_of
from sandtable.published import systems
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row, translated

# the vendor's library of matrix products
LIBRARY = "cublas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of one row: its operator with the time measured, and how a report names it."""

    metric: str
    timing: Timing
    row_id: str
    group: str


def framework_latency(
    row: Row,
    system: Accelerator,
    *,
    operator: str,
    dtype: str,
    shape: Any,
    label: str,
    group: str,
    software: str = "",
) -> Figure:
    """Return the ``latency_ms`` of one operator that a serving framework, or its ``software``, ran on one processor.

    Raises:
        MalformedRow: the time is not positive.
    """
    seconds, software = 1e-3 * (row.number("latency_ms") or 0.0), software or row.text("framework")
    if not seconds > 0:
        raise MalformedRow("a time is positive")
    timing = stated(operator, shape, seconds, dtype=dtype, device=system.name, software=software, label=label)
    return Figure(metric="latency_ms", timing=timing, row_id=f"line {row.line}", group=group)


def product_at_rate(
    row: Row, *, system: str, dtype: str | None, sizes: Sequence[float | None], tflops: float | None, timed: str
) -> Figure | Skipped:
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
    seconds = 2 * m * n * k / (1e12 * tflops)
    label = f"{system} {row.text('dtype')} {m:.0f}x{n:.0f}x{k:.0f}"
    names = {"device": found.name, "software": LIBRARY, "label": label}
    timing = stated("gemm", GemmShape(m, n, k), seconds, dtype=dtype, **names)
    return Figure(metric=timed, timing=timing, row_id=f"line {row.line}", group=system)


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
    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
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
        groups: dict[tuple[str, str, str], list[Figure]] = {}
        for items in translated:
            for item in items if isinstance(items, list) else ():
                if isinstance(item, Figure):
                    timing = item.timing
                    groups.setdefault((timing.device, timing.software, timing.op.operator), []).append(item)
        scored: dict[int, Scored | Skipped] = {
            id(item): figure for items in groups.values() for item, figure in self._together(items)
        }
        for items in translated:
            if isinstance(items, list):
                yield [item if isinstance(item, Skipped) else scored[id(item)] for item in items]
            else:
                yield items

    def _translated(self, row: Row) -> list[Figure | Skipped] | Skipped | MalformedRow:
        # timed row by row, so that one that cannot be read is found here
        return translated(lambda row: found if isinstance(found := self.timed(row), Skipped) else list(found), row)

    def _together(self, items: Sequence[Figure]) -> Iterator[tuple[Figure, Scored | Skipped]]:
        """Predict figures of one operator that share their constants."""
        timings = [item.timing for item in items]
        try:
            constants = self.constants(timings[0])
            predicted = Predictor(timings, systems.sheet_of).seconds(constants.values)
        except PlanError as error:
            yield from ((item, Skipped(f"no law: {error}", item.metric)) for item in items)
            return
        yield from zip(items, self._figures(items, predicted, constants), strict=True)

    def _figures(self, items: Sequence[Figure], predicted: FloatArray, constants: Resolved) -> Iterator[Scored]:
        """Return what a report shows of figures of one operator, with the intervals of these constants."""
        for item, seconds in zip(items, predicted.tolist(), strict=True):
            op = item.timing.op
            low, high = fitted_constants.spread(item.timing.law, constants, kind_of(op), columns_of(op))
            yield self.figure(item, seconds, float(seconds / high), float(seconds / low))

    def constants(self, timing: Timing) -> Resolved:
        """Return the constants that a timing is predicted with: see `constants_of`."""
        return constants_of(timing)

    def figure(self, item: Figure, seconds: float, low: float, high: float) -> Scored:
        """Return what a report shows of one figure, which is predicted to take ``seconds``, between two ends."""
        return Scored(
            row_id=item.row_id,
            metric=item.metric,
            unit=self.unit,
            predicted=seconds / self.unit_s,
            low=low / self.unit_s,
            high=high / self.unit_s,
            measured=item.timing.seconds / self.unit_s,
            label=item.timing.label,
            group=item.group,
        )

    def timings(self, rows: Iterable[Row]) -> Iterator[Timing]:
        """Return the timed operators that constants may be fitted to."""
        if self.fits:
            source = f"{self.name}: {self.source}"
            yield from (replace(item.timing, source=source) for item in self._all(rows))

    def _all(self, rows: Iterable[Row]) -> Iterator[Figure]:
        for row in rows:
            try:
                found = self.timed(row)
            except MalformedRow:
                continue
            if not isinstance(found, Skipped):
                yield from (item for item in found if isinstance(item, Figure))

    def held_out(self, rows: Iterable[Row]) -> list[Scored]:
        """Predict each figure with constants fitted to the other four fifths of its device's and software's shapes.

        The interval is that of the constants which the device has.
        """
        if not self.fits:
            return []
        groups: dict[Group, list[Figure]] = {}
        for item in self._all(rows):
            groups.setdefault(item.timing.group, []).append(item)
        scored: list[Scored] = []
        for items in groups.values():
            timings = [item.timing for item in items]
            constants = constants_of(timings[0])
            if len(timings) <= len(timings[0].law.constants) or constants.origin != "device":
                continue
            seconds = held_out_seconds(timings, systems.sheet_of, siblings_of(timings[0]))
            if not np.isnan(seconds).any():
                scored += self._figures(items, seconds, constants)
        return scored


def constants_of(timing: Timing) -> Resolved:
    """Return the constants that the library holds for a timing: its device's, else those of siblings, else typical."""
    device = systems.device_named(timing.device)
    return resolve(timing.law, device, timing.software, systems.stack_of(timing.software))


def siblings_of(timing: Timing) -> Mapping[str, float] | None:
    """Return the constants pooled for a timing's software, None if there are none."""
    fit = fit_of(timing.law, systems.stack_of(timing.software), timing.software)
    return None if fit is None else values_of(timing.law, fit, timing.software, timing.software)
