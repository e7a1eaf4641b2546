"""The plan of a fit: equal iterations of coordinate ascent, each a pass over users, a sum over ranks, one over items.

A pass over users gives events to components and to what excited them, and adds up their logarithms for the
likelihood; users' factors, their rates and what excites them follow. A pass over items scatters the same shares to
items, whose factors and rates follow once the ranks have added up theirs. Where factors follow the clock, both pass
over cells and rates are made for each feature; where items excite others, events are passed in order of time, and what
they give off is summed.
"""

from __future__ import annotations

from sandtable.demand.op import Op
from sandtable.demand.operator_shapes import CollectiveShape, Number
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.hardware import Machine
from sandtable_kernels.poisson.laws import dynamic_law
from sandtable_kernels.poisson.laws.dynamic_law import BLOCK, CellPassShape, ClockRatesShape, cells_op, rates_op
from sandtable_kernels.poisson.laws.item_law import (
    CLUSTERS,
    FACTORS,
    GivenOffShape,
    ItemExcitationShape,
    excitation_op,
    given_op,
)
from sandtable_kernels.poisson.poisson_law import (
    ACTIVITY,
    ITEMS,
    GammaRowsShape,
    PoissonPassShape,
    pass_op,
    rows_op,
)
from sandtable_workloads.rpf.rpf_cells import clock_of, expected_cells
from sandtable_workloads.rpf.rpf_memory import expected_triggers, memory_of
from sandtable_workloads.rpf.rpf_parameters import Rpf

MAIN, ITERATION = "main", "iteration"
# what ranks add up is in float64, so that their number changes nothing
SUM_BYTES = 8.0


def plan_of(p: Rpf, machine: Machine) -> Plan:
    """Return ``steps`` equal iterations; what warms up is not part of it."""
    step = Step(name=ITERATION, ops=iteration_ops(p), repeat=p.steps)
    return Plan(
        workload="rpf",
        phases=(Phase(name=MAIN, steps=(step,)),),
        main_phase=MAIN,
        memory_bytes=memory_of(p, machine),
        work_unit="iteration",
        unit_metric="step_s",
    )


def iteration_ops(p: Rpf) -> tuple[Op, ...]:
    """Return the ops of one iteration of one rank: each has an equal part of the users and all items."""
    found = _by_clock(p) if p.dynamic else _between_items(p) if p.between else _static(p)
    if p.excites:
        sources = (p.users + p.n_edges) / p.ranks
        found.append(_rows(p, "excitation", sources, 1, grouped=float(p.social or p.between)))
    if p.between:
        found.append(_rows(p, "excitation of others", p.users / p.ranks, 1))
    if p.n_clusters:
        found.append(_rows(p, "excitation of clusters", p.n_clusters, p.n_clusters))
    if p.ranks > 1:
        found.append(_sums_of_ranks(p, "sums of ranks", _summed(p)))
    if p.ranks > 1 and p.social:
        found.append(_sums_of_ranks(p, "sums by source", p.users))
    return (*found, _item_rows(p))


def _summed(p: Rpf) -> float:
    """Return how many numbers ranks add up in each iteration: counts of items, what exposure gives them, the bound."""
    features = clock_of(p).features
    others = p.items + p.n_clusters**2 if p.between else 0
    return (p.items + 1) * features * p.components + 1 + others


def _sums_of_ranks(p: Rpf, name: str, n: float) -> Op:
    shape = CollectiveShape(SUM_BYTES * n, p.ranks, p.ranks)
    return Op(name=name, operator="all_reduce", account="communication", shape=shape)


def _static(p: Rpf) -> list[Op]:
    """Return passes over pairs, and what is made of users' factors behind them."""
    users = user_shape(p)
    items = users._replace(
        rows=p.items, events=0.0, triggers=0.0, sources=users.rows, exponent=ACTIVITY, kind=ITEMS
    )
    return [
        pass_op("responsibilities", users, p.precision, p.ranks),
        pass_op("item counts", items, p.precision, p.ranks),
        _user_rows(p),
    ]


