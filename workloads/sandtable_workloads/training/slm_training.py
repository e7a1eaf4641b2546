"""The workload `slm_training`: one description of a training run, planned for any cluster and executed for real."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from sandtable import units
from sandtable.demand.operator import FloatArray
from sandtable.demand.plan import Plan
from sandtable.hardware import Frozen, Machine
from sandtable.model.cost_model import CostModel
from sandtable.results import Metric
from sandtable.workload.seam import Execution, ExecutionContext, Verdict, Workload, workload_named
from sandtable_workloads.training import layout, metrics, training_memory
from sandtable_workloads.training.closed_form import StepTimes, step_times
from sandtable_workloads.training.states import offloading
from sandtable_workloads.training.step_demand import held_params
from sandtable_workloads.training.step_numbers import Configuration, configuration_of, stacked, structure
from sandtable_workloads.training.training_parameters import OF_FINETUNING, SlmTraining
from sandtable_workloads.training.training_plan import plan_of
from sandtable_workloads.transformer import model_facts
from sandtable_workloads.transformer.presets import describe

# parts of a step that what happens once makes longer
LONGER_WHEN_COLD = ("step_s", "forward_s", "idle_s", "low_s", "high_s")


class SlmTrainingWorkload(Workload[SlmTraining]):
    """Train a decoder on any number of devices: data, tensor, pipeline, context and expert parallel."""

    name: ClassVar[str] = "slm_training"
    parameters: ClassVar[type[Frozen]] = SlmTraining
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    # what PyTorch keeps for the backward pass is the stack's to say, as a calibrated machine names it
    example_stack: ClassVar[str | None] = "pytorch_cpu"
    # the temporaries of a tiny model are a larger share of its peak than those of a real one
    memory_tolerance_frac: ClassVar[float] = 0.10
    headlines: ClassVar[tuple[str, ...]] = ("tokens_per_s", "training_s", "training_usd", "usd_per_mtok")

    def serving(self, parameters: Mapping[str, Any]) -> Workload[Any]:
        """See `Workload.serving`: adapters and packed weights are trained by `finetuning`."""
        return self if OF_FINETUNING.isdisjoint(parameters) else workload_named("finetuning")

    def usual_stack(self, machine: Machine) -> str:
        """See `Workload.usual_stack`: eager PyTorch."""
        return "pytorch_cpu" if machine.accelerator is None else "pytorch_eager"

    def models(self) -> Iterable[str]:
        """See `Workload.models`: the presets."""
        return model_facts.model_names()

    def model_facts(self, name: str) -> Mapping[str, Any]:
        """See `Workload.model_facts`."""
        return model_facts.model_facts(name)

    def plan(self, parameters: SlmTraining, machine: Machine, seed: int) -> Plan:
        """Return the steps of a run; see `sandtable_workloads.training.training_plan`.

        Raises:
            PlanError: the run cannot be laid out.
            DoesNotFit: one device needs more memory than it has.
        """
        shape = parameters.shape
        layout.check(parameters, shape, machine)
        name = f"{shape.name} ({units.format_count(shape.n_params)} parameters)"
        held = training_memory.check(parameters, machine, name, lambda p: memory_of(p, machine))
        once_s, c = startup_s(parameters, machine), configuration(parameters, machine)
        offloading.check(parameters, c, float(np.asarray(held_params(c))), machine)
        plan = plan_of(parameters, c, shape, machine, held, once_s)
        return replace(plan, notes=layout.notes(parameters, machine) + metrics.notes(parameters, machine))

    def subject(self, parameters: SlmTraining, machine: Machine) -> str:
        """Return the model with its count of parameters, precision, and devices."""
        shape, n = parameters.shape, parameters.devices
        devices = f"{n} devices" if n > 1 else "one device"
        return f"{describe(shape)}, {parameters.precision}, {devices}"

    def derived(self, parameters: SlmTraining, machine: Machine, known: Mapping[str, Metric]) -> dict[str, Metric]:
        """Return what follows from a step's time; see `sandtable_workloads.training.metrics`."""
        return metrics.derived(parameters, parameters.shape, machine, known)

    def estimate(self, parameters: Sequence[SlmTraining], machine: Machine) -> Mapping[str, FloatArray]:
        """Return step time and its parts of many runs by the closed form, in the order given."""
        return estimate(parameters, machine)

    def faults(self, parameters: Sequence[SlmTraining], machine: Machine) -> Sequence[str]:
        """Return why each run cannot be laid out; see `layout`."""
        return [next(layout.faults(p, p.shape, machine), "") for p in parameters]

    def verdicts(self, parameters: Sequence[SlmTraining], machine: Machine) -> Sequence[Verdict]:
        """Return whether each run fits, and which kind of tensor passes the limit."""
        held = memories(parameters, machine)
        capacities = [training_memory.capacity_bytes(machine, p.devices) for p in parameters]
        return [training_memory.verdict(*judged) for judged in zip(held, capacities, strict=True)]

    def what_fits(self, parameters: SlmTraining, machine: Machine) -> Sequence[str]:
        """Return the mildest changes with which a run fits."""
        return training_memory.what_fits(parameters, machine, lambda p: memory_of(p, machine))

    def caveats(self, parameters: SlmTraining, machine: Machine) -> Sequence[str]:
        """See `layout.never_timed`."""
        return layout.never_timed(machine)

    def prepare(self, parameters: SlmTraining, machine: Machine, seed: int, context: ExecutionContext) -> None:
        """Check that this machine can do it, and make the files of tokens."""
        from sandtable_workloads.training.executed import run_job

        run_job.prepare(parameters, machine, seed, context, memory_of(parameters, machine))

    def execute(self, parameters: SlmTraining, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        """Train for real, once."""
        from sandtable_workloads.training.executed import run_job

        planned = memory_of(parameters, machine) or {}
        return run_job.run_training(parameters, machine, seed, context, planned)

    def example(self) -> dict[str, Any]:
        """Return a tiny model that trains in seconds."""
        return {
            "model": "tiny_3x64",
            "sequence_tokens": 64,
            "micro_batch": 2,
            "precision": "float32",
            "steps": 3,
            "warmup_steps": 1,
        }


def configuration(parameters: SlmTraining, machine: Machine) -> Configuration:
    """Return the numbers of a run on machines of this kind."""
    per_machine = layout.devices_per_machine(machine, parameters.devices)
    return configuration_of(
        parameters,
        parameters.shape,
        per_machine,
        on_host=machine.accelerator is None,
        widened=layout.is_widened(parameters, machine),
        joined=layout.is_joined(machine),
    )


def memory_of(parameters: SlmTraining, machine: Machine) -> dict[str, float] | None:
    """Return the bytes that the fullest device holds at its peak, by kind; None where a run cannot be laid out."""
    if next(layout.faults(parameters, parameters.shape, machine), None) is not None:
        return None
    return training_memory.memory_of(parameters, configuration(parameters, machine), machine)


def memories(parameters: Sequence[SlmTraining], machine: Machine) -> list[dict[str, float]]:
    """Return bytes by kind of many runs on one machine, in the order given."""
    found: list[dict[str, float]] = [{} for _ in parameters]
    for members, together in _groups(parameters, machine):
        first = parameters[members[0]]
        kinds = training_memory.memory_of_configuration(
            first, together, machine.stack, on_accelerator=machine.accelerator is not None
        )
        columns = {kind: np.broadcast_to(np.asarray(size), len(members)) for kind, size in kinds.items()}
        for row, index in enumerate(members):
            found[index] = {kind: float(column[row]) for kind, column in columns.items()}
    return found


def _groups(parameters: Sequence[SlmTraining], machine: Machine) -> Iterator[tuple[list[int], Configuration]]:
    """Yield runs that can be counted together: their places in the list, and their numbers as one configuration."""
    groups: dict[Any, list[int]] = {}
    configurations = [configuration(p, machine) for p in parameters]
    for index, (p, c) in enumerate(zip(parameters, configurations, strict=True)):
        groups.setdefault((p.precision, p.optimizer_dtype, p.gradient_dtype, structure(c)), []).append(index)
    for members in groups.values():
        yield members, stacked([configurations[index] for index in members])


def estimate(parameters: Sequence[SlmTraining], machine: Machine) -> dict[str, FloatArray]:
    """Return ``step_s`` and its parts of many runs on one machine, by the closed form."""
    costs, names = CostModel(machine), tuple(StepTimes.__dataclass_fields__)
    found = {f"{name}_s": np.empty(len(parameters)) for name in names}
    for members, together in _groups(parameters, machine):
        times = step_times(together, costs, len(members))
        for name in names:
            found[f"{name}_s"][members] = getattr(times, name)
    # what the first step takes once is spread over all measured steps, if no step before those warmed up
    once = np.array([startup_s(p, machine) / p.steps for p in parameters])
    return {name: column + once if name in LONGER_WHEN_COLD else column for name, column in found.items()}


def startup_s(parameters: SlmTraining, machine: Machine) -> float:
    """Return what the first measured step takes beyond the others: nothing if steps before it warmed up."""
    if parameters.warmup_steps or machine.stack is None:
        return 0.0
    sheet = machine.stack.datasheet
    ranks = min(parameters.devices, layout.devices_per_machine(machine, parameters.devices))
    return sheet.first_step_s + sheet.connect_s * math.log2(ranks)
