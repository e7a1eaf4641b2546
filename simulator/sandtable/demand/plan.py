"""What a workload demands as a whole: ops in steps, steps in phases, phases in a plan.

A `Step` is the ops of one unit of work, such as a token; a `Phase` is the steps that belong together, such as warm-up
or decode; a `Plan` is all of it, with the memory it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sandtable.demand.op import Op
from sandtable.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The ops of one unit of work; ``repeat`` says how many equal units follow each other.

    ``counters`` are facts about the unit that no op carries, such as a cache's hit rate. ``host_stated`` says that
    its ops state what the device waits for the host, so that nothing of the host's time is added.
    """

    name: str
    ops: tuple[Op, ...]
    repeat: int = 1
    counters: Mapping[str, float] = field(default_factory=dict)
    host_stated: bool = False

    def dependencies(self) -> Iterator[tuple[int, ...]]:
        """Yield, for each op, the indices it waits for.

        Raises:
            PlanError: an op that waits for itself or for a later one.
        """
        for index, op in enumerate(self.ops):
            after = op.after if op.after is not None else ((index - 1,) if index else ())
            if any(not 0 <= other < index for other in after):
                raise PlanError(
                    f"op {op.name!r} of step {self.name!r} waits for an op that does not come before it"
                )
            yield after


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Steps that belong together and are reported together."""

    name: str
    steps: tuple[Step, ...]

    @property
    def n_steps(self) -> int:
        """Number of units of work, repeats counted."""
        return sum(step.repeat for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What is reported of some work, predicted or measured alike.

    Attributes:
        workload: Name of the workload.
        memory_bytes: Resident bytes by kind.
        work_unit: What one unit of work is or produces, such as a step.
        unit_metric: Another name for the time of one unit, next to ``latency_s``, such as ``step_s``.
        sums: Metrics that are the sum of the first units of some kinds, such as the time until something is there.
        notes: Sentences for the user, such as that a geometry was scaled down.
    """

    workload: str
    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    work_unit: str = "step"
    unit_metric: str | None = None
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Reported):
    """Everything a workload demands, where that is known in advance.

    Attributes:
        phases: In order of execution. `main_phase` is the one that the headline metrics describe.
    """

    phases: tuple[Phase, ...]
    main_phase: str

    def phase(self, name: str) -> Phase:
        """Return the phase of that name."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise PlanError(f"plan of {self.workload!r} has no phase {name!r}")

    def ops(self) -> Iterator[tuple[Op, int]]:
        """Yield every op with the number of times it is executed."""
        for phase in self.phases:
            for step in phase.steps:
                for op in step.ops:
                    for leaf, times in op.leaves():
                        yield leaf, times * step.repeat

    def different_ops(self) -> list[Op]:
        """Return the ops that the plan consists of, those of equal sequences once."""
        found: dict[int, Op] = {}
        for step in (step for phase in self.phases for step in phase.steps):
            for op in step.ops:
                found.setdefault(id(op.parts) if op.parts else id(op), op)
        return [leaf for op in found.values() for leaf, _ in op.leaves()]

    def totals(self) -> dict[str, float]:
        """Return total flops, bytes read from storage, storage requests and memory traffic."""
        totals = {"flops": 0.0, "storage_bytes": 0.0, "storage_requests": 0.0, "memory_bytes": 0.0}
        for op, times in self.ops():
            totals["flops"] += op.flops * times
            if op.resource == "storage":
                totals["storage_bytes"] += op.bytes_read * times
                totals["storage_requests"] += op.n_requests * times
            else:
                totals["memory_bytes"] += op.bytes_moved * times
        return totals
