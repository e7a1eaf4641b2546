"""Ratios between runs that were really executed, beside what is predicted of them on the machine that ran them.

The runs lie in `tests/fixtures/paired_runs`. Nothing was fitted to them: the machine file is from a calibration before
they began. A shape's error and what shapes share of it come from points left out of fits.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sandtable.results import Metric
from sandtable.runs.predict import foresee
from sandtable.studies import study, suite_pairs
from sandtable.studies.suite_pairs import Coverage, Pair, Ran

FOLDER = Path(__file__).parents[1] / "fixtures" / "paired_runs"


def pairs_of(suite: str) -> list[Pair]:
    """Return every two runs of a suite, predicted on the fixture's machine."""
    frame = pd.read_csv(FOLDER / "runs.csv").query("suite == @suite").set_index("scenario")
    cases = study.load(suite).changed({"machine": str(FOLDER / "this_machine.yaml")}).resolved()
    runs = []
    for case in cases:
        if case.scenario.name in frame.index:
            row = frame.loc[case.scenario.name]
            measured = Metric(value=row["latency_s"], low=row["low_s"], high=row["high_s"], unit="s")
            found = foresee(case.scenario, case.workload, case.parameters, case.machine)
            runs.append(
                Ran(name=case.scenario.name, foreseen=found, measured=measured, repeats=int(row["repeats"]))
            )
    assert len(runs) == len(frame)
    return suite_pairs.pairs(runs)


@pytest.fixture(scope="module")
def flash() -> list[Pair]:
    return pairs_of("flash")


def test_intervals_of_ratios_hold_what_was_measured(flash: list[Pair]) -> None:
    found: Coverage = suite_pairs.coverage(flash)
    assert found.n == 378
    assert 0.85 <= found.covered_frac <= 0.97
    assert found.width_frac < 0.2


def test_the_interval_is_as_wide_as_the_errors_are(flash: list[Pair]) -> None:
    """Half of all errors lie within 0.67 standard deviations: neither far more nor far less."""
    errors = np.array([math.log(one.change.ratio / one.measured) for one in flash])
    sigmas = np.array([math.log(one.high / one.low) / 2 / 1.645 for one in flash])
    assert 0.45 < np.median(np.abs(errors) / sigmas) < 0.9


def test_an_interval_of_shares_alone_would_not_hold(flash: list[Pair]) -> None:
    """The check can fail: a third of the width holds far fewer."""
    narrow = [abs(math.log(one.change.ratio / one.measured)) < math.log(one.high / one.low) / 6 for one in flash]
    assert np.mean(narrow) < 0.7
