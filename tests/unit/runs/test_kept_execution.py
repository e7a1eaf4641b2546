"""An execution that is kept comes back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sandtable.engine.recorder import Recorder
from sandtable.runs import kept_execution
from sandtable.runs.run_folder import RunFolder
from sandtable.workload.seam import Execution


def test_units_without_a_start_or_a_quantity_come_back(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.record("main", {"latency_s": 1.0, "elbo": -3.0}, name="iteration")
    recorder.record("main", {"latency_s": 2.0}, name="iteration", start_s=4.0)
    folder = RunFolder(tmp_path)
    kept_execution.save(folder, 0, Execution(recorder=recorder, memory_bytes={}), {})
    (again,) = kept_execution.load(folder, 1).executions
    (before,), (after,) = recorder.tables(), again.recorder.tables()
    assert before.keys() == after.keys()
    for name in before.keys() - {"unit", "name"}:
        np.testing.assert_array_equal(before[name], after[name])
