"""Run a plan or a process to its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandtable.demand.plan import Plan
from sandtable.engine.ledger import Sources
from sandtable.engine.process import Process
from sandtable.engine.recorder import Recorder, StepResult
from sandtable.engine.world import Options, World
from sandtable.model.cost_model import CostModel
from sandtable.results import TraceRow


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run left: units of work, seconds by op name and account, memory, the timeline if it was asked for.

    ``ends_frac`` are the ends of the 90 % interval of all ops together, as parts of their time; ``sources`` says where
    their errors come from.
    """

    recorder: Recorder
    by_op: dict[str, float]
    by_account: dict[str, float]
    ends_frac: tuple[float, float]
    sources: Sources = field(default_factory=dict)
    memory_bytes: dict[str, float]
    peak_memory_bytes: float
    trace: list[TraceRow]
    total_s: float

    @property
    def steps(self) -> list[StepResult]:
        """A view of every unit."""
        return self.recorder.steps()


def run(work: Plan | Process, costs: CostModel, options: Options | None = None, *, seed: int = 0) -> Run:
    """Run ``work`` and return what it took, in seconds of simulated time.

    Raises:
        DoesNotFit: it takes more memory than the machine has.
    """
    lone_plan = isinstance(work, Plan) or bool(work.phases)
    world = World(costs, options, seed=seed, workload=work.workload, lone_plan=lone_plan)
    done = world.spawn(work)
    world.env.run(until=done)
    end_s, recorded = world.now, len(world.recorder)
    # what it started and did not wait for goes on; shared devices leave waits behind that nothing follows from
    world.env.run()
    if len(world.recorder) > recorded:
        end_s = max(end_s, world.recorder.end_s())
    world.settle()
    return Run(
        recorder=world.recorder,
        by_op=world.ledger.by_op,
        by_account=world.ledger.by_account,
        ends_frac=world.ledger.ends_frac(),
        sources=world.ledger.sources,
        memory_bytes=world.memory.peak,
        peak_memory_bytes=world.memory.peak_bytes,
        trace=world.trace,
        total_s=end_s,
    )
