"""The script that compares butterflies on a GPU: without one it says so, and in small it runs on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the script runs PyTorch")
pytest.importorskip("numba", reason="on the CPU it runs the compiled loops")
SCRIPT = Path(__file__).parents[2] / "bench" / "gpu_butterfly.py"


@pytest.fixture(scope="module")
def script() -> Any:
    specification = importlib.util.spec_from_file_location("gpu_butterfly", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["gpu_butterfly"] = module
    specification.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_and_leaves_with_4(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main([]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert "NVIDIA GPU" in said.err
    assert said.err.count("\n") == 1


def test_in_small_it_times_every_contender(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert script.main(["--dry-run", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["left_out"] == []
    assert found["software"]["torch"] == torch.__version__
    assert len(found["points"]) == 2 * 2
    for row in found["points"]:
        assert all(row["seconds"][name] > 0 for name in ("butterfly", "dense", "monarch"))
        wanted = row["seconds"]["dense"] / row["seconds"]["butterfly"]
        assert row["dense_over_butterfly"] == pytest.approx(wanted, abs=1e-3)
        assert row["bandwidth_limit_frac"] > 0
    assert sorted(found["errors_frac"]) == [f"24 to 58, base 16, {dtype}" for dtype in ("bfloat16", "float32")]
    assert 0 < max(found["errors_frac"].values()) < 0.03
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(found["points"])


def test_a_budget_leaves_the_rest_out(script: Any, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert script.main(["--dry-run", "--budget", "0", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["points"] == []
    assert len(found["left_out"]) == 4


def test_a_wrong_kernel_is_not_timed(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = script.butterfly
    monkeypatch.setattr(script, "butterfly", lambda *given: right(*given) * 1.1)
    assert script.main(["--dry-run"]) == 3
    assert "off by" in capsys.readouterr().err
