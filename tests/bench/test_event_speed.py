"""Ten million events: generated, checked, written to a store and read again, in seconds and in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from sandtable_workloads.rpf import EventStore, EventTable, GeneratedEvents

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 or run make bench"
)

LARGE = GeneratedEvents(n_users=100_000, n_items=100_000, n_events=10_000_000, mean_degree=10)
T = TypeVar("T")


def timed(what: str, done: Callable[[], T], most_s: float) -> T:
    begin = time.perf_counter()
    found = done()
    seconds = time.perf_counter() - begin
    print(f"{what}: {seconds:.2f} s")
    assert seconds < most_s, what
    return found


def test_ten_million_events_take_seconds(tmp_path: Path) -> None:
    table = timed("generate", LARGE.table, 30)
    assert len(table) == LARGE.n_events
    assert timed("edges", LARGE.edges, 10).shape == (1_000_000, 2)
    frame = table.frame()
    assert len(timed("check, of integers", lambda: EventTable.of(frame), 10)) == LARGE.n_events
    frame["user"] = "user_" + frame["user"].astype(str)
    texts = timed("check, of texts out of order", lambda: EventTable.of(frame.sample(frac=1, random_state=1)), 40)
    np.testing.assert_array_equal(texts.time, table.time)
    store = timed("write a store", lambda: EventStore.of_table(tmp_path / "events", table), 20)
    n = timed("read it in batches", lambda: sum(batch.time.size for batch in store.batches()), 5)
    assert n == LARGE.n_events


def test_a_store_is_generated_in_little_memory(tmp_path: Path) -> None:
    # not ru_maxrss, which begins at the memory of the process that started this one
    code = f"""
from pathlib import Path
from sandtable_workloads.rpf import EventStore, GeneratedEvents
made = GeneratedEvents(n_users=100_000, n_items=100_000, n_events=10_000_000)
EventStore.of_generated({str(tmp_path / "events")!r}, made)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    print(f"{int(done.stdout) / 1e6:.2f} GB")
    assert int(done.stdout) < 500_000
