"""Training throughput that others published: a row becomes parameters of ``slm_training`` on a machine of the library.

Rows state a speed in different ways: tokens per second, step time, model or hardware FLOP/s per GPU, utilisation. Each
is brought to tokens per second and GPU by the source's own arithmetic, so that one metric covers the file; rows with a
step time are scored on that too. Where a source leaves a choice open and says that the best one was taken, the
prediction takes the best one too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.hardware import Machine, library
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import Row
from sandtable.studies.evaluate import estimated
from sandtable.studies.study import Study
from sandtable_workloads.training import metrics
from sandtable_workloads.training.training_parameters import SlmTraining

SPEED, FASTEST = "tokens_per_s", "max tokens_per_s"
TOKENS, STEP = "tokens_per_s_per_device", "step_s"
TERA = 1e12
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What one group of rows leaves unsaid, and its source says.

    Attributes:
        stack: Software that the runs used.
        machines: From the row's GPU to a machine of the library.
        parameters: Of ``slm_training``, where the row is silent.
        choices: Parameters of which the source took the best, with what it chose from.
        stated: What words of the row mean in this source: from a parameter to the values that replace others.
        flops: How the source counts the FLOP/s it prints, see `_flops_per_token`.
        tokens: Of a whole run, for rows that state its GPU-hours only.
    """

    stack: str
    machines: Mapping[str, str]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    stated: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    flops: str = "model"
    tokens: float | None = None


