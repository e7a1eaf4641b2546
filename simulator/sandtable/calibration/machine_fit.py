"""From timed operators to a machine's fitted constants: per kind and software, and for processes that share it.

The laws are those of `sandtable.model`; what is fitted here is only the constants of this machine's processor (for
operators) and of the link between its processes (for collectives).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sandtable.calibration.fit.operator_fit import OperatorPoint, fit_operator
from sandtable.demand.op import Op
from sandtable.demand.operator import Operator, operator_named
from sandtable.errors import UnknownName
from sandtable.hardware import (
    Link,
    LinkDatasheet,
    LinkFit,
    LinkSheet,
    Machine,
    OperatorFit,
    OperatorFits,
    Processor,
    ProcessorFit,
    Roofline,
    Stack,
    library,
)
from sandtable.model.fitted_constants import SHARED

LINK = "this_process_link"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One timed operator: whose it is, its demand, seconds per call, and how many calls were timed."""

    software: str
    op: Op
    seconds: float
    n_samples: int

    @property
    def law(self) -> Operator[Any]:
        """The operator that was timed."""
        return operator_named(self.op.operator)

    @property
    def group(self) -> tuple[str, str]:
        """What shares constants: the operator's name in device files, and the software's."""
        variant = self.law.variant(self.op.shape)
        name = f"{self.software}_{variant}" if variant else self.software
        return self.law.fitted_as, name + (SHARED if self.op.sharing > 1 else "")


def fitted(machine: Machine, timed: Sequence[Timed], method: str) -> Machine:
    """Return the machine with constants fitted to ``timed``; constants of other software and operators stay."""
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
    sheet = Roofline.of(processor, machine.memory)
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
        if item.law.dense and rate > peaks.get(item.op.dtype, 0.0):  # type: ignore[call-overload]
            peaks[item.op.dtype] = rate  # type: ignore[index]
    datasheet = processor.datasheet.model_copy(update={"peak_flops_per_s": peaks})
    return processor.model_copy(update={"datasheet": datasheet})


def merged(before: OperatorFits, fits: dict[str, dict[str, OperatorFit]]) -> OperatorFits:
    """Return earlier constants with new ones put over them."""
    return before | {name: before.get(name, {}) | found for name, found in fits.items()}


def fits_of(timed: Sequence[Timed], sheet_of: Any, method: str) -> dict[str, dict[str, OperatorFit]]:
    """Fit the law of every operator and software among ``timed``; ``sheet_of`` gives the data sheet behind one of them.

    Raises:
        CalibrationError: an operator and software with fewer points than its law has constants.
    """
    found: dict[str, dict[str, OperatorFit]] = {}
    for (operator, software), group in grouped(timed).items():
        found.setdefault(operator, {})[software] = _fit(group, sheet_of(group[0]), method)
    return found


def grouped(timed: Sequence[Timed]) -> dict[tuple[str, str], list[Timed]]:
    """Return what was timed by what shares constants."""
    groups: dict[tuple[str, str], list[Timed]] = {}
    for item in timed:
        groups.setdefault(item.group, []).append(item)
    return groups


def _fit(group: Sequence[Timed], sheet: Roofline | LinkSheet, method: str) -> OperatorFit:
    points = [
        OperatorPoint(
            device="this",
            software=item.software,
            operator=item.op.operator,
            dtype=item.op.dtype,
            shape=item.op.shape,
            seconds=item.seconds,
        )
        for item in group
    ]
    return fit_operator(group[0].law, points, {"this": sheet}, method=method)


# --- collectives -------------------------------------------------------------------------------------------


def best_rate(timed: Sequence[Timed]) -> float | None:
    """Return the most bytes per second that passed a rank in any collective, None if there are none."""
    rates = (float(item.law.passed_bytes(item.op.shape)) / item.seconds for item in timed)
    return max(rates, default=None)


def _link(machine: Machine, timed: Sequence[Timed], method: str) -> Link:
    rate = best_rate(timed)
    assert rate is not None
    datasheet = LinkDatasheet(scope="intra_node", bandwidth_bytes_per_s=rate, latency_s=0.0)
    sheet = LinkSheet(datasheet.bandwidth_bytes_per_s, datasheet.latency_s)
    fits = fits_of(timed, lambda _: sheet, method)
    before = machine.process_link.fitted if machine.process_link is not None else None
    return Link(
        kind="link",
        name=LINK,
        title="Between processes of this machine",
        datasheet=datasheet,
        fitted=LinkFit(operators=merged(before.operators if before is not None else {}, fits)),
        sources={
            "datasheet.bandwidth": "measured: the best collective of this calibration, not a data sheet's",
            "datasheet.latency": "none of its own: the fitted time of a hop contains it",
            "fitted": method,
        },
    )
