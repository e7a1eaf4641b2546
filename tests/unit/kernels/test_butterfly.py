"""The butterfly transform: its shape, its definition, the compiled loops against the reference, and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.errors import ConfigError
from sandtable_kernels.files.dtypes import decode, encode
from sandtable_kernels.structured.butterfly import (
    butterfly,
    butterfly_backward,
    butterfly_backward_reference,
    butterfly_dense,
    butterfly_reference,
    initial_weights,
)
from sandtable_kernels.structured.butterfly_kernels import ButterflyBackwardKernel, ButterflyKernel
from sandtable_kernels.structured.butterfly_layout import BASES, ButterflyLayout

sides = st.one_of(st.integers(1, 90), st.sampled_from([128, 192, 256, 260, 512]))
layouts = st.builds(ButterflyLayout, sides, sides, st.sampled_from(BASES))
any_layout = given(
    layout=layouts, n_rows=st.integers(0, 70), residual=st.booleans(), n_threads=st.sampled_from([1, 2])
)


def problem(layout: ButterflyLayout, n_rows: int, dtype: type = np.float32) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(layout.n_in)
    x, grad = rng.standard_normal((n_rows, layout.n_in)), rng.standard_normal((n_rows, layout.n_out))
    return x.astype(dtype), initial_weights(layout, rng).astype(dtype), grad.astype(dtype)


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * scale)


# --- shape -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "base", "size", "strides"),
    [
        (64, 4, 64, (16, 4, 1)),
        (64, 2, 64, (32, 16, 8, 4, 2, 1)),
        (128, 4, 128, (32, 8, 2, 1)),
        (192, 4, 192, (48, 12, 3, 1)),
        (58, 4, 64, (16, 4, 1)),
        (24, 4, 32, (8, 2, 1)),
        (256, 16, 256, (16, 1)),
        (3, 4, 4, (1,)),
        (1, 2, 2, (1,)),
    ],
)
def test_sizes_and_strides(n, base, size, strides):
    layout = ButterflyLayout(n, n, base)
    assert (layout.size, layout.strides) == (size, strides)
    assert layout.weights_shape == (1, len(strides), size, base)


@pytest.mark.parametrize(
    ("n_in", "n_out", "base", "wanted"),
    [(64, 64, 4, 4 * 64 * 3), (64, 256, 4, 4 * 4 * 64 * 3), (58, 58, 4, 4 * 58 * 3), (100, 58, 2, 2 * 2 * 58 * 6)],
)
def test_multiplications_as_the_paper_counts_them(n_in, n_out, base, wanted):
    layout, turned = ButterflyLayout(n_in, n_out, base), ButterflyLayout(n_out, n_in, base)
    assert layout.paper_multiplications == turned.paper_multiplications == wanted
    assert layout.multiplications == wanted * layout.size // layout.side


@given(layouts)
def test_padding_is_the_least_that_gives_whole_groups(layout):
    assert layout.base ** (layout.n_levels - 1) < max(2, layout.side) <= max(2, layout.base**layout.n_levels)
    assert all(layout.size % (layout.base * stride) == 0 for stride in layout.strides)
    assert layout.side <= layout.size < layout.side + max(layout.base, layout.size // 2)
    assert ButterflyLayout(layout.size, layout.size, layout.base, padded=False).size == layout.size


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n_in": 0}, "n_in of a butterfly must be at least 1, not 0"),
        ({"n_out": -3}, "n_out of a butterfly must be at least 1, not -3"),
        ({"base": 3}, "is 2, 4, 8 or 16, not 3"),
        ({"n_in": 58, "padded": False}, "no side of 58 without padding: take 48 or 64"),
        ({"n_in": 3, "padded": False}, "no side of 3 without padding: take 4"),
    ],
)
def test_a_shape_that_cannot_be_is_one_sentence(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ButterflyLayout(**{"n_in": 64, "n_out": 64, **arguments})


# --- definition --------------------------------------------------------------------------------------------


def recursive(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Apply B(n, k) [levels, n, k] to ``x`` [n] as the paper defines it: ``concat_i(M_i sum_j D_ij x_j)``."""
    n, k = weights.shape[1:]
    parts, first = x.reshape(k, n // k), weights[0].reshape(k, n // k, k)
    sums = [np.sum([first[i, :, j] * parts[j] for j in range(k)], axis=0) for i in range(k)]
    if n == k:
        return np.concatenate(sums)
    return np.concatenate([recursive(weights[1:, i * n // k : (i + 1) * n // k], sums[i]) for i in range(k)])


@pytest.mark.parametrize(("n", "base"), [(64, 4), (64, 2), (64, 8), (16, 16), (256, 16), (4, 4)])
def test_it_is_the_recursion_of_the_paper(n, base):
    layout = ButterflyLayout(n, n, base)
    x, weights, _ = problem(layout, 3, np.float64)
    wanted = [recursive(weights[0], row) for row in x]
    close(butterfly_reference(x, weights, layout, residual=False), np.array(wanted), 1e-12)


@pytest.mark.parametrize(("n", "base"), [(64, 4), (64, 2), (64, 8), (256, 16)])
def test_one_path_joins_each_pair_at_powers_of_the_base(n, base):
    layout = ButterflyLayout(n, n, base)
    assert (butterfly_dense(np.ones(layout.weights_shape), layout, residual=False) == 1).all()


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_every_input_reaches_every_output(layout):
    paths = butterfly_dense(np.ones(layout.weights_shape), layout, residual=False)
    assert paths.shape == (layout.n_out, layout.n_in)
    assert paths.min() >= 1


def test_initial_weights_give_entries_of_half_the_bound_of_xavier():
    layout = ButterflyLayout(64, 64, 4)
    rng = np.random.default_rng(0)
    dense = [butterfly_dense(initial_weights(layout, rng), layout, residual=False) for _ in range(400)]
    half = math.sqrt(6 / 128) / 2
    assert half == pytest.approx(0.1083, abs=5e-5)
    assert np.abs(dense).mean() == pytest.approx(half, rel=0.01)


# --- the compiled loops ------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@any_layout
def test_forward_equals_its_reference_and_the_dense_matrix(layout, n_rows, residual, n_threads):
    pytest.importorskip("numba", reason="the fast path needs numba")
    x, weights, _ = problem(layout, n_rows)
    found = butterfly(x, weights, layout, residual=residual, n_threads=n_threads)
    assert found.shape == (n_rows, layout.n_out)
    close(found, butterfly_reference(x, weights, layout, residual=residual))
    close(found, x @ butterfly_dense(weights, layout, residual=residual).T)


@settings(max_examples=80, deadline=None)
@any_layout
def test_gradients_equal_their_reference(layout, n_rows, residual, n_threads):
    pytest.importorskip("numba", reason="the fast path needs numba")
    x, weights, grad = problem(layout, n_rows)
    found = butterfly_backward(x, weights, grad, layout, residual=residual, n_threads=n_threads)
    wanted = butterfly_backward_reference(x, weights, grad, layout, residual=residual)
    assert [part.dtype for part in found] == [np.float32, np.float32]
    for part, right in zip(found, wanted, strict=True):
        close(part, right)


@settings(max_examples=40, deadline=None)
@given(layout=layouts, residual=st.booleans())
def test_gradients_are_slopes(layout, residual):
    x, weights, grad = problem(layout, 3, np.float64)
    by_x, by_weights = butterfly_backward_reference(x, weights, grad, layout, residual=residual)
    rng = np.random.default_rng(1)
    along_x, along_weights = rng.standard_normal(x.shape), rng.standard_normal(weights.shape)

    def loss(step: float) -> float:
        moved = butterfly_reference(x + step * along_x, weights + step * along_weights, layout, residual=residual)
        return float((moved * grad).sum())

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert slope == pytest.approx((by_x * along_x).sum() + (by_weights * along_weights).sum(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (128, 58), (58, 300)])
def test_results_do_not_depend_on_threads(n_in, n_out):
    pytest.importorskip("numba", reason="the fast path needs numba")
    layout = ButterflyLayout(n_in, n_out)
    x, weights, grad = problem(layout, 301)
    one, two = (butterfly(x, weights, layout, n_threads=n) for n in (1, 2))
    assert np.array_equal(one, two)
    ones, twos = (butterfly_backward(x, weights, grad, layout, n_threads=n) for n in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(ones, twos, strict=True))


def test_linearity():
    pytest.importorskip("numba", reason="the fast path needs numba")
    layout = ButterflyLayout(96, 40)
    x, weights, _ = problem(layout, 8)
    close(
        butterfly(3 * x[:4] + x[4:], weights, layout),
        3 * butterfly(x[:4], weights, layout) + butterfly(x[4:], weights, layout),
    )


@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (64, 200), (200, 64), (58, 58)])
def test_bfloat16_rounds_once_at_the_end(n_in, n_out):
    pytest.importorskip("numba", reason="the fast path needs numba")
    layout = ButterflyLayout(n_in, n_out)
    x_bits, weights_bits, grad_bits = (encode(part, "bfloat16") for part in problem(layout, 33))
    x, weights, grad = (decode(part, "bfloat16") for part in (x_bits, weights_bits, grad_bits))
    found = butterfly(x_bits, weights_bits, layout)
    assert found.dtype == np.uint16
    np.testing.assert_allclose(
        decode(found, "bfloat16"), butterfly_reference(x, weights, layout), rtol=2**-8, atol=1e-5
    )
    by_x, by_weights = butterfly_backward(x_bits, weights_bits, grad_bits, layout)
    wanted = butterfly_backward_reference(x, weights, grad, layout)
    np.testing.assert_allclose(decode(by_x, "bfloat16"), wanted[0], rtol=2**-8, atol=1e-5)
    close(by_weights, wanted[1])


def test_rows_that_are_not_contiguous_are_copied_and_results_written_in_place():
    pytest.importorskip("numba", reason="the fast path needs numba")
    layout = ButterflyLayout(64, 64)
    x, weights, grad = problem(layout, 40)
    wide = np.asfortranarray(x)
    out = np.full((40, 64), np.nan, np.float32)
    assert butterfly(wide, np.asfortranarray(weights), layout, out=out) is out
    assert np.array_equal(out, butterfly(x, weights, layout))
    found = butterfly_backward(wide, np.asfortranarray(weights), np.asfortranarray(grad), layout)
    for part, right in zip(found, butterfly_backward(x, weights, grad, layout), strict=True):
        assert np.array_equal(part, right)
    assert np.array_equal(butterfly(x[::2], weights, layout), out[::2])


def test_infinite_inputs_stay_in_their_row():
    pytest.importorskip("numba", reason="the fast path needs numba")
    layout = ButterflyLayout(64, 64)
    x, weights, _ = problem(layout, 40)
    wanted = butterfly(x, weights, layout)
    x[7, 3] = np.inf
    found = butterfly(x, weights, layout)
    assert not np.isfinite(found[7]).any()
    assert np.array_equal(np.delete(found, 7, 0), np.delete(wanted, 7, 0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x": np.zeros((2, 64))}, r"not float64: write x.astype\(numpy.float32\)"),
        ({"x": np.zeros((2, 63), np.float32)}, r"rows of shape \[rows, 64\], not \[2, 63\]"),
        ({"x": np.zeros(64, np.float32)}, r"rows of shape \[rows, 64\], not \[64\]"),
        (
            {"weights": np.zeros((1, 3, 64, 2), np.float32)},
            r"shape \[1, 3, 64, 4\], not float32 of shape \[1, 3, 64, 2\]",
        ),
        (
            {"weights": np.zeros((1, 3, 64, 4), np.uint16)},
            "float32 rows takes weights of the same type.*, not bfloat16",
        ),
        ({"out": np.zeros((3, 64), np.float32)}, r"out must be contiguous float32 of shape \[2, 64\]"),
    ],
)
def test_arrays_that_do_not_fit_are_one_sentence(changes, sentence):
    layout = ButterflyLayout(64, 64)
    arrays = {"x": np.zeros((2, 64), np.float32), "weights": np.zeros(layout.weights_shape, np.float32), **changes}
    with pytest.raises(ConfigError, match=sentence):
        butterfly(arrays["x"], arrays["weights"], layout, out=arrays.get("out"))


def test_gradients_that_do_not_fit_are_one_sentence():
    layout = ButterflyLayout(64, 64)
    x, weights, _ = problem(layout, 2)
    with pytest.raises(ConfigError, match=r"must be float32 of shape \[2, 64\], not float64 of shape \[2, 64\]"):
        butterfly_backward(x, weights, np.zeros((2, 64)), layout)


def test_cost_of_a_layer():
    dims = {"rows": 10, "n_in": 64, "n_out": 128, "base": 4, "dtype": "bfloat16"}
    forward, backward = ButterflyKernel().cost(dims), ButterflyBackwardKernel().cost(dims)
    n_weights = 2 * 3 * 64 * 4
    assert (forward.flops, backward.flops) == (2 * 10 * n_weights, 6 * 10 * n_weights)
    assert forward.bytes_moved == 2 * (10 * (64 + 128) + n_weights)
