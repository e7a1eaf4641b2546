"""Layers of a vision network: what each takes in, gives, multiplies and holds. No time in it, and no framework.

A network is one list. Counts are read from it, demands are made of it, and `torch_network` builds the module from it.
Images and maps are square: `side` is their height and their width, in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sandtable_workloads.butterfly.networks.pointwise_counts import (
    Options,
    PointwiseCounts,
    pointwise_counts,
)

Kind = Literal[
    "conv",  # k x k over all channels
    "depthwise",  # k x k, each channel on its own
    "pointwise",  # 1 x 1 over all channels of a map: dense, or a structure
    "linear",  # of one vector per image
    "norm",  # batch norm
    "activation",  # relu (in place), hard_swish or hard_sigmoid
    "pool",  # max over a window, or the mean of a map, which leaves one vector per image
    "scale",  # a map times one factor per channel: the end of squeeze-and-excite
    "slice",  # some channels of a map, without a copy
    "shuffle",  # two groups of channels, interleaved
    "concat",
    "add",
]
Function = Literal["", "relu", "hard_swish", "hard_sigmoid", "max", "mean"]

# of these autograd keeps what they take in; of a ReLU what it gives; of sums, joins and means nothing
_KEEP_INPUTS: tuple[Kind, ...] = ("conv", "depthwise", "pointwise", "linear", "norm", "activation", "scale")

IMAGE = "image"  # the name under which layers take in what the network is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer.

    Attributes:
        name: Unique within its network, dotted by block (``block3.expand``).
        inputs: Names of the layers whose outputs it takes in; ``image`` is the network's own input.
        n_in, n_out: Channels. `concat` and `add` count those of all their inputs, and of one.
        side_in, side_out: Height and width of the maps in pixels; 1 where there is one vector per image.
        kernel, stride: Of `conv`, `depthwise` and `pool` windows, padded by ``kernel // 2``.
        bias: One number per output is added.
        function: Which activation, or which pool.
        first: The first channel that a `slice` takes.
        structure, base, residual, options: Of a `pointwise` layer: the form of its matrix, a butterfly's base and
            whether its input is added to its output, and (name, number) pairs of the other structures.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    n_in: int
    n_out: int
    side_in: int
    side_out: int
    kernel: int = 1
    stride: int = 1
    bias: bool = False
    function: Function = ""
    first: int = 0
    structure: str = "dense"
    base: int = 4
    residual: bool = True
    options: Options = ()

    @property
    def pixels_in(self) -> int:
        """Positions of an input map."""
        return self.side_in**2

    @property
    def pixels(self) -> int:
        """Positions of the output map: rows of a pointwise layer's product, for one image."""
        return self.side_out**2

    @property
    def is_structured(self) -> bool:
        """Whether this is a pointwise layer whose matrix is not a dense one."""
        return self.kind == "pointwise" and self.structure != "dense"

    @property
    def matrix(self) -> PointwiseCounts:
        """Counts of the matrix of a `pointwise` layer."""
        return pointwise_counts(self.structure, self.n_in, self.n_out, self.base, self.options)

    @property
    def _weights(self) -> int:
        """Weights without biases."""
        match self.kind:
            case "pointwise":
                return self.matrix.parameters
            case "conv":
                return self.kernel**2 * self.n_in * self.n_out
            case "depthwise":
                return self.kernel**2 * self.n_out
            case "linear":
                return self.n_in * self.n_out
            case "norm":
                return 2 * self.n_out
            case _:
                return 0

    @property
    def parameters(self) -> int:
        """Trained numbers, as the module that is built of this layer holds them."""
        return self._weights + self.bias * self.n_out

    @property
    def buffers(self) -> int:
        """Numbers that are kept and not trained: the running mean and variance of a norm."""
        return 2 * self.n_out if self.kind == "norm" else 0

    def multiply_accumulates(self, batch: int = 1, *, as_paper: bool = False) -> int:
        """Return the multiply-accumulates of a forward pass of ``batch`` images.

        Of convolutions and products only, as papers count: norms, activations and sums move bytes instead. A butterfly
        is counted as it is executed, on its padded size, or ``as_paper``: arXiv 1906.02256, section 3.
        """
        match self.kind:
            case "pointwise":
                per_pixel = self.matrix.paper_multiplications if as_paper else self.matrix.multiplications
            case "conv" | "depthwise" | "linear":
                per_pixel = self._weights
            case _:
                per_pixel = 0
        return batch * self.pixels * per_pixel

    @property
    def input_elements(self) -> int:
        """Numbers that it reads of one image, weights left out."""
        factors = self.n_out if self.kind == "scale" else 0
        return self.n_in * self.pixels_in + factors

    @property
    def activation_elements(self) -> int:
        """Numbers that it gives for one image."""
        return self.n_out * self.pixels

    @property
    def keeps_inputs(self) -> bool:
        """Whether its backward pass needs its inputs (or, where it is in place, what became of them)."""
        return self.kind in _KEEP_INPUTS or self.function == "max"

    @property
    def new_elements(self) -> int:
        """Numbers of one image that memory is taken for: none for a slice, nor for a ReLU, which is in place."""
        return 0 if self.kind == "slice" or self.function == "relu" else self.activation_elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """An architecture at one width and resolution.

    Attributes:
        name, title: As it is asked for (``mobilenet_v1``), and as it is written (``MobileNetV1``).
        width: Multiplier of its channels.
        resolution: Side of its images in pixels.
        in_channels, classes: Of the images, and of the answer.
        structure, base, residual: Of the pointwise layers that are replaced.
        layers: In an order in which they can run, the last one giving (batch, classes).
    """

    name: str
    title: str
    width: float
    resolution: int
    in_channels: int
    classes: int
    layers: tuple[Layer, ...]
    structure: str = "dense"
    base: int = 4
    residual: bool = True

    def layer(self, name: str) -> Layer:
        """Return the layer of that name; KeyError if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def of_kind(self, *kinds: Kind) -> tuple[Layer, ...]:
        """Return the layers of these kinds, in order."""
        return tuple(layer for layer in self.layers if layer.kind in kinds)

    @property
    def parameters(self) -> int:
        """Trained numbers of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def buffers(self) -> int:
        """Numbers that are kept and not trained."""
        return sum(layer.buffers for layer in self.layers)

    @property
    def parameters_by_kind(self) -> dict[Kind, int]:
        """Trained numbers of the layers of each kind that has any."""
        return _by_kind((layer.kind, layer.parameters) for layer in self.layers)

    def multiply_accumulates(self, batch: int = 1, *, as_paper: bool = False) -> int:
        """Return those of a forward pass of ``batch`` images; see `Layer.multiply_accumulates`."""
        return sum(layer.multiply_accumulates(batch, as_paper=as_paper) for layer in self.layers)

    def multiply_accumulates_by_kind(self, batch: int = 1, *, as_paper: bool = False) -> dict[Kind, int]:
        """Return those of the layers of each kind that has any."""
        return _by_kind((layer.kind, layer.multiply_accumulates(batch, as_paper=as_paper)) for layer in self.layers)

    @property
    def image_elements(self) -> int:
        """Numbers of one image."""
        return self.in_channels * self.resolution**2

    @property
    def activation_elements(self) -> int:
        """Numbers that all layers give for one image, in tensors of their own."""
        return sum(layer.new_elements for layer in self.layers)

    @property
    def kept_elements(self) -> int:
        """Numbers of one image that a forward pass leaves behind for the backward pass, the image among them.

        Left out is what layers keep of their own: a max pool the places of its maxima, some structures what lies
        between their factors.
        """
        owner = self.owners()
        kept = {owner[source] for layer in self.layers if layer.keeps_inputs for source in layer.inputs}
        own = sum(layer.new_elements for layer in self.layers if layer.name in kept)
        return own + self.image_elements

    @property
    def peak_elements(self) -> int:
        """The most numbers of one image that are held at once in a forward pass alone."""
        return max(self.live_elements)

    @property
    def live_elements(self) -> tuple[int, ...]:
        """Numbers of one image that are held while each layer runs in a forward pass alone.

        What it takes in and gives, what later ones still read, and the image, which the caller holds.
        """
        owner, last_read = self.owners(), dict[str, int]()
        for index, layer in enumerate(self.layers):
            last_read |= {owner[source]: index for source in layer.inputs}
        live, held = {IMAGE: self.image_elements}, []
        for index, layer in enumerate(self.layers):
            if layer.new_elements:
                live[layer.name] = layer.new_elements
            held.append(sum(live.values()))
            for name in [name for name in live if name != IMAGE and last_read.get(name) == index]:
                del live[name]
        return tuple(held)

    def owners(self) -> dict[str, str]:
        """Return for each layer the one whose memory its output lies in."""
        owner = {IMAGE: IMAGE}
        for layer in self.layers:
            owner[layer.name] = layer.name if layer.new_elements else owner[layer.inputs[0]]
        return owner


def _by_kind(counts: Iterable[tuple[Kind, int]]) -> dict[Kind, int]:
    total: Counter[Kind] = Counter()
    for kind, count in counts:
        total[kind] += count
    return {kind: count for kind, count in total.items() if count}
