"""From timed operators to a machine's fitted constants: per kind and software, and for processes that share it.

The laws are those of `sandtable.model`; what is fitted here is only the constants of this machine's processor (for
operators) and of the link between its processes (for collectives).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sandtable.calibration.fit.operator_fit import OperatorPoint, fit_operator
from sandtable.demand.op import OPERATOR_COLUMNS, Op
from sandtable.errors import UnknownName
from sandtable.hardware import (
    Link,
    LinkDatasheet,
    LinkFit,
    Machine,
    OperatorFit,
    OperatorFits,
    Processor,
    ProcessorFit,
    Stack,
    library,
)
from sandtable.model.fitted_constants import SHARED, law_of
from sandtable.model.law import LinkSheet, OperatorLaw, Sheet

LINK = "this_process_link"
# ends the name of constants for attention that writes its scores to memory
VANILLA = "_vanilla"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One timed operator: whose it is, its demand, seconds per call, and how many calls were timed."""

    software: str
    op: Op
    seconds: float
    n_samples: int


def fitted(machine: Machine, timed: Sequence[Timed], method: str) -> Machine:
    """Return the machine with constants fitted to ``timed``; other softwares' and kinds' constants stay."""
    compute = [item for item in timed if item.op.resource == "compute"]
    network = [item for item in timed if item.op.resource == "network"]
    changes: dict[str, Any] = {}
    if compute:
        changes["processor"] = _processor(machine, compute, method)
    stack = _stack(timed[0].software) if timed else None
    if stack is not None:
        changes["stack"] = stack
    if network:
        changes["process_link"] = _link(machine, network, method)
    return machine.model_copy(update=changes) if changes else machine


def _stack(software: str) -> Stack | None:
    """Return the library's file about a software, or the first that names it as one it uses; None if there is none."""
    try:
        found = library.load_component("stack", software)
    except UnknownName:
        stacks = (library.load_component("stack", name) for name in sorted(library.device_files("stack")))
        return next((s for s in stacks if isinstance(s, Stack) and software in s.software.values()), None)
    assert isinstance(found, Stack)
    return found


# --- operators ---------------------------------------------------------------------------------------------


def _processor(machine: Machine, timed: Sequence[Timed], method: str) -> Processor:
    processor = with_peaks(machine.processor, timed)
    sheet = Sheet.of(processor, machine.memory)
    fits = fits_of(timed, lambda item: sheet.share(item.op.sharing), method)
    before = processor.fitted or ProcessorFit()
    return processor.model_copy(
        update={"fitted": before.model_copy(update={"operators": merged(before.operators, fits)})}
    )


def with_peaks(processor: Processor, timed: Sequence[Timed]) -> Processor:
    """Return the processor with a peak rate at least that of the best product timed, for each element type."""
    peaks = dict(processor.datasheet.peak_flops_per_s)
    for item in timed:
        # each of several equal processes had its part of the device
        rate = item.op.flops * item.op.sharing / item.seconds
        if item.op.kind == "gemm" and rate > peaks.get(item.op.dtype, 0.0):  # type: ignore[call-overload]
            peaks[item.op.dtype] = rate  # type: ignore[index]
    datasheet = processor.datasheet.model_copy(update={"peak_flops_per_s": peaks})
    return processor.model_copy(update={"datasheet": datasheet})


def merged(before: OperatorFits, fits: dict[str, dict[str, OperatorFit]]) -> OperatorFits:
    """Return earlier constants with new ones put over them."""
    kinds = {kind: {**before.of(kind), **found} for kind, found in fits.items()}
    return before.model_copy(update=kinds)


def fits_of(timed: Sequence[Timed], sheet_of: Any, method: str) -> dict[str, dict[str, OperatorFit]]:
    """Fit the law of every kind and software among ``timed``; ``sheet_of`` gives the data sheet behind one of them.

    Raises:
        CalibrationError: a kind and software with fewer points than its law has constants.
    """
    groups: dict[tuple[str, str], list[Timed]] = {}
    for item in timed:
        law = law_of(item.op.kind)
        assert law is not None, item.op.kind
        groups.setdefault((law.kind, software_of(law, item)), []).append(item)
    found: dict[str, dict[str, OperatorFit]] = {}
    for (kind, software), group in groups.items():
        law = law_of(group[0].op.kind)
        assert law is not None
        found.setdefault(kind, {})[software] = _fit(law, group, sheet_of(group[0]), method)
    return found


def software_of(law: OperatorLaw, item: Timed) -> str:
    """Return the name that constants of this operator go by."""
    name = item.software
    if law.kind == "attention" and not item.op.shape[OPERATOR_COLUMNS["attention"].index("flash")]:
        name += VANILLA
    return name + (SHARED if item.op.sharing > 1 else "")


def _fit(law: OperatorLaw, group: Sequence[Timed], sheet: Sheet | LinkSheet, method: str) -> OperatorFit:
    points = [
        OperatorPoint(
            device="this",
            software=item.software,
            op=item.op.kind,
            dtype=item.op.dtype,
            shape=item.op.shape,
            seconds=item.seconds,
        )
        for item in group
    ]
    return fit_operator(law, points, {"this": sheet}, method=method)


# --- collectives -------------------------------------------------------------------------------------------


def passed_bytes(op: Op) -> float:
    """Return the bytes that pass each of n ranks: it has an n-th and needs the rest, twice in an all-reduce."""
    n_bytes, n = op.shape[0], op.shape[1]
    return (2 if op.kind == "all_reduce" else 1) * n_bytes * (1.0 if op.kind == "send_recv" else 1 - 1 / n)


def _link(machine: Machine, timed: Sequence[Timed], method: str) -> Link:
    rate = max(passed_bytes(item.op) / item.seconds for item in timed)
    datasheet = LinkDatasheet(scope="intra_node", bandwidth_bytes_per_s=rate, latency_s=0.0)
    sheet = LinkSheet(datasheet.bandwidth_bytes_per_s, datasheet.latency_s)
    fits = fits_of(timed, lambda _: sheet, method)
    before = machine.process_link.fitted if machine.process_link is not None else None
    return Link(
        kind="link",
        name=LINK,
        title="Between processes of this machine",
        datasheet=datasheet,
        fitted=LinkFit(operators=merged(before.operators if before is not None else OperatorFits(), fits)),
        sources={
            "datasheet.bandwidth": "measured: the best collective of this calibration, not a data sheet's",
            "datasheet.latency": "none of its own: the fitted time of a hop contains it",
            "fitted": method,
        },
    )
