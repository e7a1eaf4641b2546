"""A law asked once for many operations answers as it does for each."""

from __future__ import annotations

import pytest

from sandtable.demand.plan import Plan
from sandtable.hardware import library
from sandtable.model.cost_model import CostModel
from sandtable.workload import scenarios


def plan_of(name: str) -> Plan:
    case = scenarios.load(name)
    return case.workload.plan(case.parameters, case.machine, 1)


@pytest.mark.parametrize("name", ["slm_100m_a100", "rlhf_openrlhf_7b", "finetune_7b_a100"])
def test_prepared_operations_take_as_long(name: str) -> None:
    machine = scenarios.load(name).machine
    ops = plan_of(name).different_ops()
    prepared, alone = CostModel(machine), CostModel(machine)
    prepared.prepare(ops)
    for op in ops:
        assert prepared.time(op).seconds == pytest.approx(alone.time(op).seconds, rel=1e-12)
        assert prepared.time(op).high == pytest.approx(alone.time(op).high, rel=1e-12)


def test_what_is_known_is_not_asked_again() -> None:
    machine = library.load_machine("dgx_a100_80gb", {"stack": "pytorch_eager"})
    costs, op = CostModel(machine), plan_of("slm_100m_a100").different_ops()[0]
    known = costs.time(op)
    costs.prepare([op])
    assert costs.time(op) == known
    assert len(costs.demands()) == 1
