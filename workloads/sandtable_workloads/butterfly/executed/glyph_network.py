"""The network that learns glyphs: MobileNetV1 cut down to images of 32 pixels and to minutes on one core."""

from __future__ import annotations

from sandtable_workloads.butterfly.executed.glyphs import CHARACTERS, SIDE
from sandtable_workloads.butterfly.networks.layer_builder import LayerBuilder
from sandtable_workloads.butterfly.networks.layers import Network

# channels and stride of each depthwise separable block; most of the work is where maps are 8 and 4 pixels wide
BLOCKS = ((64, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
STEM = 16


def glyph_network(
    width: float, *, structure: str = "dense", base: int = 4, residual: bool = True, classes: int = len(CHARACTERS)
) -> Network:
    """Return its layers: a convolution, six blocks of depthwise and pointwise, mean, classes.

    Every pointwise layer has the structure, as in MobileNetV1 of arXiv 1906.02256; structures other than the dense one
    take as many multiplications in each layer as a butterfly of that base would, or fewer.
    """
    build = LayerBuilder.on_image(1, SIDE, structure=structure, base=base, residual=residual)
    build.conv("stem", max(1, round(STEM * width)), stride=2)
    build.normed("relu", "stem")
    for index, (n_out, stride) in enumerate(BLOCKS, 1):
        build.prefix = f"block{index}."
        build.depthwise("depthwise", stride=stride)
        build.normed("relu", "depthwise")
        build.pointwise("pointwise", max(1, round(n_out * width)))
        build.normed("relu", "pointwise")
    build.prefix = ""
    build.mean_pool("pool")
    build.linear("classes", classes)
    return Network(
        name="glyph_network",
        title="MobileNetV1 in six blocks",
        width=width,
        resolution=SIDE,
        in_channels=1,
        classes=classes,
        layers=tuple(build.layers),
        structure=structure,
        base=base,
        residual=residual,
    )
