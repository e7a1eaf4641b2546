"""The plan of a step with an adapter for the engine: passes over the layers, what they send, and the host that issues.

The layers of a pass are equal, so that each of their demands stands in the plan once, as often as it runs. The host
and the network work beside the device, and a pass ends when all three have. All micro-batches of a step are alike:
their forward passes stand together, and so do their backward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sandtable.demand.op import Op, Where
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.hardware import Machine
from sandtable_workloads.finetuning import finetuning_demand
from sandtable_workloads.finetuning.finetuning_memory import ITEM, layer_weights, trainable_params
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning
from sandtable_workloads.finetuning.finetuning_times import configuration, host_of
from sandtable_workloads.training import step_demand
from sandtable_workloads.training.step_demand import Demand, Software
from sandtable_workloads.training.step_numbers import Configuration
from sandtable_workloads.training.training_plan import BACKWARD, FORWARD, OPTIMIZER, Builder, op_of


def plan_of(p: Finetuning, machine: Machine, memory: dict[str, float]) -> Plan:
    """Return the plan of a whole run: equal steps."""
    step = Step(name="step", ops=tuple(_Step(p, machine).ops()))
    phases = [Phase(name="warmup", steps=(replace(step, repeat=p.warmup_steps),))] if p.warmup_steps else []
    return Plan(
        workload="finetuning",
        phases=(*phases, Phase(name="train", steps=(replace(step, repeat=p.steps),))),
        main_phase="train",
        memory_bytes=memory,
        work_unit="step",
        unit_metric="step_s",
    )


class _Step:
    """One optimiser step."""

    def __init__(self, p: Finetuning, machine: Machine) -> None:
        self.p, self.machine, self.shape = p, machine, p.shape
        self.on: Where = "host" if machine.accelerator is None else "accelerator"
        self.c, self.software = configuration(p, machine), Software(machine.stack)
        self.host = host_of(p, machine)
        self.builder = Builder()

    def ops(self) -> list[Op]:
        """Return the ops of the step."""
        p, shape, c, software = self.p, self.shape, self.c, self.software
        ahead = finetuning_demand.forward(p, shape, c, software)
        back = finetuning_demand.backward(p, shape, c, software)
        head, head_backward = finetuning_demand.ends(c, software)
        again = ahead if p.checkpointing == "full" else []
        done = self._pass(FORWARD, ahead, head, ["all_gather"], [])
        done = self._pass(BACKWARD, [*again, *back], head_backward, ["all_gather", "reduce_scatter"], done)
        if p.devices > 1 and p.sharding == "ddp":
            reduce = _over_all(p, c, "all_reduce", trainable_params(p, shape) * ITEM)
            done = [self.builder.add(replace(op, stream="data"), done) for op in self._some([reduce], BACKWARD)]
        self.builder.add(self._sequence(OPTIMIZER, _optimizer(p, c, software)), done)
        return self.builder.ops

    def _pass(
        self, section: str, layer: Sequence[Demand], ends: Sequence[Demand], sent: Sequence[str], after: list[int]
    ) -> list[int]:
        """Add all micro-batches' passes in one direction, and return what must be done before anything else."""
        n_layers, n_micro = self.shape.n_layers, self.p.grad_accumulation
        demands = [replace(demand, times=demand.times * n_layers) for demand in layer]
        passes = [replace(self._sequence(section, [*demands, *ends]), repeat=n_micro)]
        if self.p.sharding == "fsdp_full":
            n_bytes = layer_weights(self.shape) * ITEM
            each = [replace(_over_all(self.p, self.c, kind, n_bytes), times=float(n_layers)) for kind in sent]
            passes += [replace(op, stream="data", repeat=op.repeat * n_micro) for op in self._some(each, section)]
        between_s = 0.0
        if self.host is not None:
            issue_s = self.host.forward_s if section == FORWARD else self.host.backward_s
            between_s = self.host.between_s if section == BACKWARD else 0.0
            passes.append(self._issuing("issue", issue_s * n_micro, section))
        done = [self.builder.add(op, after) for op in passes]
        if between_s:
            done = [self.builder.add(self._issuing("between", between_s * n_micro, section), done)]
        return done

    def _some(self, demands: Sequence[Demand], section: str) -> list[Op]:
        found = (op_of(demand, self.on, section, self.c.sharing) for demand in demands)
        return [op for op in found if op is not None]

    def _sequence(self, section: str, demands: Sequence[Demand]) -> Op:
        parts = tuple(self._some(demands, section))
        return Op(name=section, operator="sequence", account="compute", parts=parts, on=self.on, section=section)

    def _issuing(self, name: str, seconds: float, section: str) -> Op:
        return Op(
            name=name,
            operator="startup",
            account="compute",
            seconds=seconds,
            on=self.on,
            stream="issue",
            section=section,
        )


def _over_all(p: Finetuning, c: Configuration, kind: str, n_bytes: float) -> Demand:
    return step_demand.collective(kind.replace("_", "-"), c, kind, n_bytes, float(p.devices), 1.0)


def _optimizer(p: Finetuning, c: Configuration, software: Software) -> list[Demand]:
    """Return the optimiser's step on one device's share of the weights that are trained."""
    share = p.devices if p.sharding == "fsdp_full" else 1
    n_params = trainable_params(p, p.shape) / share
    return [software.memory_bound("optimizer", n_params * c.state_bytes, c)]
