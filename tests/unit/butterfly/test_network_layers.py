"""Networks as lists of layers: what fits together, what is counted, and what is refused."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from sandtable.errors import ConfigError, UnknownName
from sandtable_kernels.structured.structures import kind_named
from sandtable_workloads.butterfly.networks import IMAGE, NETWORKS, Layer, Network, describe, network_named
from sandtable_workloads.butterfly.networks.pointwise_counts import equal_options, pointwise_counts

MANY = [
    network_named(name, width=width, resolution=resolution, structure=structure, small_images=resolution == 32)
    for name in NETWORKS
    for width, resolution in ((0.5, 32), (1.0, 96))
    for structure in ("dense", "butterfly", "low_rank")
]
many = pytest.mark.parametrize("network", MANY, ids=describe)


def layer(**changed: Any) -> Layer:
    fields = {"name": "a", "kind": "conv", "inputs": (IMAGE,), "n_in": 6, "n_out": 10, "side_in": 8, "side_out": 4}
    return Layer(**(fields | changed))


def with_layers(*layers: Layer) -> Network:
    return Network(name="two", title="Two", width=1.0, resolution=8, in_channels=6, classes=10, layers=layers)


@many
def test_every_layer_takes_in_what_earlier_ones_give(network: Network) -> None:
    given = {IMAGE: (network.in_channels, network.resolution)}
    for part in network.layers:
        sources = [given[name] for name in part.inputs]
        assert part.name not in given
        assert sources[0][1] == part.side_in
        channels = [count for count, _ in sources]
        assert part.n_in == (sum(channels) if part.kind == "concat" else channels[0])
        if part.kind in ("add", "concat"):
            assert {side for _, side in sources} == {part.side_in}
        if part.kind in ("add", "scale"):
            assert set(channels) == {part.n_in}
        if part.kind == "slice":
            assert part.first + part.n_out <= part.n_in
        given[part.name] = (part.n_out, part.side_out)
    assert given[network.layers[-1].name] == (network.classes, 1)


@many
def test_every_output_is_read(network: Network) -> None:
    read = {name for part in network.layers for name in part.inputs}
    assert {part.name for part in network.layers} - read == {network.layers[-1].name}


@many
def test_small_images_end_as_a_map_of_a_few_pixels(network: Network) -> None:
    last = network.of_kind("pool")[-1]
    assert last.side_in >= 2


def test_counts_of_each_kind() -> None:
    conv = layer(kernel=3, stride=2)
    assert conv.multiply_accumulates() == 9 * 6 * 10 * 16
    assert conv.multiply_accumulates(5) == 5 * conv.multiply_accumulates()
    assert (conv.parameters, conv.buffers, conv.activation_elements) == (540, 0, 160)
    depthwise = layer(kind="depthwise", n_out=6, kernel=5)
    assert (depthwise.multiply_accumulates(), depthwise.parameters) == (25 * 6 * 16, 150)
    linear = layer(kind="linear", side_in=1, side_out=1, bias=True)
    assert (linear.multiply_accumulates(), linear.parameters) == (60, 70)
    norm = layer(kind="norm", n_out=6, side_out=8)
    assert (norm.multiply_accumulates(), norm.parameters, norm.buffers) == (0, 12, 12)
    assert layer(kind="pointwise", side_out=8).multiply_accumulates() == 60 * 64
    assert layer(kind="activation", function="relu", n_out=6, side_out=8).new_elements == 0


@pytest.mark.parametrize(
    ("n_in", "n_out", "base", "expected"),
    [
        (64, 64, 4, 4 * 64 * 3),  # three levels of 4 * 64
        (64, 64, 2, 2 * 64 * 6),
        (512, 512, 4, 4 * 512 * 5),  # ceil(4.5) levels
        (32, 64, 4, 2 * 4 * 32 * 3),  # two transforms side by side
        (64, 32, 4, 2 * 4 * 32 * 3),  # two, summed
        (24, 58, 4, 3 * 4 * 24 * 3),  # three, cut
    ],
)
def test_a_butterfly_is_counted_as_the_paper_does(n_in: int, n_out: int, base: int, expected: int) -> None:
    part = layer(kind="pointwise", n_in=n_in, n_out=n_out, side_in=1, side_out=1, structure="butterfly", base=base)
    assert part.is_structured
    assert part.multiply_accumulates(as_paper=True) == expected
    assert part.multiply_accumulates() == part.parameters >= expected


@pytest.mark.parametrize("structure", ["low_rank", "block_shuffle", "monarch", "toeplitz", "circulant"])
def test_other_structures_take_no_more_than_a_butterfly_if_they_can(structure: str) -> None:
    options = equal_options(structure, 64, 128, 4)
    budget = pointwise_counts("butterfly", 64, 128, 4).multiplications
    counts = pointwise_counts(structure, 64, 128, 4, options)
    least = min(choice.multiplications for choice in kind_named(structure).choices(64, 128))
    assert counts.multiplications <= max(budget, least)
    assert (counts.multiplications > 0.8 * budget) or structure == "monarch"
    part = layer(kind="pointwise", n_in=64, n_out=128, side_out=8, structure=structure, options=options)
    assert part.multiply_accumulates(2) == 128 * counts.multiplications


def test_a_low_rank_network_takes_as_many_as_a_butterfly_one() -> None:
    butterfly, low_rank = (
        network_named("mobilenet_v1", resolution=64, structure=name).multiply_accumulates_by_kind()["pointwise"]
        for name in ("butterfly", "low_rank")
    )
    assert 0.9 * butterfly < low_rank <= butterfly


def test_the_first_pointwise_layers_of_shufflenet_stay_dense() -> None:
    network = network_named("shufflenet_v2", structure="butterfly")
    dense = [part for part in network.of_kind("pointwise") if not part.is_structured]
    assert {part.n_in for part in dense} == {24}
    assert all(
        part.is_structured for part in network_named("mobilenet_v1", structure="butterfly").of_kind("pointwise")
    )


def test_the_stem_of_small_images_keeps_their_side() -> None:
    assert network_named("mobilenet_v1", resolution=32, small_images=True).layer("stem").side_out == 32
    assert network_named("mobilenet_v1", resolution=32).layer("stem").side_out == 16
    with pytest.raises(KeyError):
        network_named("mobilenet_v1").layer("stern")


def test_memory_is_what_is_alive_at_once() -> None:
    image, wide = 6 * 64, 10 * 64
    first = layer(kind="pointwise", side_out=8)
    active = layer(name="b", kind="activation", function="relu", inputs=("a",), n_in=10, side_out=8)
    narrow = layer(name="c", kind="pointwise", inputs=("b",), n_in=10, n_out=1, side_out=8)
    assert with_layers(first, active, narrow).peak_elements == image + wide + 64
    add = layer(name="d", kind="add", inputs=("b", "c"), n_in=10, side_out=8)
    second = layer(name="c", kind="pointwise", inputs=("b",), n_in=10, side_out=8)
    # the activation is in place: what `add` reads lies where the first layer wrote, and the caller holds the image
    assert with_layers(first, active, second, add).peak_elements == image + 3 * wide
    assert with_layers(first, active, second, add).activation_elements == 3 * wide


@many
def test_by_kind_adds_up(network: Network) -> None:
    assert sum(network.parameters_by_kind.values()) == network.parameters
    assert sum(network.multiply_accumulates_by_kind(3).values()) == network.multiply_accumulates(3)
    image = network.in_channels * network.resolution**2
    assert image < network.peak_elements < image + network.activation_elements


def test_a_network_in_a_few_words() -> None:
    network = network_named("mobilenet_v1", resolution=128, structure="butterfly")
    assert describe(network) == ("MobileNetV1 1.0 @ 128, butterfly base 4: 23.6M multiply-adds, 1.21M parameters")
    assert describe(network_named("shufflenet_v2", width=0.5)).startswith("ShuffleNetV2 0.5 @ 224, dense: ")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"width": 0.01}, "no channel behind its first convolution: write 0.03125 or more"),
        ({"width": 0.0}, "a width is above 0"),
        ({"width": nan}, "a width is above 0"),
        ({"width": inf}, "a width is above 0"),
        ({"resolution": 16}, "write a resolution of 32 or more, or small_images (from 16 pixels on)"),
        ({"resolution": 8, "small_images": True}, "write a resolution of 16 or more"),
        ({"name": "shufflenet_v2", "width": 0.75}, "87, 174, 348 channels, which cannot all be split in two"),
        ({"name": "shufflenet_v2", "width": 0.001}, "0, 0, 0 channels, which cannot all be split"),
        ({"classes": 0}, "classes is 0"),
        ({"in_channels": -1}, "in_channels is -1"),
        ({"structure": "butterfly", "base": 1}, "base"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_to_write(changed: dict[str, Any], says: str) -> None:
    asked = {"name": "mobilenet_v1", **changed}
    with pytest.raises(ConfigError) as refused:
        network_named(**asked)
    assert says in str(refused.value)


def test_the_width_that_is_suggested_can_be_built() -> None:
    with pytest.raises(ConfigError, match=r"write 0\.7586"):
        network_named("shufflenet_v2", width=0.75)
    for suggested in (0.7586, 0.01724):
        for part in network_named("shufflenet_v2", width=suggested).of_kind("slice"):
            assert part.n_out * 2 == part.n_in


@pytest.mark.parametrize(
    ("changed", "near"), [({"name": "mobilenet"}, "v1"), ({"structure": "buterfly"}, "butterfly")]
)
def test_unknown_names_suggest_near_ones(changed: dict[str, Any], near: str) -> None:
    with pytest.raises(UnknownName, match=near):
        network_named(**({"name": "mobilenet_v1"} | changed))
