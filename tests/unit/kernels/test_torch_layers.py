"""Structured layers in the place of PyTorch's own, one by one and in whole networks."""

from __future__ import annotations

import copy

import pytest

from sandtable.errors import ConfigError, UnknownName
from sandtable_kernels.structured import structures

pytest.importorskip("numba", reason="the compiled loops need numba")
torch = pytest.importorskip("torch", reason="layers need PyTorch")
layers = pytest.importorskip("sandtable_kernels.structured.torch_layers")
nn = torch.nn

NAMES = tuple(dict.fromkeys(("butterfly", *structures.STRUCTURES)))
any_structure = pytest.mark.parametrize("structure", NAMES)


def cheapest(structure: str):
    """Return the options with which a structure takes half the multiplications of a dense matrix, or the fewest."""

    def options(n_in: int, n_out: int):
        if structure in ("butterfly", "dense"):
            return {}
        least = min(one.multiplications for one in structures.kind_named(structure).choices(n_in, n_out))
        return structures.matching(structure, n_in, n_out, max(least, n_in * n_out / 2))

    return options


def linear(structure: str, n_in: int = 24, n_out: int = 16, **settings):
    options = None if structure == "butterfly" else cheapest(structure)
    return layers.StructuredLinear(n_in, n_out, structure, options=options, **settings)


# --- one layer ---------------------------------------------------------------------------------------------


@any_structure
@pytest.mark.parametrize("bias", [True, False])
def test_it_stands_in_for_a_linear_layer(structure, bias):
    torch.manual_seed(0)
    module = linear(structure, bias=bias)
    identity = torch.eye(24)
    dense = nn.Linear(24, 16, bias=bias)
    assert (module.in_features, module.out_features) == (dense.in_features, dense.out_features)
    with torch.no_grad():
        offset = module.bias if bias else torch.zeros(16)
        dense.weight.copy_((module(identity) - offset).T)
        if bias:
            dense.bias.copy_(module.bias)
    for shape in ((24,), (5, 24), (2, 3, 4, 24)):
        x = torch.randn(shape)
        torch.testing.assert_close(module(x), dense(x), rtol=1e-4, atol=1e-4)


@any_structure
def test_it_stands_in_for_a_convolution_of_one_pixel(structure):
    torch.manual_seed(0)
    options = None if structure == "butterfly" else cheapest(structure)
    module = layers.StructuredPointwise(24, 16, structure, stride=2, options=options)
    dense = nn.Conv2d(24, 16, 1, stride=2)
    with torch.no_grad():
        dense.weight.copy_((module.rows(torch.eye(24)) - module.bias).T[:, :, None, None])
        dense.bias.copy_(module.bias)
    for shape in ((3, 24, 7, 6), (24, 5, 5)):
        maps = torch.randn(shape)
        torch.testing.assert_close(module(maps), dense(maps), rtol=1e-4, atol=1e-4)


def test_no_rows_give_none():
    assert layers.StructuredLinear(24, 16)(torch.zeros(0, 24)).shape == (0, 16)
    assert layers.StructuredPointwise(24, 16)(torch.zeros(0, 24, 5, 5)).shape == (0, 16, 5, 5)


def test_a_layer_compiles_as_ordinary_operations():
    module = layers.StructuredLinear(24, 16)
    x = torch.randn(5, 24)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


def test_maps_in_channels_last_are_rows_without_a_copy(monkeypatch):
    module = layers.StructuredPointwise(24, 16, bias=False)
    maps = torch.randn(2, 24, 5, 7).to(memory_format=torch.channels_last)
    seen = []

    def watched(x, *args, **settings):
        seen.append((x.data_ptr(), x.is_contiguous()))
        return whole(x, *args, **settings)

    whole = layers.butterfly
    monkeypatch.setattr(layers, "butterfly", watched)
    y = module(maps)
    assert seen == [(maps.data_ptr(), True)]
    assert y.is_contiguous(memory_format=torch.channels_last)
    plain = module(maps.contiguous())
    assert plain.is_contiguous()
    torch.testing.assert_close(plain, y)


def test_one_pixel_is_rows_in_either_format():
    module = layers.StructuredPointwise(24, 16)
    maps = torch.randn(4, 24, 1, 1)
    assert module(maps).shape == (4, 16, 1, 1)
    torch.testing.assert_close(module(maps).flatten(1), module.rows(maps.flatten(1)))


@any_structure
def test_state_copies_and_types(structure):
    module, other = linear(structure), linear(structure)
    x = torch.randn(5, 24)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x), module(x))
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x), other(x))
    half = twin.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert (half.float() - other(x)).abs().max() <= 0.05 * other(x).abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert other(x).dtype == (torch.float32 if structure in ("circulant", "toeplitz") else torch.bfloat16)


