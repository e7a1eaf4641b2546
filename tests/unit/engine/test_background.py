"""Work in the background counts only while a step waits for it, and queues of a device have hosts of their own."""

from __future__ import annotations

import pytest

from sandtable.demand.op import Op
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.simulation import run
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel


def taking(seconds: float, section: str, stream: str = "", *, background: bool = False) -> Op:
    return Op(
        name=section,
        operator="startup",
        account="compute",
        seconds=seconds,
        section=section,
        stream=stream,
        background=background,
        after=(),
    )


def spent(machine: Machine, *ops: Op) -> dict[str, float]:
    step = Step(name="step", ops=ops)
    plan = Plan(workload="made_up", phases=(Phase(name="work", steps=(step,)),), main_phase="work")
    table = run(plan, CostModel(machine)).recorder.units["work"].table()
    return {name: float(column[0]) for name, column in table.items() if name != "name"}


def test_what_goes_on_ahead_counts_for_what_is_left_of_it(machine: Machine) -> None:
    found = spent(machine, taking(1.0, "now"), taking(3.0, "ahead", "other", background=True))
    assert found["latency_s"] == pytest.approx(3.0)
    assert found["now_s"] == pytest.approx(1.0)
    assert found["ahead_s"] == pytest.approx(2.0)


def test_what_is_hidden_counts_for_nothing(machine: Machine) -> None:
    found = spent(machine, taking(3.0, "now"), taking(1.0, "ahead", "other", background=True))
    assert found["now_s"] == pytest.approx(found["latency_s"]) == 3.0
    assert "ahead_s" not in found


def test_two_queues_that_begin_and_end_together_are_told_apart(machine: Machine) -> None:
    found = spent(machine, taking(1.0, "one"), taking(1.0, "two", "other"))
    assert found["latency_s"] == pytest.approx(1.0)
    assert found["one_s"] + found.get("two_s", 0.0) == pytest.approx(1.0)
