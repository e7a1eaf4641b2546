"""The plan of a fit: equal iterations of coordinate ascent, each a pass over users, a sum over ranks, one over items.

A pass over users gives events to components and to what excited them, and adds up their logarithms for the
likelihood; users' factors, their rates and what excites them follow. A pass over items scatters the same shares to
items, whose factors and rates follow once the ranks have added up theirs.
"""

from __future__ import annotations

from sandtable.demand.op import Op
from sandtable.demand.operator_shapes import CollectiveShape
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.hardware import Machine
from sandtable_kernels.poisson.poisson_law import (
    ACTIVITY,
    ITEMS,
    GammaRowsShape,
    PoissonPassShape,
    pass_op,
    rows_op,
)
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
    users = user_shape(p)
    items = users._replace(
        rows=p.items, events=0.0, triggers=0.0, sources=users.rows, exponent=ACTIVITY, kind=ITEMS
    )
    found = [
        pass_op("responsibilities", users, p.precision, p.ranks),
        pass_op("item counts", items, p.precision, p.ranks),
        _rows(p, "user factors and rates", p.users / p.ranks, p.components, sums=2),
    ]
    if p.excites:
        found.append(_rows(p, "excitation", (p.users + p.n_edges) / p.ranks, 1, sums=0))
    if p.ranks > 1:
        shape = CollectiveShape(SUM_BYTES * (p.items * p.components + p.components + 1), p.ranks, p.ranks)
        found.append(Op(name="sums of ranks", operator="all_reduce", account="communication", shape=shape))
    return (*found, _rows(p, "item factors and rates", p.items, p.components, sums=1))


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
        n_cores=0.0 if p.threads is None else max(1.0, p.threads / p.ranks),
        kind=p.kind,
    )


def _rows(p: Rpf, name: str, rows: float, components: int, sums: int) -> Op:
    shape = GammaRowsShape(rows, components, sums, user_shape(p).n_cores)
    return rows_op(name, shape, p.precision, p.ranks)
