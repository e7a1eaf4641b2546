"""Run folders: what a run leaves on disk, each file written beside its name and renamed."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from sandtable import yaml_files
from sandtable.errors import ConfigError
from sandtable.hardware import Machine, library
from sandtable.results import Comparison, Measurement, Prediction
from sandtable.system import atomic_files, checksums
from sandtable.workload.seam import Scenario

RUNS = Path("runs")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
RECORDS_OF: dict[type[BaseModel], str] = {
    Prediction: "prediction",
    Measurement: "measurement",
    Comparison: "comparison",
}
RECORDS = tuple(RECORDS_OF.values())
M = TypeVar("M", bound=BaseModel)


class RunFolder:
    """One run's folder: prediction.json, measurement.json, comparison.json, scenario.yaml, machine.yaml, traces."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, name: str, base: Path | None = None) -> RunFolder:
        """Make a new folder ``<base>/<time>-<name>``, never one that exists; a name never leads out of the base."""
        base, name = base or RUNS, _UNSAFE.sub("_", name)
        stamp = dt.datetime.now().strftime("%Y-%m-%dT%H%M%S")
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            path = base / f"{stamp}-{name}{suffix}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfigError(f"cannot make the run folder: {error}", file=str(path)) from None
            return cls(path)
        raise ConfigError("cannot find a free name for the run folder", file=str(base))

    def save(self, item: BaseModel, name: str | None = None) -> Path:
        """Write one record under its own file name, and return the path."""
        path = self.path / f"{name or RECORDS_OF[type(item)]}.json"
        text = item.model_dump_json(by_alias=True, indent=1)
        atomic_files.write_atomically(path, checksums.sealed_json(text))
        return path

    def save_inputs(self, scenario: Scenario, machine: Machine) -> None:
        """Write the scenario and the machine as they were used."""
        text = yaml_files.dump_yaml(scenario.model_dump(mode="json", by_alias=True))
        atomic_files.write_atomically(self.path / "scenario.yaml", checksums.sealed_yaml(text))
        library.save_measured(machine, self.path / "machine.yaml")

    def load(self, model: type[M], name: str) -> M | None:
        """Read one record back; None when the run has none.

        Raises:
            ConfigError: a file that is not such a record, or that was damaged.
        """
        path = self.path / f"{name}.json"
        if not path.is_file():
            return None
        data = checksums.checked_json(path.read_bytes(), str(path))
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise ConfigError(f"not a {name} record: {where}: {fault['msg']}", file=str(path)) from None

    def written_ns(self) -> int:
        """Return when a record was last written here, in nanoseconds; 0 for a folder that holds none."""
        times = [path.stat().st_mtime_ns for name in RECORDS if (path := self.path / f"{name}.json").is_file()]
        return max(times, default=0)

    def prediction(self) -> Prediction | None:
        """Return the prediction, if there is one."""
        return self.load(Prediction, "prediction")

    def measurement(self) -> Measurement | None:
        """Return the measurement, if there is one."""
        return self.load(Measurement, "measurement")

    def comparison(self) -> Comparison | None:
        """Return the comparison, if there is one."""
        return self.load(Comparison, "comparison")


def open_run(name: str) -> RunFolder:
    """Open a run folder by path, by name under ``runs/``, or ``latest``: the one that was last written to.

    Raises:
        ConfigError: no such run.
    """
    folders = list_runs()
    runs = [run for run in folders if run.written_ns()]
    if name == "latest" and runs:
        return runs[-1]
    for path in (Path(name), RUNS / name):
        if path.is_dir():
            return RunFolder(path)
    known = ", ".join(run.path.name for run in runs[-3:]) or "none yet"
    others = ", ".join(str(run.path) for run in folders if run not in runs)
    hint = "" if runs else "; simulate, run and check leave one" + (f", {others} is none" if others else "")
    raise ConfigError(f"no run named {name!r} (latest: {known}){hint}")


def list_runs(base: Path | None = None) -> list[RunFolder]:
    """Return the folders of runs by the time they were last written to, the latest last, whatever they are called."""
    folder = base or RUNS
    if not folder.is_dir():
        return []
    found = [RunFolder(path) for path in folder.iterdir() if path.is_dir()]
    return sorted(found, key=lambda run: (run.written_ns(), run.path.name))
