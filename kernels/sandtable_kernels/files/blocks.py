"""Weights in blocks that hold their own scales, bit for bit as llama.cpp stores them (ggml-common.h, ggml-quants.c).

===== ====================================================================================================
q8_0  32 weights: a half-precision scale d and 32 signed bytes q; a weight is ``d q``
q4_0  32 weights: d and 16 bytes, the low halves first and then the high ones; ``d (q - 8)``
q4_K  256 weights in 8 groups of 32: d, a second scale e, 6-bit s and m of each group, 4 bits q; ``d s q - e m``
q6_K  256 weights in 16 groups of 16: low 4 bits, high 2 bits, a signed byte s of each group, d; ``d s (q - 32)``
===== ====================================================================================================

The functions here are the plain NumPy reference, and round to nearest without the searches for better scales that
llama.cpp makes. Compiled code is `sandtable_kernels.compiled.block_loops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError
from sandtable.hardware import DTYPE_BLOCKS

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
BLOCKS: Final = ("q8_0", "q4_0", "q4_K", "q6_K")


def encode_blocks(values: F32, name: str) -> U8:
    """Round float32 ``values`` [..., k] to blocks; uint8 [..., bytes of a row].

    Raises:
        ConfigError: rows that fill no whole blocks.
    """
    n_items, n_bytes = DTYPE_BLOCKS[name]
    if values.shape[-1] % n_items:
        raise ConfigError(
            f"{name} stores blocks of {n_items} elements, which rows of {values.shape[-1]} do not fill"
        )
    stored: U8 = _ENCODE[name](np.ascontiguousarray(values, np.float32).reshape(-1, n_items))
    return stored.reshape(*values.shape[:-1], values.shape[-1] // n_items * n_bytes)


def decode_blocks(stored: np.ndarray[Any, Any], name: str) -> F32:
    """Widen blocks, uint8 [..., bytes of a row], to float32 [..., k]."""
    n_items, n_bytes = DTYPE_BLOCKS[name]
    blocks = np.ascontiguousarray(stored).reshape(-1, n_bytes)
    wide: F32 = _DECODE[name](blocks).astype(np.float32)
    return wide.reshape(*stored.shape[:-1], stored.shape[-1] // n_bytes * n_items)


def random_blocks(n_bytes: int, name: str, seed: int, scale: float) -> U8:
    """Return whole blocks, uint8 [n_bytes], of random weights within about ``scale`` of zero."""
    blocks = np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8).reshape(-1, DTYPE_BLOCKS[name][1])
    if name == "q6_K":
        blocks[:, 192:208] = 100
        blocks[:, 208:] = _half(np.full(len(blocks), scale / (32 * 100)))
        return blocks.reshape(-1)
    largest = {"q8_0": 127, "q4_0": 8, "q4_K": 15 * 63}[name]
    blocks[:, :2] = _half(np.full(len(blocks), scale / largest))
    if name == "q4_K":
        # half of the largest product, so that weights lie on both sides of zero
        blocks[:, 2:4] = _half(np.full(len(blocks), scale / (2 * 63)))
    return blocks.reshape(-1)


def _half(values: np.ndarray[Any, Any]) -> U8:
    """Return the two bytes of each value as a half, uint8 [n, 2]."""
    return np.ascontiguousarray(values.astype("<f2")).view(np.uint8).reshape(-1, 2)


def _wide(blocks: U8, start: int) -> np.ndarray[Any, Any]:
    """Return the half at byte ``start`` of each block, float64 [n, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float64)


