"""How long a structured product takes: its calls, its arithmetic, and the bytes that it moves."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource
from sandtable.demand.operator_shapes import Number
from sandtable.hardware import Roofline
from sandtable_kernels.pytorch.core_law import CACHE, SPEEDUP, Cores

# structures by the number that stands for them in a shape
CODES = ("dense", "low_rank", "circulant", "toeplitz", "monarch", "block_shuffle")


class StructuredShape(NamedTuple):
    """Rows times a structured matrix: arithmetic as executed, bytes moved, and library calls, by ``n_cores`` (0: all).

    ``structure`` is its place in `CODES`; ``n_sums`` are the sums that the products of its factors consist of.
    ``kept`` 1: what is moved was last touched long ago, as tensors are that a backward pass will need. ``among`` 1: a
    module that is called between other layers of a network.
    """

    structure: Number
    n_flops: Number
    n_sums: Number
    n_bytes: Number
    n_calls: Number
    n_cores: Number = 0.0
    kept: Number = 0.0
    among: Number = 0.0


class StructuredLaw(Operator[Roofline]):
    """``t = among * among + n_calls * call + (flops + 2 * edge_depth * sums) / rate + moving``.

    ``edge_depth`` products of each sum are worked on for nothing: short sums, as those of small blocks, are slow. Rows
    are brought in before they are multiplied, so arithmetic and traffic follow each other; what fits into the cores'
    caches streams from there (`Cores`). ``among_s`` is what a module takes more between other layers, where weights and
    the code of all that is called have left the caches. What a structure's blocks or transforms reach of the peak is
    its own constant.
    """

    name: ClassVar[str] = "structured_product"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[StructuredShape]] = StructuredShape
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="rate_frac", typical=0.4, low=0.005, high=1.2),
        Constant(name="bandwidth_frac", typical=0.8, low=0.05, high=3.0),
        Constant(name="edge_depth", typical=8.0, low=0.01, high=500.0),
        Constant(name="call_s", typical=5e-6, low=1e-8, high=1e-3),
        Constant(name="among_s", typical=3e-5, low=1e-8, high=1e-3),
        SPEEDUP,
        CACHE,
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        cores = Cores.of(device, constants, columns.n_cores)
        worked = columns.n_flops + 2 * constants["edge_depth"] * columns.n_sums
        computing = worked / (constants["rate_frac"] * device.peak(dtype) * cores.share)
        # an accelerator's cache is no core's own
        there = device.family != "cpu"
        far = (columns.kept > 0) | there
        moving = cores.moving_s(columns.n_bytes, np.where(far, np.inf, columns.n_bytes))
        calling = columns.among * (0.0 if there else constants["among_s"]) + columns.n_calls * constants["call_s"]
        return np.asarray(calling + computing + moving)

    def flops(self, shape: StructuredShape) -> Number:
        """As stated."""
        return shape.n_flops

    def variant(self, shape: StructuredShape) -> str:
        """The structure."""
        return CODES[int(np.max(shape.structure))]
