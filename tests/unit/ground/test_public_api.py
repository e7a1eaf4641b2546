"""The public interface: what it lists, what its results give, and the scripts that the README shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import sandtable
from sandtable import api
from sandtable.errors import ConfigError, UnknownName

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MEASURING = "calibrate_and_check"
SHORT = f"""import runpy, sys
sys.path.insert(0, {str(ROOT / "tests" / "shared")!r})
import pytest, short_calibration
short_calibration.shorten(pytest.MonkeyPatch())
runpy.run_path(sys.argv[1], run_name="__main__")
"""
SMALL = {"parameters.model": "llama_2_7b_relu_1l", "parameters.tokens": 3}


def test_every_public_name_is_there_documented_and_no_other_is() -> None:
    assert sorted(sandtable.__all__) == sandtable.__all__
    for name in sandtable.__all__:
        assert getattr(sandtable, name) is not None
        assert name == "__version__" or getattr(sandtable, name).__doc__.strip()
    with pytest.raises(AttributeError, match="no attribute 'predict_all'"):
        getattr(sandtable, "predict_" + "all")


def test_importing_it_costs_nothing() -> None:
    code = "import sys, sandtable; print(*(name for name in sys.modules if name.startswith('sandtable.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_runs_and_prints_what_the_readme_shows(path: Path, tmp_path: Path) -> None:
    lines = [line for line in path.read_text().split('"""', 2)[2].splitlines() if line.strip()]
    assert len(lines) <= 10
    if path.stem == MEASURING:
        pytest.importorskip("numba", reason="measuring needs numba")
    command = [sys.executable, *(["-c", SHORT] if path.stem == MEASURING else []), str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    if path.stem == MEASURING:
        assert re.search(r"latency_s\.mean +[\d.e-]+ +[\d.e-]+ +-?[\d.]+ +(True|False)", done.stdout)
    else:
        assert f"```text\n{done.stdout.rstrip()}\n```" in (ROOT / "README.md").read_text()


# --- frames ------------------------------------------------------------------------------------------------


def test_a_simulation_gives_its_metrics_steps_ops_and_memory() -> None:
    found = sandtable.simulate("flash_laptop", SMALL)
    metrics = found.to_frame()
    assert metrics.loc["latency_s.mean", "value"] == found["latency_s.mean"].value
    assert set(metrics.columns) >= {"value", "low", "high", "unit"}
    steps = found.to_frame("steps")
    decoded = steps[steps["unit"] == "decode"]
    assert len(decoded) == 3
    assert decoded["latency_s"].mean() == pytest.approx(found["latency_s.mean"].value)
    assert found.to_frame("ops").loc["neurons", "seconds"] > 0
    assert found.to_frame("memory")["bytes"].sum() == pytest.approx(found["peak_memory_bytes"].value)
    assert "<table" in found._repr_html_()


def test_a_wrong_name_is_answered_with_the_right_one() -> None:
    found = sandtable.simulate("flash_laptop", SMALL)
    with pytest.raises(UnknownName, match=r"latency_s\.mean"):
        found["latency_s.maen"]
    with pytest.raises(UnknownName, match="steps"):
        found.to_frame("step")
    with pytest.raises(ConfigError, match="at least one change"):
        sandtable.whatif("flash_laptop", {})


def test_a_difference_and_a_study_agree_with_single_predictions() -> None:
    change = {"parameters.window": 4}
    both = sandtable.whatif("flash_laptop", SMALL | change).to_frame()
    after = sandtable.simulate("flash_laptop", SMALL | change)
    assert both.loc["latency_s.mean", "after"] == after["latency_s.mean"].value
    points = sandtable.study("flash_laptop", {"window": [2, 4]}, changes=SMALL)
    assert "<table" in points._repr_html_()
    grid = points.to_frame()
    assert list(grid["window"]) == [2, 4]
    assert grid["latency_s.mean"].iloc[1] == pytest.approx(after["latency_s.mean"].value)


@pytest.mark.parametrize("name", ["devices", "prices"])
def test_lists_are_frames(name: str) -> None:
    frame: Any = getattr(api, name)()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) > 20


def test_runs_are_listed(in_tmp: Path) -> None:
    assert len(sandtable.list_runs()) == 0


def test_a_machine_is_loaded_with_changes() -> None:
    assert (
        sandtable.load_machine("laptop_pcie4", {"storage": "crucial_t700_2tb"}).storage.name == "crucial_t700_2tb"
    )


def test_rows_that_ship_are_scored() -> None:
    scored = sandtable.score(only="llm_in_a_flash")
    assert scored.datasets[0].scored == 9
