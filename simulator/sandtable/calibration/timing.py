"""One timed demand: what all fits take, whether the host, a GPU, a recording or a published row gave it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import numpy as np

from sandtable.demand.kernel import Dims, Kernel
from sandtable.demand.op import Op
from sandtable.demand.operator import Operator, Resource, operator_named
from sandtable.model.fitted_constants import OWN, kept_under

# the device of what ran on the processor and memory of the machine that timed it
HOST = "host"
# parts that calibration measures, and the resources whose laws the timings of each fit; all others are groups of
# operators
RESOURCES_OF_PART: dict[str | None, tuple[str, ...]] = {
    None: get_args(Resource),
    "storage": ("storage",),
    "memory": ("memory",),
    "compute": ("compute",),
    "gpu": ("compute", "memory", "link", "network"),
}
RESOURCES_OF_OPERATORS = ("compute", "network")


class Group(NamedTuple):
    """What shares constants: a device, the name that a software's constants go under, what the law is fitted as."""

    device: str
    software: str
    operator: str

    @property
    def path(self) -> str:
        """Where the constants stand in the file of the device or of the software."""
        return f"fitted.operators.{self.operator}.{self.software}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One timed demand.

    Attributes:
        op: The demand of one call.
        passes: Seconds of each call, by pass over all points; one pass where nobody came back to it.
        software: The name that its constants go under in device files, see `kept_under`; empty for a plain operation,
            which has none of its own.
        device: Name of the file whose constants it informs.
        beside: Name of the link within machines that completes the data sheet of a link between machines; else empty.
        kernel, dims: The kernel that was timed and the point of its grid.
        label: Tells people which one it is.
        source: Who published it.
        n_left_out: Passes that are not among ``passes``, since other programs disturbed them.
        settled: Whether the passes were calm and agree.
    """

    op: Op
    passes: tuple[tuple[float, ...], ...]
    software: str = ""
    device: str = HOST
    beside: str = ""
    kernel: str = ""
    dims: Dims = field(default_factory=dict)
    label: str = ""
    source: str = ""
    n_left_out: int = 0
    settled: bool = True

    @classmethod
    def once(cls, op: Op, seconds: float, **more: Any) -> Timing:
        """Return a demand of which one time is known."""
        return cls(op=op, passes=((seconds,),), **more)

    @classmethod
    def of_kernel(cls, kernel: Kernel, dims: Dims, passes: Iterable[Sequence[float]], device: str = HOST) -> Timing:
        """Return what was timed of a kernel at one point of its grid."""
        op, software = kernel.cost(dims), kernel.software_of(dims) or ""
        if has_own_law(op):
            software = kept_under(software or OWN, op)
        timed = tuple(tuple(calls) for calls in passes)
        return cls(op=op, passes=timed, software=software, device=device, kernel=kernel.name, dims=dims)

    @property
    def seconds(self) -> float:
        """Median over passes of the median call, in seconds."""
        if len(self.passes) == 1 == len(self.passes[0]):
            return self.passes[0][0]
        return float(np.median([np.median(calls) for calls in self.passes]))

    @property
    def n_samples(self) -> int:
        """Calls timed in all."""
        return sum(len(calls) for calls in self.passes)

    @property
    def law(self) -> Operator[Any]:
        """The operator that was timed.

        Raises:
            PlanError: no installed package declares it.
        """
        return operator_named(self.op.operator)

    @property
    def group(self) -> Group:
        """What shares constants with it."""
        return Group(self.device, self.software, self.law.fitted_as)

    @property
    def sheet(self) -> tuple[str, str, int]:
        """Key of the data sheet that its law reads: the device, what stands beside it, how many share the device."""
        return self.device, self.beside, self.op.sharing


def stated(
    operator: str, shape: Any, seconds: float, *, dtype: str, device: str, software: str, **more: str
) -> Timing:
    """Return the time of a lone operator that somebody states: its name and columns are all of its demand."""
    op = Op(name=operator, operator=operator, account="", dtype=dtype, shape=shape)
    return Timing.once(op, seconds, device=device, software=software, **more)


def has_own_law(op: Op) -> bool:
    """Whether constants of a law that reads columns are fitted to it, by software; storage has a law of its device."""
    return op.shape is not None and bool(operator_named(op.operator).constants)


def unfit(kernel: Kernel, op: Op) -> str:
    """Return why no law would be fitted to timings of a demand of ``kernel``'s; empty where one is."""
    part, own = kernel.calibrates, has_own_law(op)
    if op.resource not in RESOURCES_OF_PART.get(part, RESOURCES_OF_OPERATORS):
        return f"calibrates {part}, but costs {op.resource}"
    if part not in RESOURCES_OF_PART and not own:
        return f"calibrates {part}, but its demand has no shape that a fitted law reads"
    if part in ("storage", "memory") and own:
        return f"calibrates {part}, of which no law is fitted but the core's own: {op.operator!r} has another"
    return ""


def grouped(timings: Iterable[Timing]) -> dict[Group, list[Timing]]:
    """Return timings by what shares constants."""
    groups: dict[Group, list[Timing]] = {}
    for timing in timings:
        groups.setdefault(timing.group, []).append(timing)
    return groups
