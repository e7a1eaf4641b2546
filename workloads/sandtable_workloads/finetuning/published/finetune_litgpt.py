"""Fine-tuning and decoding with Lit-GPT on A100s: memory, time of an iteration, tokens per second.

The source trains on Alpaca, padded to the longest sequence of each micro-batch; the longest of all comes first and
sets the memory. An iteration is one micro-batch. Its time follows from the mean length of the longest in a
micro-batch, of lengths that are log-normal with the mean and the longest of the data.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from sandtable import units
from sandtable.errors import ConfigError, PlanError
from sandtable.hardware import Machine, StackDatasheet, library
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import Row
from sandtable_workloads.finetuning import finetuning_memory, finetuning_times
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning
from sandtable_workloads.transformer.shapes import ModelShape

MEMORY, ITERATION, DECODE = "memory_bytes", "iteration_s", "decode_tokens_per_s"
STACK = "litgpt"
MACHINES = {"A100-SXM4-40GB": "dgx_a100_40gb"}
GIGA = 1e9
ADAPTERS = {"LoRA": "lora", "LoRA multi-GPU": "lora", "Adapter": "adapter", "Adapter v2": "adapter_v2"}
QUANTIZATION = {"none": "none", "bnb.nf4": "nf4", "bnb.nf4-dq": "nf4_dq"}
# tokens of the longest training sample by tokenizer (Lightning-AI/litgpt tutorials/resource-tables.md); models that
# are not listed split text like the first entry
LONGEST = {"": 1034, "llama": 1304, "mistral": 1304, "phi": 1044, "falcon": 1079}
# 52 002 samples in 47 764 738 bytes, of which the text with its template is stored twice but for the template, some
# 170 bytes (datasets/disham993/alpaca-train-validation-test-split, README.md); litgpt keeps 2000 samples for tests
MEAN_TEXT_BYTES, N_TRAINING = 540.0, 49759
# guess: usual for English and vocabularies of some 50 000; other tokenizers in proportion to the longest sample
BYTES_PER_TOKEN = 4.4
# generate/base.py: one run that starts cold, six tokens of prompt and fifty new ones
PROMPT_TOKENS, NEW_TOKENS = 6, 50
# constants of the stack are made from these rows: task, model, quantization -> metric
ANCHORS = {
    ("finetune Adapter", "StableLM-Alpha 3B", "none"): ITERATION,
    ("single-GPU inference bs1", "StableLM-Alpha 3B", "none"): DECODE,
}
# finetune/lora.py: the time that it prints covers a first validation, of so many batches and one sample of so many
# tokens, beside the 1000 iterations
VALIDATION_BATCHES, VALIDATION_TOKENS, N_ITERATIONS = 100, 100, 1000
# the counted bytes leave out the allocator's rounding and what libraries take
MEMORY_SPREAD = 1.1
# guess: an A100 shows 39.4 GiB of its 40, and a CUDA context takes half a GiB of them
RESERVED_BYTES = 1.1 * 2**30


class FinetuneLitgpt(Adapter):
    """Lit-GPT's resource tables."""

    name: ClassVar[str] = "finetune_litgpt"
    title: ClassVar[str] = "Lit-GPT: LoRA and adapters, and decoding, on A100 40 GB"
    metrics: ClassVar[tuple[str, ...]] = (MEMORY, ITERATION, DECODE)

    def predict(self, row: Row) -> Outcome:
        """Predict one row."""
        if row.text("outcome") == "OOM":
            return Skipped("out of memory: a verdict, no figure")
        found = predicted(row)
        if isinstance(found, Skipped):
            return found
        measured = {
            MEMORY: (row.number("max_gpu_memory_gb") or 0.0) * GIGA,
            ITERATION: (row.number("time_per_1k_iterations_min") or 0.0) * 60 / 1000,
            DECODE: row.number("decode_tokens_per_s") or 0.0,
        }
        anchor = ANCHORS.get((row.text("task"), row.text("model"), row.text("quantization")))
        return [
            Skipped("an anchor: the stack is made from this cell", metric)
            if metric == anchor
            else _scored(row, metric, value, measured[metric])
            for metric, value in found.items()
            if measured[metric]
        ]


def _scored(row: Row, metric: str, value: float, measured: float) -> Scored:
    sheet = _stack_sheet(row)
    low, high = (
        (1 / MEMORY_SPREAD, MEMORY_SPREAD)
        if metric == MEMORY
        else (1 / sheet.residual_high_frac, 1 / sheet.residual_low_frac)
    )
    label = " ".join((row.text("task"), row.text("model"), row.text("quantization"), f"x{row.text('gpu_count')}"))
    return Scored(
        row_id=f"line {row.line}",
        metric=metric,
        unit=units.unit_of(metric),
        predicted=value,
        low=value * low,
        high=value * high,
        measured=measured,
        label=f"{label}, micro-batch {row.text('micro_batch_seqs')}",
        group=row.text("task"),
    )


