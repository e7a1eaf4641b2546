"""Mutants of everything that people hand over: an answer, or one sentence. `tests/bench/test_fuzz.py` tries 100 000."""

from __future__ import annotations

from pathlib import Path

import fuzzing
import pytest

# so many that each takes about a second
TRIES = {"setting": 60, "scenario": 40, "suite": 150, "device": 30, "config": 15, "law": 15, "csv": 8}


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_mutants_are_answered(target: str, in_tmp: Path) -> None:
    findings = fuzzing.fuzz(target, TRIES.get(target, 100))
    assert not findings.found, str(findings)
    assert findings.tried == TRIES.get(target, 100)


@pytest.mark.parametrize("target", ["setting", "scenario", "suite", "device", "trace"])
def test_most_mutants_are_refused(target: str, in_tmp: Path) -> None:
    findings = fuzzing.fuzz(target, 30, seed=2)
    assert findings.refused > 10
