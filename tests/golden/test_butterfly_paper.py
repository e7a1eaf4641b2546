"""The butterfly paper's networks (arXiv 1906.02256): its multiply-adds beside those of the lists of layers."""

from __future__ import annotations

import pytest

from sandtable.published import scoring
from sandtable.studies import study
from sandtable_workloads.butterfly.published.butterfly_paper import PaperNetwork, paper_networks

# top-1 that the paper gains by a butterfly at equal multiply-adds, in points (its tables; 6.75 in the abstract)
GAINS = {
    "mobilenet_v1 14M": 5.08,
    "mobilenet_v1 21M": 6.76,
    "mobilenet_v1 34M": 6.60,
    "mobilenet_v1 49M": 2.05,
    "mobilenet_v1 110M": 1.33,
    "mobilenet_v1 150M": 1.02,
    "shufflenet_v2 14M": 4.40,
    "shufflenet_v2 21M": 2.62,
    "shufflenet_v2 41M": 1.63,
    "mobilenet_v3_small 13M": 5.41,
}
# the published layers of MobileNetV1 0.25 at 192 pixels come to 30 million, the paper says 34; of MobileNetV3-Small
# it does not say which of the squeeze-and-excite layers are counted
ODD = {"0.25@192": 0.115, "0.35@224": 0.08, "0.5@224 butterfly": 0.1}
USUAL = 0.07


@pytest.mark.parametrize(
    "found", paper_networks(), ids=lambda item: f"{item.network} {item.label} {item.structure}"
)
def test_multiply_adds_are_those_of_the_paper(found: PaperNetwork) -> None:
    limit = max(
        [size for name, size in ODD.items() if f"{found.label} {found.structure}".startswith(name)] + [USUAL]
    )
    counted = found.layers().multiply_accumulates(as_paper=True)
    assert abs(counted / found.multiply_accumulates - 1) < limit


def test_gains_are_those_of_the_paper() -> None:
    for claim, gain in GAINS.items():
        beside = [item for item in paper_networks() if item.claim == claim]
        (dense,) = [item for item in beside if item.structure == "dense"]
        best = max(item.top1_frac for item in beside if item.structure == "butterfly")
        assert 100 * (best - dense.top1_frac) == pytest.approx(gain, abs=0.006)


def test_rows_are_scored_or_skipped_for_a_reason() -> None:
    (score,) = scoring.run(None, only="butterfly_paper").datasets
    assert (score.scored, score.rows) == (22, 27)
    assert score.skipped == {"the sizes of its layers are not published": 5}
    assert score.malformed_lines == ()


def test_the_suite_of_the_paper_holds_its_networks() -> None:
    points = [point.changes for point in study.load("butterfly-paper").points()]
    listed = [
        {"network": item.network, "width": item.width, "resolution": item.resolution, "structure": item.structure}
        for item in paper_networks()
    ]
    assert points == listed
