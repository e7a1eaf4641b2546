"""The butterfly as a function of PyTorch's tensors: equal to the reference, and differentiated as it should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.errors import ConfigError
from sandtable_kernels.structured.butterfly import butterfly_reference, initial_weights
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout

pytest.importorskip("numba", reason="the compiled loops need numba")
torch = pytest.importorskip("torch", reason="the function needs PyTorch")
torch_butterfly = pytest.importorskip("sandtable_kernels.structured.torch_butterfly")

sides = st.integers(1, 90)
bases = st.sampled_from((2, 4, 8, 16))
# square and not, one level and several, with a last level that overlaps the one before
SHAPES = [(16, 16, 4), (24, 58, 4), (58, 24, 2), (3, 3, 4), (20, 20, 8), (40, 33, 16), (1, 5, 2)]
any_shape = pytest.mark.parametrize(("n_in", "n_out", "base"), SHAPES)


def tensors(layout: ButterflyLayout, n_rows: int, *, dtype=None, seed: int = 0):
    """Return rows and weights, both wanting gradients."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((n_rows, layout.n_in), dtype=np.float32), initial_weights(layout, rng)
    return [torch.from_numpy(part).to(dtype or torch.float32).requires_grad_() for part in made]


def gradients(way, x, weights, layout, residual, grad):
    y = way(x, weights, layout, residual=residual)
    return y, *torch.autograd.grad(y, (x, weights), grad)


@settings(max_examples=40)
@given(n_in=sides, n_out=sides, base=bases, n_rows=st.integers(0, 40), residual=st.booleans())
def test_both_ways_equal_the_reference(n_in, n_out, base, n_rows, residual):
    layout = ButterflyLayout(n_in, n_out, base)
    x, weights = tensors(layout, n_rows)
    wanted = butterfly_reference(x.detach().numpy(), weights.detach().numpy(), layout, residual=residual)
    for way in (torch_butterfly.butterfly, torch_butterfly.butterfly_levels):
        found = way(x, weights, layout, residual=residual)
        assert found.shape == (n_rows, n_out)
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5, atol=2e-5)


