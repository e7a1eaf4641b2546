"""How well whole training steps are predicted from operators; needs the folder of published measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sandtable.published import scoring
from sandtable.published.adapter import Scored


@pytest.fixture
def score(reference_folder: Path) -> scoring.DatasetScore:
    if not (reference_folder / "training_throughput.csv").is_file():
        pytest.skip("training_throughput.csv is not among the published measurements here")
    return scoring.run(reference_folder, "training_throughput").datasets[0]


def errors(points: Sequence[Scored]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.abs([point.error_frac for point in points])


@pytest.mark.parametrize(
    ("group", "least", "median", "p90"),
    [
        ("llm-foundry", 100, 0.065, 0.14),
        ("megatron-seqsel", 4, 0.025, 0.055),
        ("megatron-2021", 7, 0.10, 0.13),
        ("megatron-bridge-25.11", 9, 0.085, 0.48),
        ("nemo-launcher-23.07", 7, 0.055, 0.145),
        ("nemo-24.07", 5, 0.09, 0.235),
        ("llmq", 22, 0.06, 0.125),
        ("torchtitan-2024-a100", 5, 0.02, 0.085),
        ("torchtitan-2025-06", 12, 0.175, 0.53),
        ("kempnerforge", 4, 0.085, 0.35),
        ("dlperf-2021", 4, 0.20, 0.51),
    ],
)
def test_groups(score: scoring.DatasetScore, group: str, least: int, median: float, p90: float) -> None:
    found = errors([point for point in score.points if point.group == group])
    assert len(found) >= least
    assert np.median(found) < median
    assert np.percentile(found, 90) < p90


def test_what_device_files_are_made_from_is_not_scored(score: scoring.DatasetScore) -> None:
    assert score.skipped["an anchor: a number in the library is made from this row"] == 2
