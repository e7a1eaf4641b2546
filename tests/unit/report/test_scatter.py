"""Scatter plots of published rows: first as data, then as a figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandtable.published.adapter import Scored
from sandtable.published.scoring import DatasetScore, PublishedReport
from sandtable.report import scatter


def point(metric: str, label: str, predicted: float) -> Scored:
    return Scored(
        row_id=label,
        metric=metric,
        unit="1/s",
        predicted=predicted,
        low=predicted / 2,
        high=predicted * 2,
        measured=100.0,
        label=label,
        group=label[:3],
    )


@pytest.fixture
def report() -> PublishedReport:
    reads = tuple(point("reads", f"a drive for $1$, number {i}", 90.0 + i) for i in range(9))
    writes = (point("writes", "a_drive", 300.0),)
    scores = [
        DatasetScore(name=name, metric=points[0].metric, rows=len(points), skipped={}, points=points)
        for name, points in (("drives", reads), ("drives", writes), ("others", writes))
    ]
    return PublishedReport(datasets=tuple(scores), titles={"drives": "Drives"})


def test_data_has_a_row_per_figure_and_marks_the_worst(report: PublishedReport) -> None:
    data = scatter.scatter_data(report, "drives").to_frame()
    assert data["metric"].tolist() == ["reads"] * 9 + ["writes"]
    assert data["worst"].tolist() == [True] * 5 + [False] * 4 + [True]
    assert data["error_frac"].iloc[-1] == pytest.approx(2.0)


def test_a_figure_per_file(report: PublishedReport, tmp_path: Path) -> None:
    paths = scatter.write_plots(report, tmp_path / "plots")
    assert [path.name for path in paths] == ["drives.svg", "others.svg"]
    assert all(path.read_text().count("<svg") == 1 for path in paths)
    again = scatter.write_plots(report, tmp_path / "again")
    assert [path.stat().st_size for path in paths] == [path.stat().st_size for path in again]
    data = scatter.scatter_data(report, "drives")
    assert scatter.write_scatter(data, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
