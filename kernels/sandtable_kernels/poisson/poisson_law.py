"""How long a pass of Poisson factorization takes: its pairs, its events, and the factors that it makes anew.

A pass goes over the rows of one side, users or items. For each pair it gathers the row of the other side, whose place
nobody can foresee: a row that the core's own cache does not hold comes from the last-level cache, one that this does
not hold from memory. Which are held follows from the popularity of rows (`popular_share`): a few of them are met again
and again. Gathering goes on beside arithmetic. For each event there is a division and a logarithm, for each factor of a
row a digamma function, an exponential and a logarithm. Cores have equal parts of the pairs.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource
from sandtable.demand.operator_shapes import Number
from sandtable.hardware import DTYPE_BYTES, Roofline
from sandtable_kernels.pytorch.core_law import CACHE, joined

LINE_BYTES = 64.0
# rows are padded to whole vectors of this size, the first of them beginning with a line
VECTOR_BYTES = 32.0
# multiplications and additions of a pair for each component: the product of two rows, and adding one to a sum
PAIR_FLOPS = 4.0


class PoissonPassShape(NamedTuple):
    """A pass over ``rows`` of K ``components``, with ``pairs`` that gather from ``sources`` rows of the other side.

    Their popularity is a power law of that ``exponent``. ``events`` are divided and logarithms taken, ``triggers``
    are earlier events of others that may have excited one. By ``n_cores``, 0 for all; ``kind`` is the place of the
    variant in `KINDS`.
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


# passes with constants of their own
KINDS = ("users", "items", "social", "dynamic", "between_items")
USERS, ITEMS, SOCIAL, DYNAMIC, BETWEEN_ITEMS = range(len(KINDS))


class PoissonPass(Operator[Roofline]):
    """``t = launch + events + triggers + rows + (arithmetic^p + gathering^p)^(1/p)`` of a core's part.

    ``pair_s``, ``event_s`` and ``trigger_s`` are what one of each takes; ``factor_s`` what a component of a row takes
    that is made anew; ``rate_frac`` the share of the peak at which pairs are multiplied. ``line_s`` is what a core
    takes for a line from the last-level cache, several of them on their way, ``far_times`` how many times that from
    memory; ``bandwidth_frac`` bounds what all cores get from there together. A core's own cache holds ``cache_bytes``.
    """

    name: ClassVar[str] = "poisson_pass"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[PoissonPassShape]] = PoissonPassShape
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="launch_s", typical=3e-5, low=1e-7, high=1e-2),
        Constant(name="pair_s", typical=5e-9, low=1e-11, high=1e-6),
        Constant(name="event_s", typical=2e-9, low=1e-11, high=1e-6),
        Constant(name="trigger_s", typical=4e-9, low=1e-11, high=1e-6),
        Constant(name="factor_s", typical=4e-9, low=1e-11, high=1e-6),
        Constant(name="rate_frac", typical=0.2, low=0.005, high=1.5),
        Constant(name="line_s", typical=4e-9, low=1e-10, high=1e-7),
        Constant(name="far_times", typical=2.0, low=1.0, high=20.0),
        Constant(name="bandwidth_frac", typical=0.6, low=0.05, high=3.0),
        CACHE,
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c, item = columns, DTYPE_BYTES[dtype]
        cores = np.where(c.n_cores > 0, np.minimum(c.n_cores, device.n_units), device.n_units)
        each = c.pairs / cores
        # a vector holds half as many numbers of twice the size
        row_bytes = padded_bytes(c.components, dtype)
        rate = constants["rate_frac"] * device.peak("float32") / device.n_units
        computing = each * (constants["pair_s"] + PAIR_FLOPS * row_bytes / DTYPE_BYTES["float32"] / rate)
        gathering = each * self._row_s(device, constants, c, row_bytes, cores)
        streamed = (item * c.events + 8 * c.events + 16 * c.pairs) / (
            constants["bandwidth_frac"] * device.bandwidth_bytes_per_s
        )
        events = (c.events * constants["event_s"] + c.triggers * constants["trigger_s"]) / cores
        factors = c.rows * c.components * constants["factor_s"] / cores
        working = events + factors + joined(computing, gathering)
        launch = constants["launch_s"] * (c.pairs > 0)
        return np.asarray(launch + np.maximum(working, streamed))

    @staticmethod
    def _row_s(
        device: Roofline, constants: Constants, c: Columns, row_bytes: Number, cores: FloatArray
    ) -> FloatArray:
        """Return what one core takes to gather a row, wherever it comes from."""
        lines = lines_of(row_bytes)
        near = popular_share(constants["cache_bytes"] / row_bytes, c.sources, c.exponent)
        held = popular_share(
            np.maximum(device.cache_bytes, constants["cache_bytes"]) / row_bytes, c.sources, c.exponent
        )
        far_s = np.maximum(
            constants["line_s"] * constants["far_times"],
            LINE_BYTES * cores / (constants["bandwidth_frac"] * device.bandwidth_bytes_per_s),
        )
        held = np.maximum(held, near)
        return np.asarray(lines * ((held - near) * constants["line_s"] + (1 - held) * far_s))

    def variant(self, shape: PoissonPassShape) -> str:
        """The kind of pass."""
        kind = int(np.max(shape.kind))
        return KINDS[kind] if kind else ""

    def flops(self, shape: PoissonPassShape) -> Number:
        """Those of pairs."""
        return PAIR_FLOPS * shape.pairs * shape.components


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

    return np.asarray(below(np.minimum(held, rows)) / below(rows))


def pass_op(name: str, shape: PoissonPassShape, dtype: str, section: str = "", sharing: int = 1) -> Op:
    """Return the demand of a pass: rows of the other side, indices and values are read, new rows written."""
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
        bytes_written=float(3 * shape.rows * row_bytes),
        n_special=float(shape.events + 3 * shape.rows * shape.components),
        n_items=int(shape.pairs),
        shape=shape,
        section=section,
        sharing=sharing,
    )
