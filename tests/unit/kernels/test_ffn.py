from __future__ import annotations

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable_kernels.files.dtypes import DTYPES
from sandtable_kernels.operations.ffn import (
    ACTIVATIONS,
    dense_ffn_masked_reference,
    sparse_ffn,
    sparse_ffn_reference,
)
from sandtable_kernels.support import seeded, seeded_weights

pytest.importorskip("numba", reason="the fast path needs numba")

CASES = [(n, d) for n in (0, 1, 2, 3, 4, 5, 8, 13) for d in (1, 16, 257)] + [(100, 700)]


def problem(n: int, d: int, dtype: str, *, gated: bool, padding: int = 0) -> dict:
    return {
        "x": seeded((d,), 1),
        "rows": seeded_weights((n, (3 if gated else 2) * d + padding), dtype, 2),
        "bias": seeded((n,), 3, scale=0.2),
        "dtype": dtype,
        "gated": gated,
    }


def assert_near(result: np.ndarray, wanted: np.ndarray) -> None:
    assert result.dtype == np.float32
    assert np.abs(result - wanted).max(initial=0) <= 2e-5 * max(1e-3, np.abs(wanted).max(initial=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_every_number_of_rows_and_width(dtype, gated, n_threads):
    for n, d in CASES:
        args = problem(n, d, dtype, gated=gated)
        assert_near(sparse_ffn(**args, n_threads=n_threads), sparse_ffn_reference(**args))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_activations(activation, gated):
    args = problem(50, 64, "float32", gated=gated) | {"activation": activation}
    assert_near(sparse_ffn(**args), sparse_ffn_reference(**args))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_chosen_rows_equal_the_masked_dense_block(gated, activation):
    args = problem(60, 48, "bfloat16", gated=gated) | {"activation": activation}
    active = np.sort(np.random.default_rng(0).permutation(60)[:17])
    dense = dense_ffn_masked_reference(active=active, **args)
    assert_near(sparse_ffn(**args, row_index=active), dense)
    assert_near(sparse_ffn_reference(**args, row_index=active), dense)


def test_inactive_neurons_contribute_nothing():
    args = problem(80, 32, "float32", gated=False)
    up = args["rows"][:, :32] @ args["x"] + args["bias"]
    positive = np.flatnonzero(up > 0)
    assert_near(sparse_ffn(**args, row_index=positive), sparse_ffn_reference(**args))


def test_order_of_rows_does_not_matter():
    args = problem(40, 32, "float16", gated=False)
    order = np.random.default_rng(0).permutation(40)
    shuffled = args | {"rows": args["rows"][order], "bias": args["bias"][order]}
    assert_near(sparse_ffn(**shuffled), sparse_ffn_reference(**args))


def test_padding_after_the_vectors_is_ignored():
    args = problem(9, 30, "float32", gated=False, padding=11)
    args["rows"][:, 60:] = np.nan
    assert_near(sparse_ffn(**args), sparse_ffn_reference(**args))


def test_output_is_written_in_place():
    args = problem(9, 30, "float32", gated=False)
    out = np.full(30, 7, np.float32)
    assert sparse_ffn(**args, out=out) is out
    assert_near(out, sparse_ffn_reference(**args))


def test_no_bias_is_zero_bias():
    args = problem(9, 30, "float32", gated=False)
    zero = sparse_ffn(**args | {"bias": np.zeros(9, np.float32)})
    assert np.array_equal(sparse_ffn(**args | {"bias": None}), zero)


def test_short_records_and_unknown_activations_are_refused():
    args = problem(9, 30, "float32", gated=False)
    with pytest.raises(ConfigError, match="three vectors of 30 need 90"):
        sparse_ffn(**args | {"gated": True})
    with pytest.raises(ConfigError, match="'gelu' is not one of relu, relu2, identity"):
        sparse_ffn(**args, activation="gelu")
