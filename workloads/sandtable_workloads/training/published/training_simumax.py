"""Steps of Megatron-LM on one machine that the authors of SimuMax published: their time, and the peak of memory.

Models are cut to their first layers; micro-batches of one sequence, the distributed optimiser, no recomputation,
nothing sent beside computation. The peak is that of allocated tensors; what the software reserves besides is left out.
"""

from __future__ import annotations

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
STEP, PEAK = "step_s", "peak_memory_bytes"
GIB = float(1 << 30)
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
# the closed form's own tolerance for tensors that come and go within an operator, as the measured memory suites have it
PEAK_TOLERANCE_FRAC = 0.02


class TrainingSimumax(Adapter):
    """Time of a step and peak of allocated memory, one node, by the closed forms of `slm_training`."""

    name: ClassVar[str] = "training_simumax"
    title: ClassVar[str] = "Steps of Megatron-LM on one node: time, and peak of memory"
    metrics: ClassVar[tuple[str, ...]] = (STEP, PEAK)

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
    peak = sum(size for kind, size in held.items() if kind != "reserved")
    ends = (peak * (1 - PEAK_TOLERANCE_FRAC), peak, peak * (1 + PEAK_TOLERANCE_FRAC))
    return _scored(row, PEAK, "bytes", ends, measured)


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
