"""The seam of a workload: typed parameters, a plan or a process, and an execution that reports the same units.

Prediction and measurement both end in a `Recorder`; `sandtable.runs.reduction` turns either into metrics, so that the
two carry the same names by construction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field

from sandtable import plugins
from sandtable.demand.operator import FloatArray
from sandtable.demand.plan import Plan
from sandtable.engine.plan_process import process_of
from sandtable.engine.process import Process
from sandtable.engine.recorder import Recorder, StepResult
from sandtable.errors import ConfigError, PlanError, UnknownName
from sandtable.hardware import Frozen, Machine, Title
from sandtable.results import Metric, TraceRow

P = TypeVar("P", bound=Frozen)


class Scenario(Frozen):
    """Everything needed to reproduce a result: workload, parameters, machine, seed, thresholds."""

    schema_version: int = Field(default=1, alias="schema", ge=1, le=1)
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: Title
    workload: str
    machine: str = "this_machine"
    stack: str | None = None  # software in place of the machine's own
    parameters: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(default=1, ge=0)
    repeats: int = Field(default=3, ge=1, le=1000)
    thresholds: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExecutionContext:
    """Where a real run may put files, how many threads it has, and how it reports progress."""

    folder: Path
    n_threads: int
    progress: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What a real run showed: its units of work, resident bytes, a timeline, and what makes it less trustworthy.

    ``memory_bytes`` is counted by the run itself, by kind: the sizes of what it holds, not those of its plan.
    ``main_s`` is when the main phase began and ended, by `time.perf_counter`; its energy is counted between the two.
    ``process_bytes`` is how far the process grew meanwhile, by the operating system's account, and ``energy_j`` what
    the main phase took by counters of the hardware, which ``energy_covers`` names; ``lost_frac`` is which part of the
    time that it asked the cores for other programs took. `measure` fills these in.
    """

    recorder: Recorder
    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    main_s: tuple[float, float] | None = None
    process_bytes: float | None = None
    energy_j: float | None = None
    energy_covers: str = ""
    lost_frac: float | None = None
    trace: Sequence[TraceRow] = ()
    validity: Sequence[str] = ()

    @property
    def steps(self) -> list[StepResult]:
        """A view of every unit."""
        return self.recorder.steps()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a configuration fits: bytes needed and there, the largest kind, and the kind that passes the limit.

    ``reserve_bytes`` are kept for the operating system and other programs; ``has_bytes`` is what is left beside them.
    ``breaks`` is the first kind, in the order in which they are taken, with which the sum passes what there is; None if
    it fits.
    """

    needed_bytes: float
    has_bytes: float
    largest: str
    breaks: str | None
    reserve_bytes: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.breaks is None


class Workload(ABC, Generic[P]):
    """One kind of work: what it demands, and how it is really done.

    ``needs`` names the packages that an execution imports. ``example_stack`` is the software that its examples run on,
    where a plan depends on it. ``planned_only`` says why nothing is executed, where nothing is. ``headlines`` are the
    metrics that an answer begins with, most important first; those that a result lacks are left out. ``judged`` are
    the metrics whose errors decide a check.
    """

    name: ClassVar[str]
    parameters: ClassVar[type[Frozen]]
    needs: ClassVar[tuple[str, ...]] = ()
    example_stack: ClassVar[str | None] = None
    planned_only: ClassVar[str | None] = None
    headlines: ClassVar[tuple[str, ...]] = ("latency_s.mean",)
    judged: ClassVar[tuple[str, ...]] = ("latency_s.mean",)
    # how far the bytes that a run holds may lie from the plan's, kind by kind; more where they are not just counted
    memory_tolerance_frac: ClassVar[float] = 0.01
    # what the work is priced by, as in usd_per_<name>, and how many units of work that is, such as ("mtok", 1e6)
    priced_unit: ClassVar[tuple[str, float] | None] = None

    def serving(self, parameters: Mapping[str, Any]) -> Workload[Any]:
        """Return the workload that these parameters describe, as a user gives them: this one, or one beside it."""
        return self

    def usual_stack(self, machine: Machine) -> str | None:
        """Return the software that people run this on, for a machine that names none; None for the generic one."""
        return None

    def plan(self, parameters: P, machine: Machine, seed: int) -> Plan:
        """Return the demand of the workload on a machine of that size, where it is known in advance.

        Raises:
            DoesNotFit: the memory or disk of the machine is too small.
            PlanError: what it demands depends on what happens while it runs; see `process`.
        """
        raise PlanError(f"{self.name} is a process: what it demands depends on what happens while it runs")

    def process(self, parameters: P, machine: Machine, seed: int) -> Process:
        """Return the workload as a process; that of a workload with a plan carries the plan out."""
        return process_of(self.plan(parameters, machine, seed))

    def execute(self, parameters: P, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        """Do the work for real, once, and report the same kinds of units as the plan or process.

        Raises:
            ConfigError: nothing of this workload is executed.
        """
        raise ConfigError(f"{self.name} is planned only: {self.planned_only}")

    def subject(self, parameters: P, machine: Machine) -> str:
        """Return what is asked about in a few words, such as a model with its count of parameters and its types."""
        return self.name

    def caveats(self, parameters: P, machine: Machine) -> Sequence[str]:
        """Return what an answer depends on and its reader may not know, in sentences, the most important first."""
        return ()

    def bound(self, parameters: P, known: Mapping[str, Metric]) -> str:
        """Return what bounds the work in a sentence, where phases of it say more than resources; empty otherwise."""
        return ""

    def models(self) -> Iterable[str]:
        """Return the models that parameters can name; none where a workload has no model."""
        return ()

    def model_facts(self, name: str) -> Mapping[str, Any]:
        """Return what is known of a model, by word: its count of ``parameters``, its sizes.

        Raises:
            UnknownName: there is no such model, or the workload has none.
        """
        raise UnknownName("model", name, ())

    @abstractmethod
    def example(self) -> dict[str, Any]:
        """Return parameters small enough for a test to plan and execute in seconds."""

    def examples(self) -> Sequence[dict[str, Any]]:
        """Return `example`, and others as small that take other ways through plan and execution."""
        return [self.example()]

    def derived(self, parameters: P, machine: Machine, known: Mapping[str, Metric]) -> dict[str, Metric]:
        """Return metrics that follow from others by counting, predicted or measured alike; they replace equal names."""
        return {}

    def estimate(self, parameters: Sequence[P], machine: Machine) -> Mapping[str, FloatArray]:
        """Return metrics of many configurations by a closed form, where a workload has one: an entry for each.

        ``step_s`` is the mean time of the main phase's steps, ``low_s`` to ``high_s`` its 90 % interval.

        Raises:
            PlanError: this workload has none.
        """
        raise PlanError(f"{self.name} has no closed form for many configurations: predict them one by one")

    def faults(self, parameters: Sequence[P], machine: Machine) -> Sequence[str]:
        """Return why each configuration cannot be laid out, the setting at fault first; empty texts if they can."""
        return [""] * len(parameters)

    def verdicts(self, parameters: Sequence[P], machine: Machine) -> Sequence[Verdict]:
        """Return whether each configuration fits into memory; nothing where a workload has no closed form of it."""
        return []

    def what_fits(self, parameters: P, machine: Machine) -> Sequence[str]:
        """Return changes in a few words each, with which a configuration that does not fit would; the mildest first."""
        return ()

    def prepare(self, parameters: P, machine: Machine, seed: int, context: ExecutionContext) -> None:
        """Make what every repeat of `execute` needs, such as files on disk; not timed.

        Raises:
            ConfigError: these parameters are planned only, or nothing of this workload is executed.
            NoDevice: this machine lacks a device or a package.
        """
        if self.planned_only is not None:
            raise ConfigError(f"{self.name} is planned only: {self.planned_only}")

    def resolve(self, parameters: P, context: ExecutionContext) -> tuple[P, list[str]]:
        """Adapt parameters to what the machine at hand has, such as free disk, and say what was changed."""
        return parameters, []


@lru_cache(maxsize=1)
def workloads() -> dict[str, Workload[Any]]:
    """Return every workload of every installed package by name."""
    return plugins.instances(Workload)  # type: ignore[type-abstract]


def workload_named(name: str) -> Workload[Any]:
    """Return the workload of that name.

    Raises:
        UnknownName: with the nearest names.
    """
    known = workloads()
    if name not in known:
        raise UnknownName("workload", name, known, "workloads")
    return known[name]
