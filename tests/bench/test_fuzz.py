"""100 000 mutants of everything that people hand over: an answer, or one sentence, within two seconds."""

from __future__ import annotations

import os
from pathlib import Path

import fuzzing
import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 or run make bench"
)
SHARES = {"quantity": 40, "suite": 15, "setting": 10, "scenario": 8, "trace": 8}
SHARES |= {"device": 6, "config": 5, "law": 5, "csv": 3}
# the whole campaign takes about half an hour; FUZZ_TRIES=10000 a tenth of it
TRIES = int(os.environ.get("FUZZ_TRIES", "100000"))


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_mutants_are_answered(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    findings = fuzzing.fuzz(target, TRIES * SHARES[target] // 100, seed=int(os.environ.get("FUZZ_SEED", "1")))
    print(f"{target}: {findings.tried} tried, {findings.refused} refused, {len(findings.found)} findings")
    assert not findings.found, str(findings)
