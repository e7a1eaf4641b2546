"""Tables of events: any ids, any times, in order, and one sentence for what cannot be used."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events.event_checks import Where
from sandtable_workloads.rpf.events.event_table import EventTable

NAMES = ("user", "item", "time")


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"user": ["a", "b", "a"], "item": ["x", "x", "y"], "time": [1.0, 2.0, 3.0], **columns})


def refused(events: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        EventTable.of(events, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_codes_lead_back_to_ids() -> None:
    table = EventTable.of(frame())
    assert table.user.tolist() == ["a", "b", "a"]
    assert table.item.tolist() == ["x", "x", "y"]
    assert table.user_code.tolist() == [0, 1, 0]
    assert table.user_code.dtype == table.item_code.dtype == np.int32
    assert (len(table), table.n_users, table.n_items, table.start, table.end) == (3, 2, 2, 1.0, 3.0)
    assert table.notes == ()
    assert EventTable.of(table) is table


@pytest.mark.parametrize(
    "ids",
    [
        [7, 3, 7],
        ["ä", "", "ä"],
        [uuid.UUID(int=5), uuid.UUID(int=2), uuid.UUID(int=5)],
        [("nl", 1), ("nl", 2), ("nl", 1)],
        [np.int64(2**60), np.int64(-1), np.int64(2**60)],
        pd.Categorical(["b", "a", "b"]),
        pd.array([4, 5, 4], dtype="Int64"),
    ],
    ids=["ints", "texts", "uuids", "tuples", "large", "categories", "nullable"],
)
def test_ids_of_any_type(ids: Any) -> None:
    table = EventTable.of((ids, ids, [1.0, 2.0, 3.0]))
    assert table.user_code.tolist() == table.item_code.tolist() == [0, 1, 0]
    assert table.user.tolist() == list(ids)
    pairs = table.pairs()
    assert (pairs.n_users, pairs.n_items, pairs.n_pairs, pairs.n_events) == (2, 2, 2, 3)


def test_integers_that_stand_as_floats_are_integers() -> None:
    assert EventTable.of(([1.0, 2.0, 1.0], ["x"] * 3, [1, 2, 3])).user_ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    "events",
    [
        {"user": [1, 2], "item": [3, 4], "time": [0.5, 1]},
        ([1, 2], [3, 4], [0.5, 1]),
        (np.array([1, 2]), np.array([3, 4]), np.array([0.5, 1])),
        np.rec.fromarrays([[1, 2], [3, 4], [0.5, 1.0]], names=NAMES),
        pd.DataFrame({"more": 0, "time": [0.5, 1], "item": [3, 4], "user": [1, 2]}, index=[9, 9]),
    ],
    ids=["mapping", "lists", "arrays", "records", "frame"],
)
def test_events_come_in_many_forms(events: Any) -> None:
    table = EventTable.of(events)
    assert [table.user.tolist(), table.item.tolist(), table.time.tolist()] == [[1, 2], [3, 4], [0.5, 1.0]]


def test_rows_out_of_order_give_the_same_table_and_a_note() -> None:
    rng = np.random.default_rng(1)
    rows = pd.DataFrame({"user": rng.integers(0, 9, 60), "item": rng.integers(0, 5, 60), "time": rng.random(60)})
    mixed, in_order = EventTable.of(rows), EventTable.of(rows.sort_values("time"))
    for name in ("user_code", "item_code", "time", "user_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(mixed, name), getattr(in_order, name))
    assert in_order.notes == ()
    assert mixed.notes == ("events were not in order of time and have been sorted",)


def test_equal_times_stay_in_their_order() -> None:
    table = EventTable.of((list("abcd"), list("wxyz"), [2.0, 1.0, 1.0, 1.0]))
    assert table.item.tolist() == ["x", "y", "z", "w"]


def test_copies_are_kept_or_dropped_and_both_is_said() -> None:
    events = (list("aabaa"), list("xxxyx"), [1.0, 1.0, 1.0, 1.0, 1.0])
    kept, dropped = EventTable.of(events), EventTable.of(events, duplicates="drop")
    assert (len(kept), len(dropped)) == (5, 3)
    assert kept.notes[0].startswith("2 events are copies of another with the same user, item and time: kept")
    assert dropped.notes[0].endswith(": dropped")
    assert dropped.item.tolist() == ["x", "x", "y"]


def test_dates_count_from_a_monday() -> None:
    table = EventTable.of(frame(time=pd.to_datetime(["2024-02-28 01:30", "2024-02-29 00:00", "2024-03-04 00:00"])))
    assert table.origin == np.datetime64("2024-02-26")
    assert table.time.tolist() == [49.5, 72.0, 168.0]
    zoned = EventTable.of(frame(time=pd.to_datetime(["2024-02-28T03:30+02:00"] * 3)))
    assert zoned.time.tolist() == [49.5] * 3
    later = EventTable.of(frame(time=pd.to_datetime(["2024-03-05"] * 3)), origin=table.origin)
    assert later.time.tolist() == [8 * 24.0] * 3


@pytest.mark.parametrize(
    ("times", "note"),
    [
        ([1709168400, 1709168400 + 3600, 1709168400 + 7200], "seconds since 1970"),
        ([1709168400000, 1709168400000 + 3600000, 1709168400000 + 7200000], "milliseconds since 1970"),
        (["2024-02-29T01:00:00Z", "2024-02-29T02:00:00Z", "2024-02-29T03:00:00Z"], None),
        (["2024-02-29 01", "2024-02-29 02", "2024-02-29 03"], None),
        (["1709168400", "1709172000", "1709175600"], "seconds since 1970"),
    ],
)
def test_times_of_one_instant_are_one_hour_however_written(times: list[Any], note: str | None) -> None:
    table = EventTable.of(frame(time=times))
    assert table.time.tolist() == [73.0, 74.0, 75.0]
    assert table.origin == np.datetime64("2024-02-26")
    assert table.notes == (() if note is None else (f"times are read as {note}",))


def test_a_unit_that_is_given_is_not_guessed() -> None:
    table = EventTable.of(frame(time=[0, 3600, 7200]), time_unit="s")
    assert np.diff(table.time).tolist() == [1.0, 1.0]
    assert table.notes == ()
    with pytest.raises(ConfigError, match="negative"):
        EventTable.of(frame(time=[-5, 0, 1]), time_unit="s")


def test_timedeltas_are_hours() -> None:
    assert EventTable.of(frame(time=pd.to_timedelta([0, 90, 120], unit="min"))).time.tolist() == [0.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("time", [1.0, -2.0, 3.0], "row 1 (counted from 0): time -2 is negative"),
        ("time", [1.0, np.inf, 3.0], "row 1 (counted from 0): time inf is not finite"),
        ("time", [1.0, 2.0, np.nan], "row 2 (counted from 0): the time is missing"),
        ("time", ["1", "2", "soon"], "row 2 (counted from 0): time 'soon' is not a number"),
        ("time", ["soon", "later", "never"], "row 0 (counted from 0): time 'soon' is not a time"),
        (
            "time",
            ["2024-01-01", "2024-31-01", "2024-01-02"],
            "row 1 (counted from 0): time '2024-31-01' is not a time",
        ),
        ("time", [1, 2, 9e18], "row 2 (counted from 0): time"),
        (
            "time",
            pd.to_datetime(["2024-01-01", "2190-01-01", "2024-01-02"]),
            "2190-01-01T00:00:00 lies in the future",
        ),
        ("time", pd.to_datetime(["2024-01-01", None, "2024-01-02"]), "row 1 (counted from 0): the time is missing"),
        ("user", ["a", None, "b"], "row 1 (counted from 0): the user is missing"),
        ("item", [1.0, 2.0, np.nan], "row 2 (counted from 0): the item is missing"),
        ("user", [["a"], ["b"], ["c"]], "ids of users must be"),
    ],
)
def test_bad_cells_get_one_sentence_with_their_row(column: str, values: Any, said: str) -> None:
    assert said in refused(frame(**{column: values}))


def test_bad_tables_get_one_sentence() -> None:
    assert "no events" in refused(frame()[:0])
    assert "no column 'item' (there are 'user', 'thing', 'time')" in refused(
        frame().rename(columns={"item": "thing"})
    )
    assert "equal length" in refused(([1, 2], [1], [0.0, 1.0]))
    assert "three arrays" in refused(5)
    assert "row 2 (counted from 0): time 3 h lies after the end of the records, 2.5 h" in refused(
        frame(), until=2.5
    )
    assert "row 0 (counted from 0): time 1 h lies before the start" in refused(frame(), start=1.5)
    assert refused(frame(time=[1, -1, 1]), where=Where("e.csv", 2)).startswith("e.csv:3: time -1 is negative")


def test_the_window_of_the_records_may_be_wider_than_the_events() -> None:
    table = EventTable.of(frame(), start=0.0, until=24.0)
    assert (table.start, table.end) == (0.0, 24.0)
    assert table.summary() == "3 events of 2 users and 2 items over 1.0 days"


def test_what_is_known_of_each_user() -> None:
    table = EventTable.of((list("abcab"), list("xxxyy"), [1.0, 2.0, 3.0, 4.0, 6.0]))
    assert table.first_times.tolist() == [1.0, 2.0, 3.0]
    assert table.last_times.tolist() == [4.0, 6.0, 3.0]
    assert table.events_per_user.tolist() == [2, 2, 1]
    part = table.taken(table.time < 2.5)
    assert (len(part), part.n_users, part.events_per_user.tolist()) == (2, 3, [1, 1, 0])
    assert np.isnan(part.last_times[2])
    small = table.taken(slice(2, 4)).compacted()
    assert (small.user_ids.tolist(), small.item_ids.tolist(), small.user.tolist()) == (
        ["c", "a"],
        ["x", "y"],
        ["c", "a"],
    )


def test_another_origin_moves_all_hours() -> None:
    table = EventTable.of(frame(time=pd.to_datetime(["2024-02-28 01:30", "2024-02-29 00:00", "2024-03-04 00:00"])))
    earlier = EventTable.of(table, origin=np.datetime64("2024-02-19", "s"))
    assert (earlier.time - table.time).tolist() == [168.0] * 3
    assert (earlier.start, earlier.end) == (table.start + 168, table.end + 168)
    assert EventTable.of(table, origin=table.origin) is table
    with pytest.raises(ConfigError, match="counts as hour 0"):
        EventTable.of(table, origin=np.datetime64("2024-03-11", "s"))


def test_an_estimator_takes_dates_and_remembers_where_they_begin() -> None:
    from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF

    days = pd.date_range("2024-02-28", periods=40, freq="7h", tz="UTC")
    rows = pd.DataFrame({"user": list("ab") * 20, "item": list("xxyz") * 10, "time": days})
    model = HRPF(n_components=2, max_iter=3).fit(rows[:30])
    assert model.origin_ == np.datetime64("2024-02-26")
    assert model.period_ == (48.0, 48.0 + 29 * 7)
    assert np.isfinite(model.score(rows[30:]))
    model.partial_fit(rows[30:], n_iter=1)
    assert model.period_[1] == 48.0 + 39 * 7
