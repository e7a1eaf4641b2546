"""Files of events: known data sets by their looks, others by their columns; each fault with file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events.event_files import FileOptions, read_events
from sandtable_workloads.rpf.events.event_store import EventStore
from sandtable_workloads.rpf.events.event_table import EventTable

LASTFM_1K = (
    "user_000001\t2009-05-04T23:08:57Z\tf1b1cf71-bd35-4e99-8624-24a6e15f133a\tDeep Dish\t\tFuck Me Im Famous\n"
    'user_000001\t2009-05-04T13:54:10Z\ta7f7df4a-77d8-4f12-8acd-5c60c93f4de8\t坂本龍一\t\tComposition 0919 "Live\n'
    "user_000002\t2009-05-06T13:52:04Z\t\tNone\t\tBibo No Aozora\n"
)
LASTFM_360K = (
    "00000c289a1829a808ac09c00daf10bc3c4e223b\t3bd73256-3905-4f3a-97e2-8b341527f805\tbetty blowtorch\t2137\n"
    "00000c289a1829a808ac09c00daf10bc3c4e223b\tf2fb0ff0-5679-42ec-a55c-15109ce6e320\tdie Ärzte\t1099\n"
    "00001411dc427966b17297bf4d69e7e193135d89\t3bd73256-3905-4f3a-97e2-8b341527f805\tbetty blowtorch\t3\n"
)
RETAILROCKET = (
    "timestamp,visitorid,event,itemid,transactionid\n"
    "1433221332117,257597,view,355908,\n"
    "1433224214164,992329,view,248676,\n"
    "1433221999827,111016,transaction,318965,4000\n"
)
TMALL = (
    "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n"
    "328862,323294,833,2882,2661,0829,0\n"
    "328862,844400,1271,2882,2661,0829,2\n"
    "328863,575153,1271,2882,2661,1111,0\n"
)
TIANCHI = (
    "user_id,item_id,behavior_type,user_geohash,item_category,time\n"
    "98047837,232431562,1,,4245,2014-12-06 02\n"
    "97726136,383583590,3,,5894,2014-12-09 20\n"
)
TAOBAO = "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,buy,1511561733\n2,2576651,149192,fav,1511572885\n"
ML_CSV = "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,4.5,1112484676\n2,2,1.0,1112484819\n"
ML_DAT = "1::1193::5::978300760\n1::661::2::978302109\n2::1193::4::978298413\n"
ML_100K = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t242\t1\t878887116\n"
AUTHORS = "1246406400 12 7\n1246410000 13 7\n1246413600 12 9\n"


def written(folder: Path, text: str, name: str = "events.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, **options: object) -> EventTable:
    return read_events(written(folder, text), FileOptions(**options))  # type: ignore[arg-type]


def refused(folder: Path, text: str, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, **options)
    said = str(caught.value)
    assert said.startswith(str(folder / "events.csv"))
    assert "\n" not in said
    return said.removeprefix(str(folder / "events.csv"))


def test_lastfm_1k(tmp_path: Path) -> None:
    table = read(tmp_path, LASTFM_1K)
    assert table.user.tolist() == ["user_000001", "user_000001", "user_000002"]
    assert table.item.tolist() == ["坂本龍一", "Deep Dish", "None"]
    assert table.origin == np.datetime64("2009-05-04")
    assert table.time[0] == pytest.approx(13 + 54 / 60 + 10 / 3600)
    assert table.notes[0] == "read as Last.fm 1K: item is artist, time is timestamp"
    tracks = read(tmp_path, LASTFM_1K, item="artist+track")
    assert tracks.item[0] == '坂本龍一 / Composition 0919 "Live'


def test_lastfm_360k_has_no_times(tmp_path: Path) -> None:
    table = read(tmp_path, LASTFM_360K)
    assert (len(table), table.n_users, table.n_items, table.timed) == (3, 2, 2, False)
    assert table.item_ids.tolist() == ["betty blowtorch", "die Ärzte"]
    assert any("only PF and HPF" in note for note in table.notes)


def test_retailrocket(tmp_path: Path) -> None:
    table = read(tmp_path, RETAILROCKET)
    assert table.user.tolist() == [257597, 111016, 992329]
    assert table.user_ids.dtype == np.int64
    assert table.origin == np.datetime64("2015-06-01")
    assert np.diff(table.time)[0] == pytest.approx((1433221999827 - 1433221332117) / 3.6e6)
    bought = read(tmp_path, RETAILROCKET, kinds=("transaction", "addtocart"))
    assert bought.item.tolist() == [318965]
    assert (
        refused(tmp_path, RETAILROCKET, kinds=("buy",)) == ": no event is of kind buy: there are transaction, view"
    )


def test_tmall_and_taobao(tmp_path: Path) -> None:
    days = read(tmp_path, TMALL)
    assert days.user.tolist() == [328862, 328862, 328863]
    assert days.origin == np.datetime64("2014-08-25")
    assert days.time.tolist() == [4 * 24.0, 4 * 24.0, 78 * 24.0]
    assert any("taken as of 2014" in note for note in days.notes)
    assert read(tmp_path, TMALL, kinds=("2",)).item.tolist() == [844400]
    assert read(tmp_path, TIANCHI).time.tolist() == [5 * 24 + 2, 8 * 24 + 20]
    table = read(tmp_path, TAOBAO, kinds=("pv", "buy"))
    assert table.item.tolist() == [2268318, 2333346]
    assert table.notes[0] == "read as Taobao: time is timestamp"


@pytest.mark.parametrize("text", [ML_CSV, ML_DAT, ML_100K])
def test_movielens(text: str, tmp_path: Path) -> None:
    table = read(tmp_path, text)
    assert (len(table), table.n_users, table.n_items) == (3, 3 if text == ML_100K else 2, 2)
    assert table.user_ids.dtype == table.item_ids.dtype == np.int64
    assert table.origin is not None
    assert len(read(tmp_path, text, min_rating=3)) == 2


def test_the_authors_files(tmp_path: Path) -> None:
    table = read(tmp_path, AUTHORS)
    assert table.user.tolist() == [12, 13, 12]
    assert table.item.tolist() == [7, 7, 9]
    assert np.diff(table.time).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ("user,item,time\na,x,1\nb,y,2\n", ["a", "b"]),
        ("user;time;item\na;1;x\nb;2;y\n", ["a", "b"]),
        ("a,x,0.5\nb,y,2\n", ["a", "b"]),
        ("user item time\n1 5 0.5\n2 6 2\n", [1, 2]),
        ("\ufeffuser,item,time\r\n007,x,1\r\n7,y,2\r\n", ["007", "7"]),
        ('user,item,time\n"a, b",x,1\nb,y,2\n\n', ["a, b", "b"]),
        ("USER_ID,Item-Id,more,Time\nNA,null,,1\nnan,y,3,2\n", ["NA", "nan"]),
        ("user,item,time\n1,x,1\n2,y,2\n" + "3,z,3\n" * 250 + "four,z,4\n", ["1", "2"]),
    ],
    ids=["csv", "semicolons", "no names", "blanks", "leading zeros", "quoted", "names", "later text"],
)
def test_columns_by_name(text: str, users: list[object], tmp_path: Path) -> None:
    assert read(tmp_path, text).user.tolist()[:2] == users


def test_columns_that_are_given(tmp_path: Path) -> None:
    text = "who,what,when\na,x,1\nb,y,2\n"
    assert "columns without names" in refused(tmp_path, text)
    assert read(tmp_path, text, user="who", item="what", time="when").user.tolist() == ["a", "b"]
    assert refused(tmp_path, text, user="who", item="what").startswith(": which column is the time? None of 'who'")
    assert "no column 'whom' for user" in refused(tmp_path, text, user="whom", item="what", time="when")
    assert read(tmp_path, "user,item,time\na,x,7200\n", time_unit="s").time.tolist() == [0.0 + 2 + 72]


def test_compressed_text_and_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    packed = tmp_path / "events.csv.gz"
    packed.write_bytes(gzip.compress(RETAILROCKET.encode()))
    plain = read(tmp_path, RETAILROCKET)
    np.testing.assert_array_equal(read_events(packed).time, plain.time)
    frame = pd.DataFrame({"visitorid": ["a", "b", "a"], "item": [3, 4, 3], "timestamp": [5.0, -1.0, 7.0]})
    frame.to_parquet(tmp_path / "events.parquet")
    with pytest.raises(ConfigError, match=r"events\.parquet: row 1 \(counted from 0\): time -1 is negative"):
        read_events(tmp_path / "events.parquet")
    frame.iloc[[0, 2]].to_parquet(tmp_path / "events.parquet")
    assert read_events(tmp_path / "events.parquet").user.tolist() == ["a", "a"]
    EventStore.of_table(tmp_path / "store", plain)
    np.testing.assert_array_equal(read_events(tmp_path / "store").time, plain.time)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": this file is empty"),
        ("user,item,time\n", ": no events"),
        ("user,item,time\na,x,1\nb,y,-2\n", ":3: time -2 is negative"),
        ("user,item,time\na,x,1\n\nb,,2\n", ":4: the item is missing"),
        ("user,item,time\na,x,1\nb,y,soon\n", ":3: time 'soon' is not a number"),
        ("user,item,time\na,x,1\nb,y,inf\n", ":3: time inf is not finite"),
        ("user,item,time\n1,2,\n", ":2: the time is missing"),
        ("user,item,time\n1,2,3\n4,5,6,7\n", ":3: more fields than the 3 of the first line"),
        ("user,item,time\n4,5,6,7\n1,2,3\n", ":2: more fields than the 3 of the first line"),
        ("user,item,time\na,x,2190-01-01\n", ":2: time 2190-01-01T00:00:00 lies in the future"),
        ("user,user,time\na,b,1\n", ":1: column 'user' stands twice"),
        ("a,b,c,d\n1,2,3,4\n", ":1: 4 columns without names"),
    ],
)
def test_faults_are_named_with_their_line(text: str, said: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text).startswith(said)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_events(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match="folder, but no store"):
        read_events(tmp_path)
    (tmp_path / "events.csv").write_bytes(b"user,item,time\n\xff\xfe,1,2\n")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        read_events(tmp_path / "events.csv")
    (tmp_path / "events.parquet").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_events(tmp_path / "events.parquet")
