"""Where each layer of a dense model is: on the accelerator, in the host's memory, or read from storage per token.

Layers are kept whole, the first ones first. On an accelerator with memory of its own, as many as fit are computed
there and the rest by the host, as llama.cpp does (--n-gpu-layers). What does not fit into the host's memory either is
read for every token: the feed-forward weights of the last layers, and all of their weights where attention alone is too
much.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sandtable.demand.op import Where
from sandtable.hardware import Machine
from sandtable_workloads.flash.dense.dense_layout import DenseLayout, LayerMatrices, layout_of
from sandtable_workloads.flash.flash_parameters import FlashInference
from sandtable_workloads.flash.layer_ops import Placement
from sandtable_workloads.flash.machine_memory import Room


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """Who computes a layer, and which of its parts stay in memory; the others are read for every token."""

    on: Where
    keeps_attention: bool
    keeps_ffn: bool

    def streamed_bytes(self, layer: LayerMatrices) -> int:
        """Return what is read for a token, were it all of the layer's experts."""
        attention = 0 if self.keeps_attention else layer.attention_bytes
        return attention + (0 if self.keeps_ffn else layer.ffn_bytes)


@dataclass(frozen=True)
class DenseSetup:
    """A dense model on a machine: its matrices, and where each layer is.

    ``transfers`` tells whether the activations cross a link where the layers of accelerator and host meet.
    """

    layout: DenseLayout
    places: tuple[LayerPlace, ...]
    head_on: Where
    kv_bytes: float
    kv_layer_bytes: float
    transfers: bool

    @property
    def rung(self) -> str:
        """The rung that it comes to."""
        return "hybrid" if self.streamed_bytes else "resident"

    @property
    def streamed_bytes(self) -> int:
        """Bytes read from storage for every token, were it all experts."""
        return sum(
            place.streamed_bytes(layer) for place, layer in zip(self.places, self.layout.layers, strict=True)
        )

    @property
    def n_on_device(self) -> int:
        """Layers that an accelerator with memory of its own computes."""
        return sum(place.on == "accelerator" for place in self.places) if self.transfers else 0

    def memory(self) -> dict[str, float]:
        """Return the bytes held by kind."""
        pairs = list(zip(self.places, self.layout.layers, strict=True))
        attention = sum(layer.attention_bytes for place, layer in pairs if place.keeps_attention)
        ffn = sum(layer.ffn_bytes for place, layer in pairs if place.keeps_ffn)
        buffer = max((place.streamed_bytes(layer) for place, layer in pairs), default=0)
        held = {
            "attention": attention,
            "feed-forward": ffn,
            "embeddings": self.layout.ends_bytes,
            "keys and values": self.kv_bytes,
            "biases and norms": self.layout.small_bytes,
            "layer buffer": buffer,
        }
        return {kind: float(size) for kind, size in held.items() if size}


def setup_of(parameters: FlashInference, machine: Machine, mixture: str | None = None) -> DenseSetup:
    """Return where the layers are; ``mixture`` stands in for the weights that the parameters name."""
    shape = parameters.shape
    layout = layout_of(shape, mixture or parameters.weights)
    where, room = Placement.of(machine), Room.of(machine, parameters.reserve_bytes)
    kv_bytes = shape.kv_bytes(parameters.n_positions, parameters.kv_dtype)
    kv_layer = kv_bytes / shape.n_layers
    n_device = _n_on_device(layout, kv_layer, room.device_bytes) if where.transfers else 0
    rest = layout.layers[n_device:]
    on_host = "host" if where.transfers else where.on
    whole = sum(layer.n_bytes for layer in rest)
    head_on_device = where.transfers and n_device == shape.n_layers
    fixed = layout.ends_bytes + layout.small_bytes + kv_layer * len(rest)
    if parameters.rung == "resident":
        weights_room = float(whole)
    elif parameters.rung == "hybrid":
        weights_room = max(0.0, parameters.resident_frac * layout.n_bytes - layout.ends_bytes)
    else:
        weights_room = room.host_bytes - fixed
    places = [LayerPlace("accelerator", True, True)] * n_device
    places += _kept(rest, weights_room, on_host, has_buffer=parameters.rung != "hybrid")
    return DenseSetup(
        layout=layout,
        places=tuple(places),
        head_on="accelerator" if head_on_device else on_host,
        kv_bytes=kv_bytes,
        kv_layer_bytes=kv_layer,
        transfers=where.transfers,
    )


def _n_on_device(layout: DenseLayout, kv_layer_bytes: float, room_bytes: float) -> int:
    """Return how many layers fit into an accelerator's memory with their keys and values and the output projection."""
    left = room_bytes - layout.head.n_bytes
    sizes = itertools.accumulate(layer.n_bytes + kv_layer_bytes for layer in layout.layers)
    return sum(size <= left for size in sizes)


def _kept(
    layers: tuple[LayerMatrices, ...], room_bytes: float, on: Where, *, has_buffer: bool
) -> Iterator[LayerPlace]:
    """Yield what of each layer stays in ``room_bytes``, of which the largest that is read takes its part as well."""
    attention = sum(layer.attention_bytes for layer in layers)
    whole = sum(layer.n_bytes for layer in layers)
    if whole <= room_bytes:
        yield from [LayerPlace(on, True, True)] * len(layers)
        return
    buffer = max(layer.ffn_bytes for layer in layers) if has_buffer else 0
    keeps_attention = attention + buffer <= room_bytes
    if not keeps_attention and has_buffer:
        buffer = max(layer.n_bytes for layer in layers)
    left = room_bytes - buffer - (attention if keeps_attention else 0)
    for layer in layers:
        size = layer.ffn_bytes if keeps_attention else layer.n_bytes
        kept = size <= left
        left -= size if kept else left  # the first that does not fit ends it
        yield LayerPlace(on, keeps_attention or kept, kept)
