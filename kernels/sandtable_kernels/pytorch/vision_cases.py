"""Layers of vision networks as modules of eager PyTorch, timed one by one; imported only where something is measured.

A layer of a network comes between others: when its turn comes, its weights have left the core's caches, and the code
that calls and computes it has too. Called again and again it takes half to two thirds of that time: `Neighbours` run
before every call. What it is given was just written, as the layer before it does. A linear layer alone has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from sandtable_kernels.pytorch.torch_cases import Timed, filled, watch
from sandtable_kernels.structured.baselines.structured_demand import typical_options
from sandtable_kernels.structured.torch_layers import StructuredPointwise
from sandtable_kernels.structured.torch_structures import StructuredModule

# weights of one size after another that together do not stay in the caches of a few cores; smaller ones come soon
WEIGHT_BYTES, SMALL_BYTES = 8 << 20, 128 << 10
MOST_MODULES = 12
# of the layers between
OTHER_CHANNELS, OTHER_SIDE = 384, 8
# an activation that works in place, again and again, leaves numbers above three as they are
ABOVE = 4.0
Dims = Mapping[str, Any]


def image(dims: Dims, channels: int) -> Tensor:
    """Return maps of the input of a layer that gives ``height x width`` positions, channels last."""
    stride = dims.get("stride", 1)
    side = dims["side"] * stride
    values = ABOVE + filled(dims["batch"], channels, side, side, dtype="float32")
    return values.to(memory_format=torch.channels_last)


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


class Neighbours:
    """A block of a network, which runs between two calls of one layer.

    Its dense pointwise convolution brings 0.6 MB of weights through the core's cache, which drives out much of what the
    others need; where that layer is a structured one, the layer timed stands in its place and the block has none.
    """

    def __init__(self, *, dense: bool) -> None:
        n = OTHER_CHANNELS
        layers = [nn.Conv2d(n, n, 3, 1, 1, groups=n, bias=False)]
        layers += [nn.Conv2d(n, n, 1, bias=False)] if dense else []
        parts = [part for layer in layers for part in (channels_last(layer), nn.BatchNorm2d(n), nn.ReLU())]
        self.layers = parts if dense else [*parts[1:], *parts, nn.BatchNorm2d(n)]
        self.maps = image({"batch": 1, "side": OTHER_SIDE}, n)

    def run(self) -> None:
        """Run it forward."""
        with torch.inference_mode():
            self._passed(self.maps, trains=False)

    def train(self) -> None:
        """Run it forward and backward."""
        for layer in self.layers:
            layer.zero_grad()
        self._passed(self.maps.detach().requires_grad_(), trains=True).sum().backward()

    def _passed(self, x: Tensor, *, trains: bool) -> Tensor:
        for layer in self.layers:
            x = layer.train(trains)(x)
        return x


@lru_cache(maxsize=2)
def neighbours(*, dense: bool = True) -> Neighbours:
    """Return those of this process."""
    return Neighbours(dense=dense)


def inference(layers: Sequence[nn.Module], x: Tensor, between: Neighbours) -> Timed:
    """Return a call that gives the mean seconds of a layer between others."""
    given = x.clone()

    def call() -> float:
        seconds = 0.0
        with torch.inference_mode():
            for layer in layers:
                between.run()
                given.copy_(x)
                seconds += watch().span(lambda layer=layer: layer(given))[1]  # type: ignore[misc]
        return seconds / len(layers)

    return call


def training(layers: Sequence[nn.Module], x: Tensor, between: Neighbours, *, backward: bool) -> Timed:
    """Return a call that gives the mean seconds of a layer's forward or backward pass between others.

    Autograd itself says when the gradient of the output is there, and when that of the input is.
    """
    gradient = torch.ones_like(layers[0](x).detach())

    def one(layer: nn.Module) -> float:
        layer.zero_grad()
        between.run()
        given = x * 1.0
        given.retain_grad()
        out, seconds = watch().span(lambda: layer(given))
        if not backward:
            return seconds
        # what comes between the passes of a layer is what lies behind it
        between.train()
        last, marks = out * 1.0, list[float]()
        for tensor in (out, given):
            tensor.register_hook(lambda _: marks.append(time.perf_counter()))
        last.backward(gradient)
        return marks[1] - marks[0]

    return lambda: sum(one(layer) for layer in layers) / len(layers)


def among(layers: Sequence[nn.Module], x: Tensor, which: str, *, dense: bool = True) -> Timed:
    """Return the call that times layers between others in a pass: inference, forward or backward."""
    between = neighbours(dense=dense)
    if which == "inference":
        return inference([layer.eval() for layer in layers], x, between)
    return training(layers, x.requires_grad_(), between, backward=which == "backward")


def layer_case(dims: Dims, make: Callable[[], nn.Module], *, channels: int) -> Timed:
    """Return the call that times a layer in the pass that ``dims`` name."""
    return among(modules(dims, make), image(dims, channels), dims["pass"])


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


def repeated(dims: Dims, call: Callable[[], object]) -> Timed:
    """Return a call that gives the mean seconds of as many calls as a sample takes."""
    number = dims.get("copies", 1)

    def work() -> None:
        with torch.inference_mode():
            for _ in range(number):
                call()

    return lambda: watch().span(work)[1] / number


def linear(dims: Dims) -> Timed:
    """A linear layer without a bias: always the same, as one that is called again and again, or between others."""
    if dims["among"]:

        def make() -> nn.Module:
            return nn.Linear(dims["n_in"], dims["n_out"], bias=False)

        return among(modules(dims, make), filled(dims["rows"], dims["n_in"], dtype="float32"), dims["pass"])
    x = filled(dims["rows"], dims["n_in"], dtype=dims["dtype"])
    weight = filled(dims["n_out"], dims["n_in"], dtype=dims["dtype"])
    return repeated(dims, lambda: nn.functional.linear(x, weight))


def sgd(dims: Dims) -> Timed:
    """One step with momentum and weight decay over tensors of equal size, after others."""
    each = dims["n_parameters"] // dims["n_tensors"]
    weights = [filled(each, dtype="float32", grad=True) for _ in range(dims["n_tensors"])]
    optimizer = torch.optim.SGD(weights, lr=1e-3, momentum=0.9, weight_decay=1e-5)
    for weight in weights:
        weight.grad = torch.randn_like(weight)

    def call() -> float:
        neighbours().train()
        return watch().span(optimizer.step)[1]

    return call


def rows_image(rows: int, channels: int) -> Tensor:
    """Return one image of so many pixels."""
    return (
        image({"batch": 1, "side": 1}, channels)
        .expand(1, channels, rows, 1)
        .clone(memory_format=torch.channels_last)
    )


def structured(dims: Dims) -> Timed:
    """A structured matrix without a bias: alone, or in place of a pointwise convolution between other layers."""
    structure, n_in, n_out = (dims[name] for name in ("structure", "n_in", "n_out"))
    options = typical_options(structure, n_in, n_out)
    if not dims["among"]:
        layer, x = (
            StructuredModule(structure, n_in, n_out, **options),
            filled(dims["rows"], n_in, dtype=dims["dtype"]),
        )
        return repeated(dims, lambda: layer(x))

    def make() -> nn.Module:
        return StructuredPointwise(n_in, n_out, structure, bias=False, options=options)

    return among(modules(dims, make), rows_image(dims["rows"], n_in), dims["pass"], dense=False)


VISION_CASES: dict[str, Callable[[Dims], Timed]] = {
    "convolution": convolution,
    "depthwise": depthwise,
    "batch_norm": batch_norm,
    "stream": stream,
    "linear": linear,
    "sgd": sgd,
    "structured": structured,
}
