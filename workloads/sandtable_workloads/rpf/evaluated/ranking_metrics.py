"""Where an event's item stands among all items at the time of the event: discounted gain and recall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# rows of scores [events, items] that are held at once
BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Ranking:
    """Ranks [n] of the items of n events, from 1: one more than items with a higher score, and half of those alike."""

    ranks: Floats

    @property
    def ndcg(self) -> float:
        """The mean of ``1 / log2(1 + rank)``: one item is relevant, so that the ideal gain is one."""
        return float(np.mean(1 / np.log2(1 + self.ranks)))

    def recall(self, k: int) -> float:
        """Return the share of events whose item is among the first ``k``."""
        return float(np.mean(self.ranks <= k))


def ranks_in(rows: NDArray[Any], items: NDArray[np.int64]) -> Floats:
    """Return the ranks [n] of items [n] in rows of scores [n, P]; without a number (NaN) an item is last.

    Raises:
        ValueError: the score of an event's own item is no number.
    """
    own = rows[np.arange(items.size), items][:, None]
    if np.isnan(own).any():
        raise ValueError("an event's own item has no score")
    greater = np.count_nonzero(rows > own, axis=1)
    alike = np.count_nonzero(rows == own, axis=1) - 1
    return np.asarray(1 + greater + 0.5 * alike)


def rank_events(scores: Callable[[slice], NDArray[Any]], items: NDArray[np.int64], n_items: int) -> Ranking:
    """Rank the items [n] of events among all, by ``scores`` of a slice of the events [events of the slice, P]."""
    step = max(1, BATCH_BYTES // (8 * n_items))
    parts = (slice(first, min(first + step, items.size)) for first in range(0, items.size, step))
    ranks = [ranks_in(scores(part), items[part]) for part in parts]
    return Ranking(np.concatenate(ranks) if ranks else np.empty(0))
