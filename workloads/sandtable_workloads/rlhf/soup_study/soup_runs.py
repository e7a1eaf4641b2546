"""Runs of the study: which alignments it is made of, what is kept of each, and those that ship.

Each seed has models, preferences and prompts of its own. All its PPOs begin at the same fine-tuned model and are judged
on the same prompts with the same random numbers: differences within a seed are the references'. Alpha is the share of
that model in the reference; 1 is plain PPO. Reading runs needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sandtable_workloads.rlhf.aligned.alignment_settings import Alignment, Fitting, Ppo, Reference
from sandtable_workloads.seed_runs import SeedRun

if TYPE_CHECKING:
    from sandtable_workloads.rlhf.aligned.alignment_pipeline import Aligned, Arm

RUNS = Path(__file__).with_name("soup_runs.jsonl")
# TRL's first KL coefficient and the paper's share of each model
KL, ALPHA, PLAIN = 0.2, 0.5, 1.0
GRID_KL, GRID_ALPHA = (0.05, 0.2, 0.8), (0.0, 0.5, 1.0)
SEEDS = {"main": 20, "grid": 4}
# small enough for many seeds: a minute of one core each
ITERATIONS = 50
STUDIED = Alignment(
    base=Fitting(steps=400, batch=64, learning_rate=4e-3),
    sft=Fitting(steps=100, batch=64, learning_rate=2e-3),
    reward_model=Fitting(steps=120, batch=64, learning_rate=2e-3, weight_decay=0.1),
    pairs=4096,
    evaluated=256,
    checkpoint_steps=200,
)
# iterations between those whose figures are kept, of which the last is one
CURVE_EVERY = 10
CURVE = ("gold", "score", "kl")
Figures = dict[str, float]


class Point(NamedTuple):
    """Hyperparameters that the study varies: the first model's share of the reference, and the KL coefficient."""

    alpha: float
    kl_coef: float

    @property
    def name(self) -> str:
        """What a run calls it."""
        return f"alpha {self.alpha:g}, KL {self.kl_coef:g}"

    @property
    def plain(self) -> Point:
        """PPO with the same coefficient."""
        return Point(PLAIN, self.kl_coef)

    @property
    def ppo(self) -> Ppo:
        """The hyperparameters."""
        reference: Reference = "sft" if self.alpha == PLAIN else "soup"
        return Ppo(iterations=ITERATIONS, reference=reference, alpha=self.alpha, kl_coef=self.kl_coef)


def points(case: str) -> list[Point]:
    """Return the PPOs of a case: the paper's soup beside plain PPO, or all coefficients with all shares."""
    if case == "main":
        return [Point(PLAIN, KL), Point(ALPHA, KL)]
    return [Point(alpha, kl_coef) for kl_coef in GRID_KL for alpha in reversed(GRID_ALPHA)]


@dataclass(frozen=True, kw_only=True)
class Run(SeedRun):
    """One case with one seed.

    Attributes:
        case: ``main`` or ``grid``.
        seed: Of everything.
        accuracy: The reward model's, on its own pairs (``trained``) and on others (``held_out``).
        before: The fine-tuned models and their soup, judged as PPO's policies are.
        figures: By the name of a `Point`: means over the prompts of each kind, as in ``gold_seen``, the share of
            prompts at which it beats plain PPO, as in ``wins_unseen``, and the course of PPO, as in ``kl_at_10``.
        seconds: By phase, on the machine as busy as it was.
        environment: What it ran on.
    """

    case: str
    seed: int
    accuracy: Figures
    before: dict[str, Figures]
    figures: dict[str, Figures]
    seconds: Figures
    environment: dict[str, str]


def committed() -> list[Run]:
    """Return the runs that ship with the package."""
    return Run.shipped(RUNS)


# --- running -------------------------------------------------------------------------------------------------------


def kept_or_run(
    case: str, seed: int, folder: Path, progress: Callable[[str], None], settings: Alignment | None = None
) -> Run:
    """Return the run that a folder keeps, or do it, on from where it was left, and keep it.

    Args:
        case: ``main`` or ``grid``.
        seed: Of everything.
        folder: Of runs; a seed's models are shared by its cases.
        progress: Told what goes on.
        settings: Of the alignment; the study's if not given. The seed is set here.

    Raises:
        ConfigError: a run that was kept is damaged.
        MeasureError: a PPO diverged.
    """
    from dataclasses import replace

    from sandtable.runs.measure import environment
    from sandtable_workloads.rlhf.aligned.alignment_pipeline import align

    path = folder / f"{case}-{seed}.json"
    before = Run.kept(path)
    if before is not None:
        return before
    chosen, own = points(case), settings or STUDIED
    arms = {point.name.replace(", ", "-").replace(" ", "_"): point.ppo for point in chosen}
    found = align(replace(own, seed=seed), arms, folder / f"seed-{seed}", progress)
    run = Run(
        case=case,
        seed=seed,
        accuracy=_short(found.accuracy),
        before={name: _short(dict(_means(judged))) for name, judged in found.before.items()},
        figures=_figures(found, chosen),
        seconds=_short(found.seconds),
        environment=environment(),
    )
    run.keep(path)
    return run


def _figures(found: Aligned, chosen: list[Point]) -> dict[str, Figures]:
    by_point = dict(zip(chosen, found.arms, strict=True))
    return {point.name: _short(dict(_of_arm(arm, by_point[point.plain]))) for point, arm in by_point.items()}


def _of_arm(arm: Arm, plain: Arm) -> Iterator[tuple[str, float]]:
    from sandtable_workloads.rlhf.aligned.alignment_evaluation import win_rate

    yield from _means(arm.judged)
    for kind, judged in arm.judged.items():
        yield f"wins_{kind}", win_rate(judged.gold, plain.judged[kind].gold)
    for number in range(CURVE_EVERY, len(arm.figures) + 1, CURVE_EVERY):
        last = arm.figures[number - CURVE_EVERY : number]
        for name in CURVE:
            yield f"{name}_at_{number}", sum(each[name] for each in last) / len(last)


def _means(judged: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for kind, of_kind in judged.items():
        for name, mean in of_kind.means().items():
            yield f"{name}_{kind}", mean


def _short(figures: Figures) -> Figures:
    return {name: float(f"{value:.5g}") for name, value in figures.items()}
