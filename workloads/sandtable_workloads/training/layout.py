"""Whether a run can be laid out on a machine: groups that divide, batches that can be split, devices that are there."""

from __future__ import annotations

from collections.abc import Iterator

from sandtable.errors import PlanError
from sandtable.hardware import Machine
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

# of the racks that behave as one machine, a run may use a part
SERVER_DEVICES = 16


def devices_per_machine(machine: Machine, n_devices: int) -> int:
    """Return how many of the devices one machine has: its accelerators, or as many CPU processes as are asked for."""
    return n_devices if machine.accelerator is None else machine.accelerator.n


def check(parameters: SlmTraining, shape: ModelShape, machine: Machine) -> None:
    """Refuse what cannot be laid out, with the first reason.

    Raises:
        PlanError: a group does not divide what it splits, or the machines do not suffice.
    """
    for fault in faults(parameters, shape, machine):
        raise PlanError(f"{shape.name} on {machine.name}: {fault}")


def faults(parameters: SlmTraining, shape: ModelShape, machine: Machine) -> Iterator[str]:
    """Yield why the run cannot be laid out."""
    p = parameters
    yield from _indivisible("tensor_parallel", p.tensor_parallel, {"heads": shape.n_heads})
    if p.tensor_parallel > shape.n_kv_heads and p.tensor_parallel % shape.n_kv_heads:
        yield f"tensor_parallel {p.tensor_parallel} is no multiple of the {shape.n_kv_heads} key/value heads"
    yield from _indivisible("context_parallel", p.context_parallel, {"sequence_tokens": p.sequence_tokens})
    stages = p.pipeline_parallel * p.virtual_stages
    if shape.n_layers < stages:
        yield f"pipeline_parallel x virtual_stages = {stages} are more than the {shape.n_layers} layers"
    if p.virtual_stages > 1 and p.pipeline_parallel == 1:
        yield "virtual_stages above 1 need pipeline_parallel above 1"
    if p.virtual_stages > 1 and p.grad_accumulation % p.pipeline_parallel:
        yield (
            f"the interleaved schedule takes micro-batches in groups of pipeline_parallel = {p.pipeline_parallel}: "
            f"grad_accumulation {p.grad_accumulation} must be a multiple of it"
        )
    if p.sequence_parallel and p.tensor_parallel == 1:
        yield "sequence_parallel splits over the tensor-parallel group: set tensor_parallel above 1"
    yield from _experts(p, shape)
    yield from _machines(p, machine)


def _indivisible(name: str, size: int, split: dict[str, int]) -> Iterator[str]:
    for what, count in split.items():
        if count % size:
            yield f"{name} {size} does not divide the {count} {what.replace('_', ' ')}"


def _experts(parameters: SlmTraining, shape: ModelShape) -> Iterator[str]:
    size = parameters.expert_parallel
    if size == 1:
        return
    if shape.moe is None:
        yield f"expert_parallel {size} needs a model with experts"
        return
    yield from _indivisible("expert_parallel", size, {"experts": shape.moe.n_experts})
    if (parameters.data_parallel * parameters.context_parallel) % size:
        yield f"expert_parallel {size} does not divide the {parameters.data_parallel} data-parallel replicas"


def _machines(parameters: SlmTraining, machine: Machine) -> Iterator[str]:
    per_machine = devices_per_machine(machine, parameters.devices)
    if parameters.devices > per_machine:
        if parameters.devices % per_machine and per_machine <= SERVER_DEVICES:
            yield f"devices {parameters.devices} is no multiple of the {per_machine} accelerators of a machine"
        if machine.network is None:
            yield f"devices {parameters.devices} need several machines, and 'network' names no link between them"
