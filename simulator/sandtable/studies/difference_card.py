"""The answer of a change: how many times as much work, how sure that is, and what it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sandtable import units
from sandtable.results import Answer, Prediction
from sandtable.runs.answers.answer_card import worded
from sandtable.studies import paired
from sandtable.studies.paired import Change

HOURLY = "usd_per_h"


def difference_answer(
    before: Prediction, after: Prediction, changed: Mapping[str, Change], asked: Mapping[str, Any]
) -> Answer:
    """Return the answer to what ``asked``, values by path, makes of a scenario."""
    told = [worded(text) for text in paired.sentences(before, after, changed)]
    old, new = (prediction.answer or Answer(question="") for prediction in (before, after))
    settings = ", ".join(f"{path}={getattr(value, 'name', value)}" for path, value in asked.items())
    return Answer(
        question=f"What changes with {settings}?",
        subject=_both(old.subject, new.subject),
        verdict=f"{told[0]}." if told else "",
        headlines=(*told[1:], *_amounts(before, after, asked)),
        caveat=new.caveat,
    )


def _both(before: str, after: str) -> str:
    """Return two subjects as one, with an arrow where a part of them changes: a clause, or a phrase of its first."""
    first, *clauses = _paired(before, after, "; ")
    phrases = ", ".join(_arrow(*pair) for pair in _paired(*first, ", "))
    return "; ".join((phrases, *(_arrow(*pair) for pair in clauses)))


def _paired(before: str, after: str, mark: str) -> list[tuple[str, str]]:
    """Return the parts of two texts beside each other, whole texts where one has more."""
    old, new = (text.split(mark) for text in (before, after))
    return list(zip(old, new, strict=True)) if len(old) == len(new) else [(before, after)]


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _amounts(before: Prediction, after: Prediction, asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield what becomes of the price of an hour, and of memory."""
    for name in (HOURLY, "peak_memory_bytes"):
        old, new = before.metrics.get(name), after.metrics.get(name)
        if old is None or new is None:
            continue
        ends = [units.format_quantity(metric.value, metric.unit) for metric in (old, new)]
        what = "memory " if name != HOURLY else ""
        if ends[0] != ends[1]:
            yield f"{what}{ends[0]} before, {ends[1]} after"
        elif name == HOURLY and any(path.startswith("machine") for path in asked):
            yield "without the part's price"
