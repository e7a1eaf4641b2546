"""Memory of Megatron's models, published in "Reducing Activation Recomputation" (arXiv 2205.05198), Figures 1 and 7.

The figures count the layers of one device: 18 bytes of states a parameter, and the activations of section 4, embedding
and output left out. So the prediction is that of a stage's layers; the peak of a whole run holds more.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

from sandtable.hardware import Machine, library
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row
from sandtable_workloads.training import training_memory
from sandtable_workloads.training.slm_training import configuration
from sandtable_workloads.training.training_parameters import SlmTraining

MACHINE, STACK = "dgx_a100_80gb", "megatron_lm"
GIB = float(1 << 30)
STATES, ACTIVATIONS = "parameters+optimizer memory", "activation memory"
RELATIVE = "activation memory relative to TP baseline"
# word of the file -> what it turns on
RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "seq": {"sequence_parallel": True},
    "sel": {"checkpointing": "selective"},
    "seqsel": {"sequence_parallel": True, "checkpointing": "selective"},
    "full": {"checkpointing": "full"},
}
# arithmetic, so what remains is rounding in print and the embedding's own activations
LOW_FRAC, HIGH_FRAC = 0.98, 1.02


class TrainingMemoryMegatron(Adapter):
    """Bytes of states and activations, by counting."""

    name: ClassVar[str] = "training_memory_megatron"
    title: ClassVar[str] = "Memory of Megatron models, arXiv 2205.05198: states and activations per GPU"
    metrics: ClassVar[tuple[str, ...]] = ("states_bytes", "activations_bytes", "activations_frac")

    def predict(self, row: Row) -> Outcome:
        """Predict one figure of one model."""
        quantity, recompute = row.text("quantity"), row.text("recompute")
        if recompute not in RECOMPUTE:
            return Skipped(f"recompute {recompute!r} is not known")
        parameters = parameters_of(row)
        held = _held(parameters | RECOMPUTE[recompute])
        value = row.number("value")
        if value is None:
            return Skipped("no figure in the row")
        if quantity == STATES:
            return [self._scored(row, "states_bytes", "bytes", held["states"], value * GIB)]
        if quantity == ACTIVATIONS:
            return [self._scored(row, "activations_bytes", "bytes", held["activations"], value * GIB)]
        if quantity != RELATIVE:
            return Skipped(f"quantity {quantity!r} is not modelled")
        if recompute == "none":
            return Skipped("the baseline itself")
        share = held["activations"] / _held(parameters)["activations"]
        return [self._scored(row, "activations_frac", "", share, value / 100)]

    def _scored(self, row: Row, metric: str, unit: str, predicted: float, measured: float) -> Scored:
        return Scored(
            row_id=f"line {row.line}",
            metric=metric,
            unit=unit,
            predicted=predicted,
            low=predicted * LOW_FRAC,
            high=predicted * HIGH_FRAC,
            measured=measured,
            label=f"{row.text('model')} {row.text('quantity')} {row.text('recompute')}",
            group=row.text("model"),
        )


def parameters_of(row: Row) -> dict[str, Any]:
    """Return the run of a row, nothing recomputed."""
    counts = {
        "sequence_tokens": "seq_len_tokens",
        "micro_batch": "micro_batch_seqs",
        "tensor_parallel": "tp",
        "pipeline_parallel": "pp",
        "virtual_stages": "vp",
        "devices": "gpu_count",
    }
    parameters: dict[str, Any] = {key: _whole(row, column) for key, column in counts.items()}
    per_replica = parameters["devices"] // (parameters["tensor_parallel"] * parameters["pipeline_parallel"])
    batch = parameters["micro_batch"] * max(1, per_replica)
    return parameters | {
        "model": row.text("model"),
        "grad_accumulation": max(1, _whole(row, "global_batch_seqs") // batch),
        "precision": "mixed_float16",
        "attention": "vanilla",
    }


def _whole(row: Row, column: str) -> int:
    value = row.number(column)
    if value is None:
        raise MalformedRow(f"no {column}")
    return int(value)


def _held(parameters: dict[str, Any]) -> dict[str, float]:
    run, machine = SlmTraining.model_validate(parameters), _machine()
    return training_memory.layer_memory(run, configuration(run, machine), machine.stack)


@lru_cache(maxsize=1)
def _machine() -> Machine:
    return library.load_machine(MACHINE, {"stack": STACK})
