"""Memory that a vision network holds at its peak, by kind, as eager PyTorch keeps it.

A forward pass alone holds what later layers still read. A training step keeps what each layer's backward pass reads,
as the formulas of autograd name it (pytorch tools/autograd/derivatives.yaml): products, norms and activations their
input, or what became of it in place, a max pool also the places of its maxima.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sandtable.hardware import Machine
from sandtable.workload.seam import Verdict
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.layer_memory import backward_workspace, between, workspace
from sandtable_workloads.butterfly.networks import IMAGE, Network

# bytes of the place of a maximum, and of the number of batches that a norm has seen
PLACE_BYTES = COUNTER_BYTES = 8.0


class Moment(NamedTuple):
    """Bytes at one moment of a step beyond what stays: gradients of weights, activations with theirs, workspace."""

    gradients: float = 0.0
    activations: float = 0.0
    workspace: float = 0.0


def memory_of(p: ButterflyVision, machine: Machine) -> dict[str, float]:
    """Return bytes by kind: weights with buffers, momentum, and what there is beside them at the highest moment."""
    network, item = p.built(), p.item_bytes
    counters = COUNTER_BYTES * len(network.of_kind("norm"))
    held = {"weights": item * (network.parameters + network.buffers) + counters}
    if p.trains and p.momentum:
        held["optimizer"] = item * network.parameters
    n_threads = p.threads or machine.processor.datasheet.cores
    moments = (_of_training if p.trains else _of_inference)(network, p, n_threads)
    # workspace is that of a CPU's convolutions; a layer alone is a plain product
    without = machine.accelerator is not None or p.is_layer
    most = max((moment._replace(workspace=0.0) if without else moment for moment in moments), key=sum)
    return held | {kind: item * n for kind, n in most._asdict().items() if n}


def verdict_of(p: ButterflyVision, machine: Machine) -> Verdict:
    """Return whether it fits into the memory of the processor that runs it."""
    memory = machine.memory if machine.accelerator is None else machine.accelerator.memory
    held, has = memory_of(p, machine), float(memory.datasheet.capacity_bytes)
    total, breaks = 0.0, None
    for kind, size in held.items():
        total += size
        breaks = breaks or (kind if total > has else None)
    return Verdict(needed_bytes=total, has_bytes=has, largest=max(held, key=held.__getitem__), breaks=breaks)


def what_fits(p: ButterflyVision, machine: Machine) -> Sequence[str]:
    """Return the largest batch, halved and halved again, that fits."""
    name = "rows" if p.is_layer else "batch"
    n = p.n_images // 2
    while n:
        if verdict_of(p.model_copy(update={name: n}), machine).fits:
            return (f"{name}={n}",)
        n //= 2
    return ()


# --- the moments of a step, in numbers -----------------------------------------------------------------------------


def _of_inference(network: Network, p: ButterflyVision, n_threads: int) -> Iterator[Moment]:
    """Yield what there is while each layer runs."""
    for layer, live in zip(network.layers, network.live_elements, strict=True):
        own = between(layer)
        running = p.n_images * (live + layer.pixels * own.running) + own.once
        yield Moment(activations=running, workspace=workspace(layer, p.n_images, n_threads))


def _of_training(network: Network, p: ButterflyVision, n_threads: int) -> Iterator[Moment]:
    """Yield what there is while each layer goes backward, and at last the optimiser.

    That makes a copy of one tensor's gradient where weights decay. Outputs of a layer alone and their gradient stay, as
    they are the caller's.
    """
    sizes, kept, inner = _sizes(network), _kept(network), _inner(network, p)
    flowing, gradients = dict[str, int](), 0
    own = sizes[network.layers[-1].name] if p.is_layer else 0
    for index in reversed(range(len(network.layers))):
        layer = network.layers[index]
        arriving = flowing.pop(layer.name, sizes[layer.name])
        flowing |= {name: sizes[name] for name in layer.inputs if name != IMAGE}
        live = {name for names in kept[: index + 1] for name in names} | {IMAGE}
        held = sum(sizes[name] for name in live) + sum(inner[: index + 1]) + arriving + sum(flowing.values())
        held += own + layer.pixels * between(layer).kept
        gradients += layer.parameters
        once = sum(between(other).once for other in network.layers[: index + 1])
        yield Moment(gradients, p.n_images * held + once, backward_workspace(layer, p.n_images, n_threads))
    copied = max(layer.parameters for layer in network.layers) if p.weight_decay else 0
    yield Moment(gradients, p.n_images * (sizes[IMAGE] + 2 * own) + copied)


def _sizes(network: Network) -> dict[str, int]:
    return {layer.name: layer.activation_elements for layer in network.layers} | {IMAGE: network.image_elements}


def _kept(network: Network) -> list[set[str]]:
    """Return for each layer the outputs that its backward pass reads."""
    owner = network.owners()
    return [{owner[name] for name in layer.inputs} if layer.keeps_inputs else set() for layer in network.layers]


def _inner(network: Network, p: ButterflyVision) -> list[float]:
    """Return the numbers that only a layer's own backward pass reads: between factors, and the places of maxima."""
    return [
        layer.pixels * (between(layer).kept + (layer.function == "max") * PLACE_BYTES / p.item_bytes * layer.n_out)
        for layer in network.layers
    ]
