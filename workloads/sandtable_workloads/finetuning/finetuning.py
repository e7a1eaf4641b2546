"""The workload `finetuning`: training a few added weights, or all of them, of a model that is there already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.operator import FloatArray
from sandtable.demand.plan import Plan
from sandtable.errors import DoesNotFit, PlanError
from sandtable.hardware import Frozen, Machine
from sandtable.results import Metric
from sandtable.units import format_bytes, format_count
from sandtable.workload.seam import Verdict, Workload
from sandtable_workloads.finetuning import finetuning_memory
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning
from sandtable_workloads.finetuning.finetuning_plan import plan_of
from sandtable_workloads.finetuning.finetuning_times import iteration_s
from sandtable_workloads.training import layout, metrics, training_memory
from sandtable_workloads.training.slm_training import SlmTrainingWorkload, estimate, memories
from sandtable_workloads.transformer import model_facts
from sandtable_workloads.transformer.presets import describe

# what the closed form gives
ESTIMATED = ("step_s", "forward_s", "backward_s", "low_s", "high_s")
# changes that make a run smaller, in the order in which they are suggested
SMALLER: tuple[dict[str, Any], ...] = (
    {"quantization": "nf4"},
    {"quantization": "nf4_dq"},
    {"checkpointing": "full"},
    {"micro_batch": 1},
    {"quantization": "nf4_dq", "checkpointing": "full", "micro_batch": 1},
)


class FinetuningWorkload(Workload[Finetuning]):
    """Fine-tune a model: LoRA, prompts, packed base weights, or all weights."""

    name: ClassVar[str] = "finetuning"
    parameters: ClassVar[type[Frozen]] = Finetuning
    example_stack: ClassVar[str | None] = "litgpt"
    headlines: ClassVar[tuple[str, ...]] = ("tokens_per_s", "training_s", "training_usd", "usd_per_mtok")
    planned_only: ClassVar[str | None] = (
        "no weights are loaded here; simulate it, or run all weights as slm_training"
    )

    def usual_stack(self, machine: Machine) -> str:
        """See `Workload.usual_stack`: what the operations of adapters were counted in."""
        return "litgpt"

    def models(self) -> Iterable[str]:
        """See `Workload.models`: the presets."""
        return model_facts.model_names()

    def model_facts(self, name: str) -> Mapping[str, Any]:
        """See `Workload.model_facts`."""
        return model_facts.model_facts(name)

    def plan(self, parameters: Finetuning, machine: Machine, seed: int) -> Plan:
        """Return the steps of a run; see `sandtable_workloads.finetuning.finetuning_plan`.

        Raises:
            PlanError: an adapter that is not described, or devices that the machine has not.
            DoesNotFit: one device needs more memory than it has.
        """
        if parameters.adapter == "none":
            plan = SlmTrainingWorkload().plan(parameters.as_training(), machine, seed)
            return replace(plan, workload=self.name)
        layout.check(parameters.as_training(), parameters.shape, machine)
        plan = plan_of(parameters, machine, _fitting(parameters, machine))
        left_out = "training_s and training_usd count steps alone: loading, evaluation and saving are left out"
        whole = () if parameters.total_tokens is None else (left_out,)
        return replace(plan, notes=layout.notes(parameters.as_training(), machine) + whole)

    def subject(self, parameters: Finetuning, machine: Machine) -> str:
        """Return the model with its count of parameters, what is trained of it, and how its weights are kept."""
        shape, n = parameters.shape, parameters.devices
        trained = "all weights" if parameters.adapter == "none" else parameters.adapter
        kept = parameters.precision if parameters.quantization == "none" else parameters.quantization
        devices = f"{n} devices" if n > 1 else "one device"
        return f"{describe(shape)}, {trained}, {kept}, {devices}"

    def derived(self, parameters: Finetuning, machine: Machine, known: Mapping[str, Metric]) -> dict[str, Metric]:
        """Return tokens per second, what a step, a token and the whole fine-tuning cost, and the energy of a step."""
        step = known.get("step_s.mean") or known["step_s"]
        tokens, machines = float(parameters.tokens_per_step), metrics.n_machines(parameters.as_training(), machine)
        found = {
            name: metrics.per_step(step, amount, name)
            for name, amount in (
                ("tokens_per_s", tokens),
                ("tokens_per_s_per_device", tokens / parameters.devices),
            )
        }
        products: dict[str, float] = {}
        total = parameters.total_tokens
        n_steps = None if total is None else metrics.whole_steps(total, tokens)
        if n_steps is not None:
            products["training_s"] = n_steps
        if machine.price is not None:
            usd_per_h = machine.price.usd_per_h * machines
            usd_per_s = usd_per_h / metrics.SECONDS_PER_HOUR
            products |= {"usd": usd_per_s * parameters.steps, "usd_per_mtok": usd_per_s / tokens * 1e6}
            if usd_per_s:
                found["tokens_per_usd"] = metrics.per_step(step, tokens / usd_per_s, "tokens_per_usd")
            found["usd_per_h"] = metrics.priced(usd_per_h)
            if n_steps is not None:
                products["training_usd"] = usd_per_s * n_steps
        if machine.power is not None:
            products["energy_j"] = machine.power.max_w * machines
        return found | {name: metrics.times_step(step, factor, name) for name, factor in products.items()}

    def estimate(self, parameters: Sequence[Finetuning], machine: Machine) -> Mapping[str, FloatArray]:
        """Return the time of a step and its parts, the optimiser's on few weights left out."""
        rows = [_estimated(p, machine) for p in parameters]
        return {name: np.array([row[name] for row in rows]) for name in ESTIMATED}

    def faults(self, parameters: Sequence[Finetuning], machine: Machine) -> Sequence[str]:
        """Return why each run cannot be laid out."""
        return [_fault(p, machine) for p in parameters]

    def verdicts(self, parameters: Sequence[Finetuning], machine: Machine) -> Sequence[Verdict]:
        """Return whether each run fits, and which kind of tensor passes the limit."""
        return [_verdict(_held(p, machine), p, machine) for p in parameters]

    def what_fits(self, parameters: Finetuning, machine: Machine) -> Sequence[str]:
        """Return the changes with which a run fits."""
        return list(_smaller(parameters, machine))

    def example(self) -> dict[str, Any]:
        """Return a tiny model with LoRA."""
        return {"model": "tiny_3x64", "sequence_tokens": 64, "micro_batch": 2, "steps": 3}

    def examples(self) -> Sequence[dict[str, Any]]:
        """Return every adapter, packed weights, more products with LoRA, and all weights."""
        changes: tuple[dict[str, Any], ...] = (
            {},
            {"adapter": "adapter"},
            {"adapter": "adapter_v2", "grad_accumulation": 3, "checkpointing": "full"},
            {"quantization": "nf4", "lora_targets": ["query", "key", "value", "output", "up", "down"]},
            {"adapter": "none"},
        )
        return [self.example() | change for change in changes]