def _stack_sheet(row: Row) -> StackDatasheet:
    stack = _machine(MACHINES[row.text("gpu")]).stack
    assert stack is not None
    return stack.datasheet


def predicted(row: Row) -> dict[str, float] | Skipped:
    """Return a row's figures by metric, whether they fit or not, or why there are none."""
    machine_name = MACHINES.get(row.text("gpu"))
    quantization = QUANTIZATION.get(row.text("quantization"))
    if machine_name is None:
        return Skipped("no machine with this accelerator")
    if quantization is None:
        return Skipped("packed in another way")
    decoding = row.text("task").startswith("single-GPU inference")
    adapter = ADAPTERS.get(row.text("task").removeprefix("finetune "))
    if adapter is None and not decoding:
        return Skipped("another kind of adapter")
    machine = _machine(machine_name)
    try:
        if decoding:
            return _decoding(row, quantization, machine)
        return _training(row, str(adapter), quantization, machine)
    except (PlanError, ConfigError, ValueError) as error:
        return Skipped(str(error).splitlines()[0][:80])


def does_not_fit(row: Row) -> bool | Skipped:
    """Return whether the prediction is that a row runs out of memory."""
    found = predicted(row)
    if isinstance(found, Skipped):
        return found
    accelerator = _machine(MACHINES[row.text("gpu")]).accelerator
    assert accelerator is not None
    return found[MEMORY] > accelerator.memory.datasheet.capacity_bytes - RESERVED_BYTES


def _training(row: Row, adapter: str, quantization: str, machine: Machine) -> dict[str, float]:
    devices, micro_batch = int(row.number("gpu_count") or 1), int(row.number("micro_batch_seqs") or 1)
    longest = longest_tokens(row.text("model"))
    common = {
        "model": row.text("model"),
        "adapter": adapter,
        "quantization": quantization,
        "precision": "bfloat16",
        "micro_batch": micro_batch,
        "devices": devices,
        # finetune/lora.py: the batch is counted per device
        "grad_accumulation": max(1, int(row.number("global_batch_seqs") or 1) // micro_batch),
        **({"sharding": "fsdp_full", "checkpointing": "full"} if devices > 1 else {}),
    }
    usual = max(8, round(padded_tokens(longest, micro_batch * devices)))
    run, shape = _run(common, longest)
    held = finetuning_memory.memory_of(run, shape)
    times = finetuning_times.iteration_s(*_run(common, usual), machine)
    validated = (VALIDATION_BATCHES + VALIDATION_TOKENS) * times["inference_s"] / N_ITERATIONS
    return {MEMORY: sum(held.values()), ITERATION: times["step_s"] + validated}


def _decoding(row: Row, quantization: str, machine: Machine) -> dict[str, float]:
    common = {
        "model": row.text("model"),
        "precision": "bfloat16",
        "quantization": quantization,
        "adapter": "lora",
        "micro_batch": 1,
    }
    run, shape = _run(common, PROMPT_TOKENS + NEW_TOKENS)
    times = finetuning_times.token_s(run, shape, machine)
    rate = NEW_TOKENS / (times["start_s"] + NEW_TOKENS * times["token_s"])
    return {MEMORY: sum(finetuning_memory.decode_memory_of(run, shape).values()), DECODE: rate}


def _run(values: dict[str, Any], tokens: int) -> tuple[Finetuning, ModelShape]:
    run = Finetuning.model_validate(values | {"sequence_tokens": tokens}, context=units.AT_EDGE)
    return run, run.shape


@lru_cache(maxsize=8)
def _machine(name: str) -> Machine:
    return library.load_machine(name, {"stack": STACK})


# --- lengths -----------------------------------------------------------------------------------------------------


def longest_tokens(model: str) -> int:
    """Return the tokens of the longest training sample, as this model's tokenizer splits it."""
    found = [tokens for family, tokens in LONGEST.items() if family and family in model.lower()]
    return found[0] if found else LONGEST[""]


def padded_tokens(longest: int, n_sequences: int) -> float:
    """Return the mean of the longest of ``n_sequences``, by the middles of 2000 equal shares of probability."""
    mean = MEAN_TEXT_BYTES / BYTES_PER_TOKEN * longest / LONGEST[""]
    shares = (np.arange(2000) + 0.5) / 2000
    spread = log_spread(mean, longest)
    quantiles = mean * np.exp(spread * _normal_quantiles(shares ** (1 / n_sequences)) - spread**2 / 2)
    return float(np.minimum(quantiles, longest).mean())


def log_spread(mean: float, longest: float) -> float:
    """Return the spread of logarithms at which the longest of all samples is ``longest``: s z - s^2 / 2 = log ratio."""
    z = float(_normal_quantiles(np.array([1 - 1 / N_TRAINING]))[0])
    return z - math.sqrt(max(0.0, z * z - 2 * math.log(longest / mean)))


def _normal_quantiles(shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return quantiles of the normal distribution."""
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf(float(share)) for share in shares])
