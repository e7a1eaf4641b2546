"""A package outside this repository adds an operator, a kernel, a process workload and an adapter, and all commands
know them: nothing of the core is touched, registered or patched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandtable.hardware import Machine, library

PACKAGE = Path(__file__).parents[1] / "fixtures" / "outside_package"
CODE = Path(__file__).parents[2]


def sandtable(folder: Path, *arguments: str) -> str:
    """Run the command line in a process of its own that sees the package; return what it prints."""
    roots = (PACKAGE, *(CODE / root for root in ("simulator", "kernels", "workloads")))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "SANDTABLE_PATH": str(PACKAGE / "scenarios"),
    }
    command = [sys.executable, "-m", "sandtable.cli.app", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outside")


@pytest.fixture
def calibrated(folder: Path, machine: Machine) -> Path:
    """A folder with a machine file that was calibrated for the package's own part."""
    pytest.importorskip("numba", reason="calibrating needs numba")
    path = folder / "this_machine.yaml"
    if not path.is_file():
        library.save_component(machine.model_copy(update={"name": "this_machine"}), path)
        sandtable(folder, "calibrate", "--quick", "--only", "acme")
    return folder


def test_what_it_adds_is_listed(folder: Path) -> None:
    assert "acme_counting" in sandtable(folder, "list", "workloads")
    assert "acme_count_values" in sandtable(folder, "list", "kernels")
    assert "acme_counter" in sandtable(folder, "list", "scenarios")


def test_its_commands_are_commands(folder: Path) -> None:
    assert "acme" in sandtable(folder, "--help")
    assert "Count words." in sandtable(folder, "acme", "--help")
    assert sandtable(folder, "acme", "count", "one", "two") == "2\n"


def test_other_commands_do_not_import_them() -> None:
    code = "import sys, sandtable.cli.app; from sandtable import plugins; print(plugins.command_modules()); "
    code += "print([name for name in sys.modules if name.startswith(('acme_sim', 'sandtable_workloads'))])"
    roots = os.pathsep.join(map(str, (PACKAGE, *(CODE / root for root in ("simulator", "kernels", "workloads")))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": roots},
        capture_output=True,
        text=True,
        check=True,
    )
    commands, imported = done.stdout.splitlines()
    assert "'acme': 'acme_sim.acme_commands'" in commands
    assert imported == "[]"


def test_its_rows_are_predicted(folder: Path) -> None:
    data = str(PACKAGE / "acme_sim" / "published" / "data")
    (score,) = json.loads(sandtable(folder, "published", data, "--format", "json"))["datasets"]
    assert (score["name"], score["rows"], score["scored"]) == ("acme_histograms", 3, 2)
    assert score["skipped"] == {"no device file": 1}


def test_its_kernel_is_calibrated_and_its_law_fitted(calibrated: Path) -> None:
    machine = (calibrated / "this_machine.yaml").read_text()
    assert "acme_histogram:" in machine
    loaded = library.load_file(calibrated / "this_machine.yaml", "machine")
    assert isinstance(loaded, Machine)
    assert loaded.processor.fitted is not None


def test_its_scenario_is_predicted_executed_and_compared(calibrated: Path) -> None:
    predicted = json.loads(sandtable(calibrated, "simulate", "acme_counter", "--format", "json"))
    measured = json.loads(sandtable(calibrated, "run", "acme_counter", "--format", "json"))
    for statistic in ("mean", "p50", "p90", "p95", "p99"):
        for name in (f"latency_s.{statistic}", f"wait_s.{statistic}"):
            assert predicted["metrics"][name]["unit"] == measured["metrics"][name]["unit"] == "s"
    compared = json.loads(sandtable(calibrated, "check", "acme_counter", "--format", "json"))
    errors = {row["metric"]: abs(row["error_frac"]) for row in compared["comparisons"]}
    # bincount's time is one constant a value: only a law that was really fitted comes near, on a busy machine too
    assert errors["latency_s.p50"] < 1.0
    assert errors["peak_memory_bytes"] == 0


def test_its_trace_and_its_change_are_shown(calibrated: Path) -> None:
    pytest.importorskip("perfetto")
    sandtable(calibrated, "simulate", "acme_counter", "--trace", "timeline.pftrace")
    assert (calibrated / "timeline.pftrace").stat().st_size > 1000
    assert "latency_s" in sandtable(
        calibrated, "whatif", "acme_counter", "--set", "parameters.arrivals_per_s=90 /s", "--full"
    )
