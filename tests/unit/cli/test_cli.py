"""The command line: results alone on stdout, everything else on stderr, JSON as documented, exit codes."""

from __future__ import annotations

import csv
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sandtable import __version__
from sandtable.contracts import Ran, run_command
from sandtable.demand.kernel import kernels
from sandtable.hardware import Machine, library
from sandtable.runs import run_folder
from sandtable.workload import scenarios
from sandtable.workload.seam import workloads

MINI = """\
schema: 1
name: mini
title: Mini
workload: flash_inference
repeats: 2
parameters: {geometry: opt_mini, tokens: 3, cold_tokens: 2, prompt_tokens: 3, concurrency: 8}
"""
FORMATS = ("table", "json", "csv", "md")
needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="running for real needs numba")


@pytest.fixture(autouse=True)
def here(in_tmp: Path, machine: Machine) -> Path:
    """A folder with a calibrated machine and a small scenario."""
    library.save_component(machine.model_copy(update={"name": "this_machine"}), Path("this_machine.yaml"))
    Path("mini.yaml").write_text(MINI)
    return in_tmp


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder of model files for all real runs."""
    return str(tmp_path_factory.mktemp("stores"))


def sandtable(*arguments: str, code: int = 0) -> Ran:
    ran = run_command(*arguments)
    assert ran.code == code, ran.err
    return ran


def the_json(*arguments: str) -> Any:
    return json.loads(sandtable(*arguments, "--format", "json").out)


def the_csv(*arguments: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sandtable(*arguments, "--format", "csv").out)))


# --- looking around ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "format_"),
    [
        *(("workloads", format_) for format_ in FORMATS),
        *((what, "md") for what in ("devices", "machines", "kernels", "scenarios", "suites", "prices")),
    ],
)
def test_lists_in_every_format(what: str, format_: str) -> None:
    ran = sandtable("list", what, "--format", format_)
    assert ran.err == ""
    lines = ran.out.strip().splitlines()
    assert len(lines) >= 2
    if format_ == "md":
        assert re.fullmatch(r"\|(-+:?\|)+", lines[1])
    if format_ == "json":
        assert json.loads(ran.out)["schema"] == 1


def test_lists_hold_what_there_is() -> None:
    assert "this_machine" in [row["name"] for row in the_csv("list", "machines")]
    assert [row["name"] for row in the_csv("list", "workloads")] == sorted(workloads())
    assert [row["name"] for row in the_csv("list", "kernels")] == sorted(kernels())
    assert [row["name"] for row in the_csv("list", "scenarios")] == sorted(scenarios.files())
    assert [row["name"] for row in the_csv("list", "suites")] == sorted(scenarios.suite_files())
    assert all(float(row["on demand [USD/h]"] or row["spot [USD/h]"]) > 0 for row in the_csv("list", "prices"))


def test_runs_are_listed_with_what_they_hold() -> None:
    assert the_csv("list", "runs") == []
    sandtable("simulate", "mini.yaml")
    (row,) = the_csv("list", "runs")
    assert (row["scenario"], row["machine"], row["holds"], row["verdict"]) == (
        "mini",
        "this_machine",
        "predicted",
        "",
    )
    (next(Path("runs").iterdir()) / "prediction.json").write_text("{")
    (row,) = the_csv("list", "runs")
    assert row["verdict"] == "not readable"


@pytest.mark.parametrize(
    "name", ["samsung_990_pro_2tb", "laptop_pcie4", "aws", "aws_i4i@4xlarge", "this_machine.yaml"]
)
@pytest.mark.parametrize("format_", FORMATS)
def test_a_device_is_shown_with_its_sources(name: str, format_: str) -> None:
    ran = sandtable("show", name, "--format", format_)
    assert ran.err == ""
    assert ran.out.strip()
    if format_ == "csv":
        rows = list(csv.DictReader(io.StringIO(ran.out)))
        assert rows
        assert all(row["number"] and row["value"] and row["source"] for row in rows)
    if format_ == "json":
        assert json.loads(ran.out)["schema"] == 1


def test_the_doctor_looks_at_this_machine() -> None:
    rows = {row["what"]: row for row in the_csv("doctor")}
    assert {"cpu", "memory", "numba", "scipy", "calibration"} <= set(rows)
    assert rows["calibration"]["verdict"] == "ok"
    Path("this_machine.yaml").unlink()
    again = {row["what"]: row for row in the_csv("doctor")}
    assert again["calibration"]["verdict"] == "run 'sandtable calibrate --quick'"


def test_the_version() -> None:
    assert sandtable("--version").out == f"sandtable {__version__}\n"


def test_without_arguments_it_helps() -> None:
    ran = run_command()
    assert ran.code == 2
    assert "Usage: sandtable" in ran.out + ran.err


COMMANDS = (
    "list",
    "show",
    "new",
    "doctor",
    "simulate",
    "run",
    "check",
    "whatif",
    "calibrate",
    "published",
    "report",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    ran = sandtable(command, "--help")
    assert f"sandtable {command}" in ran.out
    assert ran.err == ""


@pytest.mark.parametrize(("what", "suffix"), [("device", "yaml"), ("kernel", "py"), ("workload", "py")])
def test_new_prints_where_it_wrote(what: str, suffix: str) -> None:
    path = f"my_thing.{suffix}"
    ran = sandtable("new", what, "my_thing", "-o", path)
    assert ran.out == f"{path}\n"
    assert ran.err == ""
    assert "my_thing" in Path(path).read_text()


# --- predicting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_simulate_in_every_format(format_: str) -> None:
    ran = sandtable("simulate", "mini.yaml", "--format", format_, "--full")
    assert "latency_s.mean" in ran.out
    assert "tokens_per_s" in ran.out
    assert re.fullmatch(r"  saved runs/\S+-mini\n", ran.err)


def test_simulate_as_json_is_as_documented() -> None:
    data = the_json("simulate", "mini.yaml")
    assert list(data) == ["schema", "scenario", "machine", "metrics", "breakdown", "memory", "warnings", "answer"]
    assert data["schema"] == 1
    assert data["scenario"]["name"] == "mini"
    assert data["scenario"]["parameters"]["model"] == "opt_mini"
    assert data["scenario"]["parameters"]["rung"] == "bundling"
    for name, metric in data["metrics"].items():
        assert set(metric) == {"value", "low", "high", "unit", "derived"}, name
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert data["metrics"]["latency_s.mean"]["unit"] == "s"
    assert set(data["breakdown"]) == {"io", "memory", "compute"}
    assert sum(data["breakdown"].values()) == pytest.approx(data["metrics"]["latency_s.mean"]["value"])
    assert sum(data["memory"].values()) == data["metrics"]["peak_memory_bytes"]["value"]
    assert isinstance(data["warnings"], list)


def test_csv_holds_plain_numbers_in_base_units() -> None:
    rows = {row["metric"]: row for row in the_csv("simulate", "mini.yaml")}
    data = the_json("simulate", "mini.yaml")["metrics"]
    assert set(rows) == set(data)
    for name, row in rows.items():
        assert float(row["predicted"]) == data[name]["value"]
        assert row["unit"] == data[name]["unit"]


def test_a_prediction_is_kept_with_its_inputs() -> None:
    sandtable("simulate", "mini.yaml", "--set", "parameters.window=2")
    run = run_folder.open_run("latest")
    assert {path.name for path in run.path.iterdir()} == {"prediction.json", "scenario.yaml", "machine.yaml"}
    again = the_json("simulate", str(run.path / "scenario.yaml"), "--machine", str(run.path / "machine.yaml"))
    kept = run.prediction()
    assert kept is not None
    assert kept.scenario["parameters"]["window"] == 2
    assert {name: metric["value"] for name, metric in again["metrics"].items()} == {
        name: metric.value for name, metric in kept.metrics.items()
    }


def test_settings_and_machine_change_the_prediction() -> None:
    plain = the_json("simulate", "mini.yaml")
    wide = the_json("simulate", "mini.yaml", "--set", "parameters.window=3")
    other = the_json("simulate", "mini.yaml", "--machine", "laptop_pcie4")
    assert wide["metrics"]["latency_s.mean"] != plain["metrics"]["latency_s.mean"]
    assert other["machine"] == "laptop_pcie4"
    assert "usd_per_mtok" in other["metrics"]


def test_per_request_comes_close_to_the_law() -> None:
    law = the_json("simulate", "mini.yaml")["metrics"]["latency_s.mean"]["value"]
    single = the_json("simulate", "mini.yaml", "--per-request")["metrics"]["latency_s.mean"]["value"]
    assert single == pytest.approx(law, rel=0.02)


def test_warnings_go_to_stderr() -> None:
    ran = sandtable("simulate", "mini.yaml", "--machine", "laptop_pcie4", "--format", "csv")
    assert "  ! not calibrated, data sheet only" in ran.err
    assert "not calibrated" not in ran.out


def test_a_threshold_that_holds_and_one_that_does_not() -> None:
    held = sandtable("simulate", "mini.yaml", "--set", "thresholds.latency_s.p95=< 100 s")
    assert "✓ latency_s.p95 < 100 s" in held.err
    missed = sandtable("simulate", "mini.yaml", "--set", "thresholds.latency_s.p95=< 1 us", code=3)
    assert "✗ latency_s.p95 < 1 us" in missed.err
    assert missed.error == "sandtable: does not hold: latency_s.p95 < 1 us"
    assert "tokens/s" in missed.out  # the result is printed all the same


def test_simulate_writes_a_timeline_and_a_report() -> None:
    pytest.importorskip("perfetto", reason="timelines need perfetto")
    pytest.importorskip("matplotlib", reason="reports need matplotlib")
    ran = sandtable("simulate", "mini.yaml", "--trace", "out/t.pftrace", "--report", "out/r.html")
    assert "timeline: out/t.pftrace" in ran.err
    assert "report: out/r.html" in ran.err
    assert Path("out/t.pftrace").stat().st_size > 1000
    text = Path("out/r.html").read_text()
    assert text.lstrip().lower().startswith("<!doctype html")
    assert "mini" in text
    assert "out/" not in ran.out


@pytest.mark.parametrize("format_", FORMATS)
def test_what_a_change_makes(format_: str) -> None:
    ran = sandtable("whatif", "mini.yaml", "--set", "parameters.window=3", "--full", "--format", format_)
    assert "latency_s.mean" in ran.out
    assert "before" in ran.out
    assert "after" in ran.out
    assert not Path("runs").exists()


def test_a_change_that_changes_nothing() -> None:
    for row in the_csv("whatif", "mini.yaml", "--set", "parameters.rung=bundling"):
        assert row["before"] == row["after"]


# --- published ---------------------------------------------------------------------------------------------


def test_published_as_json_is_as_documented() -> None:
    data = the_json("published", "--only", "llm_in_a_flash")
    assert data["schema"] == 1
    for entry in data["datasets"]:
        needed = {"name", "metric", "rows", "scored", "skipped", "median_abs_error_frac", "p90_abs_error_frac"}
        assert needed <= set(entry)
        assert entry["rows"] == entry["scored"] + sum(entry["skipped"].values())


# --- running for real --------------------------------------------------------------------------------------


@needs_numba
def test_a_real_run_reports_the_same_shape(stores: str) -> None:
    data = the_json("run", "mini.yaml", "--store", stores)
    assert list(data) == ["schema", "scenario", "machine", "metrics", "breakdown", "memory", "warnings", "answer"]
    predicted = the_json("simulate", "mini.yaml")
    assert set(predicted["metrics"]) <= set(data["metrics"])
    assert data["metrics"]["bytes_read.mean"]["value"] == predicted["metrics"]["bytes_read.mean"]["value"]
    assert data["memory"] == predicted["memory"]
    measurement = run_folder.list_runs()[0].measurement()
    assert measurement is not None
    assert len(measurement.metrics["latency_s.mean"].samples) == 2 * 3


@needs_numba
def test_a_check_is_as_documented_and_kept(stores: str) -> None:
    ran = run_command("check", "mini.yaml", "--store", stores, "--format", "json")
    assert ran.code in (0, 3), ran.err  # the fixture's machine is not this one
    data = json.loads(ran.out)
    assert set(data) == {"schema", "comparisons", "summary", "as_calibrated", "verdict", "reasons", "answer"}
    assert set(data["summary"]) == {"n", "median_abs_error_frac", "p90_abs_error_frac", "coverage_frac"}
    assert data["verdict"] in (("pass", "inconclusive") if ran.code == 0 else ("fail",))
    if ran.code == 3:
        assert ran.error == f"sandtable: {'; '.join(data['reasons'])}"
    for row in data["comparisons"]:
        assert {"scenario", "metric", "predicted", "measured", "error_frac", "covered"} <= set(row)
        assert row["scenario"] == "mini"
        assert row["error_frac"] == pytest.approx(row["predicted"] / row["measured"] - 1)
    exact = {row["metric"]: row for row in data["comparisons"]}
    for name in ("bytes_read.mean", "n_requests.mean", "peak_memory_bytes"):
        assert exact[name]["error_frac"] == 0
        assert exact[name]["covered"]
    run = run_folder.open_run("latest")
    executions = {path.name for path in run.path.glob("execution-*.json")}
    assert executions
    assert {path.name for path in run.path.iterdir()} - executions == {
        "check.json",
        "prediction.json",
        "measurement.json",
        "comparison.json",
        "scenario.yaml",
        "machine.yaml",
    }
    for format_ in FORMATS:
        shown = sandtable("show", "latest", "--format", format_).out
        assert "latency_s.mean" in shown


@needs_numba
def test_two_scenarios_are_checked_together(stores: str) -> None:
    Path("other.yaml").write_text(
        MINI.replace("name: mini", "name: other").replace("{geometry", "{rung: window, geometry")
    )
    ran = run_command(
        "check", "mini.yaml", "other.yaml", "--store", stores, "--set", "repeats=1", "--format", "json"
    )
    assert ran.code in (0, 3), ran.err
    assert {row["scenario"] for row in json.loads(ran.out)["comparisons"]} == {"mini", "other"}
    (base,) = run_folder.list_runs()
    assert {re.sub(r"^.*?-(mini|other)$", r"\1", run.path.name) for run in run_folder.list_runs(base.path)} == {
        "mini",
        "other",
    }


@needs_numba
def test_a_report_of_runs(stores: str) -> None:
    pytest.importorskip("matplotlib", reason="reports need matplotlib")
    pytest.importorskip("perfetto", reason="timelines need perfetto")
    checked = run_command("check", "mini.yaml", "--store", stores, "--set", "repeats=1", "--trace", "t.pftrace")
    assert "timeline: t.pftrace" in checked.err
    assert Path("t.pftrace").stat().st_size > 1000
    ran = sandtable("report", "latest", "-o", "r.html")
    assert ran.out == ""
    assert ran.err == "  report: r.html\n"
    assert "mini" in Path("r.html").read_text()
