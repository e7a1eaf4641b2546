"""Steps of Megatron-LM on one machine that the authors of SimuMax published: their time, and the peak of memory.

Models are cut to their first layers; micro-batches of one sequence, the distributed optimiser, no recomputation,
nothing sent beside computation. The peak is that of allocated tensors; what the software reserves besides is left out.

Rows of one layout differ by the tensors that stand for weight gradients: most were taken with a Transformer Engine that
keeps them (from 2.3 on), whatever version is stated, a few with one that does not. The interval reaches over both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

from sandtable.hardware import Machine, library
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row
from sandtable_workloads.training import training_memory
from sandtable_workloads.training.slm_training import configuration, estimate
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.presets import preset_for

STACK = "megatron_core"
MACHINES = {"nvidia_a100_pcie": "server_8x_a100_pcie", "nvidia_b200_sxm": "dgx_b200"}
STEP, PEAK, BY_RANK = "step_s", "peak_memory_bytes", "peak_memory_bytes.by_rank"
GIB, MIB = float(1 << 30), float(1 << 20)
COUNTS = {
    "devices": "gpu_count",
    "sequence_tokens": "seq_len_tokens",
    "micro_batch": "micro_batch_seqs",
    "grad_accumulation": "grad_accum_steps",
    "tensor_parallel": "tp",
    "pipeline_parallel": "pp",
    "context_parallel": "cp",
    "virtual_stages": "vp",
    "expert_parallel": "ep",
}
FIXED: Mapping[str, Any] = {"precision": "mixed_bfloat16", "sharding": "zero_1", "overlap_gradients": False}
# what is not counted: workspaces of products, rows that pad a vocabulary, tensors of a few bytes a token
PEAK_TOLERANCE_FRAC = 0.01
KEPT_BY_SOME = "weight-gradient placeholders"


class TrainingSimumax(Adapter):
    """Time of a step, and peak of allocated memory: of the fullest rank, and of that which is predicted worst."""

    name: ClassVar[str] = "training_simumax"
    title: ClassVar[str] = "Steps of Megatron-LM on one node: time, and peak of memory"
    metrics: ClassVar[tuple[str, ...]] = (STEP, PEAK, BY_RANK)

    def predict(self, row: Row) -> Outcome:
        """Predict one run."""
        machine = _machine_of(row.text("gpu"))
        if machine is None:
            return Skipped("no machine with this accelerator")
        parameters = parameters_of(row)
        if isinstance(parameters, Skipped):
            return parameters
        outcome: list[Scored | Skipped] = []
        step = row.number("step_s") or row.number("step_time_s")
        if step:
            outcome.append(_step(row, parameters, machine, step))
        peak = row.number("peak_memory_gb") or row.number("peak_memory_gib_per_gpu")
        if peak:
            outcome.append(_peak(row, parameters, machine, peak * GIB))
        by_rank = peaks_by_rank(row)
        if by_rank:
            outcome.append(_furthest_off(row, parameters, machine, by_rank))
        return outcome or Skipped("no figure in the row")


def parameters_of(row: Row) -> SlmTraining | Skipped:
    """Return the run of a row, or why it cannot be expressed.

    Raises:
        MalformedRow: a count is missing.
    """
    model = model_of_row(row)
    if model is None:
        return Skipped("no preset of this model")
    counts = {name: int(row.number(column) or 1) for name, column in COUNTS.items()}
    if not row.number("gpu_count") or not row.number("seq_len_tokens"):
        raise MalformedRow("no count of devices or tokens")
    split = counts["tensor_parallel"] > 1 and row.text("sequence_parallel").lower() in ("on", "true", "1")
    try:
        return SlmTraining.model_validate({**FIXED, **counts, "model": model, "sequence_parallel": split})
    except ValueError as error:
        return Skipped(str(error).splitlines()[0][:80])


def model_of_row(row: Row) -> str | None:
    """Return the preset of a row's model, cut to as many layers, or None."""
    base = preset_for(re.sub(r" cut to .*", "", row.text("model")))
    layers = int(row.number("layers") or 0)
    return base and (f"{base}_{layers}l" if layers else base)


def _step(row: Row, p: SlmTraining, machine: Machine, measured: float) -> Scored:
    found = {name: float(column[0]) for name, column in estimate([p], machine).items()}
    return _scored(row, STEP, "s", (found["low_s"], found["step_s"], found["high_s"]), measured)


def _peak(row: Row, p: SlmTraining, machine: Machine, measured: float) -> Scored:
    held = training_memory.memory_of(p, configuration(p, machine), machine)
    return _scored(row, PEAK, "bytes", _ends(held), measured)


def _ends(held: Mapping[str, float]) -> tuple[float, float, float]:
    """Return the lowest, likeliest and highest peak of allocated tensors."""
    peak = sum(size for kind, size in held.items() if kind != "reserved")
    least = peak - held.get(KEPT_BY_SOME, 0.0)
    return least * (1 - PEAK_TOLERANCE_FRAC), peak, peak * (1 + PEAK_TOLERANCE_FRAC)


def peaks_by_rank(row: Row) -> list[float]:
    """Return the peak of each rank in bytes, in their order; none where the row has no such column or leaves it empty.

    Raises:
        MalformedRow: they are not as many as the devices.
    """
    figures = re.sub(r"\w+\W{0,2}[=:]", " ", row.cells.get("peak_allocated_mib_by_rank", ""))
    found = [float(figure) * MIB for figure in re.findall(r"\d+(?:\.\d+)?", figures)]
    if found and len(found) != row.number("gpu_count"):
        raise MalformedRow(f"{len(found)} peaks by rank for {row.text('gpu_count')} devices")
    return found


def _furthest_off(row: Row, p: SlmTraining, machine: Machine, measured: list[float]) -> Scored:
    """Return the rank that is predicted worst; a pipeline's stages are runs of ranks, the first stage's first."""
    c, of_stage = configuration(p, machine), p.devices // p.pipeline_parallel
    stages = range(p.pipeline_parallel)
    ends = [_ends(training_memory.memory_of_stage(p, c, machine, stage)) for stage in stages]
    pairs = [(ends[rank // of_stage], peak) for rank, peak in enumerate(measured)]
    worst, peak = max(pairs, key=lambda pair: abs(math.log(pair[0][1] / pair[1])))
    return _scored(row, BY_RANK, "bytes", worst, peak)


def _scored(row: Row, metric: str, unit: str, ends: tuple[float, float, float], measured: float) -> Scored:
    low, value, high = ends
    layout = " ".join(f"{name}{row.text(name) or 1}" for name in ("tp", "pp", "ep"))
    return Scored(
        row_id=f"line {row.line}",
        metric=metric,
        unit=unit,
        predicted=value,
        low=low,
        high=high,
        measured=measured,
        label=f"{row.text('model')} {row.text('gpu')} {layout}, {row.text('grad_accum_steps')} micro-batches",
        group=f"{row.text('model')} {row.text('gpu')}",
    )


@lru_cache(maxsize=8)
def _machine_of(gpu: str) -> Machine | None:
    """Return the machine with eight of these accelerators, None if there is none."""
    device = library.accelerator_called(re.sub(r"-\d+GB$", "", gpu))
    name = None if device is None else MACHINES.get(device.name)
    return None if name is None else library.load_machine(name, {"stack": STACK})
