"""MobileNetV3-Small (Howard et al., arXiv 1905.02244, table 2)."""

from __future__ import annotations

from typing import NamedTuple

from sandtable_workloads.butterfly.networks.layer_builder import LayerBuilder
from sandtable_workloads.butterfly.networks.layers import Function

STEM, HIDDEN = 16, 1024


class Block(NamedTuple):
    """A row of table 2: kernel, expanded and output channels, squeeze-and-excite, activation, stride."""

    kernel: int
    expanded: int
    n_out: int
    excited: bool
    function: Function
    stride: int


BLOCKS = (
    Block(3, 16, 16, True, "relu", 2),
    Block(3, 72, 24, False, "relu", 2),
    Block(3, 88, 24, False, "relu", 1),
    Block(5, 96, 40, True, "hard_swish", 2),
    Block(5, 240, 40, True, "hard_swish", 1),
    Block(5, 240, 40, True, "hard_swish", 1),
    Block(5, 120, 48, True, "hard_swish", 1),
    Block(5, 144, 48, True, "hard_swish", 1),
    Block(5, 288, 96, True, "hard_swish", 2),
    Block(5, 576, 96, True, "hard_swish", 1),
    Block(5, 576, 96, True, "hard_swish", 1),
)


def mobilenet_v3_small(build: LayerBuilder, width: float, classes: int, *, small_images: bool = False) -> None:
    """Write the layers: convolution, 11 inverted residual blocks, pointwise, mean, two products.

    ``width`` multiplies every channel, rounded to a multiple of eight; those of the last hidden layer only where it is
    above 1, as in the authors' code.
    ``small_images`` leaves out the stride of the first convolution.
    """
    build.conv("stem", rounded(STEM * width), stride=1 if small_images else 2)
    build.normed("hard_swish", "stem")
    for index, block in enumerate(BLOCKS, 1):
        build.prefix = f"block{index}."
        _block(build, block, width)
    build.prefix = ""
    build.pointwise("last", 6 * build.at.channels)
    build.normed("hard_swish", "last")
    build.mean_pool("pool")
    build.linear("hidden", rounded(HIDDEN * max(1.0, width)))
    build.activation("hard_swish", "hidden_hard_swish")
    build.linear("classes", classes)


def _block(build: LayerBuilder, block: Block, width: float) -> None:
    begin, expanded, n_out = build.at, rounded(block.expanded * width), rounded(block.n_out * width)
    if expanded != begin.channels:
        build.pointwise("expand", expanded)
        build.normed(block.function, "expand")
    build.depthwise("depthwise", kernel=block.kernel, stride=block.stride)
    build.normed(block.function, "depthwise")
    if block.excited:
        _squeeze_excite(build)
    build.pointwise("project", n_out)
    end = build.normed("", "project")
    if block.stride == 1 and begin.channels == n_out:
        build.add(begin, end)


def _squeeze_excite(build: LayerBuilder) -> None:
    maps = build.at
    build.mean_pool("squeeze")
    build.linear("squeeze_linear", rounded(maps.channels / 4))
    build.activation("relu", "squeeze_relu")
    build.linear("excite_linear", maps.channels)
    factors = build.activation("hard_sigmoid", "excite_hard_sigmoid")
    build.scale("excite", maps, factors)


def rounded(channels: float, divisor: int = 8) -> int:
    """Return the nearest multiple of ``divisor``, at least one, and no more than a tenth below ``channels``.

    The rule of the authors' code (tensorflow/models, slim/nets/mobilenet, ``_make_divisible``).
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest
