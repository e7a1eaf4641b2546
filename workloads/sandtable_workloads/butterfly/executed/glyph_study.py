"""Does a wide network of butterflies read better than a narrow dense one of as many multiplications? Many trainings.

`cases` says which: other structures at two budgets, and what the paper varies (arXiv 1906.02256, sections 3 and 4): the
residual, weight decay and the base. `study` runs them, and `committed` are those that ship, each with its losses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from sandtable_workloads.butterfly.executed.glyph_network import glyph_network
from sandtable_workloads.butterfly.executed.glyph_records import Outcome, Settings
from sandtable_workloads.seed_intervals import interval
from sandtable_workloads.seed_runs import SeedRun
from sandtable_workloads.seed_study import markdown_table

# width of the butterfly network whose multiplications are the budget
BUDGETS = {"small": 0.5, "large": 1.0}
COMPARED = ("dense", "butterfly", "low_rank", "circulant", "monarch", "block_shuffle")
# the best of 0.2, 0.4 and 0.8 for each structure's small network, by validation images of seed 0: after `SHORT` epochs,
# of dense and butterfly ones after all
RATES = {"dense": 0.8, "butterfly": 0.8, "low_rank": 0.4, "circulant": 0.4, "monarch": 0.8, "block_shuffle": 0.4}
SEEDS = 5
SHORT = 5  # epochs of the trainings that are broken off early
WIDTH_STEP = 1 / 128
RUNS = Path(__file__).with_name("glyph_runs.jsonl")


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
class Kept(SeedRun):
    """A training that ran: which case's, what it came to, and on what."""

    case: str
    budget: str
    outcome: Outcome
    environment: dict[str, str]

    def as_line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(self.__dict__ | {"outcome": self.outcome.as_json()})

    @classmethod
    def of_line(cls, line: str) -> Self:
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
    before = Kept.kept(path)
    if before is not None:
        return before
    outcome = train(replace(case.settings, seed=seed), folder / name)
    kept = Kept(case=case.name, budget=case.budget, outcome=outcome, environment=environment())
    kept.keep(path)
    if progress:
        progress(f"{name}: {outcome.accuracy:.1%} of test images, {outcome.step_s * 1e3:.1f} ms a step")
    return kept


# --- reading -----------------------------------------------------------------------------------------------


def committed() -> list[Kept]:
    """Return the runs that ship with the package.

    They ran side by side on a busy machine, and their butterflies multiplied by the dense matrix that they amount to,
    in PyTorch, as the paper's own code does: accuracies compare, and times of steps are not those of `butterfly`.
    """
    return Kept.shipped(RUNS)


class Row(NamedTuple):
    """A case over its seeds: what share of test images is read right, and what it costs.

    Attributes:
        budget, case: As of `Case`.
        n: Runs.
        accuracy, low, high: Mean over the seeds, and its 90 % interval.
        gain, gain_low, gain_high: The same of what it has beyond the dense network of this budget and the same seed,
            which learned from the same images.
        multiply_accumulates: Of one image's forward pass.
        parameters: Trained numbers.
    """

    budget: str
    case: str
    n: int
    accuracy: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    multiply_accumulates: int
    parameters: int

    @property
    def wins(self) -> bool:
        """Whether the interval of its gain lies above nothing."""
        return self.gain_low > 0


def table(runs: Iterable[Kept]) -> list[Row]:
    """Return one row per case, by budget and in the order of `cases`."""
    grouped: dict[tuple[str, str], dict[int, Outcome]] = {}
    for run in runs:
        grouped.setdefault((run.budget, run.case), {})[run.outcome.settings.seed] = run.outcome
    order = [(budget, case.name) for budget in BUDGETS for case in cases() if case.budget == budget]
    return [_row(name, grouped[name], grouped) for name in order if name in grouped]


def _row(
    name: tuple[str, str], by_seed: Mapping[int, Outcome], grouped: Mapping[tuple[str, str], Mapping[int, Outcome]]
) -> Row:
    dense = grouped.get((name[0], _rival(name[1])), {})
    mean, half = interval([outcome.accuracy for outcome in by_seed.values()])
    gains = [outcome.accuracy - dense[seed].accuracy for seed, outcome in by_seed.items() if seed in dense]
    gain, gain_half = interval(gains) if gains else (math.nan, math.nan)
    some = next(iter(by_seed.values()))
    return Row(
        *name,
        len(by_seed),
        *(mean, mean - half, mean + half),
        *(gain, gain - gain_half, gain + gain_half),
        some.multiply_accumulates,
        some.parameters,
    )


def _rival(case: str) -> str:
    """Return the dense case that a case is held against: trained as long as it."""
    return f"dense {SHORT} epochs" if case.endswith("epochs") else "dense"


def as_text(rows: Iterable[Row]) -> str:
    """Return rows as a table in Markdown; a case with one run has no interval."""
    heads = ("budget", "case", "runs", "read right", "within", "beyond dense", "by", "multiply-adds", "parameters")
    found = [
        (
            *(row.budget, row.case.replace("_", " "), str(row.n)),
            *(f"{row.accuracy:.1%}", _range(row.low, row.high, "{:.1%}")),
            *(f"{100 * row.gain:+.1f}", _range(100 * row.gain_low, 100 * row.gain_high, "{:+.1f}")),
            *(f"{row.multiply_accumulates:,}", f"{row.parameters:,}"),
        )
        for row in rows
    ]
    return markdown_table(heads, found)


def _range(low: float, high: float, form: str) -> str:
    return f"{form.format(low)} to {form.format(high)}" if math.isfinite(high - low) else ""
