"""Writes a list of layers in the order in which they run; each method adds one and goes on from its output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sandtable_workloads.butterfly.networks.layers import IMAGE, Function, Kind, Layer
from sandtable_workloads.butterfly.networks.pointwise_counts import equal_options


class Maps(NamedTuple):
    """Output of a layer: its name, its channels, and the side of its maps in pixels."""

    name: str
    channels: int
    side: int


@dataclass(slots=True)
class LayerBuilder:
    """Layers so far, and where the next one goes on from.

    Attributes:
        at: The output that the next layer takes in; assign another one to branch.
        structure, base, residual: What `pointwise` gives its layers, unless told to be dense.
        prefix: Leads every name: the block that is being written.
    """

    at: Maps
    structure: str = "dense"
    base: int = 4
    residual: bool = True
    prefix: str = ""
    layers: list[Layer] = field(default_factory=list)

    @classmethod
    def on_image(cls, channels: int, side: int, *, structure: str, base: int, residual: bool) -> LayerBuilder:
        """Return one that begins at an image."""
        return cls(Maps(IMAGE, channels, side), structure, base, residual)

    def _add(
        self, name: str, kind: Kind, *, n_out: int | None = None, side: int | None = None, **more: Any
    ) -> Maps:
        n_in = more.pop("n_in", self.at.channels)
        layer = Layer(
            name=self.prefix + name,
            kind=kind,
            inputs=more.pop("inputs", (self.at.name,)),
            n_in=n_in,
            n_out=n_in if n_out is None else n_out,
            side_in=self.at.side,
            side_out=self.at.side if side is None else side,
            **more,
        )
        self.layers.append(layer)
        self.at = Maps(layer.name, layer.n_out, layer.side_out)
        return self.at

    def conv(self, name: str, n_out: int, *, kernel: int = 3, stride: int = 1) -> Maps:
        """Add a convolution over all channels, padded so that stride 1 keeps the side."""
        return self._add(name, "conv", n_out=n_out, side=self._strided(stride), kernel=kernel, stride=stride)

    def depthwise(self, name: str, *, kernel: int = 3, stride: int = 1) -> Maps:
        """Add a convolution of each channel on its own."""
        return self._add(name, "depthwise", side=self._strided(stride), kernel=kernel, stride=stride)

    def pointwise(self, name: str, n_out: int, *, replaced: bool = True) -> Maps:
        """Add a 1 x 1 convolution, in the network's structure or, if it is not ``replaced``, dense."""
        if not replaced or self.structure == "dense":
            return self._add(name, "pointwise", n_out=n_out)
        return self._add(
            name,
            "pointwise",
            n_out=n_out,
            structure=self.structure,
            base=self.base,
            residual=self.residual,
            options=equal_options(self.structure, self.at.channels, n_out, self.base),
        )

    def linear(self, name: str, n_out: int) -> Maps:
        """Add a product with a bias, of one vector per image."""
        return self._add(name, "linear", n_out=n_out, bias=True)

    def norm(self, name: str = "norm") -> Maps:
        """Add a batch norm."""
        return self._add(name, "norm")

    def activation(self, function: Function, name: str = "activation") -> Maps:
        """Add an activation."""
        return self._add(name, "activation", function=function)

    def normed(self, function: Function, name: str) -> Maps:
        """Add a batch norm and, if there is a ``function``, an activation, named after the layer ``name``."""
        self.norm(f"{name}_norm")
        return self.activation(function, f"{name}_{function}") if function else self.at

    def max_pool(self, name: str, *, kernel: int, stride: int) -> Maps:
        """Add the largest of each window."""
        side = self._strided(stride)
        return self._add(name, "pool", side=side, function="max", kernel=kernel, stride=stride)

    def mean_pool(self, name: str) -> Maps:
        """Add the mean over each map, which leaves one vector per image."""
        return self._add(name, "pool", side=1, function="mean")

    def scale(self, name: str, maps: Maps, factors: Maps) -> Maps:
        """Add the product of ``maps`` with one factor per channel."""
        self.at = maps
        return self._add(name, "scale", inputs=(maps.name, factors.name))

    def slice(self, name: str, first: int, n_out: int) -> Maps:
        """Add a view of ``n_out`` channels from ``first`` on."""
        return self._add(name, "slice", n_out=n_out, first=first)

    def shuffle(self, name: str = "shuffle") -> Maps:
        """Add an interleaving of the two halves of the channels."""
        return self._add(name, "shuffle")

    def concat(self, left: Maps, right: Maps, name: str = "concat") -> Maps:
        """Add the channels of ``left`` followed by those of ``right``."""
        channels = left.channels + right.channels
        return self._add(name, "concat", n_in=channels, inputs=(left.name, right.name))

    def add(self, left: Maps, right: Maps, name: str = "add") -> Maps:
        """Add the sum of two maps."""
        return self._add(name, "add", inputs=(left.name, right.name))

    def _strided(self, stride: int) -> int:
        """Side of the output of a window with an odd side, padded by half of it."""
        return (self.at.side - 1) // stride + 1
