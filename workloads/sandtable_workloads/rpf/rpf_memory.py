"""Memory that a fit holds, by kind, counted array by array; and what can be known of triggers before there is data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from sandtable import units
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine
from sandtable.workload.seam import Verdict
from sandtable_kernels.poisson.poisson_law import padded_bytes, popular_share
from sandtable_workloads.rpf.rpf_cells import clock_of, expected_cells
from sandtable_workloads.rpf.rpf_parameters import Rpf

WIDE, INDEX, SHORT = 8.0, 4.0, 2.0
# what does not grow with the data: ends of arrays, and where parts of rows begin
EVENTS_BYTES, ROWS_BYTES, CHUNKS_BYTES = 1064.0, 656.0, 520.0
# of the generated events: their length, the share of visits that come on their own, and for how long an event excites
HOURS, FRESH_FRAC, REACH_HOURS = 2160.0, 0.4, 27.6
# of the machine's memory, what the operating system and Python need beside
RESERVE_BYTES = 1.5 * 2**30
# changes that make a fit smaller, the mildest first
SMALLER: tuple[Mapping[str, float | str], ...] = (
    {"precision": "float32"},
    *({"precision": "float32", "components": k} for k in (50, 20, 10, 5)),
)


def memory_of(p: Rpf, machine: Machine) -> dict[str, float]:
    """Return the bytes of all ranks together, by kind.

    Raises:
        DoesNotFit: the machine's memory is too small; with what would fit.
    """
    verdict = verdict_of(p, machine)
    if not verdict.fits:
        change = next(
            iter(what_fits(p, machine)), "a machine with more memory, or stochastic inference from Parquet"
        )
        kinds = ", ".join(f"{kind} {units.format_bytes(size)}" for kind, size in held(p).items())
        raise DoesNotFit(
            f"{p.variant} with {p.components} components on {units.format_count(p.events)} events needs "
            f"{units.format_bytes(verdict.needed_bytes)} and {machine.name} has "
            f"{units.format_bytes(verdict.has_bytes)} ({kinds}): take {change}"
        )
    return held(p)


def held(p: Rpf) -> dict[str, float]:
    """Return the bytes by kind: events in both orders, factors, excitation, who follows whom, and what passes need."""
    n, pairs, users, items = p.events, p.n_pairs, p.users, p.items * p.ranks
    features = clock_of(p).features
    found = {
        "events": 2 * WIDE * n
        + (3 * INDEX + 2 * WIDE) * pairs
        + 3 * WIDE * users
        + WIDE * items
        + EVENTS_BYTES * p.ranks,
        "factors": _rows_bytes(p, (users + items) * features, p.components, counted=True)
        + WIDE * (users + items)
        + 2 * ROWS_BYTES * p.ranks,
        "passes": p.item_bytes * pairs,
    }
    if p.excites:
        sources = users + p.n_edges
        found["excitation"] = _rows_bytes(p, sources, 1) + WIDE * users + ROWS_BYTES * p.ranks
        found["passes"] += p.item_bytes * n + WIDE * sources
    if p.social or p.between:
        # groups, and the size of each; where triggers of events begin
        found["excitation"] += WIDE * (users + p.n_edges) + WIDE * users
        found["passes"] += WIDE * (n + 1)
    if p.social:
        found["passes"] += (INDEX + p.item_bytes) * expected_triggers(p)
    if p.social and p.ranks == 1:
        found["edges"] = 2 * INDEX * p.n_edges + WIDE * (users + 1)
    elif p.social:
        # ranks know what leads to their users and not from whom; each has the sums of all sources
        found["passes"] += WIDE * p.n_edges
        found["excitation"] += 2 * WIDE * users * (p.ranks - 1)
    if p.dynamic:
        # pairs are never passed: nobody asks for the user of each by item, nor for parts of items, and of users neither
        found["events"] -= INDEX * pairs + CHUNKS_BYTES * p.ranks * (1 if p.social and p.ranks == 1 else 2)
        found["factors"] += WIDE * (users + items) * (features + 1)
        found["passes"] += _clock_bytes(p)
    if p.between:
        found["excitation"] += _rows_bytes(p, users, 1) + WIDE * users + ROWS_BYTES * p.ranks
        found["passes"] += _between_bytes(p)
    if p.n_clusters:
        # geometric means of clusters are padded in float64
        wide = float(padded_bytes(p.n_clusters, "float64"))
        found["excitation"] += p.ranks * (p.n_clusters * (2 * WIDE * p.n_clusters + wide + WIDE) + ROWS_BYTES)
    return found


def _clock_bytes(p: Rpf) -> float:
    """Return the bytes of cells in both orders, of rates, of features by bin, and of when users start."""
    clock, cells, item = clock_of(p), expected_cells(p).cells, p.item_bytes
    by_cell = 2 * (SHORT + INDEX + WIDE) + item
    tables = WIDE * clock.bins * clock.features + 2 * clock.bins * (WIDE + clock.active * (INDEX + WIDE + item))
    by_bin = tables + 2 * WIDE * min(clock.bins, p.users) + 2 * CHUNKS_BYTES + WIDE * p.items
    found = by_cell * cells + 5 * WIDE * p.users + item * p.events + by_bin * p.ranks
    if p.social:
        found += WIDE * (p.events + 1) + (INDEX + item) * expected_triggers(p)
    return found + WIDE * p.users * clock.features * p.components


def _between_bytes(p: Rpf) -> float:
    """Return the bytes of events in order of time, of what each excites, and of what pairs give off and are given."""
    by_event = INDEX + WIDE + 4 * p.item_bytes
    found = by_event * p.events + WIDE * (p.n_pairs + p.users)
    if p.n_clusters:
        return found + p.ranks * (INDEX * p.items + 2 * WIDE * p.n_clusters**2)
    return found + p.n_pairs * float(padded_bytes(p.components, p.precision))


def _rows_bytes(p: Rpf, rows: float, components: int, *, counted: bool = False) -> float:
    """Return the bytes of shapes and means, and of padded geometric means and, where they are, counts."""
    padded = float(padded_bytes(components, p.precision))
    return rows * (2 * p.item_bytes * components + (1 + counted) * padded)


def verdict_of(p: Rpf, machine: Machine) -> Verdict:
    """Return whether it fits into the machine's memory."""
    sizes, there = held(p), float(machine.memory.datasheet.capacity_bytes)
    reserve = min(RESERVE_BYTES, there / 4)
    total, breaks = 0.0, None
    for kind, size in sizes.items():
        total += size
        breaks = breaks or (kind if total > there - reserve else None)
    largest = max(sizes, key=sizes.__getitem__)
    return Verdict(
        needed_bytes=total, has_bytes=there - reserve, largest=largest, breaks=breaks, reserve_bytes=reserve
    )


