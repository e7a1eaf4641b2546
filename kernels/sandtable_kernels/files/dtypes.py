"""Element types of weights: how float32, bfloat16 and float16 are stored, and how to get from one to the other.

NumPy has no bfloat16 and computes slowly in float16, so both are stored as their bits in ``uint16`` and widened to
float32 where they are used. The functions here are the plain NumPy reference; compiled code uses
`sandtable_kernels.compiled.conversions`, which needs numba (`fast_decoder` gives its function for a type).
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError, UnknownName, missing_extra
from sandtable.hardware import DTYPE_BLOCKS
from sandtable_kernels.files.blocks import BLOCKS, decode_blocks, encode_blocks

DtypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: Final[tuple[str, ...]] = get_args(DtypeName)


def storage_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy type that elements are stored as: float32, or uint16 for the 16-bit types.

    Raises:
        UnknownName: not one of `DTYPES`.
    """
    if name not in DTYPES:
        raise UnknownName("weight type", name, DTYPES)
    return np.dtype(np.float32 if name == "float32" else np.uint16)


def itemsize(name: str) -> int:
    """Return the bytes of one stored element."""
    return storage_dtype(name).itemsize


def row_bytes(name: str, n_items: int) -> int:
    """Return the bytes of a row of ``n_items`` stored elements, of any type with a size; blocks are whole.

    Raises:
        ConfigError: a row that fills no whole blocks.
    """
    n_block, n_bytes = DTYPE_BLOCKS.get(name, (1, itemsize(name) if name in DTYPES else 0))
    if n_items % n_block:
        raise ConfigError(f"{name} stores blocks of {n_block} elements, which rows of {n_items} do not fill")
    return n_items // n_block * n_bytes


# Operations that bring one weight of a block to the number that is multiplied: converting it; before that, for less
# than 8 bits, cutting it out and moving its zero; with 5, 6 or 3 bits, joining it from two places. Scales serve many.
_WIDENING: Final = {"q8_0": 1, "q4_0": 3, "q4_1": 3, "q4_K": 3, "q2_K": 3}


def widening(name: str) -> int:
    """Return the operations that a stored weight takes before it is multiplied; half types are widened for free."""
    return _WIDENING.get(name, 5) if name in DTYPE_BLOCKS else 0


def encode(values: npt.NDArray[np.float32], name: str) -> np.ndarray[Any, Any]:
    """Round float32 ``values`` to nearest even in type ``name``; same shape, dtype `storage_dtype(name)`.

    Types of `BLOCKS` give bytes instead: uint8 [..., bytes of a row].
    """
    if name in BLOCKS:
        return encode_blocks(values, name)
    storage_dtype(name)
    wide = np.ascontiguousarray(values, dtype=np.float32)
    if name == "float32":
        return wide
    if name == "float16":
        with np.errstate(over="ignore"):  # beyond 65504 it is infinity, as in hardware
            return wide.astype(np.float16).view(np.uint16)
    bits = wide.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )
    # the carry of rounding would turn some NaNs into infinity or zero
    quiet = (bits >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40)
    return np.where(np.isnan(wide), quiet, rounded)


def decode(stored: np.ndarray[Any, Any], name: str) -> npt.NDArray[np.float32]:
    """Widen stored elements to float32, exactly; same shape, but for blocks, whose rows are bytes."""
    if name in BLOCKS:
        return decode_blocks(stored, name)
    kind = storage_dtype(name)
    bits = np.ascontiguousarray(stored).view(kind)
    if name == "float32":
        return bits
    if name == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def fast_decoder(name: str) -> Any:
    """Return the compiled ``element -> float32`` that inlines into numba loops; the identity for float32.

    Raises:
        NoDevice: numba is not installed.
        UnknownName: not one of `DTYPES`.
    """
    storage_dtype(name)
    try:
        from sandtable_kernels.compiled import conversions
    except ImportError as error:
        raise missing_extra("numba", "run") from error
    return {
        "float32": conversions.f32_to_f32,
        "bfloat16": conversions.bf16_to_f32,
        "float16": conversions.f16_to_f32,
    }[name]
