"""What a run pays once: a cold first step, ranks that find each other, and an allocator's gaps."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable.engine.simulation import run
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.workload.seam import workload_named
from sandtable_workloads.training.slm_training import memories

WORKLOAD: Any = workload_named("slm_training")


def machine(stack: str = "huggingface_pytorch_2_3") -> Machine:
    return library.load_machine("aws_p4de_24xlarge", {"stack": stack})


def times(stack: str = "huggingface_pytorch_2_3", **settings: Any) -> dict[str, float]:
    parameters = WORKLOAD.parameters(**{"model": "slm_1b", "micro_batch": 8, **settings})
    return {name: float(column[0]) for name, column in WORKLOAD.estimate([parameters], machine(stack)).items()}


def once(devices: int) -> float:
    stack = machine().stack
    assert stack is not None
    return stack.datasheet.first_step_s + stack.datasheet.connect_s * {1: 0, 2: 1, 4: 2, 8: 3, 64: 3}[devices]


@pytest.mark.parametrize("devices", [1, 2, 4, 64])
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_the_first_step_is_spread_over_all_measured_ones(devices: int, steps: int) -> None:
    cold = times(devices=devices, steps=steps, warmup_steps=0)
    warm = times(devices=devices, steps=steps, warmup_steps=1)
    assert once(devices) > 1
    for name in ("step_s", "low_s", "high_s"):
        assert cold[name] - warm[name] == pytest.approx(once(devices) / steps)
    # both ways of adding up a step still do
    assert cold["forward_s"] + cold["backward_s"] + cold["optimizer_s"] == pytest.approx(cold["step_s"], rel=1e-6)
    parts = cold["compute_s"] + cold["communication_s"] + cold["idle_s"]
    assert parts == pytest.approx(cold["step_s"], rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_engine_plays_a_longer_first_step(steps: int) -> None:
    parameters = WORKLOAD.parameters(model="slm_1b", micro_batch=8, devices=8, steps=steps, warmup_steps=0)
    played = run(WORKLOAD.plan(parameters, machine(), 0), CostModel(machine())).steps
    assert len(played) == steps
    mean = sum(step.total_s for step in played) / steps
    assert mean == pytest.approx(times(devices=8, steps=steps, warmup_steps=0)["step_s"], rel=0.01)
    assert steps == 1 or played[0].total_s - played[1].total_s == pytest.approx(once(8))


def test_software_that_says_nothing_starts_warm() -> None:
    settings = {"devices": 8, "sharding": "fsdp_full", "precision": "mixed_bfloat16"}
    assert times("torchtitan", warmup_steps=0, **settings) == times("torchtitan", warmup_steps=3, **settings)


def test_gaps_are_a_share_of_what_the_allocator_holds() -> None:
    stack = machine().stack
    assert stack is not None
    # with one sequence most is held at the optimiser's step, when activations have gone
    for batch, share in ((1, 0.0), (8, stack.datasheet.fragmented_frac), (64, stack.datasheet.fragmented_frac)):
        parameters = WORKLOAD.parameters(model="slm_1b", micro_batch=batch, precision="bfloat16")
        held = memories([parameters], machine())[0]
        gaps = held.pop("reserved") - stack.datasheet.reserved_bytes
        assert gaps / (gaps + sum(held.values())) == pytest.approx(share)
