"""Execute a training run on this machine and report it step by step, as the plan announces it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandtable.engine.recorder import LATENCY, Recorder
from sandtable.errors import ConfigError, DoesNotFit, NoDevice, missing_extra
from sandtable.hardware import Machine
from sandtable.results import TraceRow
from sandtable.system import limits, locks
from sandtable.units import format_bytes
from sandtable.workload.seam import Execution, ExecutionContext
from sandtable_workloads.training.executed import launcher
from sandtable_workloads.training.executed.job import Job, Record, all_records, read_result
from sandtable_workloads.training.executed.tokens import TokenFile, prepare_tokens
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

EXECUTABLE_PRECISIONS = ("float32", "bfloat16", "mixed_bfloat16")
# Adafactor's means over rows need whole matrices, which fully sharded ones are not
EXECUTABLE_OPTIMIZERS = ("adamw", "sgd", "lion", "adafactor")
# a checkpoint is written between steps that are timed, about this often
CHECKPOINT_STEPS = 50
FOLDER = "training"


def prepare(
    parameters: SlmTraining,
    machine: Machine,
    seed: int,
    context: ExecutionContext,
    planned: Mapping[str, float] | None = None,
) -> None:
    """Check that this machine can do it, and write the tokens; ``planned`` are the bytes of a device, by kind.

    Raises:
        ConfigError: something that is planned but not executed, or a text that cannot be used.
        NoDevice: PyTorch is missing, or a GPU.
        DoesNotFit: this process may not use as much memory.
    """
    check_executable(parameters)
    needed, has = sum((planned or {}).values()) * parameters.devices, limits.memory_bytes()
    if check_device(machine) == "cpu" and needed > has:
        raise DoesNotFit(
            f"{parameters.shape.name} on {parameters.devices} ranks takes {format_bytes(needed)} and this process may "
            f"use {format_bytes(has)}: take a smaller model or micro_batch, or fewer devices"
        )
    _tokens(parameters, context)


def run_training(
    parameters: SlmTraining,
    machine: Machine,
    seed: int,
    context: ExecutionContext,
    planned: Mapping[str, float] | None = None,
) -> Execution:
    """Train for real, once: all ranks, all steps; resumes where an earlier run of the same parameters broke off.

    ``planned`` are the plan's bytes by kind, whose names the measured ones take.

    Raises:
        MeasureError: a rank died.
        InUse: another process runs this very training.
    """
    check_executable(parameters)
    device = check_device(machine)
    tokens = _tokens(parameters, context)
    job = Job(
        parameters=parameters,
        seed=seed,
        folder=job_folder(parameters, seed, context.folder),
        tokens=(tokens.path, tokens.n_tokens, tokens.n_train),
        device=device,
        n_threads=max(1, context.n_threads // parameters.devices) if device == "cpu" else context.n_threads,
        checkpoint_steps=CHECKPOINT_STEPS,
    )
    with locks.claimed(job.folder, "runs this very training") as lock:
        job.folder.mkdir(parents=True, exist_ok=True)
        notes = launcher.run(job, context.progress, (lock,))
        execution = replace(execution_of(job, planned or {}), validity=tuple(notes))
        shutil.rmtree(job.folder)
    return execution


def job_folder(parameters: SlmTraining, seed: int, store: Path) -> Path:
    """Return the folder of a run: the same parameters and seed find what an earlier run left."""
    text = json.dumps(parameters.model_dump(mode="json"), sort_keys=True)
    return store / FOLDER / hashlib.sha256(f"{seed} {text}".encode()).hexdigest()[:16]


def _tokens(parameters: SlmTraining, context: ExecutionContext) -> TokenFile:
    return prepare_tokens(
        context.folder / FOLDER,
        text=parameters.text,
        tokenizer=parameters.tokenizer,
        vocabulary=parameters.shape.vocabulary,
    )


def check_executable(parameters: SlmTraining) -> None:
    """Refuse what is planned for any cluster but not executed here.

    Raises:
        ConfigError: naming the parameter.
    """
    for name in ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel"):
        if getattr(parameters, name) > 1:
            raise ConfigError(
                f"parameters.{name}: only data-parallel training is executed; set it to 1, or simulate"
            )
    for name in ("offload_optimizer", "offload_parameters"):
        if getattr(parameters, name) != "none":
            raise ConfigError(f"parameters.{name}: {getattr(parameters, name)} is simulated only; leave it out")
    if parameters.precision not in EXECUTABLE_PRECISIONS:
        names = ", ".join(EXECUTABLE_PRECISIONS)
        raise ConfigError(f"parameters.precision: {parameters.precision} is simulated only; executed are {names}")
    if parameters.moment_bytes != parameters.model_copy(update={"optimizer_dtype": None}).moment_bytes:
        raise ConfigError(
            f"parameters.optimizer_dtype: {parameters.optimizer_dtype} beside {parameters.precision} is simulated "
            "only; leave it out"
        )
    sharded = parameters.sharding.startswith("fsdp")
    executed = [name for name in EXECUTABLE_OPTIMIZERS if name != "adafactor" or not sharded]
    if parameters.optimizer not in executed:
        where = f" with sharding {parameters.sharding}" if parameters.optimizer in EXECUTABLE_OPTIMIZERS else ""
        raise ConfigError(
            f"parameters.optimizer: {parameters.optimizer}{where} is simulated only; executed are {', '.join(executed)}"
        )
    check_shape(parameters.shape)


def check_shape(shape: ModelShape) -> None:
    """Refuse a model that `sandtable_workloads.training.executed.decoder` cannot be: it is Llama-style.

    Raises:
        ConfigError: naming what it has and Llama has not.
    """
    differs = {
        "experts": shape.moe is not None,
        "latent attention": shape.latent is not None,
        "layer norms": shape.norm != "rms",
        f"{shape.norms_per_layer} norms per layer": shape.norms_per_layer != 2,
        f"{shape.positions} positions": shape.positions != "rotary",
        "a sliding window": shape.sliding_window is not None,
        "biases": shape.attention_bias or shape.output_bias or shape.ffn_bias or shape.head_bias,
        "norms of queries and keys": shape.qk_norm != "none",
        "attention sinks": shape.attention_sinks,
        "an embedding of another width": shape.embedding_dim is not None,
        "attention both ways": not shape.causal,
        "parts beside its text": shape.other_params > 0,
        f"{shape.activation} activations": shape.activation not in ("silu", "gelu", "relu"),
    }
    found = ", ".join(name for name, holds in differs.items() if holds)
    if found:
        raise ConfigError(f"parameters.model: {shape.name} has {found}; only Llama-style models are executed")


def check_device(machine: Machine) -> str:
    """Return ``cuda`` for a machine with accelerators, else ``cpu``.

    Raises:
        NoDevice: PyTorch is missing, or it sees no GPU where the machine has one.
    """
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "torch") from None
    if machine.accelerator is None:
        return "cpu"
    if not torch.cuda.is_available():
        raise NoDevice(
            f"{machine.name} trains on {machine.accelerator.processor.title} and this machine has no CUDA GPU that "
            "PyTorch sees: simulate it, or run with --machine this_machine"
        )
    return "cuda"


# --- records to steps --------------------------------------------------------------------------------------


def execution_of(job: Job, planned: Mapping[str, float]) -> Execution:
    """Return what the ranks of a finished job recorded; ``planned`` are the plan's bytes by kind.

    Raises:
        ConfigError: a step is missing, out of order or damaged, or a rank's result is.
    """
    ranks = range(job.parameters.devices)
    by_step = list(zip(*(all_records(job.folder, rank, job.n_steps) for rank in ranks), strict=True))
    summaries = [read_result(job.folder, rank) for rank in ranks]
    resident = max(summary["resident_bytes"] - summary["resident_before_bytes"] for summary in summaries)
    return Execution(
        recorder=recorded(job, by_step),
        memory_bytes=memory_of(summaries, planned),
        main_s=main_s(by_step[job.parameters.warmup_steps :]),
        process_bytes=resident if job.device == "cpu" else None,
        trace=trace_of(by_step[job.parameters.warmup_steps :]),
    )


def main_s(by_step: Sequence[Sequence[Record]]) -> tuple[float, float]:
    """Return when the first rank began the first of these steps and the last one ended the last."""
    return min(r.ended_s - r.total_s for r in by_step[0]), max(r.ended_s for r in by_step[-1])


def recorded(job: Job, by_step: Sequence[Sequence[Record]]) -> Recorder:
    """Return every step as its slowest rank saw it."""
    recorder = Recorder()
    for records in by_step:
        slowest = max(records, key=lambda record: record.total_s)
        communication_s = min(slowest.communication_s, slowest.total_s)
        row = {
            LATENCY: slowest.total_s,
            "compute_s": slowest.total_s - communication_s,
            "communication_s": communication_s,
            "forward_s": slowest.forward_s,
            "backward_s": slowest.backward_s,
            "optimizer_s": slowest.optimizer_s,
            "loss": sum(record.loss for record in records) / len(records),
            "tokens": float(job.parameters.tokens_per_step),
        }
        recorder.record("train" if slowest.step >= job.parameters.warmup_steps else "warmup", row, name="step")
    return recorder


def memory_of(summaries: Sequence[dict[str, Any]], planned: Mapping[str, float]) -> dict[str, float]:
    """Return the bytes at the peak of the rank that held most, by the kinds of the plan.

    Weights, optimiser states and the gradients' buckets are counted as they lie there. The rest of the peak can not be
    told apart by looking at it: kinds that are not counted share it as the plan does, and only their sum is measured.
    """
    most = max(summaries, key=lambda summary: summary.get("peak_bytes", 0.0))
    counted = {"weights": most["weights_bytes"], "optimizer": most["optimizer_bytes"]}
    if most["buffers_bytes"] > 0:
        counted["gradients"] = most["buffers_bytes"]
    peak = max(most.get("peak_bytes", 0.0), sum(counted.values()))
    rest = peak - sum(counted.values())
    others = {kind: size for kind, size in planned.items() if kind not in counted and size > 0}
    if not others:
        return counted | {"activations": rest}
    share = rest / sum(others.values())
    found = counted | {kind: size * share for kind, size in others.items()}
    return {kind: found[kind] for kind in (*planned, *counted) if kind in found}


def trace_of(by_step: Sequence[Sequence[Record]]) -> list[TraceRow]:
    """Return the timeline of rank 0: what each step spent on forward, backward and the optimiser."""
    rows = []
    now = 0.0
    for index, records in enumerate(by_step):
        first = records[0]
        for name, seconds in (
            ("forward", first.forward_s),
            ("backward", first.backward_s),
            ("optimizer", first.optimizer_s),
        ):
            rows.append(TraceRow(track="compute", name=name, start_s=now, end_s=now + seconds, step=index))
            now += seconds
    return rows
