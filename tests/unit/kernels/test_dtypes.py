"""Stored weight types: exact widening, rounding to nearest even, and compiled twins that give the same bits."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sandtable_kernels.compiled
from sandtable.errors import NoDevice, UnknownName
from sandtable_kernels.files import dtypes

SIXTEEN_BITS = ["bfloat16", "float16"]
ALL_BITS = np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.parametrize(("name", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_sizes(name: str, size: int) -> None:
    assert dtypes.itemsize(name) == size
    assert dtypes.storage_dtype(name) == (np.float32 if size == 4 else np.uint16)


def test_an_unknown_type_is_named_with_a_suggestion() -> None:
    with pytest.raises(UnknownName, match="did you mean 'bfloat16'"):
        dtypes.itemsize("bfloat")


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_every_value_survives_a_round_trip(name: str) -> None:
    wide = dtypes.decode(ALL_BITS, name)
    number = ~np.isnan(wide)
    assert np.array_equal(dtypes.encode(wide, name)[number], ALL_BITS[number])
    assert np.isnan(dtypes.decode(dtypes.encode(wide[~number], name), name)).all()


@pytest.mark.parametrize("name", SIXTEEN_BITS)
@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-60000, max_value=60000))
def test_rounding_takes_the_nearest(name: str, value: float) -> None:
    wide = np.array([value], np.float32)
    bits = dtypes.encode(wide, name)
    chosen = abs(dtypes.decode(bits, name)[0] - wide[0])
    for neighbour in (bits + np.uint16(1), bits - np.uint16(1)):
        near = dtypes.decode(neighbour, name)[0]
        if np.isfinite(near):
            assert chosen <= abs(near - wide[0])


def test_ties_go_to_even() -> None:
    halves = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)  # between two bfloat16 numbers each
    assert dtypes.decode(dtypes.encode(halves, "bfloat16"), "bfloat16").tolist() == [1.0, 1 + 2**-6]


def test_extremes() -> None:
    wide = np.array([np.inf, -np.inf, np.nan, 3.4e38, 1e5], np.float32)
    assert dtypes.decode(dtypes.encode(wide, "float16"), "float16")[[0, 1, 3, 4]].tolist() == [
        np.inf,
        -np.inf,
        np.inf,
        np.inf,
    ]
    brain = dtypes.decode(dtypes.encode(wide, "bfloat16"), "bfloat16")
    assert np.isnan(brain[2])
    assert np.isinf(brain[[0, 1, 3]]).all() == np.isinf(brain[0])


def test_float32_passes_through() -> None:
    wide = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(dtypes.decode(dtypes.encode(wide, "float32"), "float32"), wide)


def test_shapes_are_kept() -> None:
    wide = np.ones((2, 3, 4), np.float32)
    for name in dtypes.DTYPES:
        assert dtypes.decode(dtypes.encode(wide, name), name).shape == wide.shape


def test_the_fast_path_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sandtable_kernels.compiled, "conversions", raising=False)
    monkeypatch.setitem(sys.modules, "sandtable_kernels.compiled.conversions", None)
    with pytest.raises(NoDevice, match=r"pip install -e '\.\[run\]'"):
        dtypes.fast_decoder("bfloat16")


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_the_compiled_decoder_gives_the_same_bits(name: str) -> None:
    numba = pytest.importorskip("numba", reason="the fast path needs numba")
    decode = dtypes.fast_decoder(name)

    @numba.njit
    def widen(bits: np.ndarray, out: np.ndarray) -> None:
        for i in range(len(bits)):
            out[i] = decode(bits[i])

    out = np.empty(len(ALL_BITS), np.float32)
    widen(ALL_BITS, out)
    # as bits, so that -0 and 0 differ; a quiet NaN may replace a signalling one
    expected = dtypes.decode(ALL_BITS, name)
    number = ~np.isnan(expected)
    assert np.array_equal(out.view(np.uint32)[number], expected.view(np.uint32)[number])
    assert np.isnan(out[~number]).all()
