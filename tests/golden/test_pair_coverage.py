"""Ratios between runs that were really executed, beside what is predicted of them on the machine that ran them.

The runs lie in `tests/fixtures/paired_runs`. No constant was fitted to them, but the form of a law's error was chosen
with them in sight (see the README there): this holds the figures where they are, and is no blind test.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sandtable.results import NORMAL_95, measured_metric
from sandtable.runs.predict import foresee
from sandtable.studies import study, suite_pairs
from sandtable.studies.suite_pairs import Pair, Ran

FOLDER = Path(__file__).parents[1] / "fixtures" / "paired_runs"


def pairs_of(suite: str) -> list[Pair]:
    """Return every two runs of a suite, predicted on the fixture's machine."""
    frame = pd.read_csv(FOLDER / "runs.csv").query("suite == @suite").set_index("scenario")
    runs = []
    for case in study.load(suite).changed({"machine": str(FOLDER / "machine.yaml")}).resolved():
        if case.scenario.name not in frame.index:
            continue
        row = frame.loc[case.scenario.name]
        runs.append(
            Ran(
                name=case.scenario.name,
                foreseen=foresee(case.scenario, case.workload, case.parameters, case.machine),
                measured=measured_metric("latency_s", [row["latency_s"]]),
                repeats=int(row["repeats"]),
                spread_frac=row["repeat_spread_frac"],
            )
        )
    assert len(runs) == len(frame)
    return suite_pairs.pairs(runs)


@pytest.fixture(scope="module", params=["flash", "slm"])
def found(request: pytest.FixtureRequest) -> tuple[str, list[Pair]]:
    return request.param, pairs_of(request.param)


def test_intervals_of_ratios_hold_what_was_measured(found: tuple[str, list[Pair]]) -> None:
    """A tenth should lie outside; training misses the width of a fifth, as the intervals of its laws are narrow."""
    suite, pairs = found
    n, width, least = {"flash": (378, 0.2, 0.85), "slm": (153, 0.27, 0.84)}[suite]
    coverage = suite_pairs.coverage(pairs)
    assert coverage.n == n
    assert least <= coverage.covered_frac <= 0.97
    assert coverage.width_frac < width


def test_the_interval_is_as_wide_as_the_errors_are(found: tuple[str, list[Pair]]) -> None:
    """Half of all errors of a normal distribution lie within 0.67 standard deviations, and their square is one."""
    errors = np.array([math.log(one.change.ratio / one.measured) for one in found[1]])
    sigmas = np.array([math.log(one.high / one.low) / 2 / NORMAL_95 for one in found[1]])
    assert 0.5 < np.median(np.abs(errors) / sigmas) < 0.85
    assert 0.8 < np.sqrt(np.mean((errors / sigmas) ** 2)) < 1.2


def test_a_third_of_the_interval_would_not_hold_them(found: tuple[str, list[Pair]]) -> None:
    narrow = [abs(math.log(one.change.ratio / one.measured)) < math.log(one.high / one.low) / 6 for one in found[1]]
    assert np.mean(narrow) < 0.6
