"""Calibrate PyTorch's operators for a few seconds, predict a training run, execute it: the two must meet roughly.

The bound is loose, for a machine that does other things meanwhile. ``sandtable check --suite slm`` is the judgement.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sandtable.calibration import this_host
from sandtable.calibration.host_timing import Settings
from sandtable.hardware import Machine
from sandtable.runs import predict
from sandtable.workload.seam import ExecutionContext, Scenario, workload_named

pytest.importorskip("numba", reason="calibrating needs numba")
pytest.importorskip("torch", reason="training needs PyTorch")

pytestmark = [pytest.mark.alone, pytest.mark.measured, pytest.mark.slow]

PARAMETERS = {
    "model": "tiny_4x128",
    "sequence_tokens": 128,
    "micro_batch": 8,
    "precision": "float32",
    "steps": 10,
    "warmup_steps": 3,
}


def test_a_calibrated_machine_foresees_a_training_step(tmp_path: Path, machine: Machine) -> None:
    settings = Settings(folder=tmp_path / "calibration", quick=True, only=("training",), operator_budget_s=12.0)
    calibrated = this_host.calibrate(settings, base=machine).machine
    assert calibrated.stack is not None
    workload = workload_named("slm_training")
    parameters = workload.parameters.model_validate(PARAMETERS)
    scenario = Scenario(name="t", title="T", workload="slm_training", parameters=PARAMETERS)
    prediction, _, _ = predict.predict(scenario, workload, parameters, calibrated)
    context = ExecutionContext(folder=tmp_path, n_threads=2)
    workload.prepare(parameters, calibrated, 1, context)
    execution = workload.execute(parameters, calibrated, 1, context)
    measured = float(np.median([step.total_s for step in execution.steps if step.phase == "train"]))
    predicted = prediction.metrics["step_s.p50"].value
    print(f"\npredicted {1e3 * predicted:.1f} ms, measured {1e3 * measured:.1f} ms")
    assert 0.4 < predicted / measured < 2.5
