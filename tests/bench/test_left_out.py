"""Nested: points of what was left out lie in intervals made without it; and how errors grow with the distance.

Fits thousands of times to the folder of published timings, some minutes in all, and prints what the `scatter` of
laws is taken from. Constants of a case start from those of all its points; siblings never include it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from sandtable.calibration.fit import left_out, operator_fit
from sandtable.calibration.fit.operator_fit import Fitting, Predictor
from sandtable.calibration.timing import Timing
from sandtable.demand.operator import Operator
from sandtable.model.extrapolation import columns_of, kind_of
from sandtable.published import fit_rows, nested, systems

pytestmark = pytest.mark.skipif("SANDTABLE_BENCH" not in os.environ, reason="set SANDTABLE_BENCH=1 to measure")

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
FOUR = ("gemm", "attention", "collective", "moe")
# doublings of a column that are left out at an end of it, and the points that an experiment needs on either side
CUTS, FEWEST = (1, 2, 3, 4, 6), 8
LEFT_TO_FIT = 0.2


class Case:
    """The timings of one device under one software, and the constants of its siblings."""

    def __init__(self, timings: list[Timing], siblings: list[Timing]) -> None:
        self.timings = timings
        self.towards = operator_fit.fit_constants(siblings, systems.sheet_of) if siblings else None
        self.start = operator_fit.fit_constants(timings, systems.sheet_of, self.towards)

    @property
    def law(self) -> Operator[Any]:
        return self.timings[0].law

    def residuals(self, inside: Mask) -> FloatArray:
        """Return what the points that are not inside are missed by, with constants fitted to those that are."""
        constants = operator_fit.fit_near(self._of(inside), systems.sheet_of, self.start, self.towards)
        return Predictor(self._of(~inside), systems.sheet_of).residuals(constants)

    def half_width(self, inside: Mask) -> float:
        """Return half the interval that a fit to the points inside states."""
        fitting = Fitting(self._of(inside), systems.sheet_of, self.towards)
        logs = fitting.solve(np.log([self.start[constant.name] for constant in self.law.constants]), 1e-4)
        missed = fitting.held_out(logs)
        n_folds = len({keys for keys, known in zip(self.shapes, inside, strict=True) if known})
        return left_out.half_width(left_out.scatter_of(missed), n_folds, self.law.scatter.own)

    @cached_property
    def shapes(self) -> list[tuple[Any, ...]]:
        return [(kind_of(timing.op), timing.op.shape) for timing in self.timings]

    @cached_property
    def fold_of(self) -> npt.NDArray[np.intp]:
        return left_out.folds(self.shapes)

    @cached_property
    def by_folds(self) -> FloatArray:
        """What each point is missed by when a fifth of the shapes, its own among them, is left out."""
        found = np.empty(len(self.timings))
        for fold in range(self.fold_of.max() + 1):
            found[self.fold_of == fold] = self.residuals(self.fold_of != fold)
        return found

    def _of(self, mask: Mask) -> list[Timing]:
        return [timing for timing, chosen in zip(self.timings, mask, strict=True) if chosen]

    # --- experiments: which points stay inside, and how far outside the others lie ---

    def kinds(self) -> Iterator[tuple[Mask, float]]:
        kinds = np.array([kind_of(timing.op) for timing in self.timings])
        for kind in np.unique(kinds):
            yield kinds != kind, 1.0

    def ends(self) -> Iterator[tuple[Mask, float]]:
        for name in columns_of(self.timings[0].op):
            place = np.log2([max(1.0, float(columns_of(timing.op)[name])) for timing in self.timings])
            for towards, cut in ((side, cut) for side in (place, -place) for cut in CUTS):
                inside = towards <= towards.max() - cut
                if inside.mean() >= LEFT_TO_FIT and len(np.unique(place)) > 2:
                    yield inside, float(np.mean(towards[~inside] - towards[inside].max()))


class Grown(NamedTuple):
    """What the square of an experiment's scatter has in addition, by the square of the distance, beside folds."""

    square: float
    distance: float


