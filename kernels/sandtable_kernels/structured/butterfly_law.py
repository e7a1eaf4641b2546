"""How long butterfly transforms take: their arithmetic, what every stage moves, and the calls that start them.

On a CPU a block of rows goes through all levels in a core's own cache, feature-major, so that a vector holds one
position of all its rows. What it takes is a transposition in and out, a sweep of the block for every pass (levels whose
groups together have `FUSED` positions are one pass, in registers), and the weights, read once for each block. Memory
sees rows, results and weights alone. Cores take whole blocks, so that the last round may leave some idle; few rows,
which fill no block, are worked on by position instead, by one core.

On an accelerator every pass is a launch that reads and writes the whole activation.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource
from sandtable.demand.operator_shapes import Number
from sandtable.hardware import DTYPE_BYTES, Roofline
from sandtable_kernels.pytorch.core_law import CACHE, Cores, joined
from sandtable_kernels.pytorch.vision_demand import DIRECT, Setting
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout

# rows of a block: lanes of a vector of 512 bits
BLOCK_ROWS = 16.0
# positions that one pass holds in registers: two levels of base 4, four of base 2
FUSED = 16.0
# scratch, and what is multiplied, is float32
WIDE_BYTES = 4.0


class ButterflyShape(NamedTuple):
    """``rows`` times a butterfly of ``blocks`` square transforms of ``size``, each of ``levels``.

    By ``n_cores``, 0 for all. ``n_in`` and ``n_out`` are those of a row. ``wrapped`` 1: called through a module.
    """

    rows: Number
    n_in: Number
    n_out: Number
    base: Number
    size: Number
    levels: Number
    blocks: Number = 1.0
    n_cores: Number = 0.0
    wrapped: Number = 0.0


class Butterfly(Operator[Roofline]):
    """``t = call + rounds * (arithmetic^p + moving^p)^(1/p)``, where a round is one block of rows on each core.

    ``rate_frac`` is the share of the peak that its loops reach, ``bandwidth_frac`` that of memory's bandwidth,
    ``cache_speedup`` how much quicker a core's own cache of ``cache_bytes`` is; fewer rows than ``least_rows`` take as
    long as these. ``wrap_s`` is what a module adds.
    """

    name: ClassVar[str] = "butterfly"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[ButterflyShape]] = ButterflyShape
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="launch_s", typical=5e-6, low=1e-7, high=1e-3),
        Constant(name="wrap_s", typical=2e-5, low=1e-7, high=1e-3),
        Constant(name="rate_frac", typical=0.4, low=0.01, high=1.2),
        Constant(name="bandwidth_frac", typical=0.8, low=0.05, high=3.0),
        Constant(name="least_rows", typical=4.0, low=1.0, high=16.0),
        Constant(name="cache_speedup", typical=5.0, low=1.0, high=30.0),
        CACHE,
    )
    # how often levels are multiplied, and how often rows, results and scratch move, as multiples of the forward pass
    products: ClassVar[float] = 1.0
    sweeps: ClassVar[float] = 1.0

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        calling = constants["launch_s"] + columns.wrapped * constants["wrap_s"]
        if device.family == "cpu":
            return np.asarray(calling + self._on_cores(device, constants, columns, DTYPE_BYTES[dtype]))
        flops = np.asarray(self.flops(columns)) / (constants["rate_frac"] * device.peak(dtype))
        activation = DTYPE_BYTES[dtype] * columns.rows * columns.size * columns.blocks
        moved = 2 * self.sweeps * passes(columns.base, columns.levels) * activation
        moving = moved / (constants["bandwidth_frac"] * device.bandwidth_bytes_per_s)
        launches = self.sweeps * passes(columns.base, columns.levels) * constants["launch_s"]
        return np.asarray(columns.wrapped * constants["wrap_s"] + launches + joined(flops, moving))

    def _on_cores(self, device: Roofline, constants: Constants, c: Columns, item: float) -> FloatArray:
        blocks = np.ceil(c.rows / BLOCK_ROWS)
        asked = np.where(c.n_cores > 0, np.minimum(c.n_cores, device.n_units), device.n_units)
        cores = Cores.of(device, constants, np.minimum(asked, blocks))
        rounds = np.ceil(blocks / cores.n_cores)
        # of one round: a block on each core
        rows = np.clip(c.rows, constants["least_rows"], BLOCK_ROWS) * cores.n_cores
        multiplied = c.blocks * c.levels * c.size * c.base
        rate = constants["rate_frac"] * device.peak("float32") * cores.share
        computing = self.products * 2 * rows * multiplied / rate
        scratch = WIDE_BYTES * rows * c.size * c.blocks
        weights = WIDE_BYTES * multiplied * cores.n_cores
        swept = self.sweeps * 2 * (passes(c.base, c.levels) + 2) * scratch
        near = cores.moving_s(swept + self.products * weights, scratch + weights)
        given = self.sweeps * item * rows * (c.n_in + c.n_out)
        far = cores.moving_s(given, item * c.rows * (c.n_in + c.n_out) + weights)
        return np.asarray(rounds * joined(computing, near + far))

    def flops(self, shape: ButterflyShape) -> Number:
        """A multiply and an add for each weight and row."""
        return self.products * 2 * shape.rows * shape.blocks * shape.levels * shape.size * shape.base

    def calls(self, stated: float, *, shape: ButterflyShape | None = None, n_items: float = 1) -> Number:
        """Every pass is a call, where the host issues them one by one."""
        return stated if shape is None else stated * self.sweeps * passes(shape.base, shape.levels)


class ButterflyBackward(Butterfly):
    """Both gradients: levels are made again, and each weight is multiplied twice more."""

    name: ClassVar[str] = "butterfly backward"
    fitted_as: ClassVar[str] = "butterfly backward"
    products: ClassVar[float] = 3.0
    sweeps: ClassVar[float] = 2.0


def passes(base: Number, levels: Number) -> Number:
    """Return how often the activation is swept: levels that are fused count once."""
    fused = np.maximum(1.0, np.floor(np.log(FUSED) / np.log(base) + 1e-9))
    return np.asarray(np.ceil(levels / fused))


def butterfly_op(
    name: str,
    layout: ButterflyLayout,
    rows: int,
    setting: Setting = DIRECT,
    *,
    wrapped: bool = False,
) -> Op:
    """Return the demand of a butterfly, or of its gradients: rows, results and weights move once.

    ``wrapped``: it is called through a module of PyTorch.
    """
    item, backward = setting.item_bytes, setting.backward
    operator = ButterflyBackward if backward else Butterfly
    shape = ButterflyShape(
        rows,
        layout.n_in,
        layout.n_out,
        layout.base,
        layout.size,
        layout.n_levels,
        layout.n_blocks,
        setting.n_cores,
        float(wrapped),
    )
    return Op(
        name=name,
        operator=operator.name,
        account="compute",
        dtype=setting.dtype,
        flops=operator.products * 2.0 * rows * layout.multiplications,
        bytes_read=item * (rows * (layout.n_in + backward * layout.n_out) + layout.parameters),
        bytes_written=item * rows * (layout.n_in if backward else layout.n_out) + backward * 4 * layout.parameters,
        n_items=rows,
        shape=shape,
        on=setting.on,
        section=setting.section,
    )
