"""Executions on disk, so that a check that was ended can be finished: units of work in columns."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from sandtable.engine.recorder import Recorder
from sandtable.results import Record, TraceRow
from sandtable.runs.measure import Repeats
from sandtable.runs.run_folder import RunFolder
from sandtable.workload.seam import Execution

NAME = "execution-{}"
OF_THE_UNIT = ("name", "start_s")


class KeptExecution(Record):
    """One execution: the columns of each kind of unit, and the fields of `Execution`; ``probe`` ran before it."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    units: dict[str, dict[str, list[Any]]]
    memory_bytes: dict[str, float]
    process_bytes: float | None = None
    energy_j: float | None = None
    energy_covers: str = ""
    trace: tuple[TraceRow, ...] = ()
    validity: tuple[str, ...] = ()
    probe: float

    @classmethod
    def of(cls, execution: Execution, probe: float) -> KeptExecution:
        """Take down an execution."""
        columns = {
            str(table.pop("unit")): {name: np.asarray(column).tolist() for name, column in table.items()}
            for table in execution.recorder.tables()
        }
        same = ("process_bytes", "energy_j", "energy_covers")
        return cls(
            units=columns,
            memory_bytes=dict(execution.memory_bytes),
            trace=tuple(execution.trace),
            validity=tuple(execution.validity),
            probe=probe,
            **{name: getattr(execution, name) for name in same},
        )

    def execution(self) -> Execution:
        """Return it as it was."""
        recorder = Recorder()
        for unit, columns in self.units.items():
            measured = [name for name in columns if name not in OF_THE_UNIT]
            for index, name in enumerate(columns["name"]):
                row = {column: columns[column][index] for column in measured}
                recorder.record(unit, row, name=name, start_s=columns["start_s"][index])
        return Execution(
            recorder=recorder,
            memory_bytes=self.memory_bytes,
            process_bytes=self.process_bytes,
            energy_j=self.energy_j,
            energy_covers=self.energy_covers,
            trace=self.trace,
            validity=self.validity,
        )


def save(folder: RunFolder, index: int, execution: Execution, probe: float) -> None:
    """Keep one execution of a scenario."""
    folder.save(KeptExecution.of(execution, probe), NAME.format(index + 1))


def load(folder: RunFolder, most: int) -> Repeats:
    """Return the executions that a folder keeps, in order, up to the first that is missing.

    Raises:
        ConfigError: a file that is no such record.
    """
    kept: list[KeptExecution] = []
    while len(kept) < most and (found := folder.load(KeptExecution, NAME.format(len(kept) + 1))) is not None:
        kept.append(found)
    return Repeats(executions=[item.execution() for item in kept], probes=[item.probe for item in kept])
