"""Averages of elements: bit by bit those of NumPy, and what every average must fulfil."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable_kernels.files import dtypes
from sandtable_workloads.rlhf.soups import soup_arithmetic
from sandtable_workloads.rlhf.soups.soup_arithmetic import NAMES, stored_dtype

Array = np.ndarray[Any, Any]
TYPES = ["F16", "BF16", "F32"]


def averaged(inputs: list[Array], weights: list[float], dtype: str, out_dtype: str | None = None) -> Array:
    out = np.empty(len(inputs[0]), stored_dtype(out_dtype or dtype))
    soup_arithmetic.average(out, inputs, weights, dtype, out_dtype or dtype)
    return out


def values(dtype: str, n: int, seed: int) -> Array:
    """Any finite elements of a type, evenly over its bits: all magnitudes, subnormal ones too."""
    rng = np.random.default_rng(seed)
    kind = stored_dtype(dtype)
    bits = rng.integers(0, 1 << (8 * kind.itemsize), n, np.uint64).astype(f"<u{kind.itemsize}").view(kind)
    return np.where(np.isfinite(wide(bits, dtype)), bits, kind.type(1))


def wide(stored: Array, dtype: str) -> Array:
    return soup_arithmetic.widened(stored, dtype)


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


@pytest.mark.parametrize("dtype", TYPES)
@given(
    seed=st.integers(0, 2**32), weights=st.lists(between(-0.5, 1.5), min_size=1, max_size=5), n=st.integers(1, 300)
)
def test_equal_models_are_their_average_bit_by_bit(dtype: str, seed: int, weights: list[float], n: int) -> None:
    model = values(dtype, n, seed)
    total = sum(weights[1:])
    found = averaged([model] * len(weights), [1 - total, *weights[1:]], dtype)
    if dtype == "BF16":  # the largest ones overflow float32 on the way, times weights that are large
        keep = np.abs(wide(model, dtype)) < 1e37
        model, found = model[keep], found[keep]
    if min([1 - total, *weights[1:]]) < 0:  # -0 less -0 is 0
        found, model = wide(found, dtype), wide(model, dtype)
    np.testing.assert_array_equal(found, model)


@given(seed=st.integers(0, 2**32), weight=between(0, 1))
def test_float16_is_rounded_once_from_the_sum_in_float32(seed: int, weight: float) -> None:
    one, two = values("F16", 500, seed), values("F16", 500, seed + 1)
    total = np.float32(weight) * wide(one, "F16") + np.float32(1 - weight) * wide(two, "F16")
    expected = total.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(averaged([one, two], [weight, 1 - weight], "F16"), expected)


@pytest.mark.parametrize("dtype", TYPES)
@given(seed=st.integers(0, 2**32), weight=between(0, 1))
def test_two_models_may_be_named_in_any_order(dtype: str, seed: int, weight: float) -> None:
    one, two = values(dtype, 200, seed), values(dtype, 200, seed + 1)
    forth = averaged([one, two], [weight, 1 - weight], dtype)
    np.testing.assert_array_equal(forth, averaged([two, one], [1 - weight, weight], dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_order_of_many_models_moves_no_more_than_the_last_bit(dtype: str) -> None:
    rng = np.random.default_rng(3)
    models = [dtypes.encode(rng.normal(size=400).astype(np.float32), NAMES[dtype]) for _ in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]
    found = [
        wide(averaged([models[i] for i in order], [weights[i] for i in order], dtype), dtype)
        for order in itertools.permutations(range(4))
    ]
    digits = {"F16": 2**-10, "BF16": 2**-7, "F32": 2**-23}[dtype]
    np.testing.assert_allclose(np.max(found, axis=0), np.min(found, axis=0), rtol=2 * digits, atol=1e-7)


@given(seed=st.integers(0, 2**32), first=between(-1, 2), second=between(-1, 2), share=between(0, 1))
def test_the_average_is_linear_in_its_weights(seed: int, first: float, second: float, share: float) -> None:
    rng = np.random.default_rng(seed)
    models = [rng.normal(size=100).astype(np.float32) for _ in range(2)]

    def at(weight: float) -> Array:
        return averaged(models, [weight, 1 - weight], "F32")

    between_both = share * at(first).astype(np.float64) + (1 - share) * at(second)
    np.testing.assert_allclose(at(share * first + (1 - share) * second), between_both, atol=2e-6)


@pytest.mark.parametrize(("dtype", "out_dtype"), list(itertools.product(TYPES, TYPES)))
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_compiled_and_plain_give_the_same_bits(dtype: str, out_dtype: str) -> None:
    pytest.importorskip("numba", reason="one of the two is compiled")
    models = [values(dtype, 70_000, seed) for seed in range(3)]
    weights = [0.5, 0.7, -0.2]
    fast = averaged(models, weights, dtype, out_dtype)
    with mock.patch.object(soup_arithmetic, "_loops", return_value=None):
        plain = averaged(models, weights, dtype, out_dtype)
    np.testing.assert_array_equal(wide(fast, out_dtype), wide(plain, out_dtype))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [*TYPES, "F64"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told(dtype: str, odd: float, compiled: bool) -> None:
    model = np.ones(40_000)
    clean = model.copy()
    model[39_999] = odd
    stored = [
        each if dtype == "F64" else dtypes.encode(each.astype(np.float32), NAMES[dtype]) for each in (model, clean)
    ]
    out = np.empty(len(model), stored_dtype(dtype))
    loops = soup_arithmetic._loops() if compiled else None
    with mock.patch.object(soup_arithmetic, "_loops", return_value=loops):
        assert not soup_arithmetic.average(out, stored, [0.5, 0.5], dtype, dtype)
        assert soup_arithmetic.average(out, stored[1:], [1.0], dtype, dtype)
        assert np.all(wide(out, dtype) == 1)


@pytest.mark.parametrize("compiled", [True, False])
def test_every_nan_stays_one_when_it_is_rounded(compiled: bool) -> None:
    bits = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000], np.uint32).view(np.float32)
    loops = soup_arithmetic._loops() if compiled else None
    with mock.patch.object(soup_arithmetic, "_loops", return_value=loops):
        for out_dtype in TYPES:
            assert np.isnan(wide(averaged([bits], [1.0], "F32", out_dtype), out_dtype)).all()


def test_a_sum_that_a_narrow_type_cannot_hold_is_told() -> None:
    large, small = (dtypes.encode(np.full(3, value, np.float32), "float16") for value in (60000.0, -60000.0))
    out = np.empty(3, np.uint16)
    assert not soup_arithmetic.average(out, [large, small], [1.5, -0.5], "F16", "F16")
    assert soup_arithmetic.average(out, [large, small], [0.5, 0.5], "F16", "F16")
