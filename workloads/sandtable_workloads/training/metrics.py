"""What follows from the time of a step by counting: tokens per second, utilisation, money."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sandtable import units
from sandtable.hardware import Machine
from sandtable.results import Metric, point
from sandtable_workloads.training.choices.scaling_law import TOKENS_PER_PARAMETER, law_named
from sandtable_workloads.training.layout import devices_per_machine
from sandtable_workloads.training.step_numbers import product_dtype
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

SECONDS_PER_HOUR = 3600.0


def model_flops_per_token(shape: ModelShape, sequence_tokens: int) -> float:
    """Return the flops of one token, forward and backward, as model FLOPs utilisation counts them.

    ``6 P + 12 L H E T``: every parameter that a token meets, and attention to all tokens whether causal or not
    (Chowdhery et al., arXiv 2204.02311, appendix B; mosaicml/llm-foundry scripts/train/benchmarking).
    """
    scores = 2 * shape.n_layers * shape.n_heads * (shape.head_dim + shape.value_dim) * sequence_tokens
    return 3 * (2 * shape.n_active_params + scores)


def hardware_flops_per_token(parameters: SlmTraining, shape: ModelShape) -> float:
    """Return the flops that are really computed, by the same count: a layer computed again counts again."""
    scores = 2 * shape.n_layers * shape.n_heads * (shape.head_dim + shape.value_dim) * parameters.sequence_tokens
    layers = model_flops_per_token(shape, parameters.sequence_tokens) / 3
    again = {"none": 0.0, "selective": scores, "alternate": layers / 2, "full": layers}
    return model_flops_per_token(shape, parameters.sequence_tokens) + again[parameters.checkpointing]


def peak_flops_per_s(parameters: SlmTraining, machine: Machine) -> float | None:
    """Return the dense rate of one device for the type that products run in; None where the data sheet has none."""
    processor = machine.processor if machine.accelerator is None else machine.accelerator.processor
    peaks = processor.datasheet.peak_flops_per_s
    return peaks.get(product_dtype(parameters))  # type: ignore[call-overload,no-any-return]


def n_machines(parameters: SlmTraining, machine: Machine) -> float:
    """Return the machines that a run takes; a part of one is paid for as that part."""
    return parameters.devices / devices_per_machine(machine, parameters.devices)


def derived(
    parameters: SlmTraining, shape: ModelShape, machine: Machine, metrics: Mapping[str, Metric]
) -> dict[str, Metric]:
    """Return tokens/s, per device too, utilisation, and what a step and a token cost, from ``step_s``."""
    step = metrics.get("step_s.mean") or metrics["step_s"]
    tokens = float(parameters.tokens_per_step)
    rates = {"tokens_per_s": tokens, "tokens_per_s_per_device": tokens / parameters.devices}
    peak = peak_flops_per_s(parameters, machine)
    if peak is not None:
        full = tokens / parameters.devices / peak
        rates["mfu"] = full * model_flops_per_token(shape, parameters.sequence_tokens)
        rates["hfu"] = full * hardware_flops_per_token(parameters, shape)
    products: dict[str, float] = {}
    machines = n_machines(parameters, machine)
    if machine.price is not None:
        usd_per_s = machine.price.usd_per_h * machines / SECONDS_PER_HOUR
        products |= {"usd": usd_per_s * parameters.steps, "usd_per_mtok": usd_per_s / tokens * 1e6}
        rates["tokens_per_usd"] = tokens / usd_per_s
        total = total_tokens(parameters, shape)
        products |= {"training_s": total / tokens, "training_usd": usd_per_s * total / tokens}
        if law_named(parameters.scaling_law).covers(shape, total):
            rates["loss_per_usd"] = gain_per_token(parameters, shape) * tokens / usd_per_s
    if machine.power is not None:
        products["energy_j"] = machine.power.max_w * machines
    found = {name: per_step(step, amount, name) for name, amount in rates.items()}
    found |= {name: within_peak(found[name]) for name in ("mfu", "hfu") if name in found}
    found |= {name: times_step(step, factor, name) for name, factor in products.items()}
    if machine.price is not None:
        law, total = law_named(parameters.scaling_law), total_tokens(parameters, shape)
        if law.covers(shape, total):
            found["final_loss"] = point(law.loss(law.params_of(shape), total), "1")
        found["usd_per_h"] = priced(machine.price.usd_per_h * machines)
    return found


def total_tokens(parameters: SlmTraining, shape: ModelShape) -> float:
    """Return the tokens of the whole training."""
    return parameters.total_tokens or TOKENS_PER_PARAMETER * shape.n_params


def gain_per_token(parameters: SlmTraining, shape: ModelShape) -> float:
    """Return by how much the last token of the whole training lowers the loss, in nats."""
    law = law_named(parameters.scaling_law)
    return law.gain_per_token(law.params_of(shape), total_tokens(parameters, shape))


def per_step(step: Metric, amount: float, name: str) -> Metric:
    """Return ``amount`` per step time; the slow end of the interval is the low one."""
    high = math.inf if step.low <= 0 else amount / step.low
    return Metric(value=amount / step.value, low=amount / step.high, high=high, unit=units.unit_of(name))


def within_peak(utilisation: Metric) -> Metric:
    """Return a utilisation whose interval does not pass the peak.

    Only its value may, by the convention that counts what a mask hides as done.
    """
    most = max(1.0, utilisation.value)
    return utilisation.model_copy(update={"high": min(utilisation.high, most)})


def times_step(step: Metric, factor: float, name: str) -> Metric:
    """Return ``factor`` times the step time."""
    low, high = step.low * factor, step.high * factor
    return Metric(value=step.value * factor, low=low, high=high, unit=units.unit_of(name))


def priced(usd_per_h: float) -> Metric:
    """Return the price of an hour, which is known exactly."""
    return point(usd_per_h, units.unit_of("usd_per_h"))
