"""Whether a run can be laid out on a machine: groups that divide, batches that can be split, devices that are there."""

from __future__ import annotations

from collections.abc import Iterator

from sandtable.errors import PlanError
from sandtable.hardware import Machine
from sandtable_workloads.training.step_numbers import product_dtype
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

# of the racks that behave as one machine, a run may use a part
SERVER_DEVICES = 16
# types that software computes in float32 where a device has no units for them; others it refuses
EMULATED = ("bfloat16", "float16")


def devices_per_machine(machine: Machine, n_devices: int) -> int:
    """Return how many of the devices one machine has: its accelerators, or as many CPU processes as are asked for."""
    return n_devices if machine.accelerator is None else machine.accelerator.n


def type_without_units(parameters: SlmTraining, machine: Machine) -> str | None:
    """Return the element type of a run's products if the machine's accelerators have no units for it."""
    dtype = product_dtype(parameters)
    known = None if machine.accelerator is None else machine.accelerator.processor.datasheet.peak_flops_per_s
    return None if known is None or dtype in known else dtype


def is_widened(parameters: SlmTraining, machine: Machine) -> bool:
    """Return whether values are widened into float32 to be computed with; see `Configuration.computed`."""
    return type_without_units(parameters, machine) in EMULATED


def is_joined(machine: Machine) -> bool:
    """Return whether the machine's software makes one product of gate and up projection."""
    return machine.stack is not None and "gemm.joined up" in machine.stack.datasheet.efficiency


def never_timed(machine: Machine) -> tuple[str, ...]:
    """Return that a host whose other parts were measured never timed PyTorch's operators, and what does."""
    fitted = machine.processor.fitted
    if machine.accelerator is not None or not machine.environment or fitted is None or "gemm" in fitted.operators:
        return ()
    return ("PyTorch's operators were never timed on this machine: 'sandtable calibrate --only training' does",)


def notes(parameters: SlmTraining, machine: Machine) -> tuple[str, ...]:
    """Say what is slower than the precision's name promises, and what of the model is left out or only held."""
    of_model = parameters.shape.notes
    if machine.accelerator is None or not is_widened(parameters, machine):
        return of_model
    name, dtype = machine.accelerator.device.name, product_dtype(parameters)
    return (
        f"{name} has no {dtype} units: {parameters.precision} is emulated in float32 and no faster than that; "
        f"{_native(parameters, machine)} would run on its units",
        *of_model,
    )


def _native(parameters: SlmTraining, machine: Machine) -> str:
    """Return the precision that runs on units of the accelerators and is nearest to the one asked for."""
    other = ("mixed_bfloat16", "mixed_float16", "float32")
    named = (parameters.model_copy(update={"precision": precision}) for precision in other)
    return next((p.precision for p in named if type_without_units(p, machine) is None), "float32")


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
    yield from _offload(p, machine)
    lacking = type_without_units(p, machine)
    if lacking is not None and lacking not in EMULATED and machine.accelerator is not None:
        yield (
            f"precision {p.precision}: {machine.accelerator.device.name} has no {lacking} units, and no software "
            f"trains in {lacking} without; write precision: {_native(p, machine)}"
        )
    yield from _experts(p, shape)
    yield from _machines(p, machine)


def _indivisible(name: str, size: int, split: dict[str, int]) -> Iterator[str]:
    for what, count in split.items():
        if count % size:
            yield f"{name} {size} does not divide the {count} {what.replace('_', ' ')}"


def _offload(p: SlmTraining, machine: Machine) -> Iterator[str]:
    """Yield why what is asked for cannot lie elsewhere."""
    asked = {"offload_optimizer": p.offload_optimizer, "offload_parameters": p.offload_parameters}
    needed = {"offload_optimizer": ("zero_1", "fsdp_grad_op", "fsdp_full"), "offload_parameters": ("fsdp_full",)}
    for name in (name for name, place in asked.items() if place != "none"):
        if machine.accelerator is None or machine.accelerator.device.shares_host_memory:
            yield f"{name} {asked[name]}: {machine.name} has no memory but the host's to take it from"
        elif p.pipeline_parallel > 1 or p.optimizer == "muon":
            yield f"{name} {asked[name]} is described without pipeline stages, and not for muon"
        elif p.devices > 1 and p.sharding not in needed[name]:
            yield f"{name} {asked[name]} on several devices needs sharding {' or '.join(needed[name])}"
        elif p.offload_parameters != "none" and p.offload_optimizer == "none":
            yield "offload_parameters leaves the optimiser nothing to update on the device: set offload_optimizer too"


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
