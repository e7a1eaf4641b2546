"""The network that a list of layers describes, as a module of PyTorch: one submodule per layer, in the list's order.

Batch norms are not folded and nothing is fused, whatever the structure, so that networks differ in their pointwise
layers only. Of the list it also has what is in place: ReLU. Imported only where a run executes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from sandtable_kernels.structured.torch_layers import StructuredPointwise
from sandtable_workloads.butterfly.networks.layers import IMAGE, Layer, Network

CLASSIFIER_STD = 0.01  # of the weights of products, as in torchvision


class VisionNetwork(nn.Module):
    """Images [batch, in_channels, resolution, resolution] to scores [batch, classes].

    Args:
        network: The list.
        seed: Of its first weights: He et al. (arXiv 1502.01852) for convolutions, norms that change nothing, and for
            transforms what their paper says.
    """

    def __init__(self, network: Network, *, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in network.layers:
                self.add_module(module_name(layer), _initialised(module_of(layer)))
        self._steps = [(layer.name, layer.inputs, module_name(layer)) for layer in network.layers]
        self._read_last = _read_last(network)

    def forward(self, images: Tensor) -> Tensor:
        """Run the layers, and let go of each output behind the layer that reads it last."""
        given = {IMAGE: images}
        for (name, inputs, module), done in zip(self._steps, self._read_last, strict=True):
            given[name] = getattr(self, module)(*[given[source] for source in inputs])
            for source in done:
                del given[source]
        return given[self._steps[-1][0]]


def build(network: Network, *, seed: int = 0) -> VisionNetwork:
    """Return the module with its weights in channels_last, in which a pointwise layer's rows are the map itself."""
    return VisionNetwork(network, seed=seed).to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def module_name(layer: Layer) -> str:
    """Return the name of a layer's submodule, which cannot hold dots."""
    return layer.name.replace(".", "_")


def module_of(layer: Layer) -> nn.Module:
    """Return the module of one layer."""
    match layer.kind:
        case "conv" | "depthwise" | "pointwise":
            return _structured(layer) if layer.is_structured else _convolution(layer)
        case "linear":
            return nn.Linear(layer.n_in, layer.n_out, bias=layer.bias)
        case "norm":
            return nn.BatchNorm2d(layer.n_out)
        case "activation":
            return _ACTIVATIONS[layer.function]()
        case "pool":
            return (
                MeanPool()
                if layer.function == "mean"
                else nn.MaxPool2d(layer.kernel, layer.stride, layer.kernel // 2)
            )
        case "slice":
            return Slice(layer.first, layer.n_out)
        case _:
            return _OF_MAPS[layer.kind]()


def _structured(layer: Layer) -> nn.Module:
    return StructuredPointwise(
        layer.n_in,
        layer.n_out,
        layer.structure,
        base=layer.base,
        residual=layer.residual,
        bias=layer.bias,
        options=dict(layer.options),
    )


def _convolution(layer: Layer) -> nn.Module:
    return nn.Conv2d(
        layer.n_in,
        layer.n_out,
        layer.kernel,
        layer.stride,
        layer.kernel // 2,
        groups=layer.n_in if layer.kind == "depthwise" else 1,
        bias=layer.bias,
    )


def _initialised(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=CLASSIFIER_STD)
        nn.init.zeros_(module.bias)
    return module


def _read_last(network: Network) -> list[list[str]]:
    """Return for each layer the outputs that no later layer reads."""
    last = {source: index for index, layer in enumerate(network.layers) for source in layer.inputs}
    return [[source for source, at in last.items() if at == index] for index in range(len(network.layers))]


class MeanPool(nn.Module):
    """The mean of each map: [batch, n, h, w] to [batch, n]."""

    def forward(self, maps: Tensor) -> Tensor:
        """Average, in one operator."""
        return fn.adaptive_avg_pool2d(maps, 1).flatten(1)


class Scale(nn.Module):
    """Maps [batch, n, h, w] times factors [batch, n]."""

    def forward(self, maps: Tensor, factors: Tensor) -> Tensor:
        """Multiply."""
        return maps * factors[:, :, None, None]


class Slice(nn.Module):
    """A view of some channels."""

    def __init__(self, first: int, count: int) -> None:
        super().__init__()
        self.first, self.count = first, count

    def forward(self, maps: Tensor) -> Tensor:
        """Take the channels."""
        return maps.narrow(1, self.first, self.count)


class Shuffle(nn.Module):
    """Two groups of channels, interleaved; the result is channels_last where the maps are.

    ``nn.ChannelShuffle`` does not keep that where gradients are wanted, and every later layer would copy.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Interleave."""
        rows = maps.permute(0, 2, 3, 1).unflatten(-1, (2, -1)).transpose(-1, -2)
        return rows.flatten(-2).permute(0, 3, 1, 2)


class Concat(nn.Module):
    """Channels of several maps, one after the other."""

    def forward(self, *maps: Tensor) -> Tensor:
        """Join."""
        return torch.cat(maps, 1)


class Add(nn.Module):
    """The sum of two maps."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Add."""
        return left + right


_ACTIVATIONS: dict[str, Any] = {
    "relu": lambda: nn.ReLU(inplace=True),
    # in place they would copy what they overwrite where gradients are wanted
    "hard_swish": nn.Hardswish,
    "hard_sigmoid": nn.Hardsigmoid,
}
_OF_MAPS: dict[str, type[nn.Module]] = {"scale": Scale, "shuffle": Shuffle, "concat": Concat, "add": Add}
