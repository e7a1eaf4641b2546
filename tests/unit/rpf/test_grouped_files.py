"""Files larger than memory as stores: the same events as in memory, whatever the parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events.event_files import FileOptions, read_events
from sandtable_workloads.rpf.events.event_store import EventStore
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.grouped_files import group_events

RNG = np.random.default_rng(7)


def plays(n: int = 400, user: str = "u{}") -> pd.DataFrame:
    users = [user.format(u) for u in RNG.integers(0, 30, n)]
    seconds = 1_240_000_000 + RNG.integers(0, 10_000_000, n)
    return pd.DataFrame({"user_id": users, "artist": RNG.integers(0, 12, n), "timestamp": seconds})


def rows(table: EventTable) -> list[tuple[object, object, float]]:
    return sorted(zip(table.user.tolist(), table.item.tolist(), table.time.round(7).tolist(), strict=True))


@pytest.mark.parametrize("user", ["u{}", "{}"], ids=["texts", "integers"])
@pytest.mark.parametrize(("n_parts", "rows_at_once"), [(1, 1000), (7, 33), (64, 150)])
def test_a_store_of_a_file_has_the_events_of_the_file(
    user: str, n_parts: int, rows_at_once: int, tmp_path: Path
) -> None:
    path = tmp_path / "plays.csv"
    plays(user=user).to_csv(path, index=False)
    whole = read_events(path)
    store = group_events(path, tmp_path / "store", n_parts=n_parts, rows=rows_at_once, events_per_group=50)
    assert rows(store.table()) == rows(whole)
    assert (store.start, store.end) == pytest.approx((whole.start, whole.end), abs=1e-8)
    assert store.origin == whole.origin
    assert store.user_ids.dtype == whole.user_ids.dtype
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["plays.csv", "store"]


def test_several_files_of_both_kinds(tmp_path: Path) -> None:
    whole = plays()
    whole[:150].to_csv(tmp_path / "a.csv", index=False)
    whole[150:].to_parquet(tmp_path / "b.parquet")
    store = group_events([tmp_path / "b.parquet", tmp_path / "a.csv"], tmp_path / "store", rows=60)
    names = whole.set_axis(["user", "item", "time"], axis=1)
    assert rows(store.table()) == rows(EventTable.of(names))
    pd.DataFrame({"user_id": ["7"], "artist": ["7"], "timestamp": [1_240_000_000]}).to_parquet(
        tmp_path / "c.parquet"
    )
    texts = group_events([tmp_path / "a.csv", tmp_path / "c.parquet"], tmp_path / "store")
    assert {type(item) for item in texts.item_ids.tolist()} == {str}


def test_copies_are_dropped_within_a_user(tmp_path: Path) -> None:
    whole = plays(100)
    path = tmp_path / "plays.csv"
    pd.concat([whole, whole[::2]]).to_csv(path, index=False)
    assert group_events(path, tmp_path / "kept").n_events == 150
    dropped = group_events(path, tmp_path / "dropped", duplicates="drop", rows=40)
    assert rows(dropped.table()) == rows(read_events(path, duplicates="drop"))


def test_faults_are_named_with_their_line_in_any_part(tmp_path: Path) -> None:
    path = tmp_path / "plays.csv"
    lines = ["user,item,time", *(f"a,x,{hour}" for hour in range(50)), "a,,51"]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match=r"plays\.csv:52: the item is missing"):
        group_events(path, tmp_path / "store", rows=20)
    assert not (tmp_path / "store").exists()
    frame = pd.DataFrame({"user": "a", "item": "x", "time": [*range(30), -1.0]})
    frame.to_parquet(tmp_path / "plays.parquet")
    with pytest.raises(ConfigError, match=r"row 30 \(counted from 0\): time -1 is negative"):
        group_events(tmp_path / "plays.parquet", tmp_path / "store", rows=8)
    path.write_text("user,item,time\na,x,2\na,x,1300000000\n")
    with pytest.raises(ConfigError, match="some of these times are dates"):
        group_events([path, path], tmp_path / "store", rows=1)
    with pytest.raises(ConfigError, match="no events"):
        group_events([], tmp_path / "store")


def test_options_hold_for_every_part(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    lines = [f"{1433221332117 + i},{i % 5},{'view' if i % 3 else 'transaction'},{i % 4}," for i in range(60)]
    path.write_text("\n".join(["timestamp,visitorid,event,itemid,transactionid", *lines]) + "\n")
    options = FileOptions(kinds=("transaction",))
    store = group_events(path, tmp_path / "store", options, rows=7)
    assert store.n_events == 20
    assert rows(EventStore(tmp_path / "store").table()) == rows(read_events(path, options))
