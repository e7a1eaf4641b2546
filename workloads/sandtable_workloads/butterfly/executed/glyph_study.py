"""Does a wide network of butterflies read better than a narrow dense one of as many multiplications? Many trainings.

`cases` says which: other structures at two budgets, and what the paper varies (arXiv 1906.02256, sections 3 and 4): the
residual, weight decay and the base. `study` runs them, and `committed` are those that ship, each with its losses.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sandtable.calibration.fit.least_squares import student_95
from sandtable.system import atomic_files, checksums
from sandtable.table import Table
from sandtable_workloads.butterfly.executed.glyph_network import glyph_network
from sandtable_workloads.butterfly.executed.glyph_records import Outcome, Settings

# width of the butterfly network whose multiplications are the budget
BUDGETS = {"small": 0.5, "large": 1.0}
COMPARED = ("dense", "butterfly", "low_rank", "circulant", "monarch", "block_shuffle")
# the best of `TRIED_RATES` for the small network of each structure, by validation images, seed 0
RATES = {"dense": 0.8, "butterfly": 0.8, "low_rank": 0.4, "circulant": 0.4, "monarch": 0.8, "block_shuffle": 0.4}
TRIED_RATES = (0.4, 0.8, 1.6)
SEEDS = 5
SHORT = 5  # epochs of the trainings that are broken off early
WIDTH_STEP = 1 / 128
RUNS = Path(__file__).with_name("glyph_runs.jsonl")
# 95th percentile of Student's t for 2 to 10 runs, so that reading results needs no scipy
_T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)


class Case(NamedTuple):
    """One line of the table: its name, its budget, and what all its seeds share."""

    name: str
    budget: str
    settings: Settings


def cases() -> Iterator[Case]:
    """Yield what is compared, the most important first."""
    for structure in COMPARED:
        for budget in BUDGETS:
            yield case(budget, structure)
    for structure in COMPARED[:2]:
        short = case("small", structure)
        yield _changed(short, f"{SHORT} epochs", epochs=SHORT)
    small = case("small", "butterfly")
    yield _changed(small, "no residual", residual=False)
    for decay in (1e-4, 1e-2):
        yield _changed(small, f"decay {decay:g}", structured_decay=decay)
    for base in (2, 8):
        yield case("small", "butterfly", base)


def case(budget: str, structure: str, base: int = 4) -> Case:
    """Return the network of a structure that comes nearest to a budget."""
    width = width_within(BUDGETS[budget], structure, base)
    name = structure if base == 4 else f"{structure} base {base}"
    rate = RATES[structure]
    return Case(name, budget, Settings(width=width, structure=structure, base=base, learning_rate=rate))


def _changed(case: Case, name: str, **changes: float) -> Case:
    return Case(f"{case.name} {name}", case.budget, replace(case.settings, **changes))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def width_within(of_butterfly: float, structure: str, base: int = 4) -> float:
    """Return the width with which a structure's network has nearly the multiplications of a base-4 butterfly's."""
    budget = glyph_network(of_butterfly, structure="butterfly").multiply_accumulates()
    widths = [step * WIDTH_STEP for step in range(8, round(1.25 / WIDTH_STEP))]

    def off(width: float) -> int:
        return abs(glyph_network(width, structure=structure, base=base).multiply_accumulates() - budget)

    return min(widths, key=off)


# --- running -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A training that ran: which case's, what it came to, and on what."""

    case: str
    budget: str
    outcome: Outcome
    environment: dict[str, str]

    def as_line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(self.__dict__ | {"outcome": self.outcome.as_json()})

    @classmethod
    def of_line(cls, line: str) -> Kept:
        """Read `as_line` back."""
        fields = json.loads(line)
        return cls(**fields | {"outcome": Outcome.of_json(fields["outcome"])})


def study(
    folder: Path, chosen: Sequence[Case], seeds: int = SEEDS, progress: Callable[[str], None] | None = None
) -> list[Kept]:
    """Run each of some cases with each seed, and return all runs; those that ended before are kept, others resume.

    Raises:
        NoDevice: matplotlib, whose fonts are drawn, is not installed.
        ConfigError: a run that was kept is damaged.
    """
    return [_one(case, seed, folder, progress) for seed in range(seeds) for case in chosen]


def _one(case: Case, seed: int, folder: Path, progress: Callable[[str], None] | None) -> Kept:
    from sandtable.runs.measure import environment
    from sandtable_workloads.butterfly.executed.glyph_training import train

    name = f"{case.budget}-{case.name.replace(' ', '_')}-{seed}"
    path = folder / f"{name}.json"
    if path.is_file():
        return Kept.of_line(checksums.checked_json(path.read_bytes(), str(path), required=True).decode())
    outcome = train(replace(case.settings, seed=seed), folder / name)
    kept = Kept(case=case.name, budget=case.budget, outcome=outcome, environment=environment())
    atomic_files.write_atomically(path, checksums.sealed_json(kept.as_line()))
    if progress:
        progress(f"{name}: {outcome.accuracy:.1%} of test images, {outcome.step_s * 1e3:.1f} ms a step")
    return kept


# --- reading -----------------------------------------------------------------------------------------------


def committed() -> list[Kept]:
    """Return the runs that ship with the package."""
    return [Kept.of_line(line) for line in RUNS.read_text().splitlines()]


class Row(NamedTuple):
    """A case over its seeds: mean accuracy on test images with a 90 % interval, and what it costs.

    ``step_s`` is the processor time of a training step of a batch, the median over the seeds.
    """

    budget: str
    case: str
    n: int
    accuracy: float
    low: float
    high: float
    multiply_accumulates: int
    parameters: int
    step_s: float


def table(runs: Iterable[Kept]) -> list[Row]:
    """Return one row per case, in the order of the runs."""
    grouped: dict[tuple[str, str], list[Outcome]] = {}
    for run in runs:
        grouped.setdefault((run.budget, run.case), []).append(run.outcome)
    return [_row(budget, case, outcomes) for (budget, case), outcomes in grouped.items()]


def as_table(rows: Iterable[Row]) -> Table:
    """Return rows as a table to print."""
    columns = ("budget", "case", "runs", "read right", "from", "to", "multiply-adds", "parameters")
    units = ("", "", "", "%", "%", "%", "", "")
    found = [
        (row.budget, row.case, row.n, *(100 * share for share in row[3:6]), row.multiply_accumulates, row.parameters)
        for row in rows
    ]
    return Table(columns=columns, units=units, rows=found)


def _row(budget: str, case: str, outcomes: Sequence[Outcome]) -> Row:
    mean, half = interval([outcome.accuracy for outcome in outcomes])
    return Row(
        budget,
        case,
        len(outcomes),
        mean,
        mean - half,
        mean + half,
        outcomes[0].multiply_accumulates,
        outcomes[0].parameters,
        statistics.median(outcome.step_s for outcome in outcomes),
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of independent values and half of its 90 % interval by Student's t; infinite for one value."""
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return mean, float("inf")
    t = _T_95[n - 2] if n - 2 < len(_T_95) else student_95(n - 1)
    return mean, t * statistics.stdev(values) / n**0.5
