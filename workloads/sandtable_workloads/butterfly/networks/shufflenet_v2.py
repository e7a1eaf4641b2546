"""ShuffleNetV2 (Ma et al., arXiv 1807.11164, table 5 and figure 3)."""

from __future__ import annotations

from sandtable.errors import ConfigError
from sandtable_workloads.butterfly.networks.layer_builder import LayerBuilder

STEM = 24
REPEATS = (4, 8, 4)
# channels of the three stages and of the last convolution: table 5, and 1.25 of arXiv 1906.02256
CHANNELS: dict[float, tuple[int, int, int, int]] = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.25: (128, 256, 1024, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def shufflenet_v2(build: LayerBuilder, width: float, classes: int, *, small_images: bool = False) -> None:
    """Write the layers: convolution, pool, three stages of units that split, shuffle and join their channels, mean.

    All pointwise layers are replaced but the first, of 24 channels (arXiv 1906.02256, section 4.2). ``small_images``
    leaves out the stride of the first convolution, and the pool.
    """
    *stages, last = channels_at(width)
    build.conv("stem", STEM, stride=1 if small_images else 2)
    build.normed("relu", "stem")
    if not small_images:
        build.max_pool("stem_pool", kernel=3, stride=2)
    for stage, (channels, repeats) in enumerate(zip(stages, REPEATS, strict=True), 2):
        for unit in range(1, repeats + 1):
            build.prefix = f"stage{stage}.unit{unit}."
            if unit == 1:
                _down(build, channels, first=stage == 2)
            else:
                _unit(build, channels)
    build.prefix = ""
    build.pointwise("last", last)
    build.normed("relu", "last")
    build.mean_pool("pool")
    build.linear("classes", classes)


def channels_at(width: float) -> tuple[int, int, int, int]:
    """Return the channels of the stages and of the last convolution.

    Published ones, or those of 1.0 times ``width``. A unit splits its channels in two and joins them again, so that
    ConfigError refuses a width whose channels are odd, and names the nearest one whose channels are not.
    """
    if width in CHANNELS:
        return CHANNELS[width]
    *unit, last = CHANNELS[1.0]
    stages = [round(count * width) for count in unit]
    if any(count % 2 or not count for count in stages):
        nearest = max(2, 2 * round(unit[0] * width / 2)) / unit[0]
        raise ConfigError(
            f"shufflenet_v2 of width {width:g} has stages of {', '.join(map(str, stages))} channels, which cannot "
            f"all be split in two: write {nearest:.4g}, or a published width ({', '.join(map(str, CHANNELS))})"
        )
    return stages[0], stages[1], stages[2], 2 * last if width >= 2 else last


def _branch(build: LayerBuilder, n_out: int, stride: int, *, first: bool = False) -> None:
    build.pointwise("in", n_out, replaced=not first)
    build.normed("relu", "in")
    build.depthwise("depthwise", stride=stride)
    build.normed("", "depthwise")
    build.pointwise("out", n_out)
    build.normed("relu", "out")


def _unit(build: LayerBuilder, channels: int) -> None:
    whole, half = build.at, channels // 2
    kept = build.slice("kept", 0, half)
    build.at = whole
    build.slice("changed", half, half)
    _branch(build, half, 1)
    build.concat(kept, build.at)
    build.shuffle()


def _down(build: LayerBuilder, channels: int, *, first: bool) -> None:
    """Halve the maps: both branches read all channels."""
    whole, half = build.at, channels // 2
    build.depthwise("short_depthwise", stride=2)
    build.normed("", "short_depthwise")
    build.pointwise("short_out", half, replaced=not first)
    short = build.normed("relu", "short_out")
    build.at = whole
    _branch(build, half, 2, first=first)
    build.concat(short, build.at)
    build.shuffle()