def what_fits(p: Rpf, machine: Machine) -> Sequence[str]:
    """Return the mildest change with which a fit fits; none if nothing does."""
    found = fitting(p, verdict_of(p, machine).has_bytes)
    return (found,) if found else ()


def fitting(p: Rpf, there_bytes: float) -> str:
    """Return the mildest change with which a fit fits into so much memory, empty if nothing does."""
    for changes in SMALLER:
        smaller = p.model_copy(update=dict(changes))
        if smaller.components <= p.components and sum(held(smaller).values()) <= there_bytes:
            return ", ".join(f"{name}={value}" for name, value in changes.items())
    return ""


# --- triggers ------------------------------------------------------------------------------------------------------


def expected_triggers(p: Rpf) -> float:
    """Return how many (event, followee) there are whose followee met the same item a while before, as expected.

    A followee with n pairs has met the item of popularity q with 1 - exp(-n q); users differ in activity as
    `GeneratedEvents` draws it. Each visit excites for `REACH_HOURS`, beyond which `EventTriggers` keeps nothing.
    """
    if not p.social:
        return 0.0
    visits = 1 + FRESH_FRAC * (p.events / p.n_pairs - 1)
    lately = 1 - np.exp(-visits * REACH_HOURS / HOURS)
    return float(p.events * p.followees * lately * _met_frac(p.items, p.item_exponent, p.n_pairs / p.users))


@lru_cache(maxsize=64)
def _met_frac(items: int, exponent: float, pairs_per_user: float) -> float:
    """Return the probability that another user meets the item of an event."""
    bounds = np.unique(np.concatenate(([0.0], np.geomspace(1, items, 200))))
    below = popular_share(bounds, items, exponent)
    share = np.diff(below)
    each = share / np.diff(bounds)
    activity = pairs_per_user * np.exp(np.linspace(-3, 3, 61) - 0.5)
    weight = np.exp(-0.5 * np.linspace(-3, 3, 61) ** 2)
    met = 1 - np.exp(-np.multiply.outer(activity, each))
    return float((weight / weight.sum()) @ met @ (share / share.sum()))
