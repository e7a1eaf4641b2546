"""How many training configurations a sweep predicts per second on one core."""

from __future__ import annotations

import itertools
import os
import time

import pytest

from sandtable.hardware import library
from sandtable.studies import cheapest
from sandtable.workload import scenarios
from sandtable.workload.seam import Scenario
from sandtable_workloads.training import slm_training
from sandtable_workloads.training.training_parameters import SlmTraining

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
    slm_training.estimate(runs[:8], machine)
    start = time.process_time()
    found = slm_training.estimate(runs, machine)
    rate = len(found["step_s"]) / (time.process_time() - start)
    print(f"\n{len(runs)} configurations: {rate:.0f} per second of one core (target {TARGET_PER_S:.0f})")
    assert rate > TARGET_PER_S


def test_searched_configurations_per_second() -> None:
    """The whole search: what can be laid out, memory, time and dollars of each configuration."""
    machine = library.load_machine("aws_p5_48xlarge", {"stack": "huggingface_pytorch_2_3"})
    run = {"model": "slm_1b", "micro_batch": 32, "devices": 64}
    scenario = Scenario(name="sweep", title="Sweep", workload="slm_training", parameters=run)
    case = scenarios.case_of(scenario, machine=machine)
    cheapest.found_in(case, [machine], {}, most_devices=8)
    start = time.process_time()
    outcome = cheapest.found_in(case, [machine], {}, most_devices=1024).outcome
    seconds = time.process_time() - start
    considered, rate = len(outcome.points), outcome.runs.sum() / seconds
    print(f"\n{considered / seconds:.0f} searched per second of one core, {rate:.0f} of them timed")
    assert considered > 5000
    assert rate > TARGET_PER_S
