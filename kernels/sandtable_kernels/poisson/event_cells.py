"""Events by user, bin of the clock and item: the cells in which all base rates of a model of time are equal.

A cell costs work in K, an event only a division. Cells lie in two orders: of users, bins ascending and items ascending
within a bin, and of items, bins ascending and users ascending within a bin. So a user's, or an item's, factors of a bin
are summed from those of its features once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs, Ids, Ints

Bins = NDArray[np.int16]


@dataclass(frozen=True)
class EventCells:
    """The events of pairs, by bin.

    Attributes:
        user_start: [U + 1], where the cells of a user begin.
        bin: [n_cells], the bin of a cell.
        item: [n_cells], its item.
        event_start: [n_cells + 1], where its events begin.
        order: [N], the place of each event among those of the pairs.
        item_start: [P + 1], where the cells of an item begin in the three that follow.
        by_item: [n_cells], cells by item and bin.
        item_bin: [n_cells], bins of cells in that order.
        item_user: [n_cells], users of cells in that order.
    """

    user_start: Ints
    bin: Bins
    item: Ids
    event_start: Ints
    order: Ints
    item_start: Ints
    by_item: Ints
    item_bin: Bins
    item_user: Ids

    @classmethod
    def of(cls, pairs: EventPairs, bins: NDArray[Any], n_bins: int) -> EventCells:
        """Group the events of ``pairs``; ``bins`` [N] are of 0 .. n_bins - 1 and in the order of the pairs' events."""
        from sandtable_kernels.compiled.events.event_loops import stable_order

        bins = np.ascontiguousarray(bins, np.int16)
        event_user, event_item = pairs.event_user, pairs.event_item
        order = stable_order(event_user, pairs.n_users, stable_order(bins, n_bins, np.arange(pairs.n_events)))
        keys: list[NDArray[Any]] = [values[order] for values in (event_user, event_item, bins)]
        new = np.ones(pairs.n_events + 1, np.bool_)
        new[1:-1] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
        event_start = np.flatnonzero(new)
        user, item, cell_bin = (key[event_start[:-1]] for key in keys)
        by_item = stable_order(item, pairs.n_items, stable_order(cell_bin, n_bins, np.arange(user.size)))
        return cls(
            user_start=np.searchsorted(user, np.arange(pairs.n_users + 1)),
            bin=cell_bin,
            item=item,
            event_start=event_start,
            order=order,
            item_start=np.searchsorted(item[by_item], np.arange(pairs.n_items + 1)),
            by_item=by_item,
            item_bin=cell_bin[by_item],
            item_user=user[by_item],
        )

    @property
    def n_cells(self) -> int:
        """Cells with at least one event."""
        return self.item.size

    def chunks(self, n: int, of_items: bool = False) -> Ints:
        """Return [n + 1] boundaries of users, or items, that hold about equally many cells."""
        start = self.item_start if of_items else self.user_start
        work = start + np.arange(start.size)
        bounds = np.searchsorted(work, np.arange(n + 1) * (work[-1] / n))
        bounds[0], bounds[-1] = 0, start.size - 1
        return np.asarray(bounds, np.int64)
