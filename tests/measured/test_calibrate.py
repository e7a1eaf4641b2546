"""Calibration of the machine that runs the tests: real reads and real kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("numba", reason="real kernels need the `run` extra")
pytest.importorskip("scipy", reason="fitting needs the `run` extra")

from short_calibration import shorten

from sandtable.calibration import this_host
from sandtable.calibration.host_timing import Settings
from sandtable.hardware import library

pytestmark = [pytest.mark.measured, pytest.mark.slow]


def test_a_short_calibration_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    settings = Settings(folder=tmp_path, quick=True, file_bytes=256 << 20, passes=1, budget_s=2.0)
    result = this_host.calibrate(settings)
    storage = result.machine.storage.fitted
    assert storage is not None
    # a disk: between one read per millisecond and memory speed
    assert 1e3 < storage.requests_per_s.value < 2e7
    assert 1e7 < storage.sequential_bytes_per_s.value < 1e11
    for kind in ("gemv", "sparse_ffn", "attend"):
        laws = result.machine.processor.fitted.ops[kind]  # type: ignore[union-attr]
        assert laws, kind
    path = tmp_path / "machine.yaml"
    library.save_component(result.machine, path)
    assert library.load_machine(str(path)).storage.fitted is not None