DGX = {
    "A100-80GB": "dgx_a100_80gb",
    "A100-40GB": "dgx_a100_40gb",
    "H100": "dgx_h100",
    "H100-SXM-80GB": "dgx_h100",
    "H200-SXM-141GB": "dgx_h200",
    "B200": "dgx_b200",
    "B300": "dgx_b300",
    "GB200": "gb200_nvl72",
    "GB300": "gb300_nvl72",
    "V100-SXM2-16GB": "server_8x_v100_16gb",
    "V100-SXM2-32GB": "dgx_1_v100",
}
OCI = DGX | {"A100-80GB": "oci_bm_gpu_a100_8", "A100-40GB": "oci_bm_gpu4_8"}
META = DGX | {"H100-96GB-HBM2e-500W": "grand_teton_h100_96gb"}
WORKSTATIONS = {
    "RTX 4090": "desktop_4x_rtx4090",
    "RTX 5090": "desktop_4x_rtx5090",
    "RTX PRO 6000": "server_8x_rtx_pro_6000",
    "L40S": "server_4x_l40s",
    "H100": "dgx_h100",
}
# arXiv 2104.04473, section 5: "we use the optimal microbatch size", interleaved where there are stages
MEGATRON_2021_CHOICES: Mapping[str, tuple[Any, ...]] = {"micro_batch": (1, 2, 4, 8), "virtual_stages": (1, 2, 3)}
# NVIDIA's recipes of 2024 and 2025: distributed optimiser, sequence parallelism, tensor collectives beside products
TRANSFORMER_ENGINE: Mapping[str, Any] = {"sharding": "zero_1", "sequence_parallel": True, "overlap_tensor": True}
SOURCES: dict[str, Source] = {
    "llm-foundry": Source(stack="llm_foundry", machines=OCI, parameters={"reduce_dtype": "float32"}),
    # Megatron-LM of 2022, megatron/mpu/layers.py: ColumnParallelLinearWithAsyncAllreduce
    "megatron-seqsel": Source(
        stack="megatron_lm",
        machines=DGX,
        parameters={"attention": "vanilla", "overlap_gradients": False, "overlap_input_gradients": True},
    ),
    "megatron-2021": Source(
        stack="megatron_lm",
        machines=DGX,
        parameters={"precision": "mixed_float16", "attention": "vanilla", "overlap_gradients": False},
        choices=MEGATRON_2021_CHOICES,
        flops="megatron",
    ),
    # arXiv 2201.11990, section 2.3: micro-batch 1 and 1F1B on Selene's 80 GB nodes
    "mt-nlg": Source(
        stack="megatron_lm",
        machines={"A100-SXM (40GB per llm-analysis; paper memory size not checked)": "dgx_a100_80gb"},
        parameters={
            "model": "MT-NLG-530B",
            "micro_batch": 1,
            "checkpointing": "full",
            "precision": "mixed_bfloat16",
            "attention": "vanilla",
            "overlap_gradients": False,
        },
    ),
    # NVIDIA/NeMo-Megatron-Launcher launcher_scripts/conf/training/gpt3/5b.yaml: micro-batch 4, distributed Adam
    # with attention of separate kernels (transformer_engine off)
    "nemo-launcher-23.07": Source(
        stack="megatron_lm",
        machines=DGX,
        parameters={
            "micro_batch": 4,
            "sharding": "zero_1",
            "reduce_dtype": "bfloat16",
            "global_batch": 2048,
            "attention": "vanilla",
            "overlap_input_gradients": True,
        },
    ),
    "nemo-24.07": Source(stack="megatron_te", machines=DGX, parameters=TRANSFORMER_ENGINE),
    "nemo-24.07-ft": Source(stack="megatron_te", machines=DGX, parameters=TRANSFORMER_ENGINE),
    "nemo-24.07-long": Source(stack="megatron_te", machines=DGX, parameters=TRANSFORMER_ENGINE),
    "megatron-bridge-25.11": Source(stack="megatron_te", machines=DGX, parameters=TRANSFORMER_ENGINE),
    # tensor parallelism there always splits norms over the group too
    "torchtitan-2024-a100": Source(stack="torchtitan", machines=META, parameters={"sequence_parallel": True}),
    "torchtitan-2025-06": Source(stack="torchtitan", machines=META, parameters={"sequence_parallel": True}),
    "torchtitan-trainy": Source(stack="torchtitan", machines=META),
    "pytorch-fsdp-ibm": Source(
        stack="torchtitan",
        machines=META,
        # pytorch.org/blog/maximizing-training: sequence 4096, two per GPU, selective checkpointing, FSDP
        parameters={"sequence_tokens": 4096, "micro_batch": 2, "sharding": "fsdp_full"},
    ),
    "kempnerforge": Source(
        stack="torchtitan",
        machines={"H200-SXM-141GB": "server_4x_h200"},
        parameters={"sequence_tokens": 4096, "sequence_parallel": True},
        choices={"micro_batch": (1, 2, 4)},
    ),
    # karpathy/llm.c discussion 677: 16 sequences of 1024 per GPU, a million tokens a step, sharded optimiser
    "llm.c": Source(
        stack="llmq",
        machines=DGX,
        parameters={
            "sequence_tokens": 1024,
            "micro_batch": 16,
            "global_batch": 1024,
            "sharding": "zero_1",
            "reduce_dtype": "bfloat16",
        },
    ),
    # IST-DASLab/llmq src/binding/python/training.py, TrainingConfig: what it does where a run does not say otherwise
    "llmq": Source(
        stack="llmq",
        machines=WORKSTATIONS,
        parameters={
            "sequence_tokens": 1024,
            "grad_accumulation": 4,
            "sharding": "zero_1",
            "reduce_dtype": "bfloat16",
            "optimizer_dtype": "float32",
        },
        # its weights and gradients are bfloat16, without copies that are wider
        stated={"precision": {"mixed_bfloat16": "bfloat16"}},
    ),
    "dlperf-2021": Source(
        stack="megatron_lm",
        machines=DGX,
        parameters={"attention": "vanilla", "overlap_gradients": False, "checkpointing": "full"},
    ),
    # arXiv 2302.13971, section 2.4 and table 2: 4M tokens a batch on 2048 GPUs, activations partly kept; 1.4T tokens
    "llama1-gpu-hours": Source(
        stack="megatron_lm",
        machines=DGX,
        tokens=1.4e12,
        parameters={
            "devices": 2048,
            "micro_batch": 1,
            "sequence_tokens": 2048,
            "sharding": "fsdp_full",
            "checkpointing": "alternate",
            "precision": "mixed_bfloat16",
        },
    ),
}
# rows that numbers in the library are made from: the sustained rate of the H100, and products in torchtitan's steps
ANCHORS: tuple[Mapping[str, str], ...] = (
    {
        "source_group": "llm-foundry",
        "model": "MPT-13b",
        "gpu": "H100-SXM-80GB",
        "gpu_count": "8",
        "precision": "amp_bf16",
        "seq_len_tokens": "1024",
    },
    {"source_group": "torchtitan-2024-a100", "model": "Llama-2-13B", "act_checkpointing": "none"},
)
SHARDING = {
    "full_shard": "fsdp_full",
    "shard_grad_op": "fsdp_grad_op",
    "fsdp": "fsdp_full",
    "fsdp2": "fsdp_full",
    "ddp": "ddp",
}
CHECKPOINTING = {
    "true": "full",
    "false": "none",
    "": "none",
    "none": "none",
    "full": "full",
    # torchtitan: every second layer, or every second product of each
    "selective": "alternate",
}
PRECISIONS = {
    "amp_bf16": "mixed_bfloat16",
    "bf16": "mixed_bfloat16",
    "float16": "mixed_float16",
    "amp_fp16": "mixed_float16",
    "mixed fp16": "mixed_float16",
    "amp_fp8": "mixed_fp8",
    "fp8": "mixed_fp8",
    "": "mixed_bfloat16",
}


