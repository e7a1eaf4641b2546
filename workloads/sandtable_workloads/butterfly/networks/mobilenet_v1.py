"""MobileNetV1 (Howard et al., arXiv 1704.04861, table 1)."""

from __future__ import annotations

from sandtable.errors import ConfigError
from sandtable_workloads.butterfly.networks.layer_builder import LayerBuilder

# channels and stride of each depthwise separable block
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
STEM = 32


def mobilenet_v1(build: LayerBuilder, width: float, classes: int, *, small_images: bool = False) -> None:
    """Write the layers: 3 x 3 convolution, 13 blocks of depthwise and pointwise, mean, classes.

    ``width`` multiplies every channel, rounded down. ``small_images`` leaves out the stride of the first convolution.
    """
    if STEM * width < 1:
        raise ConfigError(
            f"mobilenet_v1 of width {width:g} has no channel behind its first convolution: write {1 / STEM:g} or more"
        )
    build.conv("stem", int(STEM * width), stride=1 if small_images else 2)
    build.normed("relu", "stem")
    for index, (n_out, stride) in enumerate(BLOCKS, 1):
        build.prefix = f"block{index}."
        build.depthwise("depthwise", stride=stride)
        build.normed("relu", "depthwise")
        build.pointwise("pointwise", int(n_out * width))
        build.normed("relu", "pointwise")
    build.prefix = ""
    build.mean_pool("pool")
    build.linear("classes", classes)
