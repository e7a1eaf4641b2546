"""Structured matrices: each is the dense matrix it says, costs what it says, and keeps within a budget."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.errors import ConfigError, UnknownName
from sandtable_kernels.structured import structures
from sandtable_kernels.structured.baselines.circulant import fast_length, transform_multiplications
from sandtable_kernels.structured.baselines.monarch import Monarch
from sandtable_kernels.structured.baselines.structured_product import StructuredProduct
from sandtable_kernels.structured.structures import STRUCTURES, matching, structured

sides = st.integers(1, 80)
any_structure = pytest.mark.parametrize("structure", STRUCTURES)


def problem(product: StructuredProduct, n_rows: int, seed: int = 0) -> tuple[np.ndarray, tuple[Any, ...]]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_rows, product.n_in), dtype=np.float32), product.initial_weights(rng)


def needs(structure: str) -> None:
    """Skip where the package is missing that a structure's fast path needs."""
    package = {"circulant": "scipy", "toeplitz": "scipy", "butterfly": "numba"}.get(structure)
    if package is not None:
        pytest.importorskip(package, reason="the fast path needs it")


def some_product(structure: str, n_in: int, n_out: int, share: float) -> StructuredProduct:
    """Return one of a structure's products of a size: the first for share 0, the last for share 1.

    Of butterflies always that of base 4: each base is compiled by itself, and they have tests of their own.
    """
    choices = list(structures.kind_named(structure).choices(n_in, n_out))
    if structure == "butterfly":
        return choices[0]
    return choices[round(share * (len(choices) - 1))]


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5 * max(1.0, float(np.abs(wanted).max())))


@any_structure
@settings(max_examples=25, deadline=None)
@given(n_in=sides, n_out=sides, share=st.floats(0, 1), n_rows=st.integers(1, 40))
def test_the_fast_path_the_reference_and_the_dense_matrix_agree(structure, n_in, n_out, share, n_rows):
    needs(structure)
    product = some_product(structure, n_in, n_out, share)
    x, weights = problem(product, n_rows)
    wanted = product.reference(x, weights)
    assert wanted.shape == (n_rows, n_out)
    close(product.forward(x, weights), wanted)
    close(x @ product.dense(weights).T, wanted)


@any_structure
def test_rows_of_many_blocks_and_of_two_threads(structure):
    needs(structure)
    product = some_product(structure, 1500, 1100, 0.02)
    x, weights = problem(product, 401)
    out = np.full((401, 1100), np.nan, np.float32)
    assert product.forward(x, weights, out=out, n_threads=2) is out
    close(out, product.reference(x, weights))


@any_structure
def test_rows_apart_are_taken_as_they_are(structure):
    needs(structure)
    product = some_product(structure, 24, 36, 0.5)
    x, weights = problem(product, 14)
    close(product.forward(x[::2], weights), product.reference(np.ascontiguousarray(x[::2]), weights))
    columns = np.asfortranarray(x)
    close(product.forward(columns, weights), product.reference(x, weights))


def test_a_circulant_is_built_of_its_column_turned():
    product = structured("circulant", 6, 6)
    column = np.arange(1, 7, dtype=np.float32)
    wanted = np.stack([np.roll(column, shift) for shift in range(6)], axis=1)
    np.testing.assert_array_equal(product.dense((column,)), wanted)
    close(product.forward(np.eye(6, dtype=np.float32), (column,)).T, wanted)


@pytest.mark.parametrize(("n_in", "n_out"), [(5, 7), (7, 5), (13, 13), (4, 4)])
def test_a_toeplitz_has_one_number_for_each_diagonal(n_in, n_out):
    product = structured("toeplitz", n_in, n_out)
    diagonals = np.arange(1, n_in + n_out, dtype=np.float32)
    dense = product.dense((diagonals,))
    assert dense[0, n_in - 1] == 1
    assert dense[n_out - 1, 0] == n_in + n_out - 1
    for offset in range(1 - n_out, n_in):
        assert set(np.diagonal(dense, offset)) == {diagonals[n_in - 1 - offset]}


