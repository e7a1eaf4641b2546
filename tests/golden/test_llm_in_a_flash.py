"""The paper's own ladder, predicted: "LLM in a flash" (arXiv 2312.11514), Tables 2 and 3."""

from __future__ import annotations

from functools import lru_cache

import pytest

from sandtable.published import scoring
from sandtable.published.adapter import Scored
from sandtable.results import Prediction
from sandtable.runs import predict
from sandtable.workload import scenarios

RUNGS = ("naive", "hybrid", "predictor", "window", "bundling")


@pytest.fixture(scope="module")
def report() -> scoring.PublishedReport:
    return scoring.run(None, only="llm_in_a_flash")


def cells(report: scoring.PublishedReport) -> list[Scored]:
    return [point for score in report.datasets for point in score.points]


def test_every_cell_is_within_fifteen_percent(report: scoring.PublishedReport) -> None:
    assert {point.label: point.error_frac for point in cells(report) if abs(point.error_frac) > 0.15} == {}


def test_rows_are_scored_or_skipped_for_a_reason(report: scoring.PublishedReport) -> None:
    assert [score.metric for score in report.datasets] == [
        "io_s.mean",
        "memory_s.mean",
        "compute_s.mean",
        "latency_s.mean",
    ]
    for score in report.datasets:
        assert score.rows == 12
        assert score.scored + sum(score.skipped.values()) == score.rows
        assert score.malformed_lines == ()
        assert score.skipped["speculative decoding is not modelled"] == 1


def test_an_anchor_is_not_scored(report: scoring.PublishedReport) -> None:
    compute = next(score for score in report.datasets if score.metric == "compute_s.mean")
    assert compute.skipped["an anchor: a device file is made from this cell"] == 3
    labels = {point.label for point in compute.points}
    assert not any("Metal M1" in label for label in labels)


# --- the ladder --------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def ladder(rung: str) -> Prediction:
    settings = [f"parameters.rung={rung}", "parameters.tokens=16"]
    case = scenarios.load("flash_m1_max_metal", changes=scenarios.changes_of(settings))
    return predict.predict(case.scenario, case.workload, case.parameters, case.machine)[0]


# seconds per token, predicted at the time of writing: a change of these is a change of the model or of its devices
GOLDEN = {
    "naive": {"io_s.mean": 2.2055, "compute_s.mean": 0.19487, "latency_s.mean": 2.4004},
    "hybrid": {"io_s.mean": 1.1027, "compute_s.mean": 0.19487, "latency_s.mean": 1.2976},
    "predictor": {"io_s.mean": 0.7534, "compute_s.mean": 0.4240, "latency_s.mean": 1.1774},
    "window": {"io_s.mean": 0.1768, "compute_s.mean": 0.4416, "latency_s.mean": 0.65},
    "bundling": {"io_s.mean": 0.0959, "compute_s.mean": 0.4416, "latency_s.mean": 0.568},
}


@pytest.mark.parametrize("rung", RUNGS)
def test_golden_seconds_per_token(rung: str) -> None:
    metrics = ladder(rung).metrics
    assert {name: metrics[name].value for name in GOLDEN[rung]} == pytest.approx(GOLDEN[rung], rel=0.01)


def test_each_rung_waits_less_for_the_drive() -> None:
    waits = [ladder(rung).metrics["io_s.mean"].value for rung in RUNGS]
    assert waits == sorted(waits, reverse=True)
    # the paper's headline: from 2196 ms to 87 ms
    assert waits[0] / waits[-1] == pytest.approx(2196 / 87, rel=0.15)


def test_naive_reads_the_whole_model_and_hybrid_half_of_it() -> None:
    naive, hybrid = (ladder(rung).metrics["bytes_read.mean"].value for rung in ("naive", "hybrid"))
    assert naive == pytest.approx(2 * 6_658_473_984, rel=0.005)  # float16
    assert hybrid / naive == pytest.approx(0.5, abs=0.005)


def test_bundling_halves_the_requests_of_the_same_bytes() -> None:
    window, bundling = ladder("window").metrics, ladder("bundling").metrics
    assert window["bytes_read.mean"].value == bundling["bytes_read.mean"].value
    assert window["n_requests.mean"].value == 2 * bundling["n_requests.mean"].value


def test_what_binds_moves_from_the_drive_to_the_processor() -> None:
    assert ladder("naive").binding_resource == "io"
    assert ladder("bundling").binding_resource == "compute"


def test_the_method_fits_into_about_half_the_memory() -> None:
    peak = ladder("bundling").metrics["peak_memory_bytes"].value
    assert 0.45 < peak / (2 * 6_658_473_984) < 0.60
