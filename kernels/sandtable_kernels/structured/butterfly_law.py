"""How long butterfly transforms take: their arithmetic, what every stage moves, and the calls that start them.

On a CPU each core has a part of the rows. A block of them goes through all levels in the core's own caches: every
level sweeps it once, but the last ones, whose groups together have `FUSED` positions, are one sweep. Weights are read
once for each block and turned into the order of vectors, which takes as long as multiplying some rows by them. Memory
sees rows, results and weights alone. Rows that are padded, summed or of a narrow type are copied on their way in and
out, and small transforms are left to few cores. Levels of a wide base whose stride is no multiple of a vector, and
all levels of transforms that are none themselves, leave lanes empty (`levels_worked`).

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
from sandtable_kernels.structured.butterfly import THREAD_WORK
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout

# bytes of a block of rows, and the fewest and most rows of one
BLOCK_BYTES, LEAST_ROWS, MOST_ROWS = 24576.0, 16.0, 64.0
# positions that one sweep holds in registers: two levels of base 4, four of base 2
FUSED = 16.0
# scratch, and what is multiplied, is float32
WIDE_BYTES = 4.0
# of the time that a vector's work takes, what it takes for each lane that is done by itself instead: loads and stores
# keep up with arithmetic better than that does with a whole vector; and in sizes that hold no whole vectors, whose
# loops are short and whose results are written after the levels
LONE_LANE, SHORT_LANE = 0.27, 0.5
# numbers that could be copied while the copy of one row begins
COPY_START = 40.0


class ButterflyShape(NamedTuple):
    """``rows`` times a butterfly of ``blocks`` square transforms of ``size``, each of ``levels``.

    By ``n_cores``, 0 for all. ``n_in`` and ``n_out`` are those of a row. ``among`` 1: a module that is
    called between other layers of a network.
    """

    rows: Number
    n_in: Number
    n_out: Number
    base: Number
    size: Number
    levels: Number
    blocks: Number = 1.0
    n_cores: Number = 0.0
    among: Number = 0.0


# from this base on, constants are a base's own
WIDE_BASE = 8
# of the vectors that levels are written in (`compiled.butterfly_vectors`)
LANES = 16


class Butterfly(Operator[Roofline]):
    """``t = call + (arithmetic^p + moving^p)^(1/p)`` of the core that has the most rows.

    ``rate_frac`` is the share of the peak that its loops reach, ``bandwidth_frac`` that of memory's bandwidth,
    ``cache_speedup`` how much quicker a core's own cache of ``cache_bytes`` is. ``turn_rows`` are rows that could be
    multiplied while a block's weights are brought into the order of vectors. ``among_s`` is what a call takes more in a
    module between other layers, where weights, results and the code of all that is called have left the caches;
    ``copy_s`` what one core takes to copy a number on its way in or out.
    """

    name: ClassVar[str] = "butterfly"
    called: ClassVar[str] = "butterflies"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[ButterflyShape]] = ButterflyShape
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="launch_s", typical=5e-6, low=1e-7, high=1e-3),
        Constant(name="among_s", typical=7e-5, low=1e-7, high=1e-3),
        Constant(name="rate_frac", typical=0.4, low=0.01, high=1.2),
        Constant(name="bandwidth_frac", typical=0.8, low=0.05, high=3.0),
        Constant(name="turn_rows", typical=4.0, low=0.01, high=100.0),
        Constant(name="copy_s", typical=3e-10, low=1e-12, high=1e-7),
        Constant(name="cache_speedup", typical=5.0, low=1.0, high=30.0),
        CACHE,
    )
    # how often levels are multiplied, and how often rows, results and scratch move, as multiples of the forward pass
    products: ClassVar[float] = 1.0
    sweeps: ClassVar[float] = 1.0

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        if device.family == "cpu":
            calling = constants["launch_s"] + columns.among * constants["among_s"]
            return np.asarray(calling + self._on_cores(device, constants, columns, DTYPE_BYTES[dtype]))
        flops = np.asarray(self.flops(columns)) / (constants["rate_frac"] * device.peak(dtype))
        activation = DTYPE_BYTES[dtype] * columns.rows * columns.size * columns.blocks
        moved = 2 * self.sweeps * passes(columns.base, columns.levels) * activation
        moving = moved / (constants["bandwidth_frac"] * device.bandwidth_bytes_per_s)
        launches = self.sweeps * passes(columns.base, columns.levels) * constants["launch_s"]
        return np.asarray(launches + joined(flops, moving))

    def _on_cores(self, device: Roofline, constants: Constants, c: Columns, item: float) -> FloatArray:
        asked = np.where(c.n_cores > 0, np.minimum(c.n_cores, device.n_units), device.n_units)
        worth = self.products * c.rows * c.blocks * c.levels * c.size * c.base // THREAD_WORK
        cores = Cores.of(device, constants, np.maximum(1.0, np.minimum(asked, np.minimum(c.rows, worth))))
        # of the core that has the most
        rows = np.ceil(c.rows / cores.n_cores)
        block_rows = np.clip(np.floor(BLOCK_BYTES / (WIDE_BYTES * c.size)), LEAST_ROWS, MOST_ROWS)
        blocks = np.ceil(rows / block_rows)
        multiplied = c.blocks * c.levels * c.size * c.base
        levels = levels_worked(c.base, c.size, c.levels)
        worked = self.products * 2 * (rows + constants["turn_rows"] * blocks) * multiplied / c.levels * levels
        computing = worked * cores.n_cores / (constants["rate_frac"] * device.peak("float32") * cores.share)
        weights, scratch = WIDE_BYTES * multiplied, WIDE_BYTES * c.size * c.blocks
        swept = self.sweeps * 2 * sweeps(c.base, c.levels) * rows * scratch + self.products * blocks * weights
        held = np.minimum(rows, block_rows) * scratch + weights
        near = cores.moving_s(cores.n_cores * swept, cores.n_cores * held)
        given = item * (c.n_in + c.n_out) * c.rows
        far = cores.moving_s(self.sweeps * given, given + cores.n_cores * weights)
        narrow = item < WIDE_BYTES
        copying = constants["copy_s"] * self.sweeps * rows * copied(c, narrow=narrow)
        # weights are widened by one core before the others begin
        copying = copying + 2 * narrow * constants["copy_s"] * multiplied
        return np.asarray(copying + joined(computing, near + far))

    def variant(self, shape: ButterflyShape) -> str:
        """The base, where it is a wide one: a group of so many takes more registers than there are."""
        base = int(np.max(shape.base))
        return f"base_{base}" if base >= WIDE_BASE else ""

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


def sweeps(base: Number, levels: Number) -> Number:
    """Return how often a core sweeps a block of rows: the last levels, which are done in registers, count once."""
    return np.asarray(np.maximum(1.0, levels - _fused(base) + 1))


def levels_worked(base: Number, size: Number, levels: Number) -> Number:
    """Return how many levels of whole vectors take as long: lanes that stand alone count besides.

    The last level of a size that whole vectors hold combines them, whatever its stride.
    """
    total, b, n = (np.asarray(value, float) for value in (levels, base, size))
    for level in range(1, int(np.max(levels)) + 1):
        stride = np.maximum(1.0, np.floor(n / b**level))
        wide = (b >= WIDE_BASE) & (level < np.asarray(levels)) & (stride % LANES != 0)
        alone = (level <= np.asarray(levels)) & (wide | (n % LANES != 0))
        width = np.where((b == WIDE_BASE) & (stride % 4 == 0), 4, 1)
        lane = np.where(n % LANES != 0, SHORT_LANE, LONE_LANE)
        total = total + alone * lane * (LANES / width - 1)
    return total


def copied(c: Columns, *, narrow: bool) -> Number:
    """Return the numbers of a row that are copied: loaded, summed and stored where squares do not read and write it.

    The beginning of each copy counts as `COPY_START` of them.
    """
    side, summed = np.minimum(c.n_in, c.n_out), c.n_in > c.n_out
    apart = (side != c.size) | narrow
    loads = apart * np.where(summed, c.blocks, 1)
    stores = np.where(summed, c.blocks + 1, apart * c.blocks)
    stored = np.where(summed, c.blocks * c.size + c.n_out, apart * c.n_out)
    return np.asarray(loads * (c.size + COPY_START) + stored + stores * COPY_START)


def passes(base: Number, levels: Number) -> Number:
    """Return how often an accelerator sweeps the activation: levels that are done in registers count once."""
    return np.asarray(np.ceil(levels / _fused(base)))


def _fused(base: Number) -> Number:
    return np.asarray(np.maximum(1.0, np.floor(np.log(FUSED) / np.log(base) + 1e-9)))


def butterfly_op(
    name: str,
    layout: ButterflyLayout,
    rows: int,
    setting: Setting = DIRECT,
    *,
    among: bool = False,
) -> Op:
    """Return the demand of a butterfly, or of its gradients: rows, results and weights move once.

    ``among``: it is a module of PyTorch, called between other layers.
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
        float(among),
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
