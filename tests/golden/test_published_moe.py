"""How well device files predict published times of mixtures of experts; needs the folder of published measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sandtable.calibration.fit.operator_fit import Predictor, fit_constants
from sandtable.published import systems
from sandtable.published.operators.op_moe import OpMoe


@pytest.fixture
def folder(reference_folder: Path) -> Path:
    if not (reference_folder / "op_moe.csv").is_file():
        pytest.skip("op_moe.csv is not among the published measurements here")
    return reference_folder


def test_a_device_left_out_follows_from_its_data_sheet_and_its_siblings(folder: Path) -> None:
    adapter = OpMoe()
    points = [p for p in adapter.timings(adapter.read(folder)) if p.software == "triton_experts"]
    errors = []
    for device in sorted({p.device for p in points}):
        own, others = ([p for p in points if (p.device == device) is same] for same in (True, False))
        residuals = Predictor(own, systems.sheet_of).residuals(fit_constants(others, systems.sheet_of))
        errors.append(np.abs(np.expm1(residuals)))
    assert len(errors) >= 6
    assert np.median(np.concatenate(errors)) < 0.14
    assert np.percentile(np.concatenate(errors), 90) < 0.35
