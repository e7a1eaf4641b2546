"""What follows from the time of a step by counting: tokens per second, utilisation, money."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sandtable import units
from sandtable.hardware import Machine
from sandtable.model.intervals import joined
from sandtable.results import Metric, point
from sandtable_workloads.training.choices.scaling_law import TOKENS_PER_PARAMETER, law_named
from sandtable_workloads.training.layout import devices_per_machine
from sandtable_workloads.training.step_numbers import product_dtype
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

SECONDS_PER_HOUR = 3600.0
# share of a whole training's time in which steps are done that count, with its ends: the largest jobs of Gemini's
# predecessors 85 %, and of Gemini 97 % (arXiv 2312.11805, section 5); Llama 3 405B on 16 384 GPUs (arXiv 2407.21783,
# section 3.3.4) and MegaScale on 12 288 (arXiv 2402.15627, section 1) over 90 %. A first attempt may do far worse: the
# 33 days of OPT-175B took two months (facebookresearch/metaseq projects/OPT/chronicles/final_update.md @f2cd367)
GOODPUT = (0.85, 0.90, 0.97)
# rounding that makes no further step
WHOLE = 1e-12


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
    machines, total = n_machines(parameters, machine), total_tokens(parameters, shape)
    usd_per_s = None if machine.price is None else machine.price.usd_per_h * machines / SECONDS_PER_HOUR
    if usd_per_s is not None:
        products |= {"usd": usd_per_s * parameters.steps, "usd_per_mtok": usd_per_s / tokens * 1e6}
        # what costs nothing has no amount for a dollar
        rates |= {"tokens_per_usd": tokens / usd_per_s} if usd_per_s else {}
        if usd_per_s and law_named(parameters.scaling_law).covers(shape, total):
            rates["loss_per_usd"] = gain_per_token(parameters, shape) * tokens / usd_per_s
    if machine.power is not None:
        products["energy_j"] = machine.power.max_w * machines
    found = {name: per_step(step, amount, name) for name, amount in rates.items()}
    found |= {name: within_peak(found[name]) for name in ("mfu", "hfu") if name in found}
    found |= {name: times_step(step, factor, name) for name, factor in products.items()}
    if machine.price is not None and usd_per_s is not None:
        law = law_named(parameters.scaling_law)
        if law.covers(shape, total):
            found["final_loss"] = point(law.loss(law.params_of(shape), total), "1")
        found["usd_per_h"] = priced(machine.price.usd_per_h * machines)
        whole = whole_training(step, whole_steps(total, tokens), goodput_of(parameters), "training_s")
        found["training_s"] = whole
        found["training_usd"] = times_step(whole, usd_per_s, "training_usd")
    return found


def whole_steps(total: float, per_step: float) -> float:
    """Return the steps that train on ``total`` tokens: whole ones, one at least."""
    return float(max(1, math.ceil(total / per_step * (1 - WHOLE))))


def goodput_of(parameters: SlmTraining) -> tuple[float, float, float]:
    """Return the low end, the value and the high end of the goodput of a whole training."""
    given = parameters.goodput_frac
    return GOODPUT if given is None else (given, given, given)


def whole_training(step: Metric, n_steps: float, goodput: tuple[float, float, float], name: str) -> Metric:
    """Return the time of a whole training; its step time and its goodput are wrong independently of each other."""
    least, usual, most = goodput
    value = step.value * n_steps / usual
    below = joined([(1 - step.low / step.value, 0.0), (1 - usual / most, 0.0)])
    above = joined([(step.high / step.value - 1, 0.0), (usual / least - 1, 0.0)])
    return Metric(value=value, low=value * (1 - below), high=value * (1 + above), unit=units.unit_of(name))


def notes(parameters: SlmTraining, machine: Machine) -> tuple[str, ...]:
    """Say what the time and the price of a whole training hold, and what they leave out."""
    if machine.price is None:
        return ()
    least, usual, most = goodput_of(parameters)
    share = f"{usual:.0%}" if least == most else f"{usual:.0%} ({least:.0%} to {most:.0%})"
    return (
        f"training_s and training_usd take a goodput of {share}: restarts, steps done again, checkpoints and "
        "evaluation (parameters.goodput); waiting for machines, failed trials, storage and traffic are left out",
    )


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
