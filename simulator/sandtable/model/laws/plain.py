"""Operators whose time follows from their counts alone: a name, who serves it, and what can bind it."""

from __future__ import annotations

from typing import ClassVar

from sandtable.demand.operator import PlainOperator, Resource
from sandtable.demand.operator_shapes import Number


class MemoryRead(PlainOperator):
    """Reading memory in order."""

    name: ClassVar[str] = "memory_read"
    resource: ClassVar[Resource] = "memory"


class Copy(PlainOperator):
    """Copying memory in order."""

    name: ClassVar[str] = "copy"
    resource: ClassVar[Resource] = "memory"


class Gather(PlainOperator):
    """Copying scattered rows together."""

    name: ClassVar[str] = "gather"
    resource: ClassVar[Resource] = "memory"


class Insert(PlainOperator):
    """Copying rows to scattered places."""

    name: ClassVar[str] = "insert"
    resource: ClassVar[Resource] = "memory"


class Transfer(PlainOperator):
    """Copying between host and accelerator."""

    name: ClassVar[str] = "transfer"
    resource: ClassVar[Resource] = "link"


class Gemv(PlainOperator):
    """A matrix times a vector."""

    name: ClassVar[str] = "gemv"
    called: ClassVar[str] = "matrix-vector products"
    resource: ClassVar[Resource] = "compute"


class Attend(PlainOperator):
    """Attention of one token over a cache, on a CPU."""

    name: ClassVar[str] = "attend"
    called: ClassVar[str] = "attention"
    resource: ClassVar[Resource] = "compute"


class Elementwise(PlainOperator):
    """Norms, additions and the like between products."""

    name: ClassVar[str] = "elementwise"
    resource: ClassVar[Resource] = "compute"


class Host(PlainOperator):
    """Work of the framework on the host, counted in calls."""

    name: ClassVar[str] = "host"
    resource: ClassVar[Resource] = "compute"

    def calls(self, stated: float, *, shape: object = None, n_items: float = 1) -> Number:
        """Its items are the calls."""
        return n_items


class Startup(PlainOperator):
    """What takes a known time, whatever the machine: `Op.seconds`."""

    name: ClassVar[str] = "startup"
    called: ClassVar[str] = "fixed costs"
    resource: ClassVar[Resource] = "compute"
    states_time: ClassVar[bool] = True


class Sequence(PlainOperator):
    """Ops that follow each other on one device, taken as one; see `Op.parts`."""

    name: ClassVar[str] = "sequence"
    resource: ClassVar[Resource] = "compute"
