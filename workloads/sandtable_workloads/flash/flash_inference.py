"""The workload `flash_inference`: plan and execution of "LLM in a flash" from one description."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from sandtable.demand.plan import Plan
from sandtable.errors import DoesNotFit
from sandtable.hardware import Frozen, Machine
from sandtable.system import limits
from sandtable.units import format_bytes
from sandtable.workload.seam import Execution, ExecutionContext, Verdict, Workload
from sandtable_workloads.flash import model_files
from sandtable_workloads.flash.dense.dense_choice import setup_of
from sandtable_workloads.flash.dense.dense_demand import checked, dense_plan
from sandtable_workloads.flash.dense.dense_files import check_executed, dense_path, open_dense
from sandtable_workloads.flash.dense.dense_layout import layout_of
from sandtable_workloads.flash.dense.dense_runner import run_dense
from sandtable_workloads.flash.dense.weight_types import WEIGHT_TYPES
from sandtable_workloads.flash.flash_parameters import FlashInference
from sandtable_workloads.flash.machine_memory import Room
from sandtable_workloads.flash.runner import run_flash
from sandtable_workloads.flash.saying import caveats_of, rung_of, warnings_of
from sandtable_workloads.flash.token_demand import memory_of, plan_of
from sandtable_workloads.transformer import model_facts
from sandtable_workloads.transformer.presets import describe


class FlashInferenceWorkload(Workload[FlashInference]):
    """Decode with feed-forward weights in flash, on five rungs from reading everything to bundled neurons."""

    name: ClassVar[str] = "flash_inference"
    parameters: ClassVar[type[Frozen]] = FlashInference
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    priced_unit: ClassVar[tuple[str, float] | None] = ("mtok", 1e6)
    headlines: ClassVar[tuple[str, ...]] = ("tokens_per_s", "usd_per_mtok")

    def usual_stack(self, machine: Machine) -> str | None:
        """See `Workload.usual_stack`: eager PyTorch on NVIDIA's cards."""
        accelerator = machine.accelerator
        of_nvidia = accelerator is not None and accelerator.device.name.startswith("nvidia_")
        return "pytorch_cuda_eager" if of_nvidia else None

    def models(self) -> Iterable[str]:
        """See `Workload.models`: the presets."""
        return model_facts.model_names()

    def model_facts(self, name: str) -> Mapping[str, Any]:
        """See `Workload.model_facts`."""
        return model_facts.model_facts(name)

    def plan(self, parameters: FlashInference, machine: Machine, seed: int) -> Plan:
        """Return prefill, cold tokens and decode; see `token_demand`, and `dense.dense_demand` for dense rungs.

        Raises:
            DoesNotFit: what the system keeps of the memory would have to give way.
        """
        plan = plan_of(parameters, machine, seed) if parameters.by_neurons else dense_plan(parameters, machine)
        return replace(checked(plan, parameters, machine), notes=warnings_of(parameters, machine))

    def caveats(self, parameters: FlashInference, machine: Machine) -> Sequence[str]:
        """Return the sparsity that is assumed, or how the weights are stored and where."""
        return caveats_of(parameters, machine)

    def verdicts(self, parameters: Sequence[FlashInference], machine: Machine) -> Sequence[Verdict]:
        """Return whether each fits beside what the system keeps of the memory."""
        return [
            Room.of(machine, each.reserve_bytes).verdict(
                memory_of(each, seed=1) if each.by_neurons else setup_of(each, machine).memory()
            )
            for each in parameters
            # a budget of the neuron cache may be too small in itself, of which the plan says more
            if each.memory_budget_bytes is None
        ]

    def what_fits(self, parameters: FlashInference, machine: Machine) -> Sequence[str]:
        """Return the widest of narrower weights that fit, and that the rest may be read from storage."""
        room = Room.of(machine, parameters.reserve_bytes)
        narrower = WEIGHT_TYPES[WEIGHT_TYPES.index(parameters.weights) + 1 :]
        fitting = ["rung=auto"] if parameters.rung != "auto" else []
        for mixture in () if parameters.by_neurons else narrower:
            if room.verdict(setup_of(parameters, machine, mixture).memory()).fits:
                return (f"weights={mixture}", *fitting)
        return fitting

    def subject(self, parameters: FlashInference, machine: Machine) -> str:
        """Return the model with its count of parameters, the type of its weights, and the rung."""
        shape = parameters.shape
        return f"{describe(shape)}, {parameters.weights}, {rung_of(parameters, machine)}"

    def resolve(self, parameters: FlashInference, context: ExecutionContext) -> tuple[FlashInference, list[str]]:
        """Take fewer layers when the disk has less than twice the store's size free, and say so.

        Raises:
            DoesNotFit: not even one layer fits.
        """
        free = shutil.disk_usage(context.folder).free
        if _missing_bytes(parameters, context.folder) * 2 <= free:
            return parameters, []
        for n_layers in range(parameters.shape.n_layers - 1, 0, -1):
            smaller = parameters.model_copy(update={"layers": n_layers})
            if _missing_bytes(smaller, context.folder) * 2 <= free:
                needed = format_bytes(_disk_bytes(parameters))
                note = (
                    f"scaled down to {n_layers} of {parameters.shape.n_layers} layers: the store needs {needed} "
                    f"and {context.folder} has {format_bytes(free)} free"
                )
                return smaller, [note]
        one = parameters.model_copy(update={"layers": 1})
        raise DoesNotFit(
            f"{context.folder} has {format_bytes(free)} free; one layer of {parameters.model} needs twice "
            f"{format_bytes(_disk_bytes(one))}: choose another folder with --store"
        )

    def prepare(self, parameters: FlashInference, machine: Machine, seed: int, context: ExecutionContext) -> None:
        """Write the model's files, unless they are there already, and check that the rest fits into memory.

        Raises:
            ConfigError: these weights, or a model like this, are predicted only.
            DoesNotFit: the rest does not fit.
        """
        if not parameters.by_neurons:
            check_executed(parameters)
        needed, has = sum(self.plan(parameters, machine, seed).memory_bytes.values()), limits.memory_bytes()
        if needed > 0.9 * has:
            raise DoesNotFit(
                f"{parameters.model} on rung {parameters.rung} keeps {format_bytes(needed)} in memory and this "
                f"machine has {format_bytes(has)}: take fewer layers (such as {parameters.model}_8l), "
                "or set memory_budget"
            )
        if parameters.by_neurons:
            model_files.open_files(parameters, context.folder, context.progress)
        else:
            open_dense(layout_of(parameters.shape, parameters.weights), context.folder, context.progress)

    def execute(
        self, parameters: FlashInference, machine: Machine, seed: int, context: ExecutionContext
    ) -> Execution:
        """Read, compute and time the prompt and every token, once."""
        if parameters.by_neurons:
            return run_flash(parameters, seed, context.folder, context.n_threads)
        return run_dense(parameters, setup_of(parameters, machine), context.folder, context.n_threads)

    def example(self) -> dict[str, Any]:
        """Return a model of 60 million parameters and a handful of tokens."""
        return {"model": "opt_mini", "tokens": 3, "cold_tokens": 2, "prompt_tokens": 3, "concurrency": 8}

    def examples(self) -> Sequence[dict[str, Any]]:
        """Return the same model on every rung."""
        streams = {"stream_chunk": "3 MiB"}
        others = [self.example() | {"rung": rung} | streams for rung in ("naive", "hybrid", "predictor", "window")]
        dense = [
            self.example() | {"model": model, "weights": weights, "rung": rung} | streams
            for model, weights, rung in (("tiny_4x256", "q8_0", "hybrid"), ("opt_mini", "q4_K_M", "resident"))
        ]
        return [self.example(), *others, *dense]


def _disk_bytes(parameters: FlashInference) -> float:
    if parameters.by_neurons:
        return model_files.disk_bytes(parameters)
    return float(layout_of(parameters.shape, parameters.weights).n_bytes)


def _missing_bytes(parameters: FlashInference, folder: Path) -> float:
    if parameters.by_neurons:
        return model_files.missing_bytes(parameters, folder)
    layout = layout_of(parameters.shape, parameters.weights)
    return 0.0 if dense_path(layout, folder).exists() else float(layout.n_bytes)
