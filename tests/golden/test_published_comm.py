"""How well link files predict published times of collectives; needs the folder of published measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sandtable.calibration.fit.operator_fit import Predictor, fit_constants
from sandtable.published import systems
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import constants_of
from sandtable.published.operators.op_comm import OpComm


@pytest.fixture
def folder(reference_folder: Path) -> Path:
    if not (reference_folder / "op_comm.csv").is_file():
        pytest.skip("op_comm.csv is not among the published measurements here")
    return reference_folder


def test_a_link_left_out_follows_from_its_data_sheet_and_its_siblings(folder: Path) -> None:
    adapter = OpComm()
    points = [p for p in adapter.timings(adapter.read(folder)) if p.software == "nccl"]
    errors = []
    for link in sorted({p.device for p in points}):
        own, others = ([p for p in points if (p.device == link) is same] for same in (True, False))
        residuals = Predictor(own, systems.sheet_of).residuals(fit_constants(others, systems.sheet_of))
        errors.append(np.abs(np.expm1(residuals)))
    assert len(errors) >= 4
    assert np.median(np.concatenate(errors)) < 0.15


def test_constants_come_from_the_link_itself(folder: Path) -> None:
    adapter = OpComm()
    origins = {constants_of(point).origin for point in adapter.timings(adapter.read(folder))}
    assert origins == {"device"}


def test_sizes_in_elements_agree_with_sizes_in_bytes(folder: Path) -> None:
    """Two sources timed a pair of H100-class accelerators; the one without a unit counts two-byte elements."""
    adapter = OpComm()
    found: dict[str, float] = {}
    for row in adapter.read(folder):
        timed = adapter.timed(row)
        for item in () if isinstance(timed, Skipped) else timed:
            if (
                isinstance(item, Skipped)
                or item.timing.op.operator != "all_reduce"
                or item.timing.op.shape.n_ranks != 2
            ):
                continue
            rate = item.timing.op.shape[0] / item.timing.seconds
            found[row.text("system")] = max(rate, found.get(row.text("system"), 0.0))
    assert found["h200_sxm"] == pytest.approx(found["h100_dgx"], rel=0.25)
