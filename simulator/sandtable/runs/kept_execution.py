"""Executions on disk, so that a check or a run that was ended can be finished: units of work in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from sandtable import yaml_files
from sandtable.engine.recorder import Recorder
from sandtable.errors import ConfigError
from sandtable.hardware import Machine, library
from sandtable.results import Measurement, Record, TraceRow
from sandtable.runs.measure import NO_REPEATS, Repeats
from sandtable.runs.run_folder import RunFolder
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import Execution, Scenario, workload_named

NAME = "execution-{}"
RUN = "run"
OF_THE_UNIT = ("name", "start_s")


class KeptExecution(Record):
    """One execution: the columns of each kind of unit, and the fields of `Execution`; ``probes`` ran before it."""

    schema_version: Literal[2] = Field(default=2, alias="schema")
    units: dict[str, dict[str, list[Any]]]
    memory_bytes: dict[str, float]
    process_bytes: float | None = None
    energy_j: float | None = None
    energy_covers: str = ""
    lost_frac: float | None = None
    trace: tuple[TraceRow, ...] = ()
    validity: tuple[str, ...] = ()
    probes: dict[str, float]

    @classmethod
    def of(cls, execution: Execution, probes: Mapping[str, float]) -> KeptExecution:
        """Take down an execution."""
        columns = {
            str(table.pop("unit")): {name: np.asarray(column).tolist() for name, column in table.items()}
            for table in execution.recorder.tables()
        }
        same = ("process_bytes", "energy_j", "energy_covers", "lost_frac")
        return cls(
            units=columns,
            memory_bytes=dict(execution.memory_bytes),
            trace=tuple(execution.trace),
            validity=tuple(execution.validity),
            probes=dict(probes),
            **{name: getattr(execution, name) for name in same},
        )

    def execution(self) -> Execution:
        """Return it as it was."""
        recorder = Recorder()
        for unit, columns in self.units.items():
            measured = [name for name in columns if name not in OF_THE_UNIT]
            for index, name in enumerate(columns["name"]):
                row = {column: _number(columns[column][index]) for column in measured}
                recorder.record(unit, row, name=name, start_s=_number(columns["start_s"][index]))
        return Execution(
            recorder=recorder,
            memory_bytes=self.memory_bytes,
            process_bytes=self.process_bytes,
            energy_j=self.energy_j,
            energy_covers=self.energy_covers,
            lost_frac=self.lost_frac,
            trace=self.trace,
            validity=self.validity,
        )


def _number(value: float | None) -> float:
    """Return a number as it was: JSON has none for one that is missing."""
    return float("nan") if value is None else value


def save(folder: RunFolder, index: int, execution: Execution, probes: Mapping[str, float]) -> None:
    """Keep one execution of a scenario."""
    folder.save(KeptExecution.of(execution, probes), NAME.format(index + 1))


def load(folder: RunFolder, most: int) -> Repeats:
    """Return the executions that a folder keeps, in order, up to the first that is missing.

    Raises:
        ConfigError: a file that is no such record.
    """
    kept: list[KeptExecution] = []
    while len(kept) < most and (found := folder.load(KeptExecution, NAME.format(len(kept) + 1))) is not None:
        kept.append(found)
    return Repeats(executions=[item.execution() for item in kept], probes=[item.probes for item in kept])


def case_of(folder: RunFolder, parameters: Mapping[str, Any]) -> Case:
    """Return what a folder is about, with ``parameters`` as resolved then, whatever the disk has room for now.

    Raises:
        ConfigError: its scenario or machine is missing or damaged.
    """
    file = folder.path / "scenario.yaml"
    scenario = yaml_files.validate(Scenario, yaml_files.read_yaml(file), str(file))
    machine = library.load_file(folder.path / "machine.yaml", "machine")
    assert isinstance(machine, Machine)
    workload = workload_named(scenario.workload)
    resolved = workload.parameters.model_validate(parameters)
    return Case(scenario=scenario, workload=workload, parameters=resolved, machine=machine)


# --- runs under way ----------------------------------------------------------------------------------------


class KeptRun(Record):
    """A run that may have been ended, kept in its folder: parameters as they were resolved, and what was said of it."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    parameters: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class RunUnderWay:
    """A run whose repeats are on disk as soon as they are done; its folder appears with the first of them."""

    case: Case
    notes: Sequence[str] = ()
    repeats: Repeats = NO_REPEATS
    folder: RunFolder | None = None

    @classmethod
    def reopened(cls, folder: RunFolder) -> RunUnderWay:
        """Return a run as its folder keeps it.

        Raises:
            ConfigError: the folder holds no run, or a part of it is missing or damaged.
        """
        about = folder.load(KeptRun, RUN)
        if about is None:
            raise ConfigError("holds no run that could go on", file=str(folder.path))
        case = case_of(folder, about.parameters)
        return cls(case=case, notes=about.notes, repeats=load(folder, case.scenario.repeats), folder=folder)

    def keep(self, measurement: Measurement, repeats: Repeats) -> None:
        """Write down the last of ``repeats``, and what all of them show."""
        if self.folder is None:
            self.folder = RunFolder.create(self.case.scenario.name)
            self.folder.save_inputs(self.case.scenario, self.case.machine)
            parameters = self.case.parameters.model_dump(mode="json")
            self.folder.save(KeptRun(parameters=parameters, notes=tuple(self.notes)), RUN)
        if len(repeats.executions) > len(self.repeats.executions):
            save(self.folder, len(self.repeats.executions), repeats.executions[-1], repeats.probes[-1])
        self.repeats = repeats
        self.folder.save(measurement)

    def ended(self) -> str:
        """Say what is saved of a run that was ended, and how to go on; nothing before the first repeat."""
        done, wanted = len(self.repeats.executions), self.case.scenario.repeats
        if self.folder is None:
            return ""
        return f"{done} of {wanted} repeats are saved: go on with 'sandtable run --resume {self.folder.path}'"
