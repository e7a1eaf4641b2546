"""Recommenders side by side on the same held-out events: gain, recall, returning times, likelihood, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandtable_workloads.rpf.evaluated.contenders import Contender
from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
from sandtable_workloads.rpf.evaluated.ranking_metrics import Ranking, rank_events
from sandtable_workloads.rpf.evaluated.returning_times import ReturnErrors, Returns

RECALLS = (5, 10, 20)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a recommender came to on held-out events.

    Attributes:
        name: The recommender's.
        ranking: Ranks of the events' items among all.
        returning: Times at which users came back; None where it says nothing about time, or nobody did.
        log_likelihood: Per event, in continuous time; None where it has none.
        train_s, rank_s: Seconds of training, and of scoring and ranking.
    """

    name: str
    ranking: Ranking
    returning: ReturnErrors | None
    log_likelihood: float | None
    train_s: float
    rank_s: float

    def figures(self) -> dict[str, float]:
        """Return all figures that there are by name: gain, recalls, errors in hours, likelihood, seconds."""
        found = {"ndcg": self.ranking.ndcg} | {f"recall_{k}": self.ranking.recall(k) for k in RECALLS}
        if self.returning is not None:
            found |= {"return_rms_h": self.returning.root_mean_square, "return_median_h": self.returning.median}
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
    returns = Returns.of(held)
    waits = trained.waits(returns) if returns.users.size else None
    return Evaluation(
        name=contender.name,
        ranking=ranking,
        returning=None if waits is None else ReturnErrors(waits, returns.hours),
        log_likelihood=trained.log_likelihood(),
        train_s=train_s,
        rank_s=rank_s,
    )


def as_markdown(evaluations: Iterable[Evaluation]) -> str:
    """Return a table in Markdown, a row each in the order given."""
    heads = (
        "model",
        "NDCG",
        *(f"recall@{k}" for k in RECALLS),
        "return RMS (h)",
        "median (h)",
        "log-lik.",
        "train (s)",
    )
    names = (
        "ndcg",
        *(f"recall_{k}" for k in RECALLS),
        "return_rms_h",
        "return_median_h",
        "log_likelihood",
        "train_s",
    )
    rows = []
    for each in evaluations:
        figures = each.figures()
        cells = (f"{figures[name]:.4g}" if name in figures else "" for name in names)
        rows.append((each.name, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ("---",) * len(heads), *rows))