def test_parameters_are_made_where_and_as_they_are_wanted():
    module = layers.StructuredLinear(8, 8, device="meta", dtype=torch.bfloat16)
    assert {(str(p.device), p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}


def test_first_weights_follow_pytorchs_seed_and_the_papers_formula():
    torch.manual_seed(3)
    first = layers.StructuredLinear(64, 64)
    torch.manual_seed(3)
    again = layers.StructuredLinear(64, 64)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    # y = x^(1/L) 2^((L-1)/L) with x = sqrt(6 / 128), L = 3 levels
    bound = ((6 / 128) ** 0.5) ** (1 / 3) * 2 ** (2 / 3)
    weight = first.matrix.weight
    assert 0.98 * bound < weight.abs().max() <= bound * (1 + 1e-6)
    assert weight.abs().mean().item() == pytest.approx(bound / 2, rel=0.1)
    with torch.no_grad():
        weight.zero_()
    first.matrix.reset_parameters()
    assert weight.abs().mean().item() == pytest.approx(bound / 2, rel=0.1)


def test_it_says_what_it_is():
    module = layers.StructuredPointwise(8, 6, base=2, stride=2, residual=False)
    text = repr(module)
    assert "ButterflyModule(n_in=8, n_out=6, base=2, residual=False)" in text
    assert "stride=(2, 2), bias=True" in text
    assert "LowRank(n_in=8, n_out=6, rank=2)" in repr(
        layers.StructuredLinear(8, 6, "low_rank", options={"rank": 2})
    )


def test_what_it_cannot_be_or_take_is_one_sentence():
    with pytest.raises(UnknownName, match="low_rank"):
        layers.StructuredLinear(8, 6, "lowrank")
    with pytest.raises(ConfigError, match="low_rank needs its rank"):
        layers.StructuredLinear(8, 6, "low_rank")
    with pytest.raises(ConfigError, match="a butterfly has no option rank: it has base and residual"):
        layers.StructuredLinear(8, 6, options={"rank": 2})
    with pytest.raises(ConfigError, match="base"):
        layers.StructuredLinear(8, 6, base=3)
    with pytest.raises(ConfigError, match="maps of 8 channels"):
        layers.StructuredPointwise(8, 6)(torch.zeros(2, 7, 5, 5))
    with pytest.raises(ConfigError, match="rows of 8 numbers"):
        layers.StructuredLinear(8, 6)(torch.zeros(2, 7))


# --- whole networks ----------------------------------------------------------------------------------------


def small_network():
    shared = nn.Conv2d(16, 16, 1, bias=False)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 16, 1),
        nn.Sequential(nn.ReLU(), shared, nn.BatchNorm2d(16), shared),
        nn.Conv2d(16, 16, 1, groups=4),
        nn.Conv2d(16, 12, 1, padding=1),
        nn.Conv2d(16, 20, 1, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 5),
    )


@any_structure
def test_every_convolution_of_one_pixel_is_replaced_or_told(structure):
    network = small_network()
    network[4] = nn.Conv2d(16, 16, 1, padding=(0, 0))
    network.to(memory_format=torch.channels_last).eval()
    replaced = layers.replace_pointwise(network, structure, skip=["1"], options=cheapest(structure))
    assert replaced.names == ("2.1", "2.3", "4", "5")
    assert replaced.kept == {
        "1": "1 is to be skipped",
        "3": "3 mixes its channels in 4 groups, of which no structure here is made",
    }
    assert network[2][1] is network[2][3]
    assert network[2][1].bias is None
    assert not network[5].training
    assert isinstance(network[1], nn.Conv2d)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_padding_and_unknown_names_are_told():
    network = small_network()
    with pytest.raises(UnknownName, match="convolution of one pixel"):
        layers.replace_pointwise(network, skip=["0"])
    assert isinstance(network[1], nn.Conv2d)
    replaced = layers.replace_pointwise(network)
    assert "4 adds (1, 1) pixels of padding" in replaced.kept["4"]


def test_butterflies_decay_little():
    network = nn.Sequential(layers.StructuredPointwise(8, 8), nn.Conv2d(8, 4, 3), linear("low_rank", 8, 4))
    others, transforms = layers.parameter_groups(network, weight_decay=0.1)
    assert (others["weight_decay"], transforms["weight_decay"]) == (0.1, 0.0)
    assert [id(one) for one in transforms["params"]] == [id(network[0].matrix.weight)]
    assert len(others["params"]) + 1 == len(list(network.parameters()))
    torch.optim.SGD([others, transforms], lr=0.1)
    (alone,) = layers.parameter_groups(nn.Linear(2, 2), weight_decay=0.1)
    assert len(alone["params"]) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_small_network_learns(dtype):
    torch.manual_seed(0)
    network = nn.Sequential(
        layers.StructuredPointwise(12, 32, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        layers.StructuredPointwise(32, 32, base=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        layers.StructuredLinear(32, 4),
    ).to(memory_format=torch.channels_last)
    labels = torch.arange(64) % 4
    maps = torch.randn(64, 12, 4, 4) + torch.nn.functional.one_hot(labels, 12)[:, :, None, None]
    optimizer = torch.optim.Adam(layers.parameter_groups(network, weight_decay=1e-3), lr=0.02)
    losses = []
    for _ in range(25):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            scores = network(maps.to(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(scores.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
