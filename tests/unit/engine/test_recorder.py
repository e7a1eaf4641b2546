"""Columns: rows in, arrays out, views of them, and little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.engine.recorder import Growing, Recorder, StepResult


@given(st.lists(st.tuples(st.dictionaries(st.sampled_from("abc"), st.floats(-1e6, 1e6)), st.integers(1, 4))))
def test_columns_hold_what_rows_said(rows: list[tuple[dict[str, float], int]]) -> None:
    table = Growing(missing=-1.0)
    for row, times in rows:
        table.append(row, times)
    written = [row for row, times in rows for _ in range(times)]
    assert table.n == len(written)
    for name in "abc":
        assert table[name].tolist() == [row.get(name, -1.0) for row in written]


def test_steps_are_views_of_rows() -> None:
    steps = [
        StepResult(
            phase="main",
            name="a",
            total_s=3.0,
            by_account={"io": 1.0, "compute": 2.0},
            low={"total": 2.5, "io": 0.5, "compute": 2.0},
            high={"total": 3.5, "io": 1.5, "compute": 2.0},
            counters={"tokens": 4.0},
        ),
        StepResult(phase="other", name="b", total_s=1.0),
    ]
    recorder = Recorder.of(steps)
    assert recorder.steps() == steps
    assert len(recorder) == 2


def test_what_has_no_interval_is_its_own() -> None:
    recorder = Recorder()
    recorder.record("unit", {"latency_s": 1.0})
    recorder.record("unit", {"latency_s": 2.0}, low={"latency_s": 1.5}, high={"latency_s": 4.0})
    recorder.record("unit", {"latency_s": 3.0})
    low, high = recorder.units["unit"].ends("latency_s")
    assert low.tolist() == [1.0, 1.5, 3.0]
    assert high.tolist() == [1.0, 4.0, 3.0]


def test_the_last_end_is_that_of_the_run() -> None:
    recorder = Recorder()
    recorder.record("a", {"latency_s": 5.0}, start_s=1.0)
    recorder.record("a", {"latency_s": 1.0}, start_s=3.0)
    recorder.record("b", {"latency_s": 0.5}, start_s=5.0)
    assert recorder.end_s() == 6.0


def test_a_unit_takes_a_few_numbers_of_memory() -> None:
    recorder, n = Recorder(), 50_000
    tracemalloc.start()
    for index in range(n):
        recorder.record("request", {"latency_s": 1.0, "wait_s": 0.5, "tokens": 7.0}, start_s=float(index))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / n < 64
    assert np.mean(recorder.units["request"].values["tokens"]) == pytest.approx(7.0)
