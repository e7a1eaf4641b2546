"""A process: work that decides what it does next while it runs, as a generator over a `World`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import simpy

from sandtable.demand.plan import Reported

if TYPE_CHECKING:
    from sandtable.engine.world import World

Body = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process(Reported):
    """Work for which no plan can be written down in advance.

    ``body`` is called once per run, and yields what it waits for; everything that `World` gives to wait for is yielded
    plainly, as in ``start_s = yield world.serve(op)``. ``memory_bytes`` is held from the beginning to the end.

    Attributes:
        body: The generator function.
        main_unit: Kind of unit that the headline metrics describe.
        phases: Kinds of units that are reported by their mean alone, as the other phases of a plan are.
    """

    body: Callable[[World], Body]
    main_unit: str
    phases: tuple[str, ...] = ()