class TrainingThroughput(Adapter):
    """Steps of whole training runs, by the closed form of `slm_training`."""

    name: ClassVar[str] = "training_throughput"
    title: ClassVar[str] = "Throughput of training runs, 125M to 1T parameters"
    metrics: ClassVar[tuple[str, ...]] = (TOKENS, STEP)

    def predict(self, row: Row) -> Outcome:
        """Predict one row."""
        candidates = candidates_of(row)
        if isinstance(candidates, Skipped):
            return candidates
        found = _best(candidates)
        if isinstance(found, Skipped):
            return found
        parameters, machine, predicted = found
        measured = measured_tokens(row, parameters, machine)
        if isinstance(measured, Skipped):
            return measured
        step_s = parameters.tokens_per_step / (measured * parameters.devices)
        outcome: list[Scored | Skipped] = [_scored(row, TOKENS, predicted, measured, parameters)]
        if row.number("step_time_s"):
            outcome.append(_scored(row, STEP, predicted, row.number("step_time_s") or step_s, parameters))
        return outcome


def _scored(
    row: Row, metric: str, predicted: Mapping[str, float], measured: float, parameters: SlmTraining
) -> Scored:
    tokens = parameters.tokens_per_step / parameters.devices
    step, ends = predicted["step_s"], (predicted["low_s"], predicted["high_s"])
    low, value, high = (
        (ends[0], step, ends[1]) if metric == STEP else (tokens / ends[1], tokens / step, tokens / ends[0])
    )
    label = " ".join((row.text("source_group"), row.text("model"), row.text("gpu"), f"x{parameters.devices}"))
    return Scored(
        row_id=f"line {row.line}",
        metric=metric,
        unit=units.unit_of(metric),
        predicted=value,
        low=low,
        high=high,
        measured=measured,
        label=f"{label}, {parameters.sequence_tokens} tokens x {parameters.micro_batch}",
        group=row.text("source_group"),
    )


# --- a row's configuration ---------------------------------------------------------------------------------------


def candidates_of(row: Row) -> Study | Skipped:
    """Return a row's run with all that its source leaves open, to take the fastest, or why it cannot be expressed."""
    group = row.text("source_group")
    if _is_anchor(row):
        return Skipped("an anchor: a number in the library is made from this row")
    if group == "tinyllama":
        return Skipped("total GPU-hours of a run, without batch and layout")
    source = SOURCES.get(group)
    if source is None:
        return Skipped("a record of a changing model, no single configuration")
    reason = _not_modelled(row)
    if reason:
        return Skipped(reason)
    machine = source.machines.get(row.text("gpu"))
    if machine is None or machine not in library.device_files("machine"):
        return Skipped("no machine with this accelerator")
    base = dict(source.parameters) | _stated(row)
    for name, meanings in source.stated.items():
        base[name] = meanings.get(base.get(name), base.get(name))
    open_choices = Study(name=group, axes={name: list(values) for name, values in source.choices.items()})
    candidates = [_completed(base | point.changes) for point in open_choices.points()]
    complete = tuple(candidate for candidate in candidates if not isinstance(candidate, str))
    if not complete:
        return Skipped(str(candidates[-1]))
    on = {"machine": _machine(machine, source.stack)}
    return Study(name=group, workload="slm_training", changes=on, cases=complete, fits=False, objective=FASTEST)


def _is_anchor(row: Row) -> bool:
    """Whether a number in a device or stack file is from this row."""
    return any(all(row.text(column) == text for column, text in anchor.items()) for anchor in ANCHORS)


def _not_modelled(row: Row) -> str:
    model, note = row.text("model").lower(), row.text("config_note").lower()
    if re.match(r"m?t5", model):
        return "an encoder-decoder"
    if model.startswith("bert"):
        return "an encoder on sequences of different lengths"
    if "lora" in note:
        return "adapters, no training of all weights"
    if "offload" in note and "offload false" not in note:
        return "states or activations offloaded to the host"
    return ""


def _stated(row: Row) -> dict[str, Any]:
    """Return the parameters that the row states."""
    numbers = {
        "devices": "gpu_count",
        "sequence_tokens": "seq_len_tokens",
        "micro_batch": "micro_batch_seqs",
        "grad_accumulation": "grad_accum_steps",
        "global_batch": "global_batch_seqs",
        "tensor_parallel": "tp",
        "pipeline_parallel": "pp",
        "context_parallel": "cp",
        "virtual_stages": "vp",
        "expert_parallel": "ep",
    }
    found: dict[str, Any] = {}
    for name, column in numbers.items():
        value = row.number(column)
        if value:
            found[name] = int(value)
    if row.text("source_group") != "mt-nlg":
        found["model"] = row.text("model").replace("Llama-style", "Llama-2")
    return found | _words(row)


