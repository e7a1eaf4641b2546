"""How many training configurations a sweep predicts per second on one core."""

from __future__ import annotations

import itertools
import os
import time

import pytest

from sandtable import library
from sandtable_workloads.training import workload
from sandtable_workloads.training.parameters import SlmTraining

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 or run make bench"
)
TARGET_PER_S = 5000.0


def test_configurations_per_second() -> None:
    """The best peers answer 86 (llm-analysis) and 1490 (Calculon) configurations per second."""
    machine = library.load_machine("aws_p5_48xlarge", {"stack": "torchtitan"})
    grid = itertools.product(
        (1, 2, 4, 8, 16, 32),
        (8, 16, 32, 64, 128, 256),
        ("ddp", "zero_1", "fsdp_full"),
        ("none", "full"),
        range(1, 9),
    )
    runs = [
        SlmTraining(
            model="slm_1b",
            micro_batch=batch,
            devices=devices,
            sharding=sharding,
            checkpointing=checkpointing,
            grad_accumulation=accumulation,
        )
        for batch, devices, sharding, checkpointing, accumulation in grid  # type: ignore[assignment]
    ] * 3
    workload.estimate(runs[:8], machine)
    start = time.process_time()
    found = workload.estimate(runs, machine)
    rate = len(found) / (time.process_time() - start)
    print(f"\n{len(runs)} configurations: {rate:.0f} per second of one core (target {TARGET_PER_S:.0f})")
    assert rate > TARGET_PER_S
