"""Seconds of one dense and one structured layer on any machine: many sizes at once, by the laws of their operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.demand.op import Op
from sandtable.demand.operator import operator_named
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable_workloads.butterfly.butterfly_parameters import LAYER, ButterflyVision
from sandtable_workloads.butterfly.vision_plan import plan_of

Floats = npt.NDArray[np.float64]


def layer_seconds(
    machine: Machine, structure: str, rows: Sequence[int], sides: Sequence[int], precision: str, base: int = 4
) -> Floats:
    """Return seconds [rows, sides] of a square layer of that structure, all threads of the machine at work.

    Raises:
        PlanError: the machine cannot multiply in that type.
    """
    given = {"network": LAYER, "structure": structure, "precision": precision, "base": base}
    layers = [ButterflyVision.model_validate({**given, "rows": r, "n_in": n}) for r in rows for n in sides]
    plans = [plan_of(layer, machine).phases[-1].steps[0].ops for layer in layers]
    return seconds_of(machine, plans).reshape(len(rows), len(sides))


def seconds_of(machine: Machine, plans: Sequence[Sequence[Op]]) -> Floats:
    """Return the seconds of each sequence of ops: ops of one operator in all of them are costed in one call.

    Where software issues work ahead of the device, a sequence takes as long as the slower of the two.
    """
    costs, alike = CostModel(machine), dict[Any, list[tuple[int, Op]]]()
    for place, ops in enumerate(plans):
        for op in ops:
            key = op.operator, op.dtype, op.on, op.sharing, operator_named(op.operator).variant(op.shape)
            alike.setdefault(key, []).append((place, op))
    working, issuing = np.zeros(len(plans)), np.zeros(len(plans))
    for members in alike.values():
        places, ops = zip(*members, strict=True)
        first, repeats = ops[0], np.array([op.repeat for op in ops])
        columns = _stacked(first, [op.shape for op in ops])
        np.add.at(working, list(places), repeats * costs.seconds(first, columns))
        np.add.at(issuing, list(places), repeats * [costs.issue_s(op.operator, op.shape) for op in ops])
    return np.maximum(working, issuing)


def _stacked(op: Op, shapes: Sequence[Any]) -> Any:
    """Return shapes of one operator as columns with an entry each."""
    operator = operator_named(op.operator)
    return operator.columns(operator.Shape(*map(np.array, zip(*shapes, strict=True))))


def crossing(sides: Sequence[int], gain: Floats) -> float | None:
    """Return the side from which on ``gain`` stays above 1, between two sides by its logarithm; None if it does not.

    The first side where it is above 1 throughout.
    """
    behind = np.flatnonzero(gain <= 1)
    if not behind.size:
        return float(sides[0])
    last = int(behind[-1])
    if last + 1 == len(sides):
        return None
    ends = np.log(gain[last : last + 2])
    step = -ends[0] / (ends[1] - ends[0])
    return float(sides[last] * (sides[last + 1] / sides[last]) ** step)
