"""How long a structured product takes: its calls, its arithmetic, and the bytes that it moves."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource
from sandtable.demand.operator_shapes import Number
from sandtable.hardware import Roofline

# structures by the number that stands for them in a shape
CODES = ("dense", "low_rank", "circulant", "toeplitz", "monarch", "block_shuffle")


class StructuredShape(NamedTuple):
    """Rows times a structured matrix: arithmetic as executed, bytes that go to memory and back, and library calls.

    ``structure`` is its place in `CODES`.
    """

    structure: Number
    n_flops: Number
    n_bytes: Number
    n_calls: Number


class StructuredLaw(Operator[Roofline]):
    """``t = launch + n_calls * call + max(flops / (rate_frac * peak), bytes / (bandwidth_frac * bandwidth))``.

    A block of a block-diagonal factor is a call of the BLAS, a block of rows one of the library of transforms. What a
    structure's blocks or transforms reach of the peak is its own constant.
    """

    name: ClassVar[str] = "structured_product"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[StructuredShape]] = StructuredShape
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="rate_frac", typical=0.4, low=0.005, high=1.2),
        # above 1 where caches serve what memory would
        Constant(name="bandwidth_frac", typical=0.8, low=0.02, high=8.0),
        Constant(name="launch_s", typical=5e-6, low=1e-7, high=1e-3),
        Constant(name="call_s", typical=5e-7, low=1e-9, high=1e-4),
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        computing = columns.n_flops / (constants["rate_frac"] * device.peak(dtype))
        moving = columns.n_bytes / (constants["bandwidth_frac"] * device.bandwidth_bytes_per_s)
        calling = constants["launch_s"] + columns.n_calls * constants["call_s"]
        return np.asarray(calling + np.maximum(computing, moving))

    def flops(self, shape: StructuredShape) -> Number:
        """As stated."""
        return shape.n_flops

    def variant(self, shape: StructuredShape) -> str:
        """The structure."""
        return CODES[int(np.max(shape.structure))]
