"""The modules that are built of lists of layers: what they hold, give and multiply is what the lists count."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from typing import Any

import pytest

from sandtable_workloads.butterfly.networks import NETWORKS, Network, describe, network_named
from sandtable_workloads.butterfly.networks.pointwise_counts import equal_options

torch = pytest.importorskip("torch")

from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from sandtable_kernels.structured.torch_layers import replace_pointwise  # noqa: E402
from sandtable_workloads.butterfly.networks.torch_network import build, module_name  # noqa: E402

ALL_STRUCTURES = ("dense", "butterfly", "low_rank", "circulant", "toeplitz", "monarch", "block_shuffle")
STRUCTURES = {
    "mobilenet_v1": ALL_STRUCTURES,
    "shufflenet_v2": ("dense", "monarch"),
    "mobilenet_v3_small": ("dense",),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors are tiny, and threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(name: str, structure: str = "dense", **changed: Any) -> Network:
    width = {"mobilenet_v1": 0.25, "shufflenet_v2": 0.5, "mobilenet_v3_small": 0.35}[name]
    small = {"width": width, "resolution": 32, "classes": 7, "small_images": True, "structure": structure}
    return network_named(name, **(small | changed))


ALL = [tiny(name, structure) for name in NETWORKS for structure in STRUCTURES[name]]
each = pytest.mark.parametrize("network", ALL, ids=describe)


def images(network: Network, batch: int = 2) -> Any:
    side = network.resolution
    made = torch.randn(batch, network.in_channels, side, side, generator=torch.Generator().manual_seed(1))
    return made.to(memory_format=torch.channels_last)


@each
def test_the_module_holds_what_the_list_counts(network: Network) -> None:
    module = build(network)
    assert sum(weight.numel() for weight in module.parameters()) == network.parameters
    kept = sum(buffer.numel() for name, buffer in module.named_buffers() if "num_batches" not in name)
    assert kept == network.buffers
    for layer in network.layers:
        own = module.get_submodule(module_name(layer))
        assert sum(weight.numel() for weight in own.parameters()) == layer.parameters, layer.name


@each
def test_every_layer_gives_the_maps_of_the_list_in_channels_last(network: Network) -> None:
    module, seen = build(network).eval(), {}

    def note(name: str) -> Any:
        return lambda _module, _inputs, output: seen.update({name: output})

    for layer in network.layers:
        module.get_submodule(module_name(layer)).register_forward_hook(note(layer.name))
    with torch.inference_mode():
        scores = module(images(network))
    assert scores.shape == (2, 7)
    assert torch.isfinite(scores).all()
    for layer in network.layers:
        output = seen[layer.name]
        assert output.numel() == 2 * layer.activation_elements, layer.name
        if output.ndim == 4:
            assert output.shape[1:] == (layer.n_out, layer.side_out, layer.side_out)
            # cut outputs of a padded structure are a view, as slices are
            assert (
                layer.kind == "slice"
                or layer.is_structured
                or output.is_contiguous(memory_format=torch.channels_last)
            ), layer.name


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("changed", [{}, {"small_images": False, "in_channels": 1, "resolution": 45, "width": 1.0}])
def test_pytorch_counts_the_same_multiply_accumulates(name: str, changed: dict[str, Any]) -> None:
    network = tiny(name, **changed)
    with torch.device("meta"):
        module = build(network)
        counter = FlopCounterMode(display=False)
        with counter:
            module(torch.empty(3, network.in_channels, network.resolution, network.resolution))
    assert counter.get_total_flops() == 2 * network.multiply_accumulates(3)


@pytest.mark.parametrize("structure", ["low_rank", "block_shuffle"])
def test_pytorch_counts_the_same_of_structures(structure: str) -> None:
    network = tiny("mobilenet_v1", structure)
    module, counter = build(network), FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        module(images(network))
    assert counter.get_total_flops() == 2 * network.multiply_accumulates(2)


@each
def test_all_weights_learn(network: Network) -> None:
    module = build(network)
    x = images(network, 8)
    loss = torch.nn.functional.cross_entropy(module(x), torch.arange(8) % 7)
    loss.backward()
    still = [name for name, weight in module.named_parameters() if not weight.grad.abs().sum() > 0]
    # a ReLU between squeeze and excite may be shut for all of so few images
    assert [name for name in still if "squeeze_linear" not in name] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_autograd_keeps_what_the_list_says(name: str) -> None:
    network, kept = tiny(name, small_images=False, resolution=64), {}

    def keep(tensor: Any) -> Any:
        # maps and vectors of images alone: neither weights, nor statistics of norms, nor places of maxima
        if tensor.shape[:1] == (5,) and tensor.ndim in (2, 4) and tensor.is_floating_point():
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes() // 4, tensor)
        return tensor

    module, x = build(network), images(network, 5)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = module(x)
    assert scores.requires_grad
    assert sum(size for size, _ in kept.values()) == 5 * network.kept_elements


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small"])
@pytest.mark.parametrize("structure", ["butterfly", "low_rank"])
def test_replacing_the_convolutions_of_a_dense_network_gives_the_same_one(name: str, structure: str) -> None:
    listed, dense = tiny(name, structure), build(tiny(name))
    done = replace_pointwise(dense, structure, options=partial(_as_listed, structure))
    assert done.names == tuple(module_name(layer) for layer in listed.of_kind("pointwise"))
    assert not done.kept
    counts = {key: weight.shape for key, weight in dense.state_dict().items()}
    assert counts == {key: weight.shape for key, weight in build(listed).state_dict().items()}
    assert sum(weight.numel() for weight in dense.parameters()) == listed.parameters


def _as_listed(structure: str, n_in: int, n_out: int) -> dict[str, int]:
    return dict(equal_options(structure, n_in, n_out, 4))


def test_the_first_layers_of_shufflenet_are_those_to_skip() -> None:
    listed, dense = tiny("shufflenet_v2", "butterfly"), build(tiny("shufflenet_v2"))
    first = [module_name(layer) for layer in listed.of_kind("pointwise") if not layer.is_structured]
    done = replace_pointwise(dense, skip=first)
    assert set(done.kept) == set(first)
    assert len(first) == 2
    assert sum(weight.numel() for weight in dense.parameters()) == listed.parameters


def test_a_transform_without_its_residual_is_built_as_listed() -> None:
    with_one, without = (
        build(tiny("mobilenet_v1", "butterfly", residual=residual, base=2)).eval() for residual in (True, False)
    )
    transform = without.get_submodule("block1_pointwise").matrix
    assert (transform.residual, transform.layout.base) == (False, 2)
    x = images(without.network)
    with torch.inference_mode():
        assert not torch.allclose(with_one(x), without(x))


def test_seeds_decide_the_first_weights_and_nothing_else() -> None:
    network = tiny("shufflenet_v2", "butterfly")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (build(network, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_first_outputs_are_of_the_size_of_their_inputs() -> None:
    """He's weights: behind every convolution the mean square stays within a factor of a few, without a norm's help."""
    network = tiny("mobilenet_v1", width=1.0)
    module, seen = build(network).eval(), []
    for layer in network.of_kind("pointwise"):
        module.get_submodule(module_name(layer)).register_forward_hook(
            lambda _module, _inputs, output: seen.append(output.square().mean().item())
        )
    with torch.inference_mode():
        module(images(network))
    assert len(seen) == 13
    assert all(0.01 < value < 100 for value in seen)


@pytest.mark.parametrize("name", NETWORKS)
def test_pytorch_holds_at_once_what_the_list_says(name: str) -> None:
    """So many images that what convolutions take for their weights does not matter."""
    network, batch = tiny(name, small_images=False, resolution=64), 32
    module, x = build(network).eval(), images(network, 32)
    with torch.inference_mode():
        module(x)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            module(x)
    taken = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = accumulate(event.nbytes() for event in sorted(taken, key=lambda event: event.start_ns()))
    assert max(held) / 4 / batch + network.image_elements == pytest.approx(network.peak_elements, rel=0.01)


def test_slices_share_memory_and_relu_is_in_place() -> None:
    network = tiny("shufflenet_v2")
    module, ends = build(network).eval(), []
    for layer in network.layers:
        if not layer.new_elements:
            module.get_submodule(module_name(layer)).register_forward_hook(
                lambda _module, inputs, output: ends.append(
                    inputs[0].untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
                )
            )
    with torch.inference_mode():
        module(images(network))
    assert ends
    assert all(ends)
