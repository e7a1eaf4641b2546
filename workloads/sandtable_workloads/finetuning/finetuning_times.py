"""Closed form of an iteration with an adapter, and of a token decoded with the same software.

Eager software issues every kernel from Python: a section takes what is longer, the host's issuing or the device. What
the host's calls take is in the stack file, under ``efficiency.host.<name>``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sandtable.errors import PlanError
from sandtable.hardware import Machine, Stack
from sandtable.model.cost_model import CostModel
from sandtable_workloads.finetuning import finetuning_demand
from sandtable_workloads.finetuning.finetuning_memory import (
    ITEM,
    PACKED_BYTES,
    check,
    is_prompted,
    joined_outputs,
    layer_weights,
    linear_widths,
    lora_products,
)
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning
from sandtable_workloads.training import layout, step_demand
from sandtable_workloads.training.closed_form import Timer
from sandtable_workloads.training.step_demand import Demand, LayerKind, Software
from sandtable_workloads.training.step_numbers import Configuration, configuration_of
from sandtable_workloads.transformer.shapes import ModelShape


def _overhead(stack: Stack, name: str) -> float:
    found = stack.datasheet.efficiency.get(f"host.{name}")
    return stack.datasheet.host_call_s if found is None else found.overhead_s


def _calls(stack: Stack, name: str) -> float:
    found = stack.datasheet.efficiency.get(f"host.{name}")
    return 0.0 if found is None else float(found.calls)


def _stack(machine: Machine) -> Stack:
    if machine.stack is None:
        raise PlanError(f"{machine.name!r} names no stack, whose host sets the pace of adapters: set 'stack'")
    return machine.stack


def iteration_s(p: Finetuning, shape: ModelShape, machine: Machine) -> dict[str, float]:
    """Return the seconds of one micro-batch, forward and backward: what is longer, the host's issuing or the device.

    The loss is read by the host at the end, so that nothing hides behind the next iteration. The optimiser's step on
    a few weights, once in many iterations, is left out.
    """
    check(p, shape)
    stack = _stack(machine)
    c, software = configuration(p, machine), Software(stack)
    timer, layers = Timer(CostModel(machine), 1), shape.n_layers
    ends = finetuning_demand.ends(c, software)
    ahead = finetuning_demand.forward(p, shape, c, software)
    back = finetuning_demand.backward(p, shape, c, software)
    again = ahead if p.checkpointing == "full" else []
    device = [float(s[0]) for s in timer.seconds([ahead, back, *ends])]
    unit, network = _units(p, shape, c, timer, stack)
    host = Host.of(p, shape, stack, [float(timer.issue(demands)[0]) for demands in (ahead, back, *ends)], unit)
    first = max(host.forward_s, layers * device[0] + device[2], layers * network)
    second = max(host.backward_s, layers * (device[1] + bool(again) * device[0]) + device[3], layers * network)
    # without a graph, as for validation
    plain = max(host.inference_s, layers * max(device[0], network) + device[2])
    step_s = first + second + host.between_s
    found = {"step_s": step_s, "forward_s": first, "backward_s": second, "inference_s": plain}
    sheet = stack.datasheet
    return found | {"low_s": step_s / sheet.residual_high_frac, "high_s": step_s / sheet.residual_low_frac}


def configuration(p: Finetuning, machine: Machine) -> Configuration:
    """Return the numbers of a run on machines of this kind."""
    per_machine = layout.devices_per_machine(machine, p.devices)
    training = p.as_training()
    on_host, widened = machine.accelerator is None, layout.is_widened(training, machine)
    return configuration_of(training, p.shape, per_machine, on_host=on_host, widened=widened).computed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Seconds that the host takes to issue a micro-batch: its two passes, one without a graph, and what lies between.

    The loss is read by the host at the end, so that nothing hides ``between_s``.
    """

    forward_s: float
    backward_s: float
    inference_s: float
    between_s: float

    @classmethod
    def of(cls, p: Finetuning, shape: ModelShape, stack: Stack, issue: list[float], unit_s: float) -> Host:
        """Return the host's time; ``issue`` is that of a layer's passes and the ends', ``unit_s`` of its sharding."""
        graph, engine = (_overhead(stack, name) / stack.datasheet.host_call_s for name in ("graph", "backward"))
        views, listed, layers = _views(p, stack), _list_s(p, shape, stack), shape.n_layers
        ahead = (issue[0] + views) * graph + listed
        again = ahead if p.checkpointing == "full" else 0.0
        return cls(
            forward_s=layers * (ahead + unit_s) + issue[2] * graph,
            backward_s=layers * (issue[1] * engine + unit_s + again) + issue[3] * engine,
            inference_s=layers * (issue[0] + views + listed + unit_s) + issue[2],
            between_s=_calls(stack, "iteration") * stack.datasheet.host_call_s,
        )


