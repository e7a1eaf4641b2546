"""Networks by name: which there are, what can be asked of them, and what one is in a few words."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from sandtable import units
from sandtable.errors import ConfigError, UnknownName
from sandtable_workloads.butterfly.networks.layer_builder import LayerBuilder
from sandtable_workloads.butterfly.networks.layers import Network
from sandtable_workloads.butterfly.networks.mobilenet_v1 import mobilenet_v1
from sandtable_workloads.butterfly.networks.mobilenet_v3 import mobilenet_v3_small
from sandtable_workloads.butterfly.networks.pointwise_counts import check_structure
from sandtable_workloads.butterfly.networks.shufflenet_v2 import shufflenet_v2


class _Write(Protocol):
    def __call__(self, build: LayerBuilder, width: float, classes: int, *, small_images: bool = False) -> None: ...


class Architecture(NamedTuple):
    """How it is written, what writes its layers, and how often it halves its maps, in images large and small."""

    title: str
    write: _Write
    halvings: int
    halvings_of_small: int


NETWORKS: dict[str, Architecture] = {
    "mobilenet_v1": Architecture("MobileNetV1", mobilenet_v1, 5, 4),
    "shufflenet_v2": Architecture("ShuffleNetV2", shufflenet_v2, 5, 3),
    "mobilenet_v3_small": Architecture("MobileNetV3-Small", mobilenet_v3_small, 5, 4),
}


def network_named(
    name: str,
    *,
    width: float = 1.0,
    resolution: int = 224,
    structure: str = "dense",
    base: int = 4,
    residual: bool = True,
    classes: int = 1000,
    in_channels: int = 3,
    small_images: bool = False,
) -> Network:
    """Return a network of `NETWORKS` as a list of layers.

    Args:
        name: ``mobilenet_v1``, ``shufflenet_v2`` or ``mobilenet_v3_small``.
        width: Multiplier of the channels.
        resolution: Side of the images in pixels.
        structure: Of the pointwise layers that the paper replaces (arXiv 1906.02256, section 4), or ``dense``.
        base: Of a butterfly, and of that by which the options of other structures are chosen: in each layer they take
            as many multiplications as it would, or fewer, if they can.
        residual: Whether the input of each transform is added to its output.
        classes: How many numbers the answer has.
        in_channels: Of the images: 3, or 1 for grey ones.
        small_images: The first strides are left out, so that an image of 32 pixels ends as a map of a few.

    Raises:
        UnknownName: No such network or structure.
        ConfigError: A width, resolution, base or count that cannot be built, with what to write instead.
    """
    if name not in NETWORKS:
        raise UnknownName("network", name, NETWORKS)
    known = NETWORKS[name]
    if not 0 < width < math.inf:
        raise ConfigError(f"a width is above 0, like 0.25 or 1, and not {width:g}")
    for what, count in (("classes", classes), ("in_channels", in_channels)):
        if count < 1:
            raise ConfigError(f"{what} is {count}: write 1 or more")
    _check_resolution(name, resolution, small_images)
    check_structure(structure, base)
    build = LayerBuilder.on_image(in_channels, resolution, structure=structure, base=base, residual=residual)
    known.write(build, width, classes, small_images=small_images)
    return Network(
        name=name,
        title=known.title,
        width=width,
        resolution=resolution,
        in_channels=in_channels,
        classes=classes,
        layers=tuple(build.layers),
        structure=structure,
        base=base,
        residual=residual,
    )


def _check_resolution(name: str, resolution: int, small_images: bool) -> None:
    known = NETWORKS[name]
    least = 2 ** (known.halvings_of_small if small_images else known.halvings)
    if resolution < least:
        smaller = "" if small_images else f", or small_images (from {2**known.halvings_of_small} pixels on)"
        raise ConfigError(
            f"{name} halves its maps {least.bit_length() - 1} times, and {resolution} pixels are too few for that: "
            f"write a resolution of {least} or more{smaller}"
        )


def describe(network: Network) -> str:
    """Return what a network is in a few words.

    ``MobileNetV1 1.0 @ 128, butterfly base 4: 23.6 M multiply-adds, 1.21 M parameters``
    """
    structure = network.structure.replace("_", " ")
    form = f"butterfly base {network.base}" if network.structure == "butterfly" else structure
    counted = units.format_count(network.multiply_accumulates()), units.format_count(network.parameters)
    width = f"{network.width:.4g}" if network.width % 1 else f"{network.width:.1f}"
    subject = f"{network.title} {width} @ {network.resolution}, {form}"
    return f"{subject}: {counted[0]} multiply-adds, {counted[1]} parameters"
