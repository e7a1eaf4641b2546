"""How long iterations of Poisson factorization take: passes over pairs of a user and an item, and factors made anew.

A pass goes over the rows of one side, users or items, each core over its part. For each pair it gathers the row of the
other side, whose place nobody can foresee: a row that the core's own cache does not hold comes from the last-level
cache, one that this does not hold from memory. Which are held follows from the popularity of rows (`popular_share`): a
few of them are met again and again. A pass over items also gathers what each pair was given by the pass over users.
The rows of its own side are gone through in order, and their counts written.
Gathering goes on beside arithmetic, whose rows are padded to whole vectors. Each event is a division.

Factors that are made anew take a digamma function and an exponential each, in the lanes of vectors, and stream
through memory.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource
from sandtable.demand.operator_shapes import Number
from sandtable.hardware import DTYPE_BYTES, Roofline
from sandtable_kernels.pytorch.core_law import CACHE, SPEEDUP, Cores, joined

LINE_BYTES = 64.0
# rows are padded to whole vectors of this size, the first of them beginning with a line
VECTOR_BYTES = 32.0
# factors are made anew in float64, so many in a vector
LANES = VECTOR_BYTES / 8
# multiplications and additions of an operation on a row for each component; of a pair: the product of two rows, and
# adding one to a sum
ROW_FLOPS = 2.0
PAIR_FLOPS = 2 * ROW_FLOPS
# pairs that take as long as beginning and ending a row; how many times a line of the last-level cache one of memory
# takes, several of either on their way; and a branch that a core did not foresee
ROW_PAIRS, FAR_TIMES, UNFORESEEN_S = 2.0, 2.0, 1.4e-8
# of a power law of the popularity of users, whose activity is about lognormal, with a standard deviation of 1
ACTIVITY = 0.6
# how often a line of a row of this side's own crosses between caches: read, its counts read and written
OWN_TIMES = 3.0
# bytes of a rate that a factor has of its own; of what a row takes, the part that one core adds to its group's
RATE_BYTES, GROUPED_ROWS = 8.0, 0.15
# passes with constants of their own: over users, without excitation, with their own, with others'; over items
KINDS = ("users", "excited", "social", "items")
USERS, EXCITED, SOCIAL, ITEMS = range(len(KINDS))


class PoissonPassShape(NamedTuple):
    """A pass over ``rows`` of K ``components``, with ``pairs`` that gather from ``sources`` rows of the other side.

    Their popularity is a power law of that ``exponent``. ``events`` are divided, ``triggers`` are earlier events of
    others that excite one. By ``n_cores``, 0 for all; ``kind`` is the place in `KINDS`.
    """

    rows: Number
    components: Number
    pairs: Number
    events: Number
    triggers: Number
    sources: Number
    exponent: Number
    n_cores: Number = 0.0
    kind: Number = 0.0


def pass_constants(unit: str, unit_s: float, *, event_s: float) -> tuple[Constant, ...]:
    """Return the constants of a pass over pairs or cells: ``unit`` names what one takes; with typical seconds."""
    return (
        Constant(name="launch_s", typical=5e-5, low=1e-6, high=1e-2),
        Constant(name=unit, typical=unit_s, low=1e-10, high=1e-6),
        Constant(name="event_s", typical=event_s, low=1e-11, high=1e-6),
        Constant(name="trigger_s", typical=1e-9, low=1e-11, high=1e-6),
        Constant(name="rate_frac", typical=0.2, low=0.005, high=1.5),
        Constant(name="line_s", typical=6e-9, low=1e-10, high=1e-7),
        Constant(name="bandwidth_frac", typical=0.6, low=0.05, high=3.0),
        CACHE,
    )


def multiplied_per_s(device: Roofline, constants: Constants) -> Number:
    """Return the multiplications and additions in float32 that a core does in a second of a pass."""
    return constants["rate_frac"] * device.peak("float32") / device.n_units


def passed_seconds(
    device: Roofline, constants: Constants, work: FloatArray, cores: FloatArray, streamed_bytes: Number
) -> FloatArray:
    """Return the time of a pass: its launch, and ``work`` [s on one core] shared by cores or what streams by."""
    streamed = streamed_bytes / (constants["bandwidth_frac"] * device.bandwidth_bytes_per_s)
    return np.asarray(constants["launch_s"] + np.maximum(work / cores, streamed))


class PoissonPass(Operator[Roofline]):
    """``t = launch + rows + events + triggers + (arithmetic^p + gathering^p)^(1/p)`` of a core's part.

    ``pair_s``, ``event_s`` and ``trigger_s`` are what one of each takes, a row `ROW_PAIRS` pairs, and an event with
    triggers `UNFORESEEN_S` more; ``rate_frac`` is the share of the peak at which pairs are multiplied. ``line_s`` is
    what a core takes for a line from the last-level cache, several of them on their way, `FAR_TIMES` that from memory;
    ``bandwidth_frac`` bounds what all cores get from there together. A core's own cache holds ``cache_bytes``.
    """

    name: ClassVar[str] = "poisson_pass"
    called: ClassVar[str] = "passes over events"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[PoissonPassShape]] = PoissonPassShape
    constants: ClassVar[tuple[Constant, ...]] = pass_constants("pair_s", 1e-8, event_s=4e-9)

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c, item = columns, DTYPE_BYTES[dtype]
        cores = cores_of(device, c.n_cores)
        row_bytes = padded_bytes(c.components, dtype)
        rate = multiplied_per_s(device, constants)
        computing = np.asarray(constants["pair_s"] + PAIR_FLOPS * row_bytes / DTYPE_BYTES["float32"] / rate)
        gathering = lines_of(row_bytes) * line_seconds(device, constants, row_bytes, c.sources, c.exponent, cores)
        # over items, what each pair was given lies wherever the pass over users left it
        given = (c.kind == ITEMS) * line_seconds(
            device, constants, np.full_like(row_bytes, item), c.pairs, 0.0, cores
        )
        pairs = c.pairs * joined(computing, gathering + given)
        others = c.rows * ROW_PAIRS * constants["pair_s"] + triggered_seconds(constants, c.events, c.triggers)
        # rows of this side are gone through in order: read, and counts written, which reads them first
        others = others + c.rows * OWN_TIMES * row_bytes / LINE_BYTES * line_seconds(
            device, constants, OWN_TIMES * row_bytes, c.rows, 0.0, cores
        )
        streamed_bytes = item * c.events + (item + 16) * c.pairs + (item + 4) * c.triggers
        return passed_seconds(device, constants, pairs + others, cores, streamed_bytes)

    def variant(self, shape: PoissonPassShape) -> str:
        """The kind of pass."""
        kind = int(np.max(shape.kind))
        return KINDS[kind] if kind else ""

    def flops(self, shape: PoissonPassShape) -> Number:
        """Those of pairs."""
        return PAIR_FLOPS * shape.pairs * shape.components


class GammaRowsShape(NamedTuple):
    """``rows`` of ``components`` factors made anew, and ``sums`` of means over rows; by ``n_cores``, 0 for all.

    ``rated``: 1 where each factor has a rate of its own that is read. ``grouped``: 1 where rows share the rates of
    their groups, which one core adds up.
    """

    rows: Number
    components: Number
    sums: Number = 0.0
    n_cores: Number = 0.0
    rated: Number = 0.0
    grouped: Number = 0.0


class GammaRowsOperator(Operator[Roofline]):
    """``t = launch (1 + sums) + (arithmetic^p + moving^p)^(1/p)`` of a core's part.

    ``row_s`` is what a row takes besides, such as its rate's own; ``factor_s`` a factor's digamma and exponential in a
    vector of them, ``lone_s`` that of one which is left over; ``sum_s`` adding one to a sum. Shapes,
    means and geometric means are written and counts read.
    """

    name: ClassVar[str] = "gamma_rows"
    called: ClassVar[str] = "factors and rates"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[GammaRowsShape]] = GammaRowsShape
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="launch_s", typical=5e-5, low=1e-6, high=1e-2),
        Constant(name="row_s", typical=3e-8, low=1e-10, high=1e-6),
        Constant(name="factor_s", typical=4.5e-9, low=1e-11, high=1e-6),
        Constant(name="lone_s", typical=2e-8, low=1e-11, high=1e-6),
        Constant(name="sum_s", typical=5e-10, low=1e-12, high=1e-7),
        Constant(name="bandwidth_frac", typical=0.6, low=0.05, high=3.0),
        SPEEDUP,
        CACHE,
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c, item = columns, DTYPE_BYTES[dtype]
        cores = Cores.of(device, constants, cores_of(device, c.n_cores))
        factors = c.rows * c.components
        lone = c.components % LANES
        row = constants["row_s"] + (c.components - lone) * constants["factor_s"] + lone * constants["lone_s"]
        row = row + c.components * c.sums * constants["sum_s"]
        working = item * factors * 4
        moving = cores.moving_s(item * factors * (4 + c.sums) + RATE_BYTES * c.rated * factors, working)
        alone = c.grouped * c.rows * GROUPED_ROWS * constants["row_s"]
        return np.asarray(
            constants["launch_s"] * (1 + c.sums) + alone + joined(c.rows * row / cores.n_cores, moving)
        )


def line_seconds(
    device: Roofline, constants: Constants, row_bytes: Number, n: Number, exponent: Number, cores: FloatArray
) -> FloatArray:
    """Return what one core takes for a line of one of ``n`` rows, wherever it comes from."""
    near = popular_share(constants["cache_bytes"] / row_bytes, n, exponent)
    last = max(device.cache_bytes, constants["cache_bytes"])
    held = np.maximum(near, popular_share(last / row_bytes, n, exponent))
    far_s = np.maximum(
        constants["line_s"] * FAR_TIMES,
        LINE_BYTES * cores / (constants["bandwidth_frac"] * device.bandwidth_bytes_per_s),
    )
    return np.asarray((held - near) * constants["line_s"] + (1 - held) * far_s)


def triggered_seconds(constants: Constants, events: Number, triggers: Number) -> FloatArray:
    """Return what events and their triggers take, which fall on events by chance."""
    met = events * -np.expm1(-triggers / np.maximum(events, 1.0))
    return np.asarray(events * constants["event_s"] + triggers * constants["trigger_s"] + met * UNFORESEEN_S)


def cores_of(device: Roofline, n_cores: Any) -> FloatArray:
    """Return the cores that take part: all where that is zero or more than there are."""
    return np.asarray(np.where(n_cores > 0, np.minimum(n_cores, device.n_units), device.n_units), float)


def padded_bytes(components: Number, dtype: str) -> Number:
    """Return the bytes of a row, padded to whole vectors."""
    return np.asarray(np.ceil(DTYPE_BYTES[dtype] * np.asarray(components, float) / VECTOR_BYTES) * VECTOR_BYTES)


def lines_of(row_bytes: Number) -> Number:
    """Return how many lines of a cache a padded row lies on, which begins with any vector of a line."""
    return np.asarray((row_bytes - VECTOR_BYTES) / LINE_BYTES + 1)


def popular_share(held: Number, rows: Number, exponent: Number) -> Number:
    """Return the share of accesses that go to the ``held`` most popular of ``rows``, the r-th as r^-exponent."""
    power = 1 - np.asarray(exponent, float)
    power = np.where(np.abs(power) < 1e-6, 1e-6, power)

    def below(n: Any) -> Any:
        return ((np.asarray(n, float) + 1) ** power - 1) / power

    return np.asarray(below(np.minimum(held, rows)) / np.maximum(below(rows), 1e-300))


def pass_op(name: str, shape: PoissonPassShape, dtype: str, sharing: int = 1) -> Op:
    """Return the demand of a pass: rows of the other side, indices and values are read, counts are written."""
    item, row_bytes = DTYPE_BYTES[dtype], padded_bytes(shape.components, dtype)
    read = (
        shape.pairs * (row_bytes + 12) + shape.events * item + shape.triggers * (4 + item) + shape.rows * row_bytes
    )
    return Op(
        name=name,
        operator=PoissonPass.name,
        account="compute",
        dtype=dtype,
        flops=float(PAIR_FLOPS * shape.pairs * shape.components),
        bytes_read=float(read),
        bytes_written=float(shape.rows * row_bytes + item * shape.pairs),
        n_items=int(shape.pairs),
        shape=shape,
        sharing=sharing,
    )


def rows_op(name: str, shape: GammaRowsShape, dtype: str, sharing: int = 1) -> Op:
    """Return the demand of factors made anew: counts are read, shapes, means and geometric means written."""
    factors = DTYPE_BYTES[dtype] * shape.rows * shape.components
    return Op(
        name=name,
        operator=GammaRowsOperator.name,
        account="compute",
        dtype=dtype,
        bytes_read=float((1 + shape.sums) * factors + RATE_BYTES * shape.rated * shape.rows * shape.components),
        bytes_written=float(3 * factors),
        n_special=float(2 * shape.rows * shape.components),
        n_items=int(shape.rows),
        shape=shape,
        sharing=sharing,
    )
