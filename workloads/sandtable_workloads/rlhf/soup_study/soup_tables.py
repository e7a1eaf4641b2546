"""Tables of the study: what a soup as reference gains over plain PPO, and how PPO goes by coefficient and share.

Reading runs needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sandtable_workloads.rlhf.soup_study.soup_runs import ALPHA, KL, Figures, Point, Run, points
from sandtable_workloads.seed_intervals import Gain
from sandtable_workloads.seed_study import markdown_table

KINDS = ("seen", "unseen")
# what is compared, and how a table calls it
MEASURES = {
    "gold": "gold score",
    "score": "reward model's score",
    "kl_reference": "KL to its reference",
    "kl_sft": "KL to the SFT model",
    "tokens": "tokens",
}


class Contrast(NamedTuple):
    """What a soup changes on one kind of prompts: means of both, and of the differences within a seed."""

    kind: str
    measure: str
    plain: float
    soup: float
    gain: Gain


def of_case(runs: Iterable[Run], case: str) -> list[Run]:
    """Return the runs of a case."""
    return [run for run in runs if run.case == case]


def gain_of(runs: Sequence[Run], point: Point, name: str) -> Gain:
    """Return what a figure of a point is beyond that of plain PPO with the same coefficient, over the seeds."""
    return Gain.of([run.figures[point.name][name] - run.figures[point.plain.name][name] for run in runs])


def wins_of(runs: Sequence[Run], point: Point, kind: str) -> Gain:
    """Return the share of prompts at which a point beats plain PPO by the gold score, ties half, over the seeds."""
    return Gain.of([run.figures[point.name][f"wins_{kind}"] for run in runs])


def mean_of(runs: Sequence[Run], name: str, figures: Callable[[Run], Figures]) -> float:
    """Return a figure's mean over the seeds."""
    return sum(figures(run)[name] for run in runs) / len(runs)


def contrasts(runs: Iterable[Run]) -> list[Contrast]:
    """Return a row for each measure and kind of prompts of the main comparison."""
    own, point = of_case(runs, "main"), Point(ALPHA, KL)
    return [
        Contrast(
            kind,
            measure,
            mean_of(own, f"{measure}_{kind}", lambda run: run.figures[point.plain.name]),
            mean_of(own, f"{measure}_{kind}", lambda run: run.figures[point.name]),
            gain_of(own, point, f"{measure}_{kind}"),
        )
        for kind in KINDS
        for measure in MEASURES
        if own
    ]


class Cell(NamedTuple):
    """A point of the grid on one kind of prompts, over the seeds."""

    point: Point
    kind: str
    gold: Gain
    beyond_plain: Gain
    score: float
    kl_sft: float


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Return each point of the grid on each kind of prompts."""
    own = of_case(runs, "grid")
    return [_cell(own, point, kind) for kind in KINDS for point in points("grid") if own]


def _cell(runs: Sequence[Run], point: Point, kind: str) -> Cell:
    def mean(name: str) -> float:
        return mean_of(runs, f"{name}_{kind}", lambda run: run.figures[point.name])

    gold = Gain.of([run.figures[point.name][f"gold_{kind}"] for run in runs])
    return Cell(point, kind, gold, gain_of(runs, point, f"gold_{kind}"), mean("score"), mean("kl_sft"))


# --- text ----------------------------------------------------------------------------------------------------------


def before_text(runs: Sequence[Run]) -> str:
    """Return the models before PPO as a table in Markdown."""
    heads = ("before PPO", *(f"gold score, {kind}" for kind in KINDS), "KL to the SFT model")
    rows = [
        (
            name.replace("_", " "),
            *(f"{mean_of(runs, f'gold_{kind}', lambda run, of=name: run.before[of]):.3f}" for kind in KINDS),  # type: ignore[misc]
            f"{mean_of(runs, 'kl_sft_seen', lambda run, of=name: run.before[of]):.2f}",  # type: ignore[misc]
        )
        for name in runs[0].before
    ]
    return markdown_table(heads, rows)


def contrasts_text(runs: Sequence[Run]) -> str:
    """Return the main comparison as a table in Markdown, with the share of prompts that the soup wins."""
    heads = ("prompts", "", "seeds", "PPO", f"soup, alpha {ALPHA:g}", "difference (90 %)")
    rows = [
        (
            row.kind,
            MEASURES[row.measure],
            str(row.gain.n),
            f"{row.plain:.3f}",
            f"{row.soup:.3f}",
            row.gain.shown("+.3f"),
        )
        for row in contrasts(runs)
    ]
    own = of_case(runs, "main")
    for kind in KINDS:
        wins = wins_of(own, Point(ALPHA, KL), kind)
        rows.append((kind, "wins over PPO, ties half", str(wins.n), "", wins.shown(".3f"), ""))
    return markdown_table(heads, rows)


def cells_text(runs: Sequence[Run]) -> str:
    """Return the grid as a table in Markdown."""
    heads = ("prompts", "KL coefficient", "alpha", "seeds", "gold score", "beyond PPO (90 %)", "score", "KL to SFT")
    rows = [
        (
            cell.kind,
            f"{cell.point.kl_coef:g}",
            f"{cell.point.alpha:g}",
            str(cell.gold.n),
            f"{cell.gold.mean:.3f}",
            "" if cell.point == cell.point.plain else cell.beyond_plain.shown("+.3f"),
            f"{cell.score:.2f}",
            f"{cell.kl_sft:.2f}",
        )
        for cell in cells(runs)
    ]
    return markdown_table(heads, rows)


def as_text(runs: Sequence[Run]) -> str:
    """Return the tables that there are runs for."""
    main, grid = of_case(runs, "main"), of_case(runs, "grid")
    tables = [before_text(main or grid)] if runs else []
    tables += [contrasts_text(main)] if main else []
    return "\n\n".join(tables + ([cells_text(grid)] if grid else []))
