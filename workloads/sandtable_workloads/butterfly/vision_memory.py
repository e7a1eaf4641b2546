"""Memory that a vision network holds at its peak, by kind, as eager PyTorch keeps it.

A forward pass alone holds what later layers still read. A training step keeps what each layer's backward pass reads,
as the formulas of autograd name it (pytorch tools/autograd/derivatives.yaml): products, norms and activations their
input, or what became of it in place, a max pool also the places of its maxima.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sandtable.hardware import Machine
from sandtable.workload.seam import Verdict
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.networks import IMAGE, Network

# bytes of the place of a maximum
PLACE_BYTES = 8.0


def memory_of(p: ButterflyVision) -> dict[str, float]:
    """Return bytes by kind: weights with buffers, activations, and of training gradients and momentum."""
    network, item = p.built(), p.item_bytes
    held = {"weights": item * (network.parameters + network.buffers)}
    if not p.trains:
        return held | {"activations": item * p.n_images * network.peak_elements}
    activations, gradients = max(_moments(network, p.n_images, item), key=sum)
    return held | {"optimizer": item * network.parameters, "gradients": gradients, "activations": activations}


def verdict_of(p: ButterflyVision, machine: Machine) -> Verdict:
    """Return whether it fits into the memory of the processor that runs it."""
    memory = machine.memory if machine.accelerator is None else machine.accelerator.memory
    held, has = memory_of(p), float(memory.datasheet.capacity_bytes)
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


# --- the moments of a training step ------------------------------------------------------------------------------


def _owners(network: Network) -> dict[str, str]:
    """Return for each layer the one whose memory its output lies in."""
    owner = {IMAGE: IMAGE}
    for layer in network.layers:
        owner[layer.name] = layer.name if layer.new_elements else owner[layer.inputs[0]]
    return owner


def _moments(network: Network, n: int, item: float) -> Iterator[tuple[float, float]]:
    """Yield bytes of activations, with their gradients, and of the weights' gradients, after each backward pass."""
    owner, sizes = _owners(network), _sizes(network, n, item)
    kept, places = _kept(network, owner), _places(network, n)
    live = {name for names in kept.values() for name in names} | {IMAGE}
    flowing, gradients = {network.layers[-1].name: sizes[network.layers[-1].name]}, 0.0
    for index in reversed(range(len(network.layers))):
        layer = network.layers[index]
        arriving = flowing.pop(layer.name, sizes[layer.name])
        for name in layer.inputs:
            if name != IMAGE:
                flowing.setdefault(name, sizes[name])
        gradients += item * layer.parameters
        yield sum(sizes[name] for name in live) + sum(places.values()) + sum(flowing.values()) + arriving, gradients
        places.pop(layer.name, None)
        still = {name for other, names in kept.items() if other < index for name in names}
        live = still | {IMAGE}


def _sizes(network: Network, n: int, item: float) -> dict[str, float]:
    return {IMAGE: item * n * network.image_elements} | {
        layer.name: item * n * layer.activation_elements for layer in network.layers
    }


def _kept(network: Network, owner: Mapping[str, str]) -> dict[int, set[str]]:
    """Return the outputs that the backward pass of each layer reads, by the layer's place."""
    return {
        index: {owner[name] for name in layer.inputs}
        for index, layer in enumerate(network.layers)
        if layer.keeps_inputs
    }


def _places(network: Network, n: int) -> dict[str, float]:
    """Return the bytes in which max pools keep where their maxima were, by the pool's name."""
    pools = (layer for layer in network.layers if layer.function == "max")
    return {layer.name: PLACE_BYTES * n * layer.activation_elements for layer in pools}
