"""How well device files alone predict published storage figures; needs the folder of published measurements."""

from pathlib import Path

import pytest

from sandtable.published import scoring


@pytest.fixture
def scores(reference_folder: Path) -> dict[str, scoring.DatasetScore]:
    if not (reference_folder / "storage_measured.csv").is_file():
        pytest.skip("storage_measured.csv is not among the published measurements here")
    report = scoring.run(reference_folder, "storage_measured")
    return {score.metric: score for score in report.datasets}


@pytest.mark.parametrize(
    ("metric", "least", "median", "p90"), [("read_iops", 75, 0.02, 0.09), ("read_mb_per_s", 78, 0.02, 0.13)]
)
def test_in_sample(
    scores: dict[str, scoring.DatasetScore], metric: str, least: int, median: float, p90: float
) -> None:
    data = scores[metric].to_json()
    assert data["scored"] >= least
    assert data["median_abs_error_frac"] < median
    assert data["p90_abs_error_frac"] < p90
    assert abs(data["bias_frac"]) < 0.02
    assert data["coverage_frac"] > 0.8


@pytest.mark.parametrize(("metric", "median", "p90"), [("read_iops", 0.03, 0.15), ("read_mb_per_s", 0.03, 0.25)])
def test_held_out(scores: dict[str, scoring.DatasetScore], metric: str, median: float, p90: float) -> None:
    held_out = scoring.error_summary(scores[metric].held_out)
    assert len(scores[metric].held_out) > 50
    assert (held_out["median_abs_error_frac"] or 1) < median
    assert (held_out["p90_abs_error_frac"] or 1) < p90


def test_no_row_is_malformed_and_few_lack_a_device(scores: dict[str, scoring.DatasetScore]) -> None:
    for score in scores.values():
        assert not score.malformed_lines
        assert score.skipped.get("no device file", 0) <= 3
