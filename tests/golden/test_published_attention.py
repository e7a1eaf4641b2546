"""How well device files predict published times of attention; all but training needs the published measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sandtable.calibration.fit.operator_fit import Predictor, fit_constants
from sandtable.calibration.timing import Timing
from sandtable.published import scoring, systems
from sandtable.published.operator_rows import constants_of
from sandtable_workloads.transformer.published.op_attention import OpAttention
from sandtable_workloads.transformer.published.op_infersim import OpInfersim


@pytest.fixture
def folder(reference_folder: Path) -> Path:
    if not (reference_folder / "op_attention.csv").is_file():
        pytest.skip("op_attention.csv is not among the published measurements here")
    return reference_folder


def test_a_device_left_out_follows_from_its_data_sheet_and_its_siblings(folder: Path) -> None:
    adapter = OpAttention()
    points = list(adapter.timings(adapter.read(folder)))
    errors = []
    for software, device in sorted({(p.software, p.device) for p in points}):
        siblings = [p for p in points if p.software == software]
        own, others = ([p for p in siblings if (p.device == device) is same] for same in (True, False))
        if not others:
            continue
        residuals = Predictor(own, systems.sheet_of).residuals(fit_constants(others, systems.sheet_of))
        errors.append(np.abs(np.expm1(residuals)))
    assert len(errors) >= 10
    assert np.median(np.concatenate(errors)) < 0.105


def test_export_variants_latent_and_sparse(folder: Path) -> None:
    if not (folder / "op_infersim.csv").is_file():
        pytest.skip("op_infersim.csv is not among the published measurements here")
    adapter = OpInfersim()
    points = [p for p in adapter.timings(adapter.read(folder)) if p.op.operator == "attention"]
    assert len(points) >= 100
    assert np.median(errors_of(points)) < 0.045


def test_training_forward_and_backward() -> None:
    (score,) = scoring.run(only="op_flash_attention").datasets
    assert score.scored == score.rows
    backward = [p.error_frac for p in score.points if "h100_sxm flash_attention_2 backward" in p.label]
    # no constant is of the backward pass alone: its products and its rate follow from the forward pass
    assert len(backward) >= 7
    assert np.median(np.abs(backward)) < 0.025


def errors_of(points: list[Timing]) -> list[float]:
    return [abs(np.expm1(Predictor([p], systems.sheet_of).residuals(constants_of(p).values)[0])) for p in points]
