"""Recommenders side by side on the same held-out events: gain, recall, returning times, likelihood, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandtable_workloads.rpf.evaluated.contenders import Contender, Trained
from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
from sandtable_workloads.rpf.evaluated.ranking_metrics import Ranking, rank_events
from sandtable_workloads.rpf.evaluated.returning_times import ASKED, ReturnErrors

RECALLS = (5, 10, 20)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a recommender came to on held-out events.

    Attributes:
        name: The recommender's.
        ranking: Ranks of the events' items among all.
        returning: Times at which users came back, by when it was asked (`ASKED`); none where nothing is said of time.
        log_likelihood: Per event, in continuous time; None where it has none.
        train_s, rank_s: Seconds of training, and of scoring and ranking.
    """

    name: str
    ranking: Ranking
    returning: dict[str, ReturnErrors]
    log_likelihood: float | None
    train_s: float
    rank_s: float

    def figures(self) -> dict[str, float]:
        """Return all figures that there are by name: gain, recalls, errors in hours, likelihood, seconds."""
        found = {"ndcg": self.ranking.ndcg} | {f"recall_{k}": self.ranking.recall(k) for k in RECALLS}
        for asked, errors in self.returning.items():
            found |= {f"{asked}_{name}_h": value for name, value in errors.figures.items()}
        if self.log_likelihood is not None:
            found["log_likelihood"] = self.log_likelihood
        return found | {"train_s": self.train_s}


def evaluate(
    contenders: Iterable[Contender], held: HeldOut, progress: Callable[[str], None] | None = None
) -> list[Evaluation]:
    """Train each contender on the first events and evaluate it on the others."""
    return [_evaluated(each, held, progress or (lambda line: None)) for each in contenders]


def _evaluated(contender: Contender, held: HeldOut, progress: Callable[[str], None]) -> Evaluation:
    begin = time.perf_counter()
    trained = contender.train(held)
    train_s = time.perf_counter() - begin
    progress(f"{contender.name}: trained in {train_s:.1f} s")
    begin = time.perf_counter()
    ranking = rank_events(trained.scores, held.test.item, held.n_items)
    rank_s = time.perf_counter() - begin
    return Evaluation(
        name=contender.name,
        ranking=ranking,
        returning=_returning(trained, held),
        log_likelihood=trained.log_likelihood(),
        train_s=train_s,
        rank_s=rank_s,
    )


def _returning(trained: Trained, held: HeldOut) -> dict[str, ReturnErrors]:
    found = {}
    for name, ask in ASKED.items():
        returns = ask(held)
        waits = trained.waits(returns) if returns.users.size else None
        if waits is not None:
            found[name] = ReturnErrors(waits, returns.hours)
    return found


SHOWN = {
    "ndcg": "NDCG",
    **{f"recall_{k}": f"recall@{k}" for k in RECALLS},
    "last_rms_h": "return, RMS (h)",
    "last_median_h": "median (h)",
    "split_mean_h": "from the split, mean (h)",
    "next_mean_h": "each next, mean (h)",
    "log_likelihood": "log-lik. an event",
    "train_s": "trained in (s)",
}


def as_markdown(evaluations: Iterable[Evaluation]) -> str:
    """Return a table in Markdown, a row each in the order given; errors of returning times are absolute ones."""
    rows = []
    for each in evaluations:
        figures = each.figures()
        rows.append((each.name, *(f"{figures[name]:.4g}" if name in figures else "" for name in SHOWN)))
    heads = ("model", *SHOWN.values())
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ("---",) * len(heads), *rows))
