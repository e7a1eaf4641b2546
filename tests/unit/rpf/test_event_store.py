"""Stores of events: groups of whole users that hold exactly what was written, and never half of it."""

from __future__ import annotations

import dataclasses
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events import event_store, generated_events
from sandtable_workloads.rpf.events.event_store import EventStore
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.generated_events import GeneratedEvents

USUAL = GeneratedEvents(n_users=200, n_items=60, n_events=9_000, n_pairs=2_500, seed=5)


def same(one: EventTable, other: EventTable) -> None:
    for name in ("time", "user_code", "item_code", "user_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.start, one.end, one.origin) == (other.start, other.end, other.origin)


def test_a_store_gives_back_what_was_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_events, "_BLOCK_EVENTS", 1_700)
    store = EventStore.of_generated(tmp_path / "events", USUAL, events_per_group=1_000)
    assert (store.n_events, store.n_users, store.n_items) == (9_000, 200, 60)
    same(store.table(), USUAL.table())
    np.testing.assert_array_equal(store.events_per_user, USUAL.events_per_user)
    assert (
        store.summary()
        == f"9,000 events of 200 users and 60 items over 90.0 days, in {store.n_batches} groups of users"
    )


def test_batches_hold_whole_users_of_about_the_size_asked_for(tmp_path: Path) -> None:
    store = EventStore.of_generated(tmp_path / "events", USUAL, events_per_group=1_000)
    batches = list(store.batches())
    largest = USUAL.events_per_user.max()
    assert len(batches) == store.n_batches > 4
    assert [b.first_user for b in batches] == store.bounds()[:-1].tolist()
    for batch in batches:
        assert set(np.unique(batch.user)) <= set(range(batch.first_user, batch.last_user))
        assert batch.time.size == USUAL.events_per_user[batch.first_user : batch.last_user].sum()
        assert 1_000 <= batch.time.size <= 1_000 + largest or batch is batches[-1]
        pairs = batch.pairs()
        assert (pairs.n_users, pairs.n_items, pairs.n_events) == (batch.n_users, 60, batch.time.size)
    again = [batch.first_user for batch in store.batches(order=[2, 0])]
    assert again == [batches[2].first_user, 0]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_however_pieces_and_groups_are_cut(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    counts = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any))
    user = np.repeat(np.arange(len(counts)), counts)
    time = np.concatenate([np.arange(n, dtype=float) for n in counts])
    cuts = sorted(data.draw(st.lists(st.integers(0, user.size), max_size=4)))
    pieces = list(zip(np.split(user, cuts), np.split(user % 3, cuts), np.split(time, cuts), strict=True))
    group = data.draw(st.integers(1, 9))
    path = tmp_path_factory.mktemp("store") / "events"
    store = EventStore.write(path, pieces, np.arange(len(counts)), np.arange(3), (0.0, 9.0), events_per_group=group)
    batches = list(store.batches())
    np.testing.assert_array_equal(np.concatenate([b.user for b in batches]), user)
    np.testing.assert_array_equal(np.concatenate([b.time for b in batches]), time)
    assert batches[0].first_user == 0
    assert batches[-1].last_user == len(counts)
    assert all(one.last_user == other.first_user for one, other in pairwise(batches))
    assert store.events_per_user.tolist() == counts


@pytest.mark.parametrize("ids", [["ä", "b"], [uuid.UUID(int=2), uuid.UUID(int=1)], [2**40, 7]], ids=str)
def test_ids_keep_their_type(ids: list[Any], tmp_path: Path) -> None:
    table = EventTable.of((ids, ids, np.array(["2024-03-01T05", "2024-03-02T06"], "datetime64[s]")))
    store = EventStore.of_table(tmp_path / "events", table)
    assert store.user_ids.tolist() == store.item_ids.tolist() == ids
    same(store.table(), table)


def test_only_a_whole_store_stands_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "events"
    EventStore.of_generated(path, USUAL)

    def breaks() -> Any:
        yield next(iter(USUAL.columns()))
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        EventStore.write(path, breaks(), np.arange(200), np.arange(60), (0.0, 1.0))
    assert EventStore(path).n_events == 9_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["events"]
    EventStore.of_generated(path, dataclasses.replace(USUAL, n_events=2_600))
    assert EventStore(path).n_events == 2_600


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not there"):
        EventStore(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="not written over"):
        EventStore.of_generated(tmp_path / "mine", USUAL)
    _, pq = event_store._arrow()
    pq.write_table(event_store._arrow()[0].table({"user": [1]}), tmp_path / "mine" / "events.parquet")
    with pytest.raises(ConfigError, match="groups of users"):
        EventStore(tmp_path / "mine")
    (tmp_path / "mine" / "events.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ConfigError, match="cannot be read"):
        EventStore(tmp_path / "mine")
    table = EventTable.of(([("a", 1)], ["x"], [1.0]))
    with pytest.raises(ConfigError, match="these are tuple"):
        EventStore.of_table(tmp_path / "tuples", table)
    columns = (np.array([1, 0]), np.array([0, 0]), np.array([0.0, 1.0]))
    with pytest.raises(ConfigError, match="by user"):
        EventStore.write(tmp_path / "mixed", [columns], np.arange(2), np.arange(1), (0.0, 1.0))
