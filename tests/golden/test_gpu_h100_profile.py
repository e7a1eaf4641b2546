"""Kernels of steps on an H100, class by class: a profile against the plan of the same steps, fitted to operators alone.

The limits are the errors at the time of writing plus a tenth, and nothing was fitted to the profile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from h100 import H100, machine

from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable_workloads.training import slm_training, step_parts
from sandtable_workloads.training.step_demand import Demand, Software
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.training.training_plan import op_of

# median and worst error of a class over seven steps
LIMITS = {
    "product": (0.054, 0.102),
    "attention": (0.04, 0.052),
    "element-wise": (0.048, 0.15),
    "norm and loss": (0.048, 0.083),
    "optimizer": (0.018, 0.07),
}
VOCABULARY = 32000


def planned_class(demand: Demand) -> str:
    """Return the class of a demand of the plan."""
    if demand.operator == "gemm":
        return "product"
    if demand.operator == "attention" or demand.name == "optimizer":
        return demand.name
    return "norm and loss" if demand.name.split()[0] in ("norm", "loss") else "element-wise"


def profiled_class(op: str, shapes: str, *, vanilla: bool) -> str | None:
    """Return the class of an operator of the profile; None for what spans others, or is a kernel listed by itself."""
    if not op.startswith("aten::"):
        return None
    if op == "aten::mm":
        return "product"
    scored = op == "aten::bmm" or re.search(r"\[\d+, \d+, (1024, 1024|1024, 64|64, 1024)\]", shapes)
    if "attention" in op or (vanilla and scored):
        return "attention"
    if "adamw" in op:
        return "optimizer"
    of_loss = any(word in op for word in ("norm", "softmax", "nll")) or f", {VOCABULARY}]" in shapes
    return "norm and loss" if of_loss else "element-wise"


def measured(run: dict[str, Any]) -> dict[str, float]:
    """Return the device's seconds of a step by class."""
    found = dict.fromkeys(LIMITS, 0.0)
    for op in run["ops"]:
        kind = profiled_class(op["op"], op["shapes"], vanilla=run["attention"] == "vanilla")
        if kind is not None:
            found[kind] += op["device_us"] * 1e-6
    return found


def demands(run: SlmTraining, on: Machine) -> Iterator[tuple[Demand, float]]:
    """Yield what a step demands, and how often."""
    parts = step_parts.parts_of(slm_training.configuration(run, on), Software(on.stack))
    ends = (parts.embedding_forward, parts.embedding_backward, parts.head_forward, parts.head_backward)
    yield from ((demand, 1.0) for end in (*ends, parts.optimizer) for demand in end)
    for layer in parts.layers:
        yield from ((demand, float(layer.count)) for demand in (*layer.forward, *layer.backward))


def planned(run: SlmTraining, on: Machine) -> dict[str, float]:
    """Return the seconds of a step's plan by class."""
    costs, found = CostModel(on), dict.fromkeys(LIMITS, 0.0)
    for demand, times in demands(run, on):
        op = op_of(demand, "accelerator", "")
        if op is not None:
            found[planned_class(demand)] += costs.time(op).seconds * times
    return found


@pytest.fixture(scope="module")
def errors() -> dict[str, np.ndarray]:
    """Relative errors of each class, one for each step of the profile."""
    shared = {"sequence_tokens": 1024, "steps": 10, "warmup_steps": 4}
    names = ("model", "micro_batch", "precision", "attention")
    found: dict[str, list[float]] = {kind: [] for kind in LIMITS}
    for run in json.loads((H100 / "step_profile.json").read_text())["runs"]:
        plan = planned(SlmTraining.model_validate({name: run[name] for name in names} | shared), machine())
        for kind, seconds in measured(run).items():
            found[kind].append(plan[kind] / seconds - 1)
    return {kind: np.array(values) for kind, values in found.items()}


@pytest.mark.parametrize("kind", list(LIMITS))
def test_classes_of_kernels(errors: dict[str, np.ndarray], kind: str) -> None:
    median, worst = LIMITS[kind]
    assert len(errors[kind]) == 7
    assert np.median(np.abs(errors[kind])) < median
    assert np.max(np.abs(errors[kind])) < worst
