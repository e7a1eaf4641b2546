"""Pairs of runs: whether intervals of ratios hold what was measured, and how wide they are."""

from __future__ import annotations

import functools

import pytest

from sandtable.results import measured_metric
from sandtable.runs.predict import Foreseen, foresee
from sandtable.studies import suite_pairs
from sandtable.studies.suite_pairs import Ran
from sandtable.workload import scenarios


@functools.cache
def foreseen(micro_batch: int) -> Foreseen:
    case = scenarios.load("slm_100m_a100", changes={"parameters.micro_batch": micro_batch})
    return foresee(case.scenario, case.workload, case.parameters, case.machine)


def ran(micro_batch: int, off: float = 1.0, repeats: int = 2) -> Ran:
    """Return a run whose measured time is ``off`` times what was foreseen."""
    found = foreseen(micro_batch)
    seconds = off * found.prediction.metrics["latency_s.mean"].value
    return Ran(
        name=f"micro_batch_{micro_batch}",
        foreseen=found,
        measured=measured_metric("latency_s", [seconds]),
        repeats=repeats,
    )


def test_an_error_of_both_ends_is_none_of_their_ratio() -> None:
    for off in (0.5, 1.0, 2.0):
        found = suite_pairs.pair(ran(4, off), ran(8, off))
        assert found.measured == pytest.approx(found.change.ratio)
        assert found.covered


def test_an_error_of_one_end_is() -> None:
    assert not suite_pairs.pair(ran(4), ran(8, 1.5)).covered
    assert not suite_pairs.pair(ran(4, 1.5), ran(8)).covered


def test_exchanged_runs_invert_the_interval() -> None:
    there, back = suite_pairs.pair(ran(4), ran(8, 1.1)), suite_pairs.pair(ran(8, 1.1), ran(4))
    assert (1 / back.high, 1 / back.low) == pytest.approx((there.low, there.high))
    assert 1 / back.measured == pytest.approx(there.measured)
    assert there.covered == back.covered


def test_the_interval_is_narrower_than_what_overlap_leaves() -> None:
    found = suite_pairs.pair(ran(4), ran(8))
    assert 0 < found.width_frac < 0.2
    assert found.overlap[0] < found.low < found.high < found.overlap[1]


def test_pairs_are_counted_once_and_summed_up() -> None:
    found = suite_pairs.pairs([ran(4), ran(8), ran(16, 3.0)])
    assert [(one.before, one.after) for one in found] == [
        ("micro_batch_4", "micro_batch_8"),
        ("micro_batch_4", "micro_batch_16"),
        ("micro_batch_8", "micro_batch_16"),
    ]
    coverage = suite_pairs.coverage(found)
    assert (coverage.n, coverage.covered_frac) == (3, pytest.approx(1 / 3))
    assert coverage.width_frac == sorted(one.width_frac for one in found)[1]
    assert coverage.sentence().startswith("3 pairs: 33 % of the measured ratios")


def test_speedups_are_relative_to_the_baseline() -> None:
    table = suite_pairs.speedups([ran(4), ran(8)], "micro_batch_4")
    (row,) = table.records()
    assert row["scenario"] == "micro_batch_8"
    expected = foreseen(4).prediction.metrics["latency_s.mean"].value
    expected /= foreseen(8).prediction.metrics["latency_s.mean"].value
    assert row["times as fast as micro_batch_4"] == pytest.approx(expected)
    assert row["low"] < expected < row["high"]
    assert row["error"] == pytest.approx(0)
    assert row["covered"] is True
    assert suite_pairs.speedups([ran(4)], "another").records() == []


def test_programs_get_a_row_for_each_pair() -> None:
    (row,) = suite_pairs.records(suite_pairs.pairs([ran(4), ran(8, 1.1)]))
    assert row["before"] == "micro_batch_4"
    assert row["low"] < row["ratio"] < row["high"]
    assert row["measured"] == pytest.approx(1.1 * row["ratio"])
    assert row["covered_alone"] is (row["ratio_low"] <= row["measured"] <= row["ratio_high"])
