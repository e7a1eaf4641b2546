"""Calibrate this machine, run a suite for real, and hold the ratios between its runs against what was predicted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import sandtable
from sandtable.studies import study, suite_pairs

pytestmark = pytest.mark.skipif("SANDTABLE_BENCH" not in os.environ, reason="set SANDTABLE_BENCH=1 to measure")


@pytest.mark.parametrize("suite", ["flash-quick", "flash"])
def test_ratios_of_a_suite(suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sandtable.calibrate(quick=False, only="storage,memory,compute")
    found = sandtable.check(study.load(suite), machine="this_machine.yaml")
    coverage = suite_pairs.coverage(suite_pairs.pairs(suite_pairs.ran(found.cases)))
    print(f"{suite}: {coverage.sentence()}")
    assert coverage.covered_frac >= 0.85
    assert coverage.width_frac <= 0.25
