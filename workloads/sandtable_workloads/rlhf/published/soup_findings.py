"""What a soup as reference promises, beside alignments that were run here on a text task with a gold score.

Chegini et al., "SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF", arXiv 2411.01798: with the
average of two fine-tuned models as PPO's reference the policy may go further, reaches higher rewards and generalises
better. Claims are the paper's; its models and judges are not repeated. Whether a claim holds is decided by intervals
over the seeds of the runs that ship (`soup_runs`); what is not shown here may still be true of other models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from sandtable.studies.finding import Finding, Findings
from sandtable.table import Table
from sandtable_workloads.rlhf.soup_study import soup_runs, soup_tables
from sandtable_workloads.rlhf.soup_study.soup_runs import (
    ALPHA,
    CURVE_EVERY,
    GRID_ALPHA,
    GRID_KL,
    ITERATIONS,
    KL,
    PLAIN,
    Point,
    Run,
)
from sandtable_workloads.seed_intervals import Gain

COLUMNS = ("panel", "series", "x", "y")
TITLES = {"seen": "prompts as learned from", "unseen": "prompts of another kind"}
PPO, SOUP = Point(PLAIN, KL), Point(ALPHA, KL)
SERIES = {PPO: "PPO", SOUP: "PPO against the soup"}


class SoupFindings(Findings):
    """A soup as reference beside the model that PPO begins at."""

    name: ClassVar[str] = "rlhf"

    def findings(self) -> Sequence[Finding]:
        """Return the claims with the data of their figures."""
        runs = soup_runs.committed()
        main, grid = (soup_tables.of_case(runs, case) for case in ("main", "grid"))
        return (
            _gains("reward", "Against a soup PPO reaches a higher gold score", main, "seen"),
            _gains("generalisation", "It does so on prompts of a kind that no model learned from", main, "unseen"),
            _wins(main),
            _further(main, grid),
            _share(grid),
            _over_optimised(grid),
        )


def _finding(rows: list[list[Any]], **said: Any) -> Finding:
    """Return a finding with the rows of its figure, whose y is a share or a score."""
    return Finding(data=Table(columns=COLUMNS, rows=rows), log_y=False, **said)


def _gains(name: str, claim: str, runs: Sequence[Run], kind: str) -> Finding:
    gold, score = (soup_tables.gain_of(runs, SOUP, f"{measure}_{kind}") for measure in ("gold", "score"))
    rows: list[list[Any]] = [
        [TITLES[kind], SERIES[point], run.seed + 1, run.figures[point.name][f"gold_{kind}"]]
        for point in SERIES
        for run in runs
    ]
    return _finding(
        name=name,
        claim=claim,
        holds=gold.above,
        evidence=(
            f"Gold score {gold.shown('+.3f')} beyond plain PPO's, reward model's score {score.shown('+.2f')} "
            f"(90 %, {gold.n} seeds, KL coefficient {KL:g} both)"
        ),
        rows=rows,
        x="seed",
        y="gold score",
    )


def _wins(runs: Sequence[Run]) -> Finding:
    shares = {kind: soup_tables.wins_of(runs, SOUP, kind) for kind in TITLES}
    said = (f"{100 * each.mean:.1f} % of {TITLES[kind]} ({_percent(each)})" for kind, each in shares.items())
    rows: list[list[Any]] = [
        ["share of prompts won", TITLES[kind], run.seed + 1, run.figures[SOUP.name][f"wins_{kind}"]]
        for kind in TITLES
        for run in runs
    ]
    return _finding(
        name="wins",
        claim="Its answers win more often than plain PPO's, judged by the gold score, ties counted half",
        holds=all(each.low > 0.5 for each in shares.values()),
        evidence=f"It wins {' and '.join(said)} (90 %, {shares['seen'].n} seeds)",
        rows=rows,
        x="seed",
        y="share of prompts won",
        mark=0.5,
    )


def _percent(share: Gain) -> str:
    return f"{100 * share.low:.1f} to {100 * share.high:.1f} %"


def _further(main: Sequence[Run], grid: Sequence[Run]) -> Finding:
    gains = {kind: soup_tables.gain_of(main, SOUP, f"kl_sft_{kind}") for kind in TITLES}
    said = " and ".join(f"{gain.shown('+.2f')} on {TITLES[kind]}" for kind, gain in gains.items())
    rows: list[list[Any]] = [
        [TITLES[cell.kind], f"alpha {cell.point.alpha:g}", cell.kl_sft, cell.gold.mean]
        for cell in sorted(soup_tables.cells(grid), key=lambda cell: (cell.kind, -cell.point.alpha, cell.kl_sft))
    ]
    return _finding(
        name="distance",
        claim="With the same coefficient the policy goes further from the model that it began at",
        holds=all(gain.above for gain in gains.values()),
        evidence=f"KL to that model, nats an answer beyond plain PPO's: {said} (90 %, {gains['seen'].n} seeds)",
        rows=rows,
        x="KL to the fine-tuned model (nats an answer)",
        y="gold score",
    )


def _share(runs: Sequence[Run]) -> Finding:
    others = [alpha for alpha in GRID_ALPHA if alpha != ALPHA]
    beyond = {alpha: _between(runs, SOUP, Point(alpha, KL), "gold_seen") for alpha in others}
    rows: list[list[Any]] = [
        [TITLES[cell.kind], f"KL coefficient {cell.point.kl_coef:g}", cell.point.alpha, cell.gold.mean]
        for cell in sorted(
            soup_tables.cells(runs), key=lambda cell: (cell.kind, cell.point.kl_coef, cell.point.alpha)
        )
    ]
    said = ", ".join(f"{each.shown('+.3f')} beyond alpha {alpha:g}" for alpha, each in beyond.items())
    return _finding(
        name="share",
        claim="Equal shares of both models are the best reference",
        holds=all(each.above for each in beyond.values()),
        evidence=f"Gold score of alpha {ALPHA:g}: {said} (90 %, {len(runs)} seeds, KL coefficient {KL:g})",
        rows=rows,
        x="share of the model that PPO begins at (1: plain PPO)",
        y="gold score",
    )


def _over_optimised(runs: Sequence[Run]) -> Finding:
    weak = Point(PLAIN, GRID_KL[0])
    score, gold = (_between(runs, weak, PPO, f"{measure}_seen") for measure in ("score", "gold"))
    rows: list[list[Any]] = [
        [title, f"KL coefficient {kl_coef:g}", number, _mean(runs, Point(PLAIN, kl_coef), f"{measure}_at_{number}")]
        for title, measure in (("gold score", "gold"), ("reward model's score", "score"))
        for kl_coef in GRID_KL
        for number in range(CURVE_EVERY, ITERATIONS + 1, CURVE_EVERY)
    ]
    return _finding(
        name="over_optimisation",
        claim="With a weak penalty PPO pleases the reward model more and the gold score less",
        holds=score.above and gold.high < 0,
        evidence=(
            f"KL coefficient {weak.kl_coef:g} beside {KL:g}: reward model's score {score.shown('+.2f')}, gold score "
            f"{gold.shown('+.3f')} (90 %, {gold.n} seeds, plain PPO)"
        ),
        rows=rows,
        x="iteration",
        y="mean of the last ten iterations",
    )


def _between(runs: Sequence[Run], one: Point, other: Point, name: str) -> Gain:
    return Gain.of([run.figures[one.name][name] - run.figures[other.name][name] for run in runs])


def _mean(runs: Sequence[Run], point: Point, name: str) -> float:
    return soup_tables.mean_of(runs, name, lambda run: run.figures[point.name])
