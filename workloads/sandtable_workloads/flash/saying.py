"""What an answer about inference rests on, in sentences: assumed sparsity, the rung and weights that were chosen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sandtable.hardware import Machine
from sandtable_workloads.flash.dense.dense_choice import DenseSetup, setup_of
from sandtable_workloads.flash.dense.weight_types import FLOATS, WEIGHT_TYPES
from sandtable_workloads.flash.flash_parameters import FlashInference
from sandtable_workloads.flash.known_sparsity import has_known_sparsity, sparsity_of
from sandtable_workloads.flash.neuron_traces import active_fractions


def caveats_of(parameters: FlashInference, machine: Machine) -> tuple[str, ...]:
    """Return what the answer rests on, the most important first."""
    shape = parameters.shape
    notes = (*shape.notes, "what is not run is not loaded either") if shape.other_params else shape.notes
    if parameters.is_sparse:
        return (_sparsity(parameters), *notes)
    if parameters.by_neurons:
        return notes
    return (*_chosen(parameters, setup_of(parameters, machine), machine), *notes)


def warnings_of(parameters: FlashInference, machine: Machine) -> tuple[str, ...]:
    """Return those of the caveats that a user should not miss: none where a model is sparse by itself, as published."""
    if parameters.is_sparse and _has_relu(parameters) and parameters.active_frac is None:
        return parameters.shape.notes
    packed = () if parameters.by_neurons else _packed(parameters, setup_of(parameters, machine))
    return (*packed, *caveats_of(parameters, machine))


def _packed(parameters: FlashInference, setup: DenseSetup) -> Iterator[str]:
    """Yield what packed weights take, beside what they would take as they are; no answer hangs on that."""
    if setup.layout.mixture not in FLOATS and not setup.streamed_bytes and not setup.transfers:
        stored, whole = setup.layout.n_bytes / 1e9, 2 * parameters.shape.n_params / 1e9
        yield f"weights as {setup.layout.mixture} take {stored:.3g} GB; the model as float16 takes {whole:.3g} GB"


def _has_relu(parameters: FlashInference) -> bool:
    return parameters.shape.activation in ("relu", "relu2")


def rung_of(parameters: FlashInference, machine: Machine) -> str:
    """Return the rung, the one that was chosen where that is left open."""
    return parameters.rung if parameters.by_neurons else setup_of(parameters, machine).rung


def _sparsity(parameters: FlashInference) -> str:
    shape = parameters.shape
    if parameters.trace is not None:
        return f"assumes that {shape.name} skips neurons as in the recorded trace: needs a ReLU"
    share = f"{100 * float(np.mean(active_fractions(parameters))):.3g} % of its neurons"
    known = has_known_sparsity(shape)
    basis = (
        f"as published for {sparsity_of(shape).name}" if known and parameters.active_frac is None else "as given"
    )
    if _has_relu(parameters):
        return f"assumes that {shape.name}, whose ReLU makes it sparse, needs {share} for a token, {basis}"
    return (
        f"needs a version of {shape.name} that was trained on with a ReLU, and assumes that it needs {share} for a "
        f"token, {basis}; without a rung or share of your own the model is taken as it is"
    )


def _chosen(parameters: FlashInference, setup: DenseSetup, machine: Machine) -> Iterator[str]:
    shape, total = parameters.shape, setup.layout.n_bytes
    stored = f"weights as {setup.layout.mixture} take {total / 1e9:.3g} GB"
    if setup.streamed_bytes:
        read = f"{setup.streamed_bytes / 1e9:.3g} GB"
        yield (
            f"{stored}, of which {read} stay out of memory and are read from storage for every token"
            f"{_remedy(parameters, machine)}"
        )
    elif setup.transfers and 0 < setup.n_on_device < shape.n_layers:
        yield (
            f"{stored}: {setup.n_on_device} of {shape.n_layers} layers fit into the accelerator's memory, and the host "
            "computes the others"
        )
    if shape.moe is not None and setup.streamed_bytes:
        yield "every expert is taken to be as likely as any other, so that what is read is spread evenly"


def _remedy(parameters: FlashInference, machine: Machine) -> str:
    """Name the widest type of weights that would fit whole, if a narrower one than the chosen would."""
    narrower = WEIGHT_TYPES[WEIGHT_TYPES.index(parameters.weights) + 1 :]
    for mixture in narrower:
        # of equally wide ones the plain name is enough
        if not setup_of(parameters, machine, mixture).streamed_bytes:
            return f"; as {mixture} they would fit"
    return ""
