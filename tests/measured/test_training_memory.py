"""Peak memory of executed training against what is counted for it, to ten percent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandtable.hardware import library
from sandtable.workload.seam import ExecutionContext
from sandtable_workloads.training.slm_training import SlmTrainingWorkload, memories
from sandtable_workloads.training.training_parameters import SlmTraining

pytest.importorskip("torch", reason="training needs PyTorch")

pytestmark = pytest.mark.measured

WORKLOAD = SlmTrainingWorkload()
BASE: dict[str, Any] = {
    "model": "tiny_4x128",
    "sequence_tokens": 256,
    "micro_batch": 4,
    "precision": "float32",
    "steps": 1,
    "warmup_steps": 1,
}


SLOW = [
    {"model": "tiny_3x64", "attention": "vanilla"},
    {"attention": "vanilla", "checkpointing": "selective"},
    {"attention": "flash", "checkpointing": "full"},
    {"attention": "flash", "precision": "bfloat16"},
    {"attention": "flash", "precision": "mixed_bfloat16"},
    {"devices": 2, "sharding": "ddp"},
    {"devices": 2, "sharding": "fsdp_grad_op"},
    {"devices": 2, "sharding": "fsdp_full", "precision": "mixed_bfloat16"},
]


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "vanilla", "checkpointing": "alternate"},
        *(pytest.param(changes, marks=pytest.mark.slow) for changes in SLOW),
    ],
    ids=lambda changes: " ".join(str(value) for value in changes.values()),
)
def test_the_peak_of_a_run_is_what_was_counted(tmp_path: Path, changes: dict[str, Any]) -> None:
    machine = library.load_machine("laptop_pcie4", {"stack": "pytorch_cpu"})
    parameters = SlmTraining.model_validate(BASE | changes)
    context = ExecutionContext(folder=tmp_path, n_threads=2)
    WORKLOAD.prepare(parameters, machine, 1, context)
    measured = sum(WORKLOAD.execute(parameters, machine, 1, context).memory_bytes.values())
    counted = sum(memories([parameters], machine)[0].values())
    assert counted == pytest.approx(measured, rel=0.10)