def _words(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sharding = row.text("fsdp_or_sharding").lower().split(" ")[0]
    if sharding in SHARDING:
        found["sharding"] = SHARDING[sharding]
    recompute = row.text("act_checkpointing").lower()
    if recompute:
        found["checkpointing"] = CHECKPOINTING.get(recompute.split(" ")[0], "none")
        if "sequence parallel" in recompute:
            found |= {"sequence_parallel": True, "checkpointing": "selective"}
    precision = row.text("precision").lower()
    if precision:
        found["precision"] = PRECISIONS.get(precision) or (
            "mixed_fp8" if "8" in precision.partition("-")[0] else "mixed_bfloat16"
        )
    if "async tp" in row.text("config_note").lower():
        found["overlap_tensor"] = True
    return found


def _completed(parameters: dict[str, Any]) -> dict[str, Any] | str:
    """Fill in what follows from the rest, or return why nothing does.

    A global batch that a micro-batch and the replicas divide gives the number of micro-batches; one that states only
    the replicas gives the micro-batch.
    """
    found: dict[str, Any] = {"precision": "mixed_bfloat16"} | parameters
    total = found.pop("global_batch", None)
    if "devices" not in found or "sequence_tokens" not in found:
        return "number of devices or sequence length not stated"
    groups = found.get("tensor_parallel", 1) * found.get("pipeline_parallel", 1) * found.get("context_parallel", 1)
    replicas = max(1, found["devices"] // groups)
    if "micro_batch" not in found:
        if total is None:
            return "micro-batch not stated"
        found["micro_batch"] = max(1, total // (replicas * found.get("grad_accumulation", 1)))
    if total is not None:
        found["grad_accumulation"] = max(1, round(total / (replicas * found["micro_batch"])))
    if found.get("tensor_parallel", 1) == 1:
        found.pop("sequence_parallel", None)
    return found


# --- figures -------------------------------------------------------------------------------------------------------


def measured_tokens(row: Row, parameters: SlmTraining, machine: Machine) -> float | Skipped:
    """Return tokens per second and device from whatever figure a row has."""
    per_device, total = row.number("throughput_tokens_per_s_per_gpu"), row.number("throughput_tokens_per_s")
    if per_device:
        return per_device
    if total:
        return total / parameters.devices
    step = row.number("step_time_s")
    if step:
        return parameters.tokens_per_step / step / parameters.devices
    source = SOURCES[row.text("source_group")]
    hours = row.number("gpu_hours_total")
    if hours and source.tokens:
        return source.tokens / (hours * SECONDS_PER_HOUR)
    rate = row.number("hardware_tflops_per_s_per_gpu") if source.flops == "megatron" else None
    if rate:
        return rate * TERA / _megatron_flops_per_token(parameters)
    flops = metrics.model_flops_per_token(parameters.shape, parameters.sequence_tokens)
    model_rate = row.number("model_tflops_per_s_per_gpu")
    if model_rate:
        return model_rate * TERA / flops
    utilisation = row.number("mfu_percent")
    peak = metrics.peak_flops_per_s(parameters, machine) if utilisation else None
    if utilisation and peak:
        return utilisation / 100 * peak / flops
    return Skipped("no speed in the row")


def _megatron_flops_per_token(parameters: SlmTraining) -> float:
    """Return the FLOPs per token of arXiv 2104.04473, equation 3; the layers count four times, for recomputation."""
    shape = parameters.shape
    layers, width = shape.n_layers, shape.d_model
    share = 1 + parameters.sequence_tokens / (6 * width) + shape.vocabulary / (16 * layers * width)
    return 96 * layers * width**2 * share


# --- predictions -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _machine(name: str, stack: str) -> Machine:
    return library.load_machine(name, {"stack": stack})


def _best(candidates: Study) -> tuple[SlmTraining, Machine, Mapping[str, float]] | Skipped:
    """Return the fastest candidate that can be laid out, where it runs, and its prediction."""
    try:
        found = estimated(candidates)
    except ConfigError as error:
        return Skipped(re.sub(r"\s+", " ", str(error)).partition(" (did you mean")[0][:80])
    if not found.runs.any():
        return Skipped(next(iter(found.dropped())))
    steps = [p.tokens_per_step if isinstance(p, SlmTraining) else 0 for p in found.parameters]
    best = found.also({SPEED: np.array(steps) / found.column("step_s")}).best()
    assert best is not None
    parameters = found.parameters[best]
    assert isinstance(parameters, SlmTraining)
    return parameters, found.machines[best], {name: float(column[best]) for name, column in found.columns.items()}
