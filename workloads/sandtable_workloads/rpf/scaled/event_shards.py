"""Events of some of the users, cut out of those of all, and as named arrays of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_kernels.poisson.event_triggers import EventTriggers, OverEdges
from sandtable_workloads.rpf.estimators.event_intensity import LaterEvents

Array = NDArray[Any]
Arrays = dict[str, Array]

_OF_TRIGGERS = ("start", "edge", "value")
_OF_LATER = ("new", "known_user", "known_item", "everyone")


# --- cutting -------------------------------------------------------------------------------------------------------


def users_between(pairs: EventPairs, first: int, last: int) -> EventPairs:
    """Return the events of users ``first`` to ``last - 1`` of all, with users counted from ``first``."""
    from sandtable_kernels.compiled.events import event_loops

    a, b = (int(pairs.user_start[u]) for u in (first, last))
    begin, end = (int(pairs.event_start[p]) for p in (a, b))
    item = pairs.item[a:b]
    starts = np.concatenate(([0], np.cumsum(np.bincount(item, minlength=pairs.n_items))))
    return EventPairs(
        user_start=pairs.user_start[first : last + 1] - a,
        item=item,
        pair_user=(pairs.pair_user[a:b] - first).astype(np.int32),
        event_start=pairs.event_start[a : b + 1] - begin,
        time=pairs.time[begin:end],
        order=pairs.order[begin:end],
        item_start=starts.astype(np.int64),
        by_item=event_loops.stable_order(item, pairs.n_items, np.arange(item.size)),
    )


def over_edges_between(over: OverEdges, pairs: EventPairs, users: slice, edges: slice) -> OverEdges:
    """Return what excites the events of some ``users`` of ``pairs``, over the ``edges`` to them."""
    # tau has users before edges, there and here
    moved = pairs.n_users + edges.start - (users.stop - users.start)
    return over.between(_events_of(pairs, users), edges, moved)


def later_between(later: LaterEvents, users: slice, edges: slice | None) -> LaterEvents:
    """Return the later events of some users, and those before them; ``edges`` are those to these users."""
    events, over = _events_of(later.pairs, users), later.over_edges
    return later._replace(
        pairs=users_between(later.pairs, users.start, users.stop),
        new=later.new[events],
        known_user=_moved(later.known_user[events], users.start),
        known_item=later.known_item[events],
        everyone=_moved(later.everyone[users], users.start),
        over_edges=None if over is None or edges is None else over_edges_between(over, later.pairs, users, edges),
    )


def _events_of(pairs: EventPairs, users: slice) -> slice:
    return slice(*(int(pairs.event_start[pairs.user_start[u]]) for u in (users.start, users.stop)))


def _moved(places: Array, by: int) -> Array:
    return np.asarray(np.where(places < 0, -1, places - by))


# --- as arrays -----------------------------------------------------------------------------------------------------


def below(arrays: Mapping[str, Array], prefix: str) -> Arrays:
    """Return the arrays whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def event_arrays(pairs: EventPairs, over: OverEdges | None) -> Arrays:
    """Return events, and what excites them over edges, as arrays."""
    found = {f"pairs.{name}": getattr(pairs, name) for name in EventPairs.__dataclass_fields__}
    if over is not None:
        found |= {f"triggers.{name}": getattr(over.triggers, name) for name in _OF_TRIGGERS}
        found["released"] = over.released
    return found


def events_of(arrays: Arrays) -> tuple[EventPairs, OverEdges | None]:
    """Take back what `event_arrays` gave."""
    pairs, triggers = EventPairs(**below(arrays, "pairs.")), below(arrays, "triggers.")
    return pairs, OverEdges(EventTriggers(**triggers), arrays["released"]) if triggers else None


def later_arrays(later: LaterEvents) -> Arrays:
    """Return later events as arrays."""
    period = np.array([later.start, later.end])
    mine = {name: getattr(later, name) for name in _OF_LATER}
    return event_arrays(later.pairs, later.over_edges) | mine | {"period": period}


def later_of(arrays: Arrays) -> LaterEvents:
    """Take back what `later_arrays` gave."""
    pairs, over = events_of(arrays)
    start, end = arrays["period"].tolist()
    mine = {name: arrays[name] for name in _OF_LATER}
    return LaterEvents(pairs=pairs, start=start, end=end, over_edges=over, **mine)