def host_of(p: Finetuning, machine: Machine) -> Host | None:
    """Return the host's time of a micro-batch; None where the software's host is not described."""
    stack = machine.stack
    if stack is None or not stack.datasheet.overlaps_host or not stack.datasheet.host_call_s:
        return None
    c, software, timer = configuration(p, machine), Software(stack), Timer(CostModel(machine), 1)
    parts = [
        finetuning_demand.forward(p, p.shape, c, software),
        finetuning_demand.backward(p, p.shape, c, software),
        *finetuning_demand.ends(c, software),
    ]
    unit, _ = _units(p, p.shape, c, timer, stack)
    return Host.of(p, p.shape, stack, [float(timer.issue(demands)[0]) for demands in parts], unit)


def _views(p: Finetuning, stack: Stack) -> float:
    """Return the host's time for one layer's views, which launch nothing."""
    added = "lora" if p.adapter == "lora" else "prompt" if is_prompted(p) else "none"
    return (_calls(stack, "layer") + _calls(stack, added)) * stack.datasheet.host_call_s


def _list_s(p: Finetuning, shape: ModelShape, stack: Stack) -> float:
    """Return the host's time for a Python list of LoRA's outputs that each layer makes a tensor of."""
    return _overhead(stack, "list_item") * joined_outputs(p, shape)


def _units(p: Finetuning, shape: ModelShape, c: Configuration, timer: Timer, stack: Stack) -> tuple[float, float]:
    """Return what one sharded layer costs the host and the network in one direction."""
    if p.sharding != "fsdp_full" or p.devices == 1:
        return 0.0, 0.0
    gather = step_demand.collective("weights", c, "all_gather", layer_weights(shape) * ITEM, float(p.devices), 1.0)
    calls = _calls(stack, "unit") + _calls(stack, "parameter") * _parameters(p, shape)
    return calls * _overhead(stack, "graph"), float(timer.seconds([[gather]])[0][0])


def _parameters(p: Finetuning, shape: ModelShape) -> float:
    """Return how many tensors of parameters one layer has."""
    biased = [shape.attention_bias, shape.output_bias, *[shape.ffn_bias] * shape.n_vectors]
    linear = len(linear_widths(shape)) + sum(biased)
    norms = shape.norms_per_layer * (2 if shape.norm == "layer" else 1)
    return linear + norms + 2 * (bool(p.joined_targets) + len(lora_products(p, shape)))


def token_s(p: Finetuning, shape: ModelShape, machine: Machine) -> dict[str, float]:
    """Return the seconds of one token that is decoded alone, and of the start before the first.

    A token takes what is longer, issuing kernels or reading weights.
    """
    stack = _stack(machine)
    one = p.as_training().model_copy(update={"micro_batch": 1, "sequence_tokens": 8, "devices": 1})
    per_machine = 1 if machine.accelerator is None else machine.accelerator.n
    c = replace(configuration_of(one, shape, per_machine), sequence=1.0)
    software, timer = Software(stack), Timer(CostModel(machine), 1)
    layer, head = _token_layer(p, shape, c, software), step_demand.gemm("head", c, 1.0, c.vocabulary, c.d_model)
    device = [float(s[0]) for s in timer.seconds([layer, [head]])]
    issue = float(timer.issue(layer)[0]) + stack.datasheet.host_call_s * (1 + _calls(stack, "layer"))
    host = shape.n_layers * issue + _calls(stack, "token") * stack.datasheet.host_call_s
    token = max(host, shape.n_layers * device[0] + device[1])
    return {"token_s": token, "host_s": host, "start_s": _start_s(stack)}


def _start_s(stack: Stack) -> float:
    """Return what the first pass of a process takes longer, as libraries are loaded."""
    found = stack.datasheet.efficiency.get("host.start")
    return 0.0 if found is None else found.overhead_s


def _token_layer(p: Finetuning, shape: ModelShape, c: Configuration, software: Software) -> list[Demand]:
    """Return one layer's work for one token, attention's scores left out of the device's: few tokens are cached."""
    d, b = shape.d_model, c.item_bytes
    products = [*step_demand.attention_products(c), *step_demand.ffn_products(c, LayerKind())]
    if p.quantization != "none":
        products = [_packed(p, product, c, software) for product in products]
    return [
        *products,
        replace(software.memory_bound(finetuning_demand.norm_name(shape), 2 * d * b, c), times=c.norms),
        replace(software.memory_bound("residual", 3 * d * b, c), times=2.0),
        finetuning_demand.activation(shape, c, software, ""),
        software.memory_bound("rope", 4 * d * b, c),
        software.memory_bound("cache", 4 * d * b, c),
    ]


def _packed(p: Finetuning, product: Demand, c: Configuration, software: Software) -> Demand:
    """Return a product of one token with packed weights, which are read once."""
    name = "packed product" if p.quantization == "nf4" else "packed product nested"
    elements = product.shape.n * product.shape.k
    return replace(software.memory_bound(name, elements * PACKED_BYTES[p.quantization], c), times=product.times)