def _by_clock(p: Rpf) -> list[Op]:
    """Return passes over cells, and rates of each feature."""
    clock, met, cores = clock_of(p), expected_cells(p), _cores(p)
    cells = met.cells / p.ranks
    rates = ClockRatesShape(
        p.users / p.ranks, clock.features, p.components, clock.bins, p.items * clock.features, cores
    )
    users = CellPassShape(
        rows=p.users / p.ranks,
        own_features=clock.features,
        components=p.components,
        cells=cells,
        active=clock.active,
        mixed=2 * clock.active * met.user_bins / p.ranks,
        events=p.events / p.ranks,
        triggers=expected_triggers(p) / p.ranks,
        sources=p.items,
        features=clock.features,
        exponent=p.item_exponent,
        n_cores=cores,
    )
    items = users._replace(
        rows=p.items,
        mixed=clock.active * (min(met.item_bins, cells) + cells / BLOCK),
        events=0.0,
        triggers=0.0,
        sources=users.rows,
        exponent=ACTIVITY,
        kind=dynamic_law.ITEMS,
    )
    return [
        cells_op("responsibilities", users, p.precision, p.ranks),
        cells_op("item counts", items, p.precision, p.ranks),
        rates_op("rates of users", rates, p.precision, p.ranks),
        _rows(p, "user factors and rates", users.rows * clock.features, p.components, rated=1.0, grouped=1.0),
        rates_op("rates of items", rates._replace(summed=0.0, kind=dynamic_law.ITEMS), p.precision, p.ranks),
    ]


def _between_items(p: Rpf) -> list[Op]:
    """Return a pass in order of time with sums over items, what is given off, and users' factors."""
    shape = ItemExcitationShape(
        rows=p.users / p.ranks,
        components=p.components,
        width=p.n_clusters or p.components,
        pairs=p.n_pairs / p.ranks,
        events=p.events / p.ranks,
        triggers=0.0,
        sources=p.items,
        exponent=p.item_exponent,
        n_cores=_cores(p),
        kind=CLUSTERS if p.n_clusters else FACTORS,
    )
    elements = p.items * (1 if p.n_clusters else p.components)
    given = GivenOffShape(p.n_pairs / p.ranks, elements, _cores(p))
    return [
        excitation_op("responsibilities", shape, p.precision, p.ranks),
        given_op("excitation given off", given, p.precision, p.ranks),
        _user_rows(p),
    ]


def _item_rows(p: Rpf) -> Op:
    name = "item factors and rates"
    if p.dynamic:
        return _rows(p, name, p.items * clock_of(p).features, p.components, grouped=1.0)
    return _rows(p, name, p.items, p.components, sums=1, rated=float(p.variant == "iirpf"))


def _user_rows(p: Rpf) -> Op:
    return _rows(p, "user factors and rates", p.users / p.ranks, p.components, sums=2)


def user_shape(p: Rpf) -> PoissonPassShape:
    """Return the pass over the users of one rank."""
    return PoissonPassShape(
        rows=p.users / p.ranks,
        components=p.components,
        pairs=p.n_pairs / p.ranks,
        events=p.events / p.ranks,
        triggers=expected_triggers(p) / p.ranks,
        sources=p.items,
        exponent=p.item_exponent,
        n_cores=_cores(p),
        kind=p.kind,
    )


def _cores(p: Rpf) -> float:
    """Return the threads of a rank, 0 for all."""
    return 0.0 if p.threads is None else max(1.0, p.threads / p.ranks)


def _rows(
    p: Rpf, name: str, rows: Number, components: int, *, sums: int = 0, rated: float = 0.0, grouped: float = 0.0
) -> Op:
    shape = GammaRowsShape(rows, components, sums, _cores(p), rated, grouped)
    return rows_op(name, shape, p.precision, p.ranks)
