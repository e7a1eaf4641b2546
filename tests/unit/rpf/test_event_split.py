"""Splits by time: nothing later is trained on, nothing simultaneous is judged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events.event_split import chronological_split, split_at
from sandtable_workloads.rpf.events.event_table import EventTable


def at(*times: float) -> EventTable:
    return EventTable.of((np.arange(len(times)) % 3, np.arange(len(times)) % 2, np.array(times)))


@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_the_parts_make_up_the_whole_and_do_not_overlap(times: list[int], share: float) -> None:
    table = at(*map(float, times))
    wanted = int(np.ceil(share * len(times)))
    if sorted(times)[wanted - 1] == max(times):
        with pytest.raises(ConfigError, match="no event is left to test by"):
            chronological_split(table, share)
        return
    parts = chronological_split(table, share)
    assert len(parts.train) + len(parts.test) == len(times)
    assert len(parts.train) >= wanted
    assert parts.train.time.max() == parts.train.end == parts.time == parts.test.start < parts.test.time.min()
    np.testing.assert_array_equal(np.append(parts.train.item, parts.test.item), table.item)
    # the smallest such part: without its last moment it would be too small
    assert np.count_nonzero(table.time < parts.time) < wanted


def test_both_parts_keep_the_codes_and_training_knows_nobody_who_comes_later() -> None:
    parts = split_at(at(1, 2, 3, 4), 2.5)
    assert parts.earlier.n_users == parts.test.n_users == 3
    assert parts.test.user.tolist() == [2, 0]
    assert parts.train.user_ids.tolist() == [0, 1]
    assert parts.train.user.tolist() == parts.earlier.user.tolist()
    assert (parts.train.start, parts.train.end) == (1.0, 2.5)
    assert parts.summary() == "2 events until hour 2.5 and 2 after it, with 1 new user and 0 new items"


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="one event cannot be split"):
        chronological_split(at(5))
    with pytest.raises(ConfigError, match="the last of 3 is at 4 h, the split at 4 h"):
        chronological_split(at(1, 4, 4))
    with pytest.raises(ConfigError, match="no event is left to train on"):
        split_at(at(1, 2), 0.5)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        chronological_split(at(1, 2), 1.0)
