"""Fits of a file larger than memory by one command, and what is refused before memory runs out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sandtable.contracts import run_command
from sandtable.errors import DoesNotFit
from sandtable.system import limits
from sandtable_workloads.rpf import HPF, HRPF, SRPF, EventStore, EventTable, fit_stochastic, read_events

pytest.importorskip("numba", reason="fits are compiled by numba")
pytest.importorskip("pyarrow", reason="stores are Parquet")

FIT = ("rpf", "fit", "events.csv", "-o", "model.npz", "-k", "3", "--stochastic", "--epochs", "2")


@pytest.fixture
def events(in_tmp: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(0, 60, 3000), rng.integers(0, 12, 3000), rng.random(3000) * 400, strict=True)
    path = in_tmp / "events.csv"
    path.write_text("visitorid,item,time\n" + "".join(f"u{u},i{i},{t:.4f}\n" for u, i, t in rows))
    return path


def test_one_command_fits_a_file_by_batches_and_leaves_nothing_beside_the_model(events: Path) -> None:
    ran = run_command(*FIT, "--batch-events", "500", "--format", "json")
    assert ran.code == 0, ran.err
    found = {row["what"]: row["value"] for row in json.loads(ran.out)["rows"]}
    assert (found["events"], found["users"], found["items"]) == ("3,000", "60", "12")
    assert found["iterations"].startswith("2 epochs of 6 batches of users")
    assert "user is visitorid" in ran.err
    assert sorted(path.name for path in events.parent.iterdir()) == ["events.csv", "model.npz"]
    model = HRPF.load("model.npz")
    store = EventStore.of_table("store", read_events(events), events_per_group=500)
    assert store.n_events == 3000
    assert model.period_ == (store.start, store.end)
    ran = run_command("rpf", "recommend", "model.npz", "u3", "-n", "4", "--format", "json")
    assert len(json.loads(ran.out)["rows"]) == 4


def test_batches_that_are_kept_are_events_for_the_next_fit(events: Path) -> None:
    assert run_command(*FIT, "--batch-events", "500", "--store", "batches").code == 0
    first = HRPF.load("model.npz").theta_
    ran = run_command(*FIT[:2], "batches", *FIT[3:])
    assert ran.code == 0, ran.err
    np.testing.assert_array_equal(HRPF.load("model.npz").theta_, first)
    ran = run_command(*FIT[:2], "batches", *FIT[3:], "--batch-events", "100")
    assert (ran.code, "in batches already" in ran.err) == (2, True)


def test_a_killed_fit_goes_on_from_its_checkpoint(events: Path) -> None:
    assert run_command(*FIT, "--epochs", "1", "--checkpoint", "fit.npz").code == 0
    assert run_command(*FIT, "--epochs", "3", "--checkpoint", "fit.npz").code == 0
    resumed = HRPF.load("model.npz").theta_
    assert run_command(*FIT, "--epochs", "3").code == 0
    np.testing.assert_array_equal(HRPF.load("model.npz").theta_, resumed)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--variant", "drpf"), "DRPF is not fitted by batches of users: PF, HPF, HRPF are"),
        (("--ranks", "2"), "one process"),
        (("--validation", "0.1"), "leave out --validation and --edges"),
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("-k", "4000"), "4000 components are more than 3000 events can tell apart"),
    ],
)
def test_what_batches_cannot_do_is_one_sentence(words: tuple[str, ...], sentence: str, events: Path) -> None:
    ran = run_command(*FIT, *words)
    assert ran.code == 2, ran.err
    assert sentence in ran.err
    assert "Traceback" not in ran.err


def test_options_of_batches_alone_are_refused(events: Path) -> None:
    ran = run_command(*FIT[:7], "--epochs", "2")
    assert (ran.code, "--epochs means something with --stochastic only" in ran.err) == (2, True)


# --- memory ----------------------------------------------------------------------------------------------------


def table() -> EventTable:
    rng = np.random.default_rng(1)
    return EventTable.of((rng.integers(0, 900, 9000), rng.integers(0, 300, 9000), np.sort(rng.random(9000)) * 99))


def little(monkeypatch: pytest.MonkeyPatch, mebibytes: float) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: int(mebibytes * 2**20))


def test_a_fit_that_memory_has_no_room_for_says_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    little(monkeypatch, 2)
    with pytest.raises(
        DoesNotFit,
        match=r"the fit needs 7\.\d+ MiB and 1\.8 MiB are there: take dtype=float32, components=50, or fit by ba",
    ):
        HRPF(200, dtype="float64").fit(table())
    edges = np.arange(900), np.arange(900)[::-1]
    with pytest.raises(DoesNotFit, match=r"take dtype=float32, components=\d+$"):
        SRPF(200, max_iter=1).fit(table(), edges)
    HRPF(10, max_iter=1).fit(table())


def test_batches_need_less_and_say_so_when_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    little(monkeypatch, 0.5)
    with pytest.raises(DoesNotFit, match="or fit by batches of users"):
        HPF(20).fit(table())
    little(monkeypatch, 0.1)
    with pytest.raises(DoesNotFit, match="leave out users and items with few events"):
        fit_stochastic(HPF(20), table())


def test_a_file_that_memory_has_no_room_for_is_not_read(
    events: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    EventStore.of_table(tmp_path / "store", read_events(events))
    read_events(events).frame().to_parquet(tmp_path / "events.parquet")
    little(monkeypatch, 0.25)
    for path in (events, tmp_path / "events.parquet", tmp_path / "store"):
        with pytest.raises(DoesNotFit, match=r"reading about \S+ events takes .* stream them from disk"):
            read_events(path)
    ran = run_command(*FIT[:7])
    assert (ran.code, "--stochastic" in ran.err) == (5, True)
