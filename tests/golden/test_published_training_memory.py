"""Megatron's memory, as published; needs the folder of published measurements."""

from pathlib import Path

import pytest

from sandtable.published import scoring


@pytest.mark.parametrize(
    ("metric", "scored"), [("states_bytes", 4), ("activations_bytes", 4), ("activations_frac", 8)]
)
def test_each_figure_is_met_to_two_percent(reference_folder: Path, metric: str, scored: int) -> None:
    if not (reference_folder / "training_memory_megatron.csv").is_file():
        pytest.skip("training_memory_megatron.csv is not among the published measurements here")
    report = scoring.run(reference_folder, "training_memory_megatron")
    points = {score.metric: score.points for score in report.datasets}[metric]
    assert len(points) >= scored
    assert max(abs(point.error_frac) for point in points) < 0.02
