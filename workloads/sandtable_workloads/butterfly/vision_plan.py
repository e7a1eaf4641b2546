"""The plan of a vision network, or of one layer alone: equal steps, each of one batch."""

from __future__ import annotations

from sandtable.demand.plan import Phase, Plan, Step
from sandtable.hardware import Machine
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.layer_demand import Runs, inference_ops, training_ops
from sandtable_workloads.butterfly.vision_memory import memory_of

MAIN, STEP = "main", "step"


def plan_of(p: ButterflyVision, machine: Machine) -> Plan:
    """Return ``steps`` equal steps; what warms up is not part of it."""
    network, runs = p.built(), Runs.of(p, machine)
    ops = training_ops(network, runs) if p.trains else inference_ops(network, runs)
    step = Step(name=STEP, ops=ops, repeat=p.steps)
    return Plan(
        workload="butterfly_vision",
        phases=(Phase(name=MAIN, steps=(step,)),),
        main_phase=MAIN,
        memory_bytes=memory_of(p, machine),
    )
