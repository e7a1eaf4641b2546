"""What a rank is told, and what it leaves: plain files, so that a rank may die without taking anything along.

No PyTorch in here: the process that starts the ranks and reads their records does not need it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

RENDEZVOUS = "rendezvous"
JOB = "job.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run on this machine.

    Attributes:
        parameters: As the user gave them.
        seed: Of weights and data order.
        folder: Where ranks write records and checkpoints; its name is the run's identity.
        tokens: Token file, its number of tokens, and how many of them are for training.
        device: ``cpu`` or ``cuda``.
        n_threads: Threads of each rank.
        checkpoint_steps: Steps between checkpoints.
        profile_memory: Run one more step at the end, not timed, that follows the allocator.
    """

    parameters: SlmTraining
    seed: int
    folder: Path
    tokens: tuple[Path, int, int]
    device: str = "cpu"
    n_threads: int = 1
    checkpoint_steps: int = 50
    profile_memory: bool = True

    @property
    def n_steps(self) -> int:
        """Steps in all, those that warm up included."""
        return self.parameters.warmup_steps + self.parameters.steps

    @property
    def shape(self) -> ModelShape:
        """The shape of the model."""
        return self.parameters.shape

    def save(self) -> Path:
        """Write the job into its folder, and return the file."""
        path = self.folder / JOB
        fields = asdict(self) | {
            "parameters": self.parameters.model_dump(mode="json"),
            "folder": str(self.folder),
            "tokens": [str(self.tokens[0]), *self.tokens[1:]],
        }
        write_whole(path, json.dumps(fields, indent=1).encode())
        return path

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read a job back."""
        fields: dict[str, Any] = json.loads(path.read_text())
        file, n_tokens, n_train = fields["tokens"]
        return cls(
            **fields
            | {
                "parameters": SlmTraining.model_validate(fields["parameters"]),
                "folder": Path(fields["folder"]),
                "tokens": (Path(file), n_tokens, n_train),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one rank saw of one step, in seconds; ``communication_s`` is the time it stood waiting for others.

    ``ended_s`` is when it ended, by `time.perf_counter`, which all processes of a Linux machine share.
    """

    step: int
    total_s: float
    forward_s: float
    backward_s: float
    communication_s: float
    optimizer_s: float
    loss: float
    ended_s: float = 0.0


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it, so that no reader ever sees half of it."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(data)
    beside.replace(path)


def records_path(folder: Path, rank: int) -> Path:
    """Return where a rank appends its records, one JSON object a line."""
    return folder / f"rank{rank}.jsonl"


def result_path(folder: Path, rank: int) -> Path:
    """Return where a rank writes what it knows when all its steps are done."""
    return folder / f"rank{rank}.json"


def append_record(folder: Path, rank: int, record: Record) -> None:
    """Append one record and hand it to the operating system."""
    with records_path(folder, rank).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read_records(folder: Path, rank: int) -> list[Record]:
    """Return a rank's records in order; a last line that was cut off is left out."""
    path = records_path(folder, rank)
    found: dict[int, Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError):
            break
        found[record.step] = record
    return [found[step] for step in sorted(found)]


def keep_records(folder: Path, rank: int, n_steps: int) -> None:
    """Drop the records of steps from ``n_steps`` on: a run that resumes there does them again."""
    lines = [json.dumps(asdict(record)) for record in read_records(folder, rank) if record.step < n_steps]
    write_whole(records_path(folder, rank), "".join(line + "\n" for line in lines).encode())
