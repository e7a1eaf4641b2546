"""Structured layers of PyTorch: equal to the references in NumPy, and differentiated as they should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.errors import ConfigError, UnknownName
from sandtable_kernels.structured import structures

torch = pytest.importorskip("torch", reason="layers need PyTorch")
torch_structures = pytest.importorskip("sandtable_kernels.structured.torch_structures")

NAMES = sorted(torch_structures.MULTIPLY)
any_structure = pytest.mark.parametrize("structure", NAMES)
sides = st.integers(1, 60)


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads wait for each other longer than such small products take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def layer(structure: str, n_in: int, n_out: int, share: float):
    choices = list(structures.kind_named(structure).choices(n_in, n_out))
    options = choices[round(share * (len(choices) - 1))].options
    return torch_structures.StructuredModule(structure, n_in, n_out, **options)


@any_structure
@settings(max_examples=20, deadline=None)
@given(n_in=sides, n_out=sides, share=st.floats(0, 1), n_rows=st.integers(1, 20))
def test_a_layer_equals_the_reference(structure, n_in, n_out, share, n_rows):
    module = layer(structure, n_in, n_out, share)
    x = torch.randn(n_rows, n_in)
    wanted = module.product.reference(x.numpy(), [weight.detach().numpy() for weight in module.weights])
    np.testing.assert_allclose(module(x).detach().numpy(), wanted, rtol=1e-5, atol=3e-5)


@any_structure
@pytest.mark.parametrize(("n_in", "n_out"), [(12, 12), (7, 10), (11, 6)])
def test_gradients_are_those_of_differences(structure, n_in, n_out):
    torch.manual_seed(0)
    module = layer(structure, n_in, n_out, 0.6).double()
    x = torch.randn(3, n_in, dtype=torch.float64, requires_grad=True)

    def product(x, *weights):
        return torch_structures.multiply(module.product, x, weights)

    assert torch.autograd.gradcheck(product, (x, *module.weights))


@any_structure
def test_batches_of_any_shape_and_bfloat16(structure):
    module = layer(structure, 24, 16, 0.3)
    x = torch.randn(2, 3, 5, 24)
    wanted = module(x.reshape(-1, 24)).reshape(2, 3, 5, 16)
    torch.testing.assert_close(module(x), wanted)
    half = module.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert half.shape == wanted.shape
    assert (half.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


@any_structure
def test_a_layer_learns_its_own_matrix(structure):
    torch.manual_seed(0)
    teacher, student = layer(structure, 16, 16, 0.7), layer(structure, 16, 16, 0.7)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    x = torch.randn(64, 16)
    losses = []
    for _ in range(150):
        loss = (student(x) - teacher(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_initial_weights_follow_the_seed():
    torch.manual_seed(3)
    first = layer("monarch", 64, 64, 1.0)
    torch.manual_seed(3)
    again = layer("monarch", 64, 64, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert first(torch.randn(400, 64)).var().item() == pytest.approx(1.0, rel=0.3)


def test_a_layer_says_what_it_is_and_what_it_takes():
    module = torch_structures.StructuredModule("low_rank", 8, 6, rank=2)
    assert "LowRank(n_in=8, n_out=6, rank=2)" in repr(module)
    with pytest.raises(ConfigError, match="this low_rank layer has 8 inputs, not 9"):
        module(torch.randn(2, 9))
    with pytest.raises(UnknownName, match="low_rank"):
        torch_structures.StructuredModule("lowrank", 8, 6)
