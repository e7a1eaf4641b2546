"""Earlier events to fit to, later ones to be judged by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events.event_checks import many
from sandtable_workloads.rpf.events.event_table import EventTable


@dataclass(frozen=True, eq=False)
class EventSplit:
    """Two parts of one table, before and after `time`.

    Attributes:
        earlier: Events until `time`, with the ids and codes of the whole.
        test: Events after it, likewise.
        time: The hour of the last of the earlier ones.
    """

    earlier: EventTable
    test: EventTable
    time: float

    @cached_property
    def train(self) -> EventTable:
        """The earlier events without the users and items that only occur later: what a model may know."""
        return self.earlier.compacted()

    def summary(self) -> str:
        """Say in one line how large the parts are, and how much of the later one is new."""
        new_users = np.setdiff1d(self.test.user_code, self.earlier.user_code).size
        new_items = np.setdiff1d(self.test.item_code, self.earlier.item_code).size
        parts = f"{many(len(self.earlier), 'event')} until hour {self.time:,.1f} and {len(self.test):,} after it"
        return f"{parts}, with {many(new_users, 'new user')} and {many(new_items, 'new item')}"


def chronological_split(events: Any, train: float = 0.8) -> EventSplit:
    """Split events [N] at the time of the one that completes the share ``train``.

    Events at that very time are all earlier ones: none is judged by what happened at its own moment.

    Raises:
        ConfigError: no share between 0 and 1, events without times, or none later than the split.
    """
    table = EventTable.of(events)
    if not 0 < train < 1:
        raise ConfigError(f"the share to train on lies between 0 and 1, and is not {train}")
    last = max(int(np.ceil(train * len(table))) - 1, 0)
    return split_at(table, float(table.time[last]))


def split_at(events: Any, time: float) -> EventSplit:
    """Split events into those until hour ``time``, itself included, and those after it.

    Raises:
        ConfigError: events without times, or one of the parts is empty.
    """
    table = EventTable.of(events)
    if not table.timed:
        raise ConfigError("events without times cannot be split by time: none is later than another")
    n = int(np.searchsorted(table.time, time, side="right"))
    if n == len(table):
        what = "no event is left to test by" if n > 1 else "one event cannot be split into earlier and later ones"
        raise ConfigError(f"{what}: the last of {n} is at {table.time[-1]:g} h, the split at {time:g} h")
    if n == 0:
        raise ConfigError(
            f"no event is left to train on: the first is at hour {table.time[0]:g}, the split at {time:g}"
        )
    return EventSplit(table.taken(slice(0, n), end=time), table.taken(slice(n, None), start=time), time)