def _inverse(scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    inverse: np.ndarray[Any, Any] = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
    return inverse


def _stored_scale(scale: np.ndarray[Any, Any]) -> tuple[U8, np.ndarray[Any, Any]]:
    """Return a scale's bytes, and the value that they stand for."""
    stored = _half(scale.reshape(-1))
    return stored, stored.view("<f2").astype(np.float64)


# --- 32 weights ------------------------------------------------------------------------------------------------


def _encode_q8_0(x: F32) -> Any:
    stored, d = _stored_scale(np.abs(x).max(axis=1, keepdims=True) / 127.0)
    q = np.clip(np.rint(x * _inverse(d)), -127, 127).astype(np.int8)
    return np.concatenate([stored, q.view(np.uint8)], axis=1)


def _decode_q8_0(blocks: U8) -> np.ndarray[Any, Any]:
    return _wide(blocks, 0) * blocks[:, 2:].view(np.int8)


def _encode_q4_0(x: F32) -> Any:
    # the value of the largest size becomes -8 exactly
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    stored, d = _stored_scale(largest / -8.0)
    q = np.clip(np.rint(x * _inverse(d)) + 8, 0, 15).astype(np.uint8)
    return np.concatenate([stored, q[:, :16] | q[:, 16:] << 4], axis=1)


def _decode_q4_0(blocks: U8) -> np.ndarray[Any, Any]:
    q = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return _wide(blocks, 0) * (q.astype(np.float64) - 8)


# --- 256 weights -----------------------------------------------------------------------------------------------


def _encode_q4_k(x: F32) -> Any:
    groups = x.reshape(len(x), 8, 32).astype(np.float64)
    low = np.minimum(groups.min(axis=2), 0)
    steps = (groups.max(axis=2) - low) / 15
    stored_d, d = _stored_scale(steps.max(axis=1, keepdims=True) / 63)
    stored_e, e = _stored_scale((-low).max(axis=1, keepdims=True) / 63)
    s = np.clip(np.rint(steps * _inverse(d)), 0, 63).astype(np.uint8)
    m = np.clip(np.rint(-low * _inverse(e)), 0, 63).astype(np.uint8)
    step, offset = (d * s)[:, :, None], (e * m)[:, :, None]
    q = np.clip(np.rint((groups + offset) * _inverse(step)), 0, 15).astype(np.uint8)
    scales = np.concatenate(
        [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4], axis=1
    )
    pairs = q.reshape(len(x), 4, 2, 32)
    return np.concatenate(
        [stored_d, stored_e, scales, (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)], axis=1
    )


def _decode_q4_k(blocks: U8) -> np.ndarray[Any, Any]:
    d, e, packed = _wide(blocks, 0), _wide(blocks, 2), blocks[:, 4:16]
    high = packed[:, 8:]
    s = np.concatenate([packed[:, :4] & 63, high & 15 | packed[:, :4] >> 6 << 4], axis=1)
    m = np.concatenate([packed[:, 4:8] & 63, high >> 4 | packed[:, 4:8] >> 6 << 4], axis=1)
    bits = blocks[:, 16:].reshape(-1, 4, 1, 32)
    q = np.concatenate([bits & 15, bits >> 4], axis=2).reshape(-1, 8, 32)
    weights: np.ndarray[Any, Any] = (d * s)[:, :, None] * q - (e * m)[:, :, None]
    return weights.reshape(-1, 256)


def _encode_q6_k(x: F32) -> Any:
    groups = x.reshape(len(x), 16, 16).astype(np.float64)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    steps = largest / -32
    top = np.take_along_axis(steps, np.abs(steps).argmax(axis=1)[:, None], axis=1)
    stored, d = _stored_scale(top / -128)
    s = np.clip(np.rint(steps * _inverse(d)), -128, 127).astype(np.int8)
    q = np.clip(np.rint(groups * _inverse((d * s)[:, :, None])) + 32, 0, 63).astype(np.uint8)
    rows = q.reshape(-1, 2, 4, 32)  # halves of 128 weights, in four rows
    low = np.concatenate(
        [rows[:, :, 0] & 15 | (rows[:, :, 2] & 15) << 4, rows[:, :, 1] & 15 | (rows[:, :, 3] & 15) << 4], axis=2
    )
    high = sum((rows[:, :, row] >> 4) << 2 * row for row in range(4))
    return np.concatenate(
        [low.reshape(-1, 128), np.asarray(high, np.uint8).reshape(-1, 64), s.view(np.uint8), stored], axis=1
    )


def _decode_q6_k(blocks: U8) -> np.ndarray[Any, Any]:
    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 32)
    rows = [low[:, :, 0] & 15, low[:, :, 1] & 15, low[:, :, 0] >> 4, low[:, :, 1] >> 4]
    q = np.stack([part | (high >> 2 * row & 3) << 4 for row, part in enumerate(rows)], axis=2)
    s = blocks[:, 192:208].view(np.int8).astype(np.float64)
    scaled = (_wide(blocks, 208) * s)[:, :, None] * (q.reshape(-1, 16, 16).astype(np.float64) - 32)
    return scaled.reshape(-1, 256)


_ENCODE: Final[dict[str, Callable[[F32], Any]]] = {
    "q8_0": _encode_q8_0,
    "q4_0": _encode_q4_0,
    "q4_K": _encode_q4_k,
    "q6_K": _encode_q6_k,
}
_DECODE: Final[dict[str, Callable[[U8], np.ndarray[Any, Any]]]] = {
    "q8_0": _decode_q8_0,
    "q4_0": _decode_q4_0,
    "q4_K": _decode_q4_k,
    "q6_K": _decode_q6_k,
}
