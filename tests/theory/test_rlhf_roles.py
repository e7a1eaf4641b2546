"""Parts of RLHF's training steps are those of training, so that they take the constants timed for these."""

from __future__ import annotations

from sandtable.demand.op import Op
from sandtable.workload import scenarios
from sandtable_workloads.rlhf import rlhf_plan
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf


def leaves(ops: tuple[Op, ...]) -> list[Op]:
    return [leaf for op in ops for leaf in (op.parts or (op,))]


def test_training_steps_and_passes_over_text_name_the_part_of_a_step() -> None:
    case = scenarios.load("salsa_small", machine="dgx_a100_80gb")
    assert isinstance(case.parameters, Rlhf)
    plan = rlhf_plan.plan_of(case.parameters, case.machine, {}, 0)
    seen: dict[str, set[str]] = {}
    for phase in plan.phases:
        for step in phase.steps:
            for sequence in step.ops:
                streams = [leaf for leaf in leaves((sequence,)) if leaf.operator == "memory_bound"]
                named = {leaf.role.partition(".")[0] for leaf in streams}
                if streams:
                    seen.setdefault(sequence.name, set()).update(named)
    assert seen["forward"] == seen["prompts"] == seen["reference"] == {"forward"}
    assert (seen["backward"], seen["optimizer"]) == ({"backward"}, {"optimizer"})
    # so few tokens that no part of a step is like it
    assert seen["decode"] == {""}
