"""What a run of the study left: figures of each model on the same events, kept one run a file and read back from one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sandtable.system import atomic_files, checksums
from sandtable_workloads.seed_intervals import interval

RUNS = Path(__file__).with_name("recurrence_runs.jsonl")
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One case with one seed.

    Attributes:
        case: Of which events.
        seed: Of the parameters, the events and the fits.
        n_events: How many were drawn.
        figures: By model, or of recovery by the number of events fitted to, then by name.
        environment: What it ran on.
    """

    case: str
    seed: int
    n_events: int
    figures: Figures
    environment: dict[str, str]

    def as_line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of_line(cls, line: str) -> Run:
        """Read `as_line` back."""
        fields: dict[str, Any] = json.loads(line)
        return cls(**fields)


def committed() -> list[Run]:
    """Return the runs that ship with the package."""
    return [Run.of_line(line) for line in RUNS.read_text().splitlines()]


def kept_or(folder: Path, case: str, seed: int, run: Callable[[], tuple[int, Figures]]) -> tuple[Run, bool]:
    """Return the run that a folder keeps, or run it and keep it; and whether it ran.

    Raises:
        ConfigError: a run that was kept is damaged.
    """
    from sandtable.runs.measure import environment

    path = folder / f"{case.replace(' ', '_')}-{seed}.json"
    if path.is_file():
        return Run.of_line(checksums.checked_json(path.read_bytes(), str(path), required=True).decode()), False
    n_events, figures = run()
    done = Run(case=case, seed=seed, n_events=n_events, figures=figures, environment=environment())
    atomic_files.write_atomically(path, checksums.sealed_json(done.as_line()))
    return done, True


class Gain(NamedTuple):
    """The mean over seeds of a difference on the same events, and its 90 % interval by Student's t."""

    n: int
    mean: float
    low: float
    high: float


def gain(runs: Iterable[Run], figure: Callable[[Mapping[str, dict[str, float]]], float]) -> Gain:
    """Return the mean and interval over runs of what ``figure`` makes of a run's figures."""
    values = [figure(run.figures) for run in runs]
    mean, half = interval(values)
    return Gain(len(values), mean, mean - half, mean + half)
