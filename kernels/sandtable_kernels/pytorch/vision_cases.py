"""Layers of vision networks as modules of eager PyTorch, timed in bulk; imported only where something is measured.

Inference runs the same layer again and again on one input, its weights those of one copy after another, as a network
goes through its layers. Training keeps the outputs of all copies, as a forward pass does until the backward one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sandtable_kernels.pytorch.torch_cases import Timed, copies, filled, timed, watch
from sandtable_kernels.structured.baselines.structured_demand import typical_options
from sandtable_kernels.structured.torch_structures import StructuredModule

# weights of one size after another that together do not stay in the caches of a few cores; smaller ones come soon
WEIGHT_BYTES, SMALL_BYTES = 8 << 20, 128 << 10
MOST_MODULES = 12
# an activation that works in place, again and again, leaves numbers above three as they are
ABOVE = 4.0
Dims = Mapping[str, Any]


def image(dims: Dims, channels: int, *, grad: bool = False) -> Tensor:
    """Return maps of the input of a layer that gives ``height x width`` positions, channels last."""
    stride = dims.get("stride", 1)
    side = dims["side"] * stride
    values = ABOVE + filled(dims["batch"], channels, side, side, dtype="float32")
    return values.to(memory_format=torch.channels_last).requires_grad_(grad)


def channels_last(layer: nn.Module) -> nn.Module:
    """Return a layer with its weights in the order in which maps are."""
    result: nn.Module = layer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return result


def modules(dims: Dims, make: Callable[[], nn.Module]) -> list[nn.Module]:
    """Return copies of a layer for one sample; so many that all their weights do not stay in cache."""
    first = channels_last(make())
    each = sum(p.numel() * p.element_size() for p in first.parameters())
    cold = min(MOST_MODULES, int(WEIGHT_BYTES // each)) if each > SMALL_BYTES else 1
    number = max(dims.get("copies", 1), cold)
    return [first, *(channels_last(make()) for _ in range(number - 1))]


def inference(layers: list[nn.Module], *inputs: Tensor) -> Timed:
    """Return a call that gives the mean seconds of a layer."""

    def work() -> None:
        with torch.inference_mode():
            for layer in layers:
                layer(*inputs)

    return lambda: watch().span(work)[1] / len(layers)


def layer_case(dims: Dims, make: Callable[[], nn.Module], *, channels: int) -> Timed:
    """Return the call that times a layer in the pass that ``dims`` name."""
    if dims["pass"] == "inference":
        return inference([layer.eval() for layer in modules(dims, make)], image(dims, channels))
    x = image(dims, channels, grad=True)
    number = copies(dims, 8 * x.numel() * x.element_size())
    layers = [channels_last(make()) for _ in range(number)]
    inputs = [image(dims, channels, grad=True) for _ in layers]
    pairs = dict(zip(map(id, inputs), layers, strict=True))
    return timed(inputs, lambda item: (pairs[id(item)](item),), backward=dims["pass"] == "backward")


def convolution(dims: Dims) -> Timed:
    """A dense convolution without a bias."""
    n_in, n_out, kernel, stride = (dims[name] for name in ("n_in", "n_out", "kernel", "stride"))
    return layer_case(dims, lambda: nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False), channels=n_in)


def depthwise(dims: Dims) -> Timed:
    """A convolution of each channel by itself."""
    n, kernel, stride = (dims[name] for name in ("n_in", "kernel", "stride"))
    return layer_case(dims, lambda: nn.Conv2d(n, n, kernel, stride, kernel // 2, groups=n, bias=False), channels=n)


def batch_norm(dims: Dims) -> Timed:
    """A batch norm."""
    return layer_case(dims, lambda: nn.BatchNorm2d(dims["n_in"]), channels=dims["n_in"])


class Added(nn.Module):
    """A sum with itself: two tensors read, one written."""

    def forward(self, x: Tensor) -> Tensor:
        """Return twice ``x``."""
        return x + x.detach()


class Scaled(nn.Module):
    """Times a factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` times them."""
        return x * self.factors


class Joined(nn.Module):
    """Two halves of the channels put beside each other again."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return torch.cat(x.chunk(2, dim=1), dim=1)


class Shuffled(nn.Module):
    """Two groups of channels, interleaved."""

    def forward(self, x: Tensor) -> Tensor:
        """Return them, channels last."""
        rows = x.permute(0, 2, 3, 1).unflatten(-1, (2, -1)).transpose(-1, -2)
        return rows.flatten(-2).permute(0, 3, 1, 2)


STREAMS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda _: nn.ReLU(inplace=True),
    "hard_swish": lambda _: nn.Hardswish(inplace=True),
    "add": lambda _: Added(),
    "scale": Scaled,
    "concat": lambda _: Joined(),
    "shuffle": lambda _: Shuffled(),
    "mean": lambda _: nn.AdaptiveAvgPool2d(1),
    "max": lambda _: nn.MaxPool2d(3, 2, 1),
}


def stream(dims: Dims) -> Timed:
    """What stands between convolutions, in inference."""
    make = STREAMS[dims["kind"]]
    return layer_case(dims, lambda: make(dims["n_in"]), channels=dims["n_in"])


def linear(dims: Dims) -> Timed:
    """A linear layer without a bias, always the same, as a layer is that is called again and again."""
    x = filled(dims["rows"], dims["n_in"], dtype=dims["dtype"])
    weight = filled(dims["n_out"], dims["n_in"], dtype=dims["dtype"])
    number = dims.get("copies", 1)

    def work() -> None:
        with torch.inference_mode():
            for _ in range(number):
                nn.functional.linear(x, weight)

    return lambda: watch().span(work)[1] / number


def sgd(dims: Dims) -> Timed:
    """One step with momentum and weight decay over tensors of equal size."""
    each = dims["n_parameters"] // dims["n_tensors"]
    weights = [filled(each, dtype="float32", grad=True) for _ in range(dims["n_tensors"])]
    optimizer = torch.optim.SGD(weights, lr=1e-3, momentum=0.9, weight_decay=1e-5)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return lambda: watch().span(optimizer.step)[1]


def structured(dims: Dims) -> Timed:
    """A structured matrix without a bias."""
    structure, n_in, n_out = (dims[name] for name in ("structure", "n_in", "n_out"))
    options = typical_options(structure, n_in, n_out)

    def make() -> nn.Module:
        return StructuredModule(structure, n_in, n_out, **options)

    def rows(*, grad: bool) -> Tensor:
        return filled(dims["rows"], n_in, dtype=dims["dtype"], grad=grad)

    if dims["pass"] == "inference":
        return inference(modules(dims, make), rows(grad=False))
    inputs = [rows(grad=True) for _ in range(copies(dims, 32 * dims["rows"] * max(n_in, n_out)))]
    layers = {id(item): make() for item in inputs}
    return timed(inputs, lambda item: (layers[id(item)](item),), backward=dims["pass"] == "backward")


VISION_CASES: dict[str, Callable[[Dims], Timed]] = {
    "convolution": convolution,
    "depthwise": depthwise,
    "batch_norm": batch_norm,
    "stream": stream,
    "linear": linear,
    "sgd": sgd,
    "structured": structured,
}
