"""Calibration from a real GPU's recording, and what follows for steps that were executed on it.

The limits are the errors at the time of writing plus a tenth. Nothing was tuned to them: they say where the laws stand.
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
from h100 import H100, machine

from sandtable.calibration import write
from sandtable.calibration.gpu import recordings
from sandtable.hardware import Machine, OperatorFit, library
from sandtable_workloads.training import slm_training
from sandtable_workloads.training.training_parameters import SlmTraining

UPDATE = os.environ.get("SANDTABLE_UPDATE_GOLDEN") == "1"
# file of the device, and what it says of constants that are fitted to the recording
DEVICE = "nvidia_h100_sxm"
SOURCE = (
    "fitted to one H100 with 'sandtable calibrate --only gpu' (driver 580.159.04, PyTorch 2.11.0 with CUDA 13.0, "
    "2026-11-27); tests/fixtures/gpu_h100 has the recording"
)
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


def of_pytorch(calibrated: Machine) -> dict[str, OperatorFit]:
    """Return the fits by the path of their constants in a device file."""
    assert calibrated.accelerator is not None
    assert calibrated.accelerator.processor.fitted is not None
    return {
        f"{operator}.{software}": fit
        for operator, fits in calibrated.accelerator.processor.fitted.operators.items()
        for software, fit in fits.items()
        if software.startswith("pytorch_cuda")
    }


def test_the_device_file_has_what_is_fitted_to_the_recording(calibrated: Machine) -> None:
    """``SANDTABLE_UPDATE_GOLDEN=1`` writes it there."""
    own = of_pytorch(calibrated)
    assert own.keys() >= {"gemm.pytorch_cuda", "attention.pytorch_cuda", "memory_bound.pytorch_cuda"}
    for path, fit in own.items() if UPDATE else ():
        write.put_fit(library.device_files("accelerator")[DEVICE], f"fitted.operators.{path}", fit, SOURCE)
    shipped = library.load_accelerator(DEVICE)
    assert shipped.fitted is not None
    for path, fit in own.items():
        operator, _, software = path.partition(".")
        constants = shipped.fitted.operators[operator][software].constants
        for name, estimate in fit.constants.items():
            assert constants[name].value == pytest.approx(estimate.value, rel=0.01), f"{path}: {name}"
        assert shipped.sources[f"fitted.operators.{path}"] == SOURCE


def test_steps_follow_from_the_library_alone(calibrated: Machine, steps: pd.DataFrame) -> None:
    shipped = library.load_machine("dgx_h100").model_copy(update={"stack": calibrated.stack})
    alone, fitted = (
        np.asarray(slm_training.estimate(runs(steps), machine)["step_s"]) for machine in (shipped, calibrated)
    )
    # the file's share of the rate that sustained products keep is from other H100s, 87 % where this one kept 93
    assert np.max(np.abs(alone / fitted - 1)) < 0.06


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