def _estimated(p: Finetuning, machine: Machine) -> dict[str, float]:
    if p.adapter == "none":
        columns = estimate([p.as_training()], machine)
        return {name: float(columns[name][0]) for name in ESTIMATED}
    times = iteration_s(p, p.shape, machine)
    return {name: times[name] * p.grad_accumulation for name in ESTIMATED}


def _fault(p: Finetuning, machine: Machine) -> str:
    try:
        if p.adapter != "none":
            finetuning_memory.check(p, p.shape)
    except PlanError as error:
        return str(error)
    return next(layout.faults(p.as_training(), p.shape, machine), "")


def _held(p: Finetuning, machine: Machine) -> dict[str, float]:
    """Return the bytes of a device by kind, what the software takes for itself among them."""
    if p.adapter == "none":
        return memories([p.as_training()], machine)[0]
    reserved = 0.0 if machine.stack is None else machine.stack.datasheet.reserved_bytes
    return finetuning_memory.memory_of(p, p.shape) | ({"reserved": reserved} if reserved else {})


def _verdict(held: Mapping[str, float], p: Finetuning, machine: Machine) -> Verdict:
    return training_memory.verdict(held, training_memory.capacity_bytes(machine, p.devices))


def _fitting(p: Finetuning, machine: Machine) -> dict[str, float]:
    """Return the bytes of a run by kind, or refuse it.

    Raises:
        DoesNotFit: with what it needs, and what near it would fit.
    """
    held = _held(p, machine)
    judged = _verdict(held, p, machine)
    if judged.fits:
        return held
    kinds = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in held.items() if size > 0)
    fitting = next(_smaller(p, machine), "take a device with more memory")
    raise DoesNotFit(
        f"{p.shape.name} ({format_count(p.shape.n_params)} parameters) needs "
        f"{format_bytes(judged.needed_bytes)} on each device and {machine.name} has "
        f"{format_bytes(judged.has_bytes)} ({kinds}); to fit, {fitting}"
    )


def _smaller(p: Finetuning, machine: Machine) -> Iterator[str]:
    """Yield changes with which a run would fit."""
    for changes in SMALLER:
        smaller = p.model_copy(update=changes)
        if not _fault(smaller, machine) and _verdict(_held(smaller, machine), smaller, machine).fits:
            yield "set " + ", ".join(f"{name} to {value}" for name, value in changes.items())
