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
from sandtable_kernels.poisson.poisson_law import ITEMS, PoissonPassShape, pass_op
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
    items = PoissonPassShape(
        rows=p.items,
        components=p.components,
        pairs=users.pairs,
        events=0.0,
        triggers=0.0,
        sources=users.rows,
        exponent=0.0,
        n_cores=users.n_cores,
        kind=ITEMS,
    )
    found = [
        _op(p, "responsibilities", users._replace(rows=0.0)),
        _op(p, "user factors", users._replace(pairs=0.0, events=0.0, triggers=0.0)),
        _op(p, "item counts", items._replace(rows=0.0)),
    ]
    if p.ranks > 1:
        shape = CollectiveShape(SUM_BYTES * (p.items * p.components + p.components + 1), p.ranks, p.ranks)
        found.append(Op(name="sums of ranks", operator="all_reduce", account="communication", shape=shape))
    return (*found, _op(p, "item factors", items._replace(pairs=0.0)))


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


def _op(p: Rpf, name: str, shape: PoissonPassShape) -> Op:
    return pass_op(name, shape, p.precision, sharing=p.ranks)
