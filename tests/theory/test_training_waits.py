"""Sections of a step that are waited for: the device waits for the host, in closed form as in the engine."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from sandtable.engine.simulation import run
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable_workloads.training import slm_training
from sandtable_workloads.training.step_parts import exposed_s
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.training.training_plan import plan_of


@lru_cache(maxsize=1)
def machine() -> Machine:
    return library.load_machine("aws_p4d_24xlarge", {"stack": "pytorch_cuda"})


@pytest.mark.parametrize("micro_batch", [1, 16])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_sections_that_are_waited_for(micro_batch: int, accumulation: int) -> None:
    fields: dict[str, Any] = {"model": "slm_100m", "sequence_tokens": 1024, "warmup_steps": 0}
    changes = {"micro_batch": micro_batch, "grad_accumulation": accumulation}
    parameters = SlmTraining.model_validate(fields | changes)
    plan = plan_of(parameters, slm_training.configuration(parameters, machine()), parameters.shape, machine(), {})
    engine = run(plan, CostModel(machine())).steps[-1]
    formula = {name: float(column[0]) for name, column in slm_training.estimate([parameters], machine()).items()}
    assert formula["step_s"] == pytest.approx(engine.total_s, rel=0.005)
    for section in ("forward", "backward", "optimizer"):
        assert formula[f"{section}_s"] == pytest.approx(engine.counters[f"{section}_s"], rel=0.01, abs=1e-5)


@pytest.mark.parametrize(
    ("parts", "waited"),
    [
        # a host that is ahead leaves nothing to wait for; one that is behind all of it, but for the last part
        ([(1.0, 0.1), (5.0, 0.5), (1.0, 0.1)], 0.0),
        ([(1.0, 1.0), (2.0, 6.0), (3.0, 0.1)], 4.0),
        ([(3.0, 1.0), (2.0, 4.0), (0.5, 0.1)], 0.0),
        ([(0.0, 2.0), (1.0, 0.0)], 2.0),
    ],
)
def test_a_device_waits_for_a_host_that_is_behind(parts: list[tuple[float, float]], waited: float) -> None:
    assert exposed_s(parts) == pytest.approx(waited)
