"""Calibration from a real GPU's recording, and what follows for steps that were executed on it.

The limits are the errors at the time of writing plus a tenth. Nothing was tuned to them: they say where the laws stand.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from h100 import H100, machine

from sandtable.calibration.gpu import recordings
from sandtable.hardware import Machine
from sandtable_workloads.training import slm_training
from sandtable_workloads.training.training_parameters import SlmTraining

RUN = ["model", "micro_batch", "sequence_tokens", "precision", "attention"]


@pytest.fixture(scope="module")
def calibrated() -> Machine:
    """A machine with this GPU, fitted to the recording."""
    return machine()


def test_a_gpu_made_the_recording() -> None:
    recording = recordings.read_recording(H100 / "recording.json")
    assert recording.generated is None
    assert len(recording.points) == 200
    assert all(point.seconds for point in recording.points)
    assert {gpu.name for gpu in recording.gpus} == {"NVIDIA H100 80GB HBM3"}


@pytest.mark.parametrize(
    ("operator", "software", "n_points", "median", "p90"),
    [
        ("gemm", "pytorch_cuda", 80, 0.052, 0.156),
        ("attention", "pytorch_cuda", 22, 0.067, 0.295),
        ("attention", "pytorch_cuda_vanilla", 8, 0.037, 0.103),
        ("memory_bound", "pytorch_cuda", 37, 0.046, 0.144),
    ],
)
def test_operators_fit(
    calibrated: Machine, operator: str, software: str, n_points: int, median: float, p90: float
) -> None:
    assert calibrated.accelerator is not None
    fitted = calibrated.accelerator.processor.fitted
    assert fitted is not None
    evidence = fitted.operators[operator][software].evidence
    assert evidence.n_points == n_points
    assert evidence.median_abs_error_frac < median
    assert evidence.p90_abs_error_frac < p90
    assert "generated" not in evidence.method


def test_copies_fit(calibrated: Machine) -> None:
    accelerator = calibrated.accelerator
    assert accelerator is not None
    assert accelerator.memory.fitted is not None
    assert accelerator.link.fitted is not None
    within, across = accelerator.memory.fitted.ops["copy"], accelerator.link.fitted.transfer
    assert across is not None
    for fit, rate in ((within, 2.94e12), (across, 54.6e9)):
        assert fit.evidence.median_abs_error_frac < 0.032
        assert fit.bandwidth_bytes_per_s is not None
        assert fit.bandwidth_bytes_per_s.value == pytest.approx(rate, rel=0.02)


# --- steps -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    return pd.read_csv(H100 / "training_steps.csv")


def runs(steps: pd.DataFrame) -> list[SlmTraining]:
    shared = {"steps": 10, "warmup_steps": 4}
    rows = [dict(zip(RUN, row, strict=True)) for row in steps[RUN].itertuples(index=False)]
    return [SlmTraining.model_validate(row | shared) for row in rows]


def test_times_of_steps(calibrated: Machine, steps: pd.DataFrame) -> None:
    predicted = pd.DataFrame(slm_training.estimate(runs(steps), calibrated))
    errors = predicted["step_s"] / steps["step_s"] - 1
    assert np.median(np.abs(errors)) < 0.033
    assert np.max(np.abs(errors)) < 0.164
    low, measured, high = (np.asarray(part) for part in (predicted["low_s"], steps["step_s"], predicted["high_s"]))
    assert np.sum((low <= measured) & (measured <= high)) >= 10
    for section, median in (("forward", 0.048), ("backward", 0.028), ("optimizer", 0.038)):
        missed = predicted[f"{section}_s"] / steps[f"{section}_s"] - 1
        assert np.median(np.abs(missed)) < median, section


def test_memory_of_steps(calibrated: Machine, steps: pd.DataFrame) -> None:
    held = [sum(kinds.values()) for kinds in slm_training.memories(runs(steps), calibrated)]
    errors = np.array(held) / steps["peak_memory_bytes"] - 1
    assert np.median(np.abs(errors)) < 0.003
    assert np.max(np.abs(errors)) < 0.005