@any_shape
@pytest.mark.parametrize("residual", [True, False])
def test_gradients_of_ordinary_operations_are_those_of_differences(n_in, n_out, base, residual):
    layout = ButterflyLayout(n_in, n_out, base)
    x, weights = tensors(layout, 2, dtype=torch.float64)

    def transform(x, weights):
        return torch_butterfly.butterfly(x, weights, layout, residual=residual)

    assert torch.autograd.gradcheck(transform, (x, weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(transform, (x, weights), fast_mode=True)


@any_shape
@pytest.mark.parametrize("residual", [True, False])
def test_gradients_of_the_compiled_loops_are_those_of_ordinary_operations(n_in, n_out, base, residual):
    layout = ButterflyLayout(n_in, n_out, base)
    x, weights = tensors(layout, 33)
    grad = torch.randn(33, n_out)
    found = gradients(torch_butterfly.butterfly, x, weights, layout, residual, grad)
    assert "OnHost" in str(found[0].grad_fn.next_functions) + str(found[0].grad_fn)
    wanted = gradients(torch_butterfly.butterfly_levels, x, weights, layout, residual, grad)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@any_shape
def test_bfloat16_is_summed_in_float32(n_in, n_out, base):
    layout = ButterflyLayout(n_in, n_out, base)
    x, weights = tensors(layout, 17, dtype=torch.bfloat16)
    grad = torch.randn(17, n_out).to(torch.bfloat16)
    found = gradients(torch_butterfly.butterfly, x, weights, layout, True, grad)
    wanted = gradients(torch_butterfly.butterfly_levels, x.float(), weights.float(), layout, True, grad.float())
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        # one rounding at the end: half a unit of eight bits, and of what the rows are summed in for weights
        assert (one.float() - other).abs().max() <= 2**-8 * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_take_ordinary_operations(dtype):
    layout = ButterflyLayout(24, 24, 4)
    x, weights = tensors(layout, 5)
    wanted = torch_butterfly.butterfly(x, weights, layout)
    found = torch_butterfly.butterfly(x.to(dtype), weights.to(dtype), layout)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2)


def test_rows_of_any_shape_and_order():
    layout = ButterflyLayout(12, 7, 4)
    x, weights = tensors(layout, 30)
    wanted = torch_butterfly.butterfly(x, weights, layout)
    torch.testing.assert_close(
        torch_butterfly.butterfly(x.reshape(2, 3, 5, 12), weights, layout), wanted.reshape(2, 3, 5, 7)
    )
    torch.testing.assert_close(torch_butterfly.butterfly(x[3], weights, layout), wanted[3])
    strided = x.detach().t().contiguous().t()
    assert not strided.is_contiguous()
    torch.testing.assert_close(torch_butterfly.butterfly(strided, weights, layout), wanted)
    y = torch_butterfly.butterfly(strided, weights, layout)
    # a gradient that is one number, spread over all
    y.sum().backward()
    assert weights.grad is not None


def test_the_loops_work_on_the_tensors_own_memory(monkeypatch):
    layout = ButterflyLayout(16, 16, 4)
    for dtype in (torch.float32, torch.bfloat16):
        x, weights = tensors(layout, 8, dtype=dtype)
        seen = {}

        def watched(x, weights, layout, *, _seen=seen, out, **settings):
            _seen.update(x=x.ctypes.data, weights=weights.ctypes.data, out=out.ctypes.data)
            return torch_butterfly.host.butterfly_plain(x, weights, layout, out=out, **settings)

        monkeypatch.setattr(torch_butterfly.host, "butterfly_plain", torch_butterfly.host.butterfly, raising=False)
        with monkeypatch.context() as patch:
            patch.setattr(torch_butterfly.host, "butterfly", watched)
            y = torch_butterfly.butterfly(x, weights, layout)
        assert seen == {"x": x.data_ptr(), "weights": weights.data_ptr(), "out": y.data_ptr()}


def test_autocast_narrows_as_it_does_for_a_linear_layer():
    layout = ButterflyLayout(16, 16, 4)
    x, weights = tensors(layout, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch_butterfly.butterfly(x, weights, layout)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad.dtype == weights.grad.dtype == torch.float32


def test_a_second_derivative_is_refused_and_ordinary_operations_have_it():
    layout = ButterflyLayout(16, 16, 4)
    x, weights = tensors(layout, 4)
    (by_x,) = torch.autograd.grad(
        torch_butterfly.butterfly(x, weights, layout).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        by_x.sum().backward()
    (by_x,) = torch.autograd.grad(
        torch_butterfly.butterfly_levels(x, weights, layout).square().sum(), x, create_graph=True
    )
    by_x.sum().backward()
    assert weights.grad is not None


def test_compiling_traces_ordinary_operations():
    layout = ButterflyLayout(12, 20, 4)
    x, weights = tensors(layout, 6)
    wanted = torch_butterfly.butterfly(x, weights, layout)
    compiled = torch.compile(
        lambda x, weights: torch_butterfly.butterfly(x, weights, layout), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x, weights), wanted)


@pytest.mark.parametrize(
    ("x", "weights", "sentence"),
    [
        (torch.zeros(3, 9), torch.zeros(1, 2, 8, 4), r"rows of 8 numbers are transformed, not a tensor \(3, 9\)"),
        (torch.zeros(3, 8), torch.zeros(1, 2, 8, 2), r"weights of this butterfly are \(1, 2, 8, 4\)"),
        (torch.zeros(3, 8), torch.zeros(1, 2, 8, 4).double(), "convert one of them, or use torch.autocast"),
        (torch.zeros(3, 8).int(), torch.zeros(1, 2, 8, 4).int(), "does not take rows of torch.int32"),
        (torch.zeros(3, 8), torch.zeros(1, 2, 8, 4, device="meta"), "rows on cpu do not meet weights on meta"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(x, weights, sentence):
    with pytest.raises(ConfigError, match=sentence):
        torch_butterfly.butterfly(x, weights, ButterflyLayout(8, 8, 4))
