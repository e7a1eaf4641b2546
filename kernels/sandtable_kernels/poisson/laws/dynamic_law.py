"""How long iterations take whose factors follow a clock: passes over cells, and the rates that exposure adds.

A cell is a user, a bin of the clock and an item. A user's factors of a bin are mixed from those of its features once
for all of its cells; each cell gathers the rows of the features of its item that hold in the bin, and the pass over
items those of its user. A row of the other side has as many rows as features, all of which are met. Events of a cell
are divisions, as in `poisson_law`. All rows of a side, met or not, are emptied and multiplied.

Rates are linear in rows, features and components; tables of bins and sums over items are made on one core.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource
from sandtable.demand.operator_shapes import Number
from sandtable.hardware import DTYPE_BYTES, Roofline
from sandtable_kernels.poisson.poisson_law import (
    LINE_BYTES,
    OWN_TIMES,
    RATE_BYTES,
    ROW_FLOPS,
    cores_of,
    line_seconds,
    lines_of,
    multiplied_per_s,
    padded_bytes,
    pass_constants,
    passed_seconds,
    popular_share,
    triggered_seconds,
)
from sandtable_kernels.pytorch.core_law import CACHE, SPEEDUP, Cores, joined

USERS, ITEMS = range(2)
# what passes of each kind are called apart from one another, and of each cell how often a gathered row is used
KINDS, USES = ("", "items"), (2.0, 1.0)
# components that take as long as going on to the next feature
FEATURE_ELEMENTS = 8.0
# cells of an item whose sum is spread over its features at once
BLOCK = 512.0
# bytes of a cell in both orders: bins, items or users, where events begin, and its place in the other order
CELL_BYTES = 28.0


class CellPassShape(NamedTuple):
    """A pass over ``cells`` that each gather ``active`` rows of ``features`` of the other side's ``sources``.

    ``rows`` are those of this side, each of ``own_features``; ``mixed`` are rows of features that are summed, or to
    which a sum is spread. ``exponent`` and the rest are as in `PoissonPassShape`; ``kind`` is the place in `KINDS`.
    """

    rows: Number
    own_features: Number
    components: Number
    cells: Number
    active: Number
    mixed: Number
    events: Number
    triggers: Number
    sources: Number
    features: Number
    exponent: Number
    n_cores: Number = 0.0
    kind: Number = USERS


class CellPass(Operator[Roofline]):
    """``t = launch + events + triggers + mixing + own rows + cells (arithmetic^p + gathering^p)^(1/p)`` of a core.

    Constants are those of `PoissonPass`; ``cell_s`` is what a cell takes and each of the rows that it gathers.
    """

    name: ClassVar[str] = "cell_pass"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[CellPassShape]] = CellPassShape
    constants: ClassVar[tuple[Constant, ...]] = pass_constants("cell_s", 1.5e-8, event_s=5e-9)

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c, item = columns, DTYPE_BYTES[dtype]
        cores, row_bytes = cores_of(device, c.n_cores), padded_bytes(c.components, dtype)
        row_s = ROW_FLOPS * row_bytes / DTYPE_BYTES["float32"] / multiplied_per_s(device, constants)
        computing = (1 + c.active) * constants["cell_s"] + np.asarray(USES)[c.kind.astype(int)] * c.active * row_s
        line_s = line_seconds(device, constants, row_bytes * c.features, c.sources, c.exponent, cores)
        gathering = c.active * lines_of(row_bytes) * line_s
        # over items, what each cell was given lies wherever the pass over users left it
        shares = np.full_like(row_bytes, item)
        given = (c.kind == ITEMS) * line_seconds(device, constants, shares, c.cells, 0.0, cores)
        own = c.rows * c.own_features
        own_line_s = line_seconds(device, constants, OWN_TIMES * row_bytes, own, 0.0, cores)
        in_order = own * (row_s + OWN_TIMES * row_bytes / LINE_BYTES * own_line_s)
        work = c.cells * joined(computing, gathering + given) + c.mixed * row_s + in_order
        work = work + triggered_seconds(constants, c.events, c.triggers)
        streamed_bytes = OWN_TIMES * own * row_bytes + CELL_BYTES * c.cells + item * c.events
        return passed_seconds(device, constants, work, cores, streamed_bytes)

    def variant(self, shape: CellPassShape) -> str:
        """The side."""
        return KINDS[int(np.max(shape.kind))]


class ClockRatesShape(NamedTuple):
    """Rates of ``rows`` of ``features`` by ``components``, from tables of ``bins``; for items, sums over users' rows.

    ``summed`` rows of items are added up before; by ``n_cores``, 0 for all; ``kind`` is whose rates they are.
    """

    rows: Number
    features: Number
    components: Number
    bins: Number
    summed: Number
    n_cores: Number = 0.0
    kind: Number = USERS


class ClockRates(Operator[Roofline]):
    """``t = launch + table + sums + (elements^p + moving^p)^(1/p)``, the last of a core's part, the others on one.

    ``element_s`` is what a feature's component of a row takes, ``table_s`` that of a bin, ``sum_s`` adding one up.
    """

    name: ClassVar[str] = "clock_rates"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[ClockRatesShape]] = ClockRatesShape
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="launch_s", typical=2e-4, low=1e-6, high=1e-2),
        Constant(name="element_s", typical=1e-9, low=1e-12, high=1e-7),
        Constant(name="table_s", typical=5e-9, low=1e-11, high=1e-6),
        Constant(name="sum_s", typical=1e-9, low=1e-12, high=1e-7),
        Constant(name="bandwidth_frac", typical=0.6, low=0.05, high=3.0),
        SPEEDUP,
        CACHE,
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c = columns
        cores = Cores.of(device, constants, cores_of(device, c.n_cores))
        elements = c.rows * c.features * c.components
        n_bytes = elements * (DTYPE_BYTES[dtype] + (c.kind == USERS) * RATE_BYTES)
        computing = (elements + FEATURE_ELEMENTS * c.rows * c.features) * constants["element_s"]
        shared = joined(computing / cores.n_cores, cores.moving_s(n_bytes, n_bytes))
        table = c.bins * c.features * c.components * constants["table_s"]
        alone = table + c.summed * c.components * constants["sum_s"]
        return np.asarray(constants["launch_s"] + alone + shared)

    def variant(self, shape: ClockRatesShape) -> str:
        """Whose rates."""
        return KINDS[int(np.max(shape.kind))]


# --- how many bins are met ---------------------------------------------------------------------------------


def bins_met(cells: Number, shares: FloatArray, weights: FloatArray, bins: float) -> float:
    """Return how many (row, bin) ``cells`` fall on by chance, the rows of ``weights`` [n] each with ``shares`` [n]."""
    return float(weights @ (bins * -np.expm1(-np.asarray(cells, float) * shares / bins)))


def bins_of_users(cells: float, users: float, bins: float) -> float:
    """Return how many (user, bin) cells fall on: activity is lognormal with a standard deviation of 1."""
    at = np.linspace(-4, 4, 161)
    density = np.exp(-0.5 * at**2)
    share = np.exp(at)
    weights = users * density / density.sum()
    return bins_met(cells, share / (weights @ share), weights, bins)


def bins_of_items(cells: float, items: float, exponent: float, bins: float) -> float:
    """Return how many (item, bin) cells fall on, items of a popularity by that power law."""
    bounds = np.unique(np.concatenate(([0.0], np.geomspace(1, max(items, 1), 200))))
    share, weights = np.diff(popular_share(bounds, items, exponent)), np.diff(bounds)
    return bins_met(cells, share / weights, weights, bins)


# --- demands -----------------------------------------------------------------------------------------------


def cells_op(name: str, shape: CellPassShape, dtype: str, sharing: int = 1) -> Op:
    """Return the demand of a pass: rows are gathered for each cell, counts of all rows of this side written."""
    item, row_bytes = DTYPE_BYTES[dtype], padded_bytes(shape.components, dtype)
    own = shape.rows * shape.own_features * row_bytes
    gathered = shape.cells * (shape.active * row_bytes + CELL_BYTES)
    rows = shape.cells * shape.active + shape.mixed + shape.rows * shape.own_features
    return Op(
        name=name,
        operator=CellPass.name,
        account="compute",
        dtype=dtype,
        flops=float(2 * ROW_FLOPS * rows * shape.components),
        bytes_read=float(gathered + own + shape.events * item + shape.triggers * (4 + item)),
        bytes_written=float(own + item * shape.cells),
        n_items=int(shape.cells),
        shape=shape,
        sharing=sharing,
    )


def rates_op(name: str, shape: ClockRatesShape, dtype: str, sharing: int = 1) -> Op:
    """Return the demand of rates: means are read, and rates of users written."""
    elements, item = shape.rows * shape.features * shape.components, DTYPE_BYTES[dtype]
    written: Any = elements * RATE_BYTES if shape.kind == USERS else 0.0
    return Op(
        name=name,
        operator=ClockRates.name,
        account="compute",
        dtype=dtype,
        flops=float(6 * elements),
        bytes_read=float(item * (elements + shape.summed * shape.components)),
        bytes_written=float(written + RATE_BYTES * shape.bins * shape.features * shape.components),
        n_items=int(shape.rows),
        shape=shape,
        sharing=sharing,
    )
