"""From timed operators to a machine's fitted constants, by operator and software.

The laws are those of `sandtable.model`; what is fitted here is only the constants of this machine's processor (for
operators) and of the link between its processes (for collectives).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sandtable.calibration.fit.operator_fit import fit_groups, merged
from sandtable.calibration.timing import Timing
from sandtable.hardware import (
    DType,
    Link,
    LinkDatasheet,
    LinkFit,
    LinkSheet,
    Machine,
    Processor,
    ProcessorFit,
    Roofline,
    Stack,
    library,
)

LINK = "this_process_link"


def fitted(machine: Machine, timings: Sequence[Timing], method: str) -> Machine:
    """Return the machine with constants fitted to ``timings``; constants of other software and operators stay."""
    compute = [timing for timing in timings if timing.op.resource == "compute"]
    network = [timing for timing in timings if timing.op.resource == "network"]
    changes: dict[str, Any] = {}
    if compute:
        changes["processor"] = _processor(machine, compute, method)
    stack = stack_of(timings)
    if stack is not None:
        changes["stack"] = stack
    if network:
        changes["process_link"] = _link(machine, network, method)
    return machine.model_copy(update=changes) if changes else machine


def stack_of(timings: Sequence[Timing]) -> Stack | None:
    """Return the library's file about a software that was timed, or the first that names one; None if there is none."""
    names, files = dict.fromkeys(timing.software for timing in timings), library.device_files("stack")
    own = [name for name in names if name in files]
    stacks = (library.load_component("stack", name) for name in own or sorted(files))
    known = (stack for stack in stacks if isinstance(stack, Stack))
    return next((s for s in known if s.name in own or not names.keys().isdisjoint(s.software.values())), None)


# --- operators ---------------------------------------------------------------------------------------------


def _processor(machine: Machine, timings: Sequence[Timing], method: str) -> Processor:
    processor = with_peaks(machine.processor, timings)
    sheet = Roofline.of(processor, machine.memory)
    fits = fit_groups(timings, lambda timing: sheet.share(timing.op.sharing), method=method)
    before = processor.fitted or ProcessorFit()
    operators = merged(before.operators, fits)
    return processor.model_copy(update={"fitted": before.model_copy(update={"operators": operators})})


def with_peaks(processor: Processor, timings: Sequence[Timing]) -> Processor:
    """Return the processor with a peak rate at least that of the best product timed, for each element type."""
    stated = processor.datasheet.peak_flops_per_s
    peaks = {**stated, **{dtype: max(rate, stated.get(dtype, 0.0)) for dtype, rate in best_rates(timings).items()}}
    datasheet = processor.datasheet.model_copy(update={"peak_flops_per_s": peaks})
    return processor.model_copy(update={"datasheet": datasheet})


def best_rates(timings: Sequence[Timing]) -> dict[DType, float]:
    """Return the flop/s of the best product timed, for each element type of which one was."""
    found: dict[DType, float] = {}
    for timing in timings:
        if timing.law.dense:
            # each of several equal processes had its part of the device
            rate, dtype = timing.op.flops * timing.op.sharing / timing.seconds, cast("DType", timing.op.dtype)
            found[dtype] = max(rate, found.get(dtype, 0.0))
    return found


# --- collectives -------------------------------------------------------------------------------------------


def best_rate(timings: Sequence[Timing]) -> float | None:
    """Return the most bytes per second that passed a rank in any collective, None if there are none."""
    rates = (float(timing.law.passed_bytes(timing.op.shape)) / timing.seconds for timing in timings)
    return max(rates, default=None)


def _link(machine: Machine, timings: Sequence[Timing], method: str) -> Link:
    rate = best_rate(timings)
    assert rate is not None
    datasheet = LinkDatasheet(scope="intra_node", bandwidth_bytes_per_s=rate, latency_s=0.0)
    sheet = LinkSheet(datasheet.bandwidth_bytes_per_s, datasheet.latency_s)
    fits = fit_groups(timings, lambda _: sheet, method=method)
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