@pytest.mark.parametrize("root", [4, 7, 16, 32])
def test_a_square_monarch_has_two_n_root_n_weights_and_joins_all(root):
    n = root * root
    product = structured("monarch", n, n)
    assert product.parameters == product.multiplications == 2 * n * root
    _, weights = problem(product, 1)
    dense = product.dense(weights)
    assert (dense != 0).all()
    # one path for each pair: a block of the dense matrix has rank one
    assert np.linalg.matrix_rank(dense[:root, :root], tol=1e-4) == 1


def test_a_monarch_joins_its_blocks_as_the_product_of_three_matrices_does():
    product = Monarch(9, 9, 3)
    _, (first, second) = problem(product, 1)
    turned = np.arange(9).reshape(3, 3).T.ravel()
    wanted = block_diagonal(second) @ np.eye(9)[turned] @ block_diagonal(first)
    np.testing.assert_allclose(product.dense((first, second)), wanted, atol=1e-6)


def block_diagonal(blocks: np.ndarray) -> np.ndarray:
    n, height, width = blocks.shape
    whole = np.zeros((n * height, n * width))
    for i, block in enumerate(blocks):
        whole[i * height : (i + 1) * height, i * width : (i + 1) * width] = block
    return whole


@pytest.mark.parametrize(("n_in", "n_out"), [(1024, 512), (512, 512), (116, 232), (97, 89)])
def test_a_monarch_without_options_is_cheap(n_in, n_out):
    product = structured("monarch", n_in, n_out)
    assert product.multiplications < 0.5 * n_in * n_out
    if n_in % 2 == n_out % 2 == 0:
        n_blocks = product.options["n_blocks"]
        assert n_in % n_blocks == n_out % n_blocks == 0


def test_groups_are_shuffled():
    product = structured("block_shuffle", 6, 6, n_groups=2)
    weights = (np.stack([np.eye(3, dtype=np.float32)] * 2),)
    x = np.arange(6, dtype=np.float32)[None]
    np.testing.assert_array_equal(product.forward(x, weights)[0], [0, 3, 1, 4, 2, 5])


@settings(max_examples=60, deadline=None)
@given(
    structure=st.sampled_from(STRUCTURES),
    n_in=sides,
    n_out=sides,
    budget=st.floats(1, 10_000),
    more=st.floats(1, 2),
)
def test_matching_never_exceeds_the_budget_and_more_of_it_buys_no_less(structure, n_in, n_out, budget, more):
    least = min(one.multiplications for one in structures.kind_named(structure).choices(n_in, n_out))
    if least > budget:
        with pytest.raises(ConfigError, match=f"no {structure} matrix of {n_out} x {n_in} takes as few as"):
            matching(structure, n_in, n_out, budget)
        return
    product = structured(structure, n_in, n_out, **matching(structure, n_in, n_out, budget))
    assert product.multiplications <= budget
    richer = structured(structure, n_in, n_out, **matching(structure, n_in, n_out, budget * more))
    assert richer.multiplications >= product.multiplications


def test_matching_spends_what_there_is():
    assert matching("low_rank", 512, 512, 20 * 1024 + 1023) == {"rank": 20}
    assert matching("block_shuffle", 512, 256, 512 * 256 / 8) == {"n_groups": 8}
    assert matching("monarch", 256, 256, 2 * 256 * 16) == {"n_blocks": 16}
    assert matching("dense", 8, 8, 64) == {}
    assert matching("butterfly", 256, 256, 2 * 256 * 8) == {"base": 4, "residual": True}


