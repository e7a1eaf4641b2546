"""Bits flip and files are cut: thousands of times, in every kind of file that is kept; none passes unnoticed.

A damaged file is refused by name (exit code 2), written anew, or gone back behind; whatever is accepted equals the
original. Prints how often which.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandtable.calibration.gpu import recordings
from sandtable.engine.recorder import Recorder
from sandtable.errors import ConfigError
from sandtable.hardware import Machine, library
from sandtable.results import Measurement, Metric, Prediction
from sandtable.runs import compare, kept_execution
from sandtable.runs.run_folder import RunFolder
from sandtable.workload.seam import Execution, Scenario
from sandtable_kernels.files.store import Blob, NeuronStore, StoreGeometry, create_blob, create_store
from sandtable_kernels.neurons.traces import RecordedTrace, SyntheticTrace, save_trace
from sandtable_workloads.training.executed import job as files
from sandtable_workloads.training.executed.tokens import prepare_tokens

pytestmark = pytest.mark.skipif(not os.environ.get("SANDTABLE_BENCH"), reason="minutes: set SANDTABLE_BENCH=1")
N = int(os.environ.get("SANDTABLE_DAMAGES", "350"))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits, cut, lengthen, or fill a stretch with zeros."""
    changed = bytearray(data)
    kind = rng.random()
    if kind < 0.7:
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind < 0.85:
        del changed[rng.randrange(len(changed)) :]
    elif kind < 0.92:
        changed += rng.randbytes(rng.choice((1, 8, 4096)))
    else:
        start = rng.randrange(len(changed))
        stretch = changed[start : start + rng.choice((16, 512, 4096))]
        changed[start : start + len(stretch)] = bytes(len(stretch))
    return bytes(changed)


def try_all(
    path: Path, read: Callable[[], Any], same: Callable[[Any, Any], bool] = lambda a, b: bool(a == b)
) -> None:
    """Damage a file ``N`` times and read it: it is refused by a `ConfigError`, or what was read is the original."""
    original, right, rng = path.read_bytes(), read(), random.Random(path.name)
    outcomes: Counter[str] = Counter()
    for _ in range(N):
        data = damaged(original, rng)
        if data == original:
            continue
        path.write_bytes(data)
        try:
            outcomes["read as it was" if same(read(), right) else "SILENT"] += 1
        except ConfigError:
            outcomes["refused"] += 1
        path.write_bytes(original)
    print(f"{path.name}: {dict(outcomes)}")
    assert not outcomes["SILENT"]
    assert outcomes["refused"] + outcomes["read as it was"] > 0.9 * N


def test_stores(tmp_path: Path) -> None:
    geometry = StoreGeometry(n_layers=3, n_neurons=16, d_model=256)
    store, blob = tmp_path / "x.neurons", tmp_path / "x.weights"
    create_store(store, geometry, seed=0)
    create_blob(blob, 40000, seed=0)

    def content(path: Path, open_: Callable[[], object]) -> bytes:
        open_()
        return path.read_bytes()

    try_all(store, lambda: content(store, lambda: NeuronStore.open(store, expect=geometry)))
    try_all(blob, lambda: content(blob, lambda: Blob.open(blob, 40000)))


def test_run_folders(in_tmp: Path, machine: Machine) -> None:
    run = RunFolder.create("made_up")
    metric = {"latency_s": Metric(value=1.5, low=1.25, high=2.0, unit="s", samples=tuple(np.arange(40) / 7))}
    run.save(Prediction(scenario={"name": "made_up"}, machine="m", metrics=metric))
    run.save(Measurement(scenario={"name": "made_up"}, machine="m", metrics=metric))
    run.save(compare.judge([]))
    run.save_inputs(Scenario(name="x", title="X", workload="flash_inference", parameters={"tokens": 2}), machine)
    recorder = Recorder()
    for step in range(40):
        recorder.record("step", {"latency_s": step / 7}, name="step", start_s=step / 3)
    kept_execution.save(run, 0, Execution(recorder=recorder, memory_bytes={"a": 1.0}), {"compute.gemv": 1.5e-3})
    for name in ("prediction", "measurement", "comparison"):
        try_all(run.path / f"{name}.json", getattr(run, name))
    try_all(run.path / "execution-1.json", lambda: run.load(kept_execution.KeptExecution, "execution-1"))
    try_all(run.path / "machine.yaml", lambda: library.load_machine(str(run.path / "machine.yaml")))


def test_machine_files(tmp_path: Path, machine: Machine) -> None:
    path = tmp_path / "this_machine.yaml"
    library.save_measured(machine, path)
    try_all(path, lambda: library.load_machine(str(path)))


def test_recordings(tmp_path: Path) -> None:
    path = tmp_path / "recording.json"
    shipped = Path(__file__).parents[1] / "fixtures" / "gpu_2x_rtx_4090_generated.json"
    path.write_bytes(shipped.read_bytes())
    try_all(path, lambda: recordings.read_recording(path))


def test_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    save_trace(path, SyntheticTrace(2, 64, (0.2, 0.3), growth=1.2, seed=1), 30)

    def same(one: RecordedTrace, other: RecordedTrace) -> bool:
        arrays = np.array_equal(one.ids, other.ids) and np.array_equal(one.offsets, other.offsets)
        return arrays and (one.n_layers, one.n_neurons) == (other.n_layers, other.n_neurons)

    try_all(path, lambda: RecordedTrace.load(path), same)


def test_training_files(tmp_path: Path) -> None:
    for step in range(40):
        record = files.Record(
            step=step,
            total_s=0.1 + step / 7,
            forward_s=0.03,
            backward_s=0.05,
            communication_s=0,
            optimizer_s=0.01,
            loss=5.5,
        )
        files.append_record(tmp_path, 0, record)
    files.save_result(tmp_path, 0, {"weights_bytes": 1.0, "peak_bytes": 2.0})
    part = files.part_path(tmp_path, 30, 0)
    part.parent.mkdir()
    part.write_bytes(np.random.default_rng(0).bytes(20000))
    files.seal_part(part)
    try_all(files.records_path(tmp_path, 0), lambda: files.all_records(tmp_path, 0, 40))
    try_all(files.result_path(tmp_path, 0), lambda: files.read_result(tmp_path, 0))

    def checked() -> bytes:
        files.check_part(part)
        return part.read_bytes()

    try_all(part, checked)
    try_all(part.with_suffix(".digest"), checked)


def test_tokens(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("to be or not to be " * 100)

    def tokens() -> list[int]:
        found = prepare_tokens(tmp_path, text=str(tmp_path / "text"), tokenizer="byte", vocabulary=256)
        return [*map(int, found.split("train")), *map(int, found.split("validation"))]

    tokens()
    for suffix in (".bin", ".json"):
        try_all(next(tmp_path.glob(f"tokens-*{suffix}")), tokens)