def grown(case: Case, experiments: Iterator[tuple[Mask, float]]) -> Iterator[Grown]:
    for inside, distance in experiments:
        fewest = max(FEWEST, len(case.law.constants) + 1)
        if inside.sum() >= fewest and (~inside).sum() >= FEWEST:
            squares = [left_out.scatter_of(r) ** 2 for r in (case.residuals(inside), case.by_folds[~inside])]
            yield Grown((squares[0] - squares[1]) / distance**2, distance)


# --- published timings ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Path:
    for candidate in (os.environ.get("SANDTABLE_REFERENCE"), Path(__file__).parents[3] / "shared" / "reference"):
        if candidate is not None and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no folder of published measurements: set SANDTABLE_REFERENCE to one")


@pytest.fixture(scope="module")
def cases(folder: Path) -> Mapping[str, list[Case]]:
    groups, _ = operator_fit.separate(fit_rows.collect(folder), spare=1)
    found: dict[str, list[Case]] = {name: [] for name in FOUR}
    for group, timings in groups.items():
        siblings = [t for other, part in groups.items() if other[1:] == group[1:] and other != group for t in part]
        if group.operator in found:
            found[group.operator].append(Case(timings, siblings))
    return found


@pytest.fixture(scope="module")
def devices(folder: Path) -> fit_rows.FromData:
    return fit_rows.fit_all(folder)


@pytest.mark.parametrize("operator", FOUR)
def test_devices_left_out_of_constants_and_intervals(operator: str, devices: fit_rows.FromData) -> None:
    missed = [item.missed for item in devices.devices if item.missed and item.missed.operator == operator]
    (row,) = nested.table(missed).rows
    print(f"\n{operator}: " + ", ".join(map(str, row)))
    assert 0.85 <= float(str(row[5])) / 100 <= 0.96
    assert left_out.usual([item.scatter for item in missed]) == pytest.approx(nested.usual_of(operator), rel=0.25)


@pytest.mark.parametrize("operator", FOUR)
def test_shapes_left_out_of_constants_and_intervals(operator: str, cases: Mapping[str, list[Case]]) -> None:
    inside, widths = [], []
    for case in cases[operator]:
        for fold in range(case.fold_of.max() + 1):
            others = case.fold_of != fold
            if others.sum() > len(case.law.constants) * left_out.N_FOLDS / (left_out.N_FOLDS - 1):
                half = case.half_width(others)
                inside += list(np.abs(case.by_folds[~others]) <= half)
                widths.append(half)
    own = left_out.usual([left_out.scatter_of(case.by_folds) for case in cases[operator]])
    print(f"\n{operator}: {100 * np.mean(inside):.1f} % of {len(inside)} points inside, half width", end=" ")
    print(f"{100 * math.expm1(np.mean(widths)):.1f} %, scatter {own:.3f}")
    assert 0.85 <= np.mean(inside) <= 0.95
    assert own == pytest.approx(cases[operator][0].law.scatter.own, rel=0.25)


@pytest.mark.parametrize("operator", FOUR)
@pytest.mark.parametrize(
    ("field", "experiments"), [("per_doubling", Case.ends), ("new_kind", Case.kinds)], ids=["ends", "kinds"]
)
def test_errors_beyond_what_was_fitted(
    operator: str,
    field: str,
    experiments: Callable[[Case], Iterator[tuple[Mask, float]]],
    cases: Mapping[str, list[Case]],
) -> None:
    found = [one for case in cases[operator] for one in grown(case, experiments(case))]
    growth = math.sqrt(max(0.0, float(np.mean([one.square for one in found]))))
    print(f"\n{operator}: {field} {growth:.3f} of {len(found)} experiments")
    assert growth == pytest.approx(getattr(cases[operator][0].law.scatter, field), rel=0.35)
