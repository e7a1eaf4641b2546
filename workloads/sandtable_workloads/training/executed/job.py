"""What a rank is told, and what it leaves: plain files, so that a rank may die without taking anything along.

No PyTorch in here: the process that starts the ranks and reads their records does not need it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandtable.errors import ConfigError
from sandtable.system import atomic_files, checksums
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

RENDEZVOUS = "rendezvous"
JOB = "job.json"
CHECKPOINT = "checkpoint-"


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
        atomic_files.write_atomically(path, json.dumps(fields, indent=1))
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


def records_path(folder: Path, rank: int) -> Path:
    """Return where a rank appends its records, one JSON object a line."""
    return folder / f"rank{rank}.jsonl"


def result_path(folder: Path, rank: int) -> Path:
    """Return where a rank writes what it knows when all its steps are done."""
    return folder / f"rank{rank}.json"


def save_result(folder: Path, rank: int, found: dict[str, float]) -> None:
    """Write what a rank knows when all its steps are done."""
    text = checksums.sealed_json(json.dumps(found))
    atomic_files.write_atomically(result_path(folder, rank), text)


def read_result(folder: Path, rank: int) -> dict[str, float]:
    """Return what a rank knew at its end.

    Raises:
        ConfigError: the file was damaged.
    """
    path = result_path(folder, rank)
    found: dict[str, float] = json.loads(checksums.checked_json(path.read_bytes(), str(path), required=True))
    return found


# --- records of steps --------------------------------------------------------------------------------------


def append_record(folder: Path, rank: int, record: Record) -> None:
    """Append one record, its checksum before it, and hand it to the operating system."""
    with records_path(folder, rank).open("a", encoding="utf-8") as file:
        file.write(_line(record))


def _line(record: Record) -> str:
    return checksums.sealed_line(json.dumps(asdict(record)))


def read_records(folder: Path, rank: int) -> list[Record]:
    """Return a rank's records from step 0 on, up to the first that is damaged, cut off, or not the next step's."""
    path = records_path(folder, rank)
    found: list[Record] = []
    for line in checksums.sealed_lines(path.read_bytes()) if path.is_file() else ():
        record = Record(**json.loads(line))
        if record.step != len(found):
            break
        found.append(record)
    return found


def all_records(folder: Path, rank: int, n_steps: int) -> list[Record]:
    """Return the records of a rank that has done all its steps: every step once, and in order.

    Raises:
        ConfigError: one is missing or damaged.
    """
    path, found = records_path(folder, rank), read_records(folder, rank)
    n_lines = len(path.read_bytes().splitlines())
    if len(found) != n_steps or n_lines != n_steps:
        what = (
            "is damaged or missing" if len(found) < n_steps else "is the last that was asked for, and others follow"
        )
        raise ConfigError(f"step {min(len(found), n_steps)} of {n_steps} {what}: run it again", file=str(path))
    return found


def keep_records(folder: Path, rank: int, n_steps: int) -> None:
    """Drop the records of steps from ``n_steps`` on: a run that resumes there does them again."""
    lines = [_line(record) for record in read_records(folder, rank)[:n_steps]]
    atomic_files.write_atomically(records_path(folder, rank), "".join(lines))


# --- files of checkpoints ----------------------------------------------------------------------------------


def part_path(folder: Path, n_done: int, rank: int) -> Path:
    """Return the file of one rank's part of a checkpoint."""
    return folder / f"{CHECKPOINT}{n_done}" / f"rank{rank}.pt"


def _digest_path(part: Path) -> Path:
    return part.with_suffix(".digest")


def seal_part(part: Path) -> None:
    """Write the checksum of a part beside it."""
    _digest_path(part).write_text(checksums.file_digest(part))


def check_part(part: Path) -> None:
    """Refuse a part that is not what was written.

    Raises:
        ConfigError: it is damaged, or has no checksum.
    """
    try:
        stated = _digest_path(part).read_bytes()
        if checksums.file_digest(part).encode() == stated:
            return
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(part)) from None
    raise ConfigError("is damaged: it does not match its checksum", file=str(part))


def checkpoints(folder: Path) -> list[int]:
    """Return after how many steps there are checkpoints, the newest first."""
    found = [re.fullmatch(rf"{CHECKPOINT}(\d+)", path.name) for path in folder.glob(f"{CHECKPOINT}*")]
    return sorted((int(match[1]) for match in found if match), reverse=True)


def drop_unusable(folder: Path, n_ranks: int) -> Sequence[str]:
    """Remove unfinished and damaged checkpoints, and those whose steps are not all recorded; say which, and why.

    What stays as the newest is what a run goes on from; without any it begins anew.
    """
    for unfinished in folder.glob(f"{CHECKPOINT}*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)
    n_recorded = min(len(read_records(folder, rank)) for rank in range(n_ranks))
    notes = []
    for n_done in checkpoints(folder):
        try:
            for rank in range(n_ranks):
                check_part(part_path(folder, n_done, rank))
            if n_recorded < n_done:
                raise ConfigError(
                    f"step {n_recorded} is damaged or missing", file=str(records_path(folder, 0).parent)
                )
            break
        except ConfigError as fault:
            notes.append(f"the checkpoint of step {n_done} is not gone on from: {fault}")
            shutil.rmtree(folder / f"{CHECKPOINT}{n_done}", ignore_errors=True)
    if notes:
        left = checkpoints(folder)
        notes.append(f"trained again from step {left[0] if left else 0} on")
    return notes