@pytest.mark.parametrize("structure", sorted({*STRUCTURES} - {"butterfly"}))
@pytest.mark.parametrize(("n_in", "n_out"), [(256, 256), (256, 384), (300, 200)])
def test_initial_weights_keep_the_variance(structure, n_in, n_out):
    product = some_product(structure, n_in, n_out, 0.05)
    x, _ = problem(product, 300)
    spread = np.mean([product.reference(x, problem(product, 1, seed)[1]).var() for seed in range(6)])
    assert spread == pytest.approx(1.0, rel=0.25)


@any_structure
def test_initial_weights_spread_as_stated(structure):
    product = some_product(structure, 320, 256, 0.05)
    weights = product.initial_weights(np.random.default_rng(0))
    for weight, shape, spread in zip(weights, product.weights_shapes, product.spreads, strict=True):
        assert weight.shape == shape
        assert weight.std() == pytest.approx(spread, rel=0.2)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20_000))
def test_lengths_for_transforms_are_those_of_scipy(least):
    module = pytest.importorskip("scipy.fft")
    assert fast_length(least) == module.next_fast_len(least, real=True)


def test_transforms_are_counted_on_the_length_that_is_executed():
    assert transform_multiplications(1024) == 1.25 * 1024 * 10
    assert structured("circulant", 1024, 1024).multiplications == 2 * 12800 + 4 * 513
    # a prime side is embedded in a longer one
    assert structured("circulant", 1021, 1021).multiplications > structured("circulant", 2000, 2000).multiplications


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: structured("low_rank", 8, 4, rank=5), "the rank of a 4 x 8 matrix is at most 4, not 5"),
        (lambda: structured("low_rank", 8, 4), "low_rank needs its rank"),
        (lambda: structured("low_rank", 8, 4, rank=0), "rank of a low_rank product must be at least 1, not 0"),
        (lambda: structured("monarch", 0, 4), "n_in of a monarch product must be at least 1"),
        (lambda: structured("monarch", 64, 64, n_blocks=9), "has at most 8 blocks in a factor"),
        (lambda: structured("block_shuffle", 9, 4, n_groups=5), "5 groups cannot share 9 inputs and 4 outputs"),
        (lambda: structured("dense", 9, 4, rank=5), "dense has no option rank: it has none"),
        (lambda: structured("monarch", 9, 4, rank=5), "monarch has no option rank: it has n_blocks"),
        (lambda: matching("dense", 8, 8, 63), "no dense matrix of 8 x 8 takes as few as 63 multiplications a row"),
        (lambda: matching("low_rank", 8, 8, 15), "the least is 16"),
        (lambda: structured("butterfly", 8, 8, base=3), "the base of a butterfly is 2, 4, 8 or 16, not 3"),
    ],
)
def test_what_cannot_be_is_one_sentence(call, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_unknown_structure_names_the_nearest():
    with pytest.raises(UnknownName, match="monarch"):
        structured("monarc", 8, 8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"x": np.ones((3, 7), np.float32)},
            r"takes float32 rows of shape \[rows, 8\], not float32 of shape \[3, 7\]",
        ),
        ({"x": np.ones((3, 8))}, "not float64 of shape"),
        ({"weights": (np.ones((8, 8)),)}, r"takes float32 weights \[8, 8\], not float64 \[8, 8\]"),
        ({"weights": ()}, "not none"),
        ({"out": np.ones((2, 8), np.float32)}, "out must be contiguous float32"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, sentence):
    good = {"x": np.ones((3, 8), np.float32), "weights": (np.ones((8, 8), np.float32),), "out": None}
    given_ = {**good, **change}
    with pytest.raises(ConfigError, match=sentence):
        structured("dense", 8, 8).forward(given_["x"], given_["weights"], out=given_["out"])


def test_the_arithmetic_of_a_cheap_one_grows_as_its_paper_says():
    small, large = (structured("monarch", n, n).multiplications for n in (256, 4096))
    assert large / small == pytest.approx(16**1.5)
    small, large = (structured("circulant", n, n).multiplications for n in (256, 4096))
    assert large / small == pytest.approx(16 * math.log2(4096) / math.log2(256), rel=0.1)
