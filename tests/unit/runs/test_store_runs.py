"""Run folders: what is kept of a run, and how it is found again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandtable.errors import ConfigError
from sandtable.hardware import Machine, library
from sandtable.results import Metric, Prediction
from sandtable.runs import run_folder
from sandtable.runs.run_folder import RunFolder
from sandtable.workload import scenarios
from sandtable.workload.seam import Scenario

SCENARIO = Scenario(name="made_up", title="Made up", workload="flash_inference", parameters={"tokens": 2})


def a_prediction(value: float = 1.0) -> Prediction:
    metric = Metric(value=value, low=value, high=value, unit="s")
    return Prediction(scenario={"name": "made_up"}, machine="m", metrics={"latency_s": metric})


def test_what_is_saved_is_read_back(in_tmp: Path) -> None:
    run = RunFolder.create("made_up")
    run.save(a_prediction())
    assert run.prediction() == a_prediction()
    assert run.measurement() is None
    assert run.comparison() is None


def test_the_inputs_load_as_they_were_used(in_tmp: Path, machine: Machine) -> None:
    run = RunFolder.create("made_up")
    run.save_inputs(SCENARIO, machine)
    assert library.load_machine(str(run.path / "machine.yaml")) == machine
    again = scenarios.load(str(run.path / "scenario.yaml"), machine=str(run.path / "machine.yaml"))
    assert again.scenario == SCENARIO.model_copy(update={"machine": str(run.path / "machine.yaml")})


def test_two_runs_in_one_second_get_two_folders(in_tmp: Path) -> None:
    paths = [RunFolder.create("made_up").path for _ in range(5)]
    assert len(set(paths)) == 5
    assert all(path.is_dir() for path in paths)


def test_runs_are_found_by_path_name_and_latest(in_tmp: Path) -> None:
    # the latest by time, whatever the names say; a folder of something else is none
    Path("runs/findings").mkdir(parents=True)
    first, second = RunFolder.create("a"), RunFolder(Path("runs/0_moved_here"))
    for run in (first, second):
        run.path.mkdir(exist_ok=True)
        (run.path / "prediction.json").write_text("{}")
    os.utime(first.path / "prediction.json", ns=(0, (second.path / "prediction.json").stat().st_mtime_ns - 1))
    assert [run.path for run in run_folder.list_runs()] == [Path("runs/findings"), first.path, second.path]
    assert run_folder.open_run("latest").path == second.path
    assert run_folder.open_run(first.path.name).path == first.path
    assert run_folder.open_run(str(first.path)).path == first.path


def test_a_run_that_is_not_there(in_tmp: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run named 'latest' \(latest: none yet\); simulate, run"):
        run_folder.open_run("latest")
    Path("runs/findings").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"none yet.*, runs/findings is none"):
        run_folder.open_run("latest")
    run = RunFolder.create("made_up")
    (run.path / "prediction.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"no run named 'nothing' .*{run.path.name}"):
        run_folder.open_run("nothing")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"schema": 1}', "[]", '{"schema": 7, "kind": "prediction"}'])
def test_a_file_that_is_no_record(in_tmp: Path, text: str) -> None:
    run = RunFolder.create("made_up")
    (run.path / "prediction.json").write_text(text)
    with pytest.raises(ConfigError, match=r"prediction.json: not a prediction record"):
        run.prediction()


def test_a_record_is_replaced_whole(in_tmp: Path) -> None:
    run = RunFolder.create("made_up")
    run.save(a_prediction(1.0))
    run.save(a_prediction(2.0))
    found = run.prediction()
    assert found is not None
    assert found.metrics["latency_s"].value == 2.0
    assert [path.name for path in run.path.iterdir()] == ["prediction.json"]


def test_a_failed_write_leaves_the_old_record(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create("made_up")
    run.save(a_prediction(1.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        run.save(a_prediction(2.0))
    found = run.prediction()
    assert found is not None
    assert found.metrics["latency_s"].value == 1.0
    assert [path.name for path in run.path.iterdir()] == ["prediction.json"]


def test_a_folder_that_cannot_be_made(in_tmp: Path) -> None:
    Path("runs").write_text("a file stands in the way")
    with pytest.raises(ConfigError, match="cannot make the run folder"):
        RunFolder.create("made_up")


@pytest.mark.parametrize("name", ["/tmp/suites/mine.yaml", "../../mine", "a b/c", "mine.yaml", "C:\\mine"])
def test_a_run_lies_in_the_folder_of_runs_whatever_its_name(name: str, in_tmp: Path) -> None:
    run = RunFolder.create(name)
    assert run.path.parent == run_folder.RUNS
    assert run.path.name.endswith("mine") or "mine" in run.path.name or run.path.name.endswith("a_b_c")
    assert [found.path for found in run_folder.list_runs()] == [run.path]


def test_a_changed_number_in_a_record_is_refused_by_name(in_tmp: Path) -> None:
    run = RunFolder.create("made_up")
    path = run.save(a_prediction(1.5))
    path.write_text(path.read_text().replace("1.5", "1.6", 1))
    with pytest.raises(ConfigError, match=r"prediction.json: does not match its digest"):
        run.prediction()
    path.write_text("\n".join(line for line in path.read_text().split("\n") if '"digest"' not in line))
    assert run.prediction() is not None  # whoever means the change says so


def test_bytes_that_are_no_text_are_refused(in_tmp: Path) -> None:
    run = RunFolder.create("made_up")
    (run.path / "measurement.json").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"measurement.json: not a measurement record"):
        run.measurement()
