"""How long iterations take where events of one item excite those of others: passes in order of time, and what is given.

A user's events are taken in order of time, forward with a state of what earlier ones excite and, where factors excite,
backward with one of what later ones owe. So an event costs operations on rows, as a pair does. Where factors excite,
a pass leaves a row for each pair, which the sums over items gather; where clusters do, these gather rows of users as
in `poisson_law`, and an event costs rows as wide as there are clusters. All else is as in `poisson_law`.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource
from sandtable.demand.operator_shapes import Number
from sandtable.hardware import DTYPE_BYTES, Roofline
from sandtable_kernels.poisson.poisson_law import (
    ACTIVITY,
    LINE_BYTES,
    OWN_TIMES,
    ROW_FLOPS,
    cores_of,
    line_seconds,
    lines_of,
    multiplied_per_s,
    padded_bytes,
    pass_constants,
    passed_seconds,
    triggered_seconds,
)
from sandtable_kernels.pytorch.core_law import CACHE, joined

FACTORS, CLUSTERS = range(2)
# the operations on rows of a pair, and of an event
KINDS, OF_PAIR, OF_EVENT = ("", "clusters"), (6.0, 3.0), (7.0, 4.0)
# of an event: its pair, place, fade, own and returned excitation, and the inverse of its rate; of a pair in both orders
EVENT_BYTES, PAIR_BYTES = 28.0, 16.0
WIDE = 8.0


class ItemExcitationShape(NamedTuple):
    """A pass over users' events and the sums over items behind it; see `PoissonPassShape`.

    ``width`` is that of the rows on which events work: components where factors excite, and else clusters.
    ``kind`` is the place in `KINDS`.
    """

    rows: Number
    components: Number
    width: Number
    pairs: Number
    events: Number
    triggers: Number
    sources: Number
    exponent: Number
    n_cores: Number = 0.0
    kind: Number = FACTORS


class ItemExcitation(Operator[Roofline]):
    """``t = launch + own rows + events + triggers + pairs (arithmetic^p + gathering^p)^(1/p)`` of a core's part.

    Constants are those of `PoissonPass`; rows of events are multiplied at the same share ``rate_frac`` of the peak.
    """

    name: ClassVar[str] = "item_excitation"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[ItemExcitationShape]] = ItemExcitationShape
    constants: ClassVar[tuple[Constant, ...]] = pass_constants("pair_s", 1.5e-8, event_s=2e-8)

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c, item, kind = columns, DTYPE_BYTES[dtype], columns.kind.astype(int)
        cores, row_bytes = cores_of(device, c.n_cores), padded_bytes(c.components, dtype)
        flop_s = ROW_FLOPS / DTYPE_BYTES["float32"] / multiplied_per_s(device, constants)
        computing = constants["pair_s"] + np.asarray(OF_PAIR)[kind] * row_bytes * flop_s
        by_event = np.asarray(OF_EVENT)[kind] * padded_bytes(c.width, dtype) * flop_s

        def line_s(size: Number, n: Number, exponent: Number) -> FloatArray:
            return line_seconds(device, constants, size, n, exponent, cores)

        shares = np.full_like(row_bytes, item)
        left = np.where(
            kind == FACTORS,
            OWN_TIMES * lines_of(row_bytes) * line_s(row_bytes, c.pairs, 0.0),
            lines_of(row_bytes) * line_s(row_bytes, c.rows, ACTIVITY) + line_s(shares, c.pairs, 0.0),
        )
        gathering = lines_of(row_bytes) * line_s(row_bytes, c.sources, c.exponent) + left
        own = (c.rows + c.sources) * OWN_TIMES * row_bytes / LINE_BYTES
        work = c.pairs * joined(computing, gathering) + c.events * by_event
        work = work + triggered_seconds(constants, c.events, c.triggers) + own * line_s(row_bytes, c.rows, 0.0)
        rows = np.where(kind == FACTORS, OWN_TIMES * row_bytes, item)
        streamed_bytes = EVENT_BYTES * c.events + (PAIR_BYTES + rows) * c.pairs + (item + 4) * c.triggers
        return passed_seconds(device, constants, work, cores, streamed_bytes)

    def variant(self, shape: ItemExcitationShape) -> str:
        """What excites."""
        return KINDS[int(np.max(shape.kind))]


class GivenOffShape(NamedTuple):
    """Sums over ``pairs`` by users and by items of what events give off, and ``elements`` of items made one by one."""

    pairs: Number
    elements: Number
    n_cores: Number = 0.0


class GivenOff(Operator[Roofline]):
    """``t = launch + elements + pairs (arithmetic^p + gathering^p)^(1/p)``, the last of a core's part.

    ``pair_s`` is what a pair takes in both sums, ``element_s`` a component of an item, one after another on one core.
    """

    name: ClassVar[str] = "given_off"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[GivenOffShape]] = GivenOffShape
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="launch_s", typical=1e-4, low=1e-6, high=1e-2),
        Constant(name="pair_s", typical=3e-9, low=1e-11, high=1e-6),
        Constant(name="element_s", typical=1e-8, low=1e-11, high=1e-6),
        Constant(name="line_s", typical=6e-9, low=1e-10, high=1e-7),
        Constant(name="bandwidth_frac", typical=0.6, low=0.05, high=3.0),
        CACHE,
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c = columns
        cores = cores_of(device, c.n_cores)
        each = np.full_like(c.pairs, WIDE)
        gathering = line_seconds(device, constants, each, c.pairs, 0.0, cores)
        pairs = c.pairs * joined(np.full_like(c.pairs, constants["pair_s"]), gathering) / cores
        return np.asarray(constants["launch_s"] + c.elements * constants["element_s"] + pairs)


# --- demands -----------------------------------------------------------------------------------------------


def excitation_op(name: str, shape: ItemExcitationShape, dtype: str, sharing: int = 1) -> Op:
    """Return the demand of a pass and the sums behind it."""
    item, row_bytes = DTYPE_BYTES[dtype], padded_bytes(shape.components, dtype)
    kind, own = int(np.max(shape.kind)), (shape.rows + shape.sources) * row_bytes
    left = row_bytes if kind == FACTORS else item
    rows = OF_PAIR[kind] * shape.pairs * shape.components + OF_EVENT[kind] * shape.events * shape.width
    return Op(
        name=name,
        operator=ItemExcitation.name,
        account="compute",
        dtype=dtype,
        flops=float(ROW_FLOPS * rows),
        bytes_read=float(
            shape.pairs * (2 * row_bytes + PAIR_BYTES)
            + own
            + shape.events * EVENT_BYTES
            + shape.triggers * (4 + item)
        ),
        bytes_written=float(own + shape.pairs * left + shape.events * item),
        n_items=int(shape.events),
        shape=shape,
        sharing=sharing,
    )


def given_op(name: str, shape: GivenOffShape, dtype: str, sharing: int = 1) -> Op:
    """Return the demand of what pairs give off and of items' rates."""
    return Op(
        name=name,
        operator=GivenOff.name,
        account="compute",
        dtype=dtype,
        flops=float(4 * shape.pairs + 6 * shape.elements),
        bytes_read=float(shape.pairs * (4 * WIDE + 8) + WIDE * shape.elements),
        bytes_written=float(WIDE * shape.elements),
        n_items=int(shape.pairs),
        shape=shape,
        sharing=sharing,
    )
