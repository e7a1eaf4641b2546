"""The answer of a calibration: how fast a machine is in plain terms, and how well that is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sandtable import hardware
from sandtable.hardware import Evidence, Machine
from sandtable.results import Answer
from sandtable.units import format_bytes, format_seconds, format_si

# of calibrations here, as they sign what they fitted
METHOD = "sandtable calibrate"
NEXT = "Next: sandtable check flash_demo"


def calibration_answer(
    machine: Machine, errors_frac: Sequence[float], warnings: Sequence[str], *, host: bool
) -> Answer:
    """Return the answer of a calibration.

    Args:
        machine: As fitted.
        errors_frac: Of each timed point, fitted / measured - 1.
        warnings: What makes it less valid, the first the most.
        host: Whether parts of the host were measured.
    """
    size = format_bytes(machine.memory.datasheet.capacity_bytes)
    return Answer(
        question="How fast is this machine, and how well is that known?",
        subject=f"{machine.title}; {size} of memory",
        verdict=_known(machine, errors_frac),
        headlines=(*(_host(machine) if host else ()), *_accelerator(machine)),
        bound=NEXT,
        caveat=next(iter(warnings), ""),
    )


def _known(machine: Machine, errors_frac: Sequence[float]) -> str:
    """Return how far off the fitted laws are on the points, on points left out, and from one repeat to another."""
    said = []
    if len(errors_frac):
        median, p90 = 100 * np.percentile(np.abs(errors_frac), [50, 90])
        said.append(
            f"{len(errors_frac)} points fitted within {median:.1f} % in the median, {p90:.0f} % for nine of ten"
        )
    found = list(_evidence(machine))
    left_out = [
        one.held_out_median_abs_error_frac for one in found if one.held_out_median_abs_error_frac is not None
    ]
    if left_out:
        said.append(f"points left out within {100 * float(np.median(left_out)):.1f} %")
    repeats = [one.repeat_spread_frac for one in found if one.repeat_spread_frac is not None]
    if repeats:
        said.append(f"repeats lie {100 * float(np.median(repeats)):.0f} % apart")
    return f"Known: {'; '.join(said)}." if said else ""


def _evidence(machine: Machine) -> Iterator[Evidence]:
    for part in machine.components():
        for number in hardware.numbers(part):
            if isinstance(number.value, Evidence) and number.value.method.startswith(METHOD):
                yield number.value


def _host(machine: Machine) -> Iterator[str]:
    """Yield what storage, memory and processor do."""
    storage = machine.storage.fitted
    if storage is not None:
        rate = max(storage.bandwidth_bytes_per_s.value, storage.sequential_bytes_per_s.value)
        first = format_seconds(storage.first_byte_s.value)
        yield f"storage reads up to {format_si(rate, 'B/s')}, the first byte after {first}"
    ops = {} if machine.memory.fitted is None else machine.memory.fitted.ops
    rates = [fit.bandwidth_bytes_per_s.value for fit in ops.values() if fit.bandwidth_bytes_per_s is not None]
    if rates:
        yield f"memory moves up to {format_si(max(rates), 'B/s')}"
    if machine.processor.fitted is not None:
        yield f"the processor does {_peaks(machine.processor)}"


def _accelerator(machine: Machine) -> Iterator[str]:
    accelerator = machine.accelerator
    if accelerator is not None and accelerator.processor.fitted is not None:
        yield f"{accelerator.n} × {accelerator.processor.title}, by data sheet {_peaks(accelerator.processor)}"


def _peaks(processor: hardware.Processor) -> str:
    peaks = processor.datasheet.peak_flops_per_s
    return ", ".join(f"{format_si(rate, 'FLOP/s')} in {dtype}" for dtype, rate in list(peaks.items())[:2])
