"""Generated events: exactly as many of everything as asked for, alike by a seed, and shaped like real ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events import generated_events
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.generated_events import GeneratedEvents, distinct_columns, popularity

USUAL = GeneratedEvents(n_users=800, n_items=500, n_events=40_000, n_pairs=12_000, mean_degree=6.0, seed=3)


def n_pairs(table: EventTable) -> int:
    return table.pairs().n_pairs


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_numbers_are_exact(data: st.DataObject) -> None:
    n_users, n_items = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    pairs = data.draw(st.integers(1, n_users * n_items))
    events = data.draw(st.integers(pairs, 4 * pairs))
    degree = data.draw(st.floats(0, n_users - 1))
    asked = GeneratedEvents(
        n_users=n_users,
        n_items=n_items,
        n_events=events,
        n_pairs=pairs,
        mean_degree=degree,
        zipf=data.draw(st.sampled_from([0.0, 0.7, 1.0, 1.6])),
        seed=data.draw(st.integers(0, 99)),
    )
    table, edges = asked.table(), asked.edges()
    assert (len(table), n_pairs(table), table.n_users, table.n_items) == (events, pairs, n_users, n_items)
    np.testing.assert_array_equal(table.events_per_user, asked.events_per_user)
    assert len(np.unique(edges, axis=0)) == len(edges) == asked.n_edges == round(n_users * degree)
    assert not np.any(edges[:, 0] == edges[:, 1])
    assert table.time.min() >= 0
    assert table.time.max() <= asked.hours == table.end
    if pairs >= n_users:
        assert table.events_per_user.min() >= 1


def test_the_seed_decides() -> None:
    one, again, other = USUAL.table(), USUAL.table(), dataclasses.replace(USUAL, seed=4).table()
    np.testing.assert_array_equal(one.time, again.time)
    np.testing.assert_array_equal(one.item_code, again.item_code)
    assert not np.array_equal(one.time, other.time)


def test_blocks_make_up_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_events, "_BLOCK_EVENTS", 5_000)
    blocks = list(USUAL.columns())
    assert len(blocks) > 4
    user, item, time = (np.concatenate(part) for part in zip(*blocks, strict=True))
    assert np.all(np.lexsort((time, user)) == np.arange(len(user)))
    order = np.argsort(time)
    table = USUAL.table()
    np.testing.assert_array_equal(table.time, time[order])
    np.testing.assert_array_equal(table.item_code, item[order])
    assert n_pairs(table) == USUAL.pairs


def test_popular_items_follow_zipf() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount(popularity(1000, 1.0, rng.random(400_000)), minlength=1000)
    rank = np.arange(1, 1001)
    expected = np.log((rank + 1) / rank) / np.log(1001)
    np.testing.assert_allclose(counts[:20] / 400_000, expected[:20], rtol=0.05)
    steep = np.polyfit(
        np.log(rank[:100]), np.log(np.bincount(popularity(1000, 1.5, rng.random(400_000)))[:100]), 1
    )[0]
    assert -1.6 < steep < -1.35
    assert np.bincount(popularity(7, 0.0, rng.random(7000))).min() > 850


def test_items_are_met_by_popularity_and_users_are_unequal() -> None:
    table = USUAL.table()
    met = np.sort(np.bincount(table.item_code, minlength=500))[::-1]
    assert met[:25].sum() > 0.25 * len(table)
    per_user = np.sort(table.events_per_user)
    assert per_user[-80:].sum() > 0.3 * len(table)
    equal = dataclasses.replace(USUAL, spread=0.0)
    assert set(equal.pairs_per_user) == {15}


def gaps_within_pairs(asked: GeneratedEvents) -> np.ndarray:
    pairs = asked.table().pairs()
    inside = np.diff(pairs.event_pair) == 0
    return np.diff(pairs.time)[inside]


def test_returns_come_within_hours() -> None:
    quick = gaps_within_pairs(dataclasses.replace(USUAL, returns=0.8, return_hours=0.5))
    none = gaps_within_pairs(dataclasses.replace(USUAL, returns=0.0))
    assert np.mean(quick < 2) > 0.7
    assert np.mean(none < 2) < 0.35


def test_visits_lie_in_sessions() -> None:
    table = dataclasses.replace(USUAL, returns=0.0, per_session=20.0).table()
    busiest = int(np.argmax(table.events_per_user))
    gaps = np.diff(table.time[table.user_code == busiest])
    assert np.mean(gaps < 1) > 0.8


def test_few_are_followed_by_many() -> None:
    followers = np.bincount(USUAL.edges()[:, 1], minlength=800)
    assert followers.sum() == 4800
    assert np.sort(followers)[-40:].sum() > 0.25 * 4800


def test_rows_that_want_everything_get_it() -> None:
    row, column = distinct_columns(np.array([0, 400, 3, 399]), 400, 1.4, np.random.default_rng(1))
    assert np.bincount(row, minlength=4).tolist() == [0, 400, 3, 399]
    assert len(np.unique(row * 400 + column)) == 802


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_users": 0}, "at least 1"),
        ({"n_pairs": 40_001}, "n_pairs must be from 1 to 40,000"),
        ({"n_items": 3}, "n_pairs must be from 1 to 2,400"),
        ({"mean_degree": 800.0}, "nobody follows themselves"),
        ({"zipf": -1.0}, "must not be negative"),
        ({"days": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(USUAL, **changes)
