"""Weights in blocks: sizes as llama.cpp's, values by hand, and products equal to those of the widened weights."""

from __future__ import annotations

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable.hardware import DTYPE_BLOCKS
from sandtable_kernels.files.blocks import BLOCKS, decode_blocks, encode_blocks, random_blocks
from sandtable_kernels.files.dtypes import row_bytes, widening

RNG = np.random.default_rng(7)
# half a step of the type's grid over the range of normal values: q4 types have 16 steps, q6_K 64, q8_0 255
COARSEST = {"q8_0": 0.03, "q4_0": 0.5, "q4_K": 0.35, "q6_K": 0.15}


@pytest.mark.parametrize(("name", "n_bytes"), [("q8_0", 34), ("q4_0", 18)])
def test_thirty_two_weights(name: str, n_bytes: int) -> None:
    assert row_bytes(name, 32) == n_bytes
    assert encode_blocks(np.ones((3, 64), np.float32), name).shape == (3, 2 * n_bytes)


@pytest.mark.parametrize(("name", "n_bytes"), [("q4_K", 144), ("q5_K", 176), ("q6_K", 210), ("q3_K", 110)])
def test_two_hundred_and_fifty_six(name: str, n_bytes: int) -> None:
    assert row_bytes(name, 512) == 2 * n_bytes


def test_a_row_of_half_a_block() -> None:
    with pytest.raises(ConfigError, match="q4_K stores blocks of 256 elements, which rows of 320 do not fill"):
        row_bytes("q4_K", 320)
    with pytest.raises(ConfigError, match="q4_0 stores blocks of 32 elements"):
        encode_blocks(np.zeros((2, 40), np.float32), "q4_0")


@pytest.mark.parametrize("name", BLOCKS)
def test_rounding_is_within_a_step_and_repeats_itself(name: str) -> None:
    values = RNG.standard_normal((5, 768)).astype(np.float32)
    stored = encode_blocks(values, name)
    assert stored.shape == (5, 768 // DTYPE_BLOCKS[name][0] * DTYPE_BLOCKS[name][1])
    wide = decode_blocks(stored, name)
    assert np.abs(wide - values).max() < COARSEST[name]
    assert np.array_equal(decode_blocks(encode_blocks(wide, name), name), wide)
    assert not decode_blocks(encode_blocks(np.zeros((1, 256), np.float32), name), name).any()


def test_blocks_by_hand() -> None:
    """The scale is 0.5 in half precision, 0x3800; the first weights are the low halves of the bytes."""
    block = np.zeros(18, np.uint8)
    block[:3] = [0x00, 0x38, 0x9F]  # low half 15, high half 9
    wide = decode_blocks(block[None], "q4_0")[0]
    assert (wide[0], wide[16], wide[1]) == (3.5, 0.5, -4.0)
    eight = np.zeros(34, np.uint8)
    eight[:4] = [0x00, 0x38, 0xFF, 0x02]
    assert list(decode_blocks(eight[None], "q8_0")[0][:3]) == [-0.5, 1.0, 0.0]


def test_a_block_of_q4_k_by_hand() -> None:
    block = np.zeros(144, np.uint8)
    block[:4] = [0x00, 0x3C, 0x00, 0x38]  # d = 1, e = 0.5
    block[4], block[8] = 3, 2  # group 0: s = 3, m = 2
    block[16] = 0x05
    assert decode_blocks(block[None], "q4_K")[0][:2].tolist() == [14.0, -1.0]
    # group 4: low bits of s and m share a byte, their high bits lie above those of groups 0
    block[4 + 8], block[4], block[8] = 0x21, 0x40, 0x80  # s = 1 + 16, m = 2 + 32
    block[16 + 64] = 0x01
    assert decode_blocks(block[None], "q4_K")[0][128] == 17 * 1 - 0.5 * 34


def test_a_block_of_q6_k_by_hand() -> None:
    block = np.zeros(210, np.uint8)
    block[208:] = [0x00, 0x3C]
    block[192:208] = np.arange(1, 17)  # the scale of each group of 16
    block[0], block[128] = 0x21, 0b11000001  # weights 0 and 64: 1 + 16, 2; weight 96: high bits 3
    wide = decode_blocks(block[None], "q6_K")[0]
    assert (wide[0], wide[64], wide[96]) == (1 * (17 - 32), 5 * (2 - 32), 7 * (48 - 32))


@pytest.mark.parametrize("name", BLOCKS)
def test_random_blocks_are_within_their_scale(name: str) -> None:
    wide = decode_blocks(random_blocks(40 * DTYPE_BLOCKS[name][1], name, 3, 0.02)[None], name)
    assert 0.005 < np.abs(wide).max() < 0.021
    assert abs(wide.mean()) < 0.005


def test_widening_takes_more_for_fewer_bits() -> None:
    assert widening("float16") == 0 < widening("q8_0") < widening("q4_0") < widening("q6_K")


# --- products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_products_equal_those_of_the_widened_weights(name: str) -> None:
    pytest.importorskip("numba", reason="compiled products need numba")
    from sandtable_kernels.operations.gemm import gemm, gemm_reference
    from sandtable_kernels.operations.gemv import gemv, gemv_reference

    weights = encode_blocks(RNG.standard_normal((37, 512)).astype(np.float32), name)
    x = RNG.standard_normal((3, 512)).astype(np.float32)
    wanted = decode_blocks(weights, name).astype(np.float64) @ x.T.astype(np.float64)
    for threads in (1, 2):
        found = gemv(weights, x[0], dtype=name, n_threads=threads)
        np.testing.assert_allclose(found, wanted[:, 0], rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(gemm(weights, x, dtype=name), wanted.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(gemv_reference(weights, x[0], dtype=name), wanted[:, 0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gemm_reference(weights, x, dtype=name), wanted.T, rtol=1e-5, atol=1e-4)


def test_a_matrix_that_does_not_fit_its_input() -> None:
    pytest.importorskip("numba", reason="compiled products need numba")
    from sandtable_kernels.operations.gemv import gemv

    with pytest.raises(ConfigError, match=r"a matrix of shape \(4, 36\) cannot multiply a vector of shape \(96,\)"):
        gemv(np.zeros((4, 36), np.uint8), np.zeros(96, np.float32), dtype="q4_0")
