"""From timed GPUs to a machine's accelerator: data sheet, fitted laws, links, power, and the software that was timed.

What is fitted are only constants of the GPU and its links; the laws are those of `sandtable.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sandtable import units
from sandtable.calibration import machine_fit
from sandtable.calibration.fit import least_squares, operator_fit
from sandtable.calibration.gpu import gpu_datasheet
from sandtable.calibration.gpu.recordings import BUSY, IDLE, Gpu, Recording, gpu_kernels, words
from sandtable.calibration.timing import Timing, has_own_law
from sandtable.errors import CalibrationError, ConfigError
from sandtable.hardware import (
    Accelerator,
    Accelerators,
    Estimate,
    Link,
    LinkFit,
    LinkSheet,
    Machine,
    Memory,
    MemoryFit,
    OpFit,
    Power,
    Processor,
    ProcessorFit,
    Roofline,
    Stack,
    TransferFit,
)
from sandtable.runs.nvml import ADVICE, GpuSample

# clocks that lie this far below the highest say that something holds them down
HELD_BACK_FRAC = 0.9
LEAST_COPIES = 3


@dataclass(slots=True)
class Fitted:
    """A machine with its accelerator, the timings that laws were fitted to, and what the user should know."""

    machine: Machine
    timings: list[Timing]
    notes: list[str] = field(default_factory=list)


def fitted(machine: Machine, recording: Recording, method: str) -> Fitted:
    """Return ``machine`` with the GPUs of a recording; the host's parts stay.

    Raises:
        ConfigError: no point of the recording is one that an installed kernel times.
    """
    timings = timings_of(recording)
    if not timings:
        raise ConfigError("the recording holds no point that an installed kernel times")
    if recording.generated is not None:
        method = f"{method}; seconds generated, not measured: {recording.generated}"
    found = Fitted(machine, timings, _skipped(recording))
    gpu, samples = recording.gpus[0], recording.watched
    memory = _memory(gpu, timings, method, found.notes)
    processor = _processor(gpu, memory, timings, recording, method, found.notes)
    link = _link(gpu, timings, method, found.notes)
    peer = _peer_link(gpu, link, timings, method, found.notes) if len(recording.gpus) > 1 else None
    device = Accelerator(
        **dict(processor) | {"kind": "accelerator", "memory": memory, "link": link, "peer_link": peer}
    )
    accelerator = Accelerators(device=device, n=len(recording.gpus))
    found.notes += _held_back(gpu, samples.get(BUSY, ()))
    if gpu.facts is None:
        found.notes.append(ADVICE)
    changes: dict[str, Any] = {
        "accelerator": accelerator,
        "stack": _stack(timings, method) or machine.stack,
        "environment": machine.environment | environment(recording),
    }
    power = power_of(recording)
    if power is not None:
        source = (
            "measured by NVML: the GPUs alone, idle and under products without a pause; the host's is not in it"
        )
        changes |= {"power": power, "sources": machine.sources | {"power": source}}
    found.machine = machine.model_copy(update=changes)
    return found


def timings_of(recording: Recording) -> list[Timing]:
    """Return the points that were timed and whose kernel is installed."""
    by_name, device = {kernel.name: kernel for kernel in gpu_kernels()}, recording.gpus[0].name
    return [
        Timing.of_kernel(by_name[point.kernel], point.dims, [point.seconds], device)
        for point in recording.points
        if point.kernel in by_name and point.seconds
    ]


def of_operators(timings: Sequence[Timing], resource: str) -> list[Timing]:
    """Return the timings of operators with a law of their own, those of sustained work left out."""
    return [t for t in timings if has_own_law(t.op) and t.op.resource == resource and not t.op.sustained]


def _skipped(recording: Recording) -> list[str]:
    """Name the points that this GPU could not do, one sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for point in recording.points:
        if not point.seconds:
            reasons.setdefault(point.skipped or "not timed", []).append(f"{point.kernel} {words(point.dims)}")
    return [
        f"{len(names)} {'point' if len(names) == 1 else 'points'} left out, {reason}: {'; '.join(names[:3])}"
        + (", …" if len(names) > 3 else "")
        for reason, names in reasons.items()
    ]


# --- the GPU -----------------------------------------------------------------------------------------------


def _processor(
    gpu: Gpu, memory: Memory, timings: Sequence[Timing], recording: Recording, method: str, notes: list[str]
) -> Processor:
    operators = of_operators(timings, "compute")
    processor = machine_fit.with_peaks(gpu_datasheet.processor_of(gpu), operators)
    if not processor.datasheet.peak_flops_per_s:
        raise CalibrationError("no product was timed, and no device file of the library says what this GPU reaches")
    sheet = Roofline.of(processor, memory)
    fits = operator_fit.fit_groups(_enough(operators, notes), lambda _: sheet, method=method)
    launches = [p for p in timings if p.op.operator == "host"]
    before = processor.fitted or ProcessorFit()
    own = {group.path: method for group in fits}
    datasheet, sources = _seen(processor, timings, recording)
    return processor.model_copy(
        update={
            "datasheet": datasheet,
            "fitted": before.model_copy(
                update={
                    "operators": operator_fit.merged(before.operators, fits),
                    "call_overhead_s": _median(launches, "device"),
                }
            ),
            "sources": processor.sources | {"fitted.call_overhead": method} | own | sources,
        }
    )


def _enough(timings: Sequence[Timing], notes: list[str]) -> list[Timing]:
    """Return the timings of operators and softwares that have as many as the law has constants; note the others."""
    enough, few = operator_fit.separate(timings)
    for group, members in few.items():
        notes.append(f"{group.operator} of {group.software}: {len(members)} points are too few to fit its law")
    return [timing for members in enough.values() for timing in members]


def _seen(processor: Processor, timings: Sequence[Timing], recording: Recording) -> tuple[Any, dict[str, str]]:
    """Return the data sheet with what was seen of power and of sustained work, and the sources of that."""
    facts, watched = recording.gpus[0].facts, recording.watched
    limit = None if facts is None else facts.power_limit_w
    idle = _first(watched.get(IDLE, ()), "power_w")
    sustained = sustained_frac(timings)
    seen = {
        "tdp_w": (limit, "datasheet.tdp", "NVML: power limit of this GPU"),
        "idle_w": (idle, "datasheet.idle", "measured by NVML before anything ran"),
        "sustained_frac": (
            sustained,
            "datasheet.sustained",
            "measured: a product without a pause against the same one alone",
        ),
    }
    changes = {name: value for name, (value, _, _) in seen.items() if value is not None}
    sources = {path: source for value, path, source in seen.values() if value is not None}
    return processor.datasheet.model_copy(update=changes), sources


def sustained_frac(timings: Sequence[Timing]) -> float | None:
    """Return the share of a lone product's rate that is left when it goes on without a pause; None if not timed."""
    long = next((p for p in timings if p.op.sustained), None)
    alone = [p for p in timings if long is not None and p.op.shape == long.op.shape and p.op.dtype == long.op.dtype]
    lone = next((p for p in alone if not p.op.sustained), None)
    return None if long is None or lone is None else min(1.0, lone.seconds / long.seconds)


def _memory(gpu: Gpu, timings: Sequence[Timing], method: str, notes: list[str]) -> Memory:
    copies = [p for p in timings if p.op.operator == "copy"]
    memory = gpu_datasheet.memory_of(gpu, _best(copies))
    fit = _copies(copies, method, notes, "copies within the GPU's memory")
    if fit is None:
        return memory
    sources = memory.sources | {"fitted": method}
    return memory.model_copy(update={"fitted": MemoryFit(ops={"copy": fit}), "sources": sources})


def _copies(copies: Sequence[Timing], method: str, notes: list[str], what: str) -> OpFit | None:
    """Fit ``t = overhead + bytes / bandwidth``, None where there are too few points."""
    if len(copies) < LEAST_COPIES:
        notes.append(f"{what}: {len(copies)} points are too few to fit")
        return None
    return least_squares.fit_op(copies, method=method)


def _best(copies: Sequence[Timing]) -> float | None:
    return max((copy.op.bytes_moved / copy.seconds for copy in copies), default=None)


def _median(launches: Sequence[Timing], what: str) -> Estimate[float] | None:
    found = [p.seconds for p in launches if p.dims.get("what") == what]
    return Estimate[float](value=found[0], low=found[0], high=found[0]) if found else None


# --- links -------------------------------------------------------------------------------------------------


def _link(gpu: Gpu, timings: Sequence[Timing], method: str, notes: list[str]) -> Link:
    transfers = [p for p in timings if p.op.operator == "transfer"]
    link = gpu_datasheet.link_of(gpu, _best(transfers))
    found: dict[str, TransferFit | None] = {}
    for name, pinned in (("transfer", True), ("pageable", False)):
        chosen = [p for p in transfers if p.dims.get("pinned") is pinned]
        what = f"{'pinned' if pinned else 'pageable'} copies between host and GPU"
        fit = _copies(chosen, method, notes, what)
        found[name] = None if fit is None else _transfer(fit)
    if not any(found.values()):
        return link
    fits = LinkFit(transfer=found["transfer"], pageable=found["pageable"])
    return link.model_copy(update={"fitted": fits, "sources": link.sources | {"fitted": method}})


def _transfer(fit: OpFit) -> TransferFit:
    assert fit.bandwidth_bytes_per_s is not None
    return TransferFit(
        bandwidth_bytes_per_s=fit.bandwidth_bytes_per_s, latency_s=fit.overhead_s, evidence=fit.evidence
    )


def _peer_link(gpu: Gpu, host: Link, timings: Sequence[Timing], method: str, notes: list[str]) -> Link:
    timed = of_operators(timings, "network")
    link = gpu_datasheet.peer_link_of(gpu, host, machine_fit.best_rate(timed))
    sheet = LinkSheet.of(link)
    fits = operator_fit.fit_groups(_enough(timed, notes), lambda _: sheet, method=method)
    before = link.fitted or LinkFit()
    operators = operator_fit.merged(before.operators, fits)
    own = {group.path: method for group in fits}
    fitted_link = before.model_copy(update={"operators": operators})
    return link.model_copy(update={"fitted": fitted_link, "sources": link.sources | own})


# --- the machine -------------------------------------------------------------------------------------------


def power_of(recording: Recording) -> Power | None:
    """Return what all GPUs draw, idle and busy; None where NVML told nothing.

    Only the first one is busy while products go on; the others are taken to do as it does.
    """
    idle = [_median_of(samples, "power_w") for samples in recording.watched.get(IDLE, ())]
    busy = _first(recording.watched.get(BUSY, ()), "power_w")
    known = [watts for watts in idle if watts is not None]
    if busy is None or not known:
        return None
    n = len(recording.gpus)
    idle_w = sum(known) / len(known) * n
    return Power(idle_w=idle_w, max_w=max(busy * n, idle_w + 1.0))


def _first(samples: Sequence[Sequence[GpuSample]], name: str) -> float | None:
    return _median_of(samples[0], name) if samples else None


def _median_of(samples: Sequence[GpuSample], name: str) -> float | None:
    """Return the median of a number over the second half of samples, when clocks and power have settled."""
    values = [value for value in (getattr(sample, name) for sample in samples) if value is not None]
    return float(np.median(values[len(values) // 2 :])) if values else None


def _held_back(gpu: Gpu, samples: Sequence[Sequence[GpuSample]]) -> list[str]:
    """Say what held the clock down while products went on."""
    if not samples:
        return []
    reasons = sorted({reason for sample in samples[0] for reason in sample.throttle})
    clock, highest = _first(samples, "clock_hz"), None if gpu.facts is None else gpu.facts.max_clock_hz
    if not reasons and (clock is None or highest is None or clock >= HELD_BACK_FRAC * highest):
        return []
    at = "" if clock is None else f" at {clock / 1e6:.0f} MHz"
    of = "" if highest is None else f" of {highest / 1e6:.0f} MHz"
    why = ", ".join(reasons) or "NVML names no reason"
    return [f"under products without a pause the clock stays{at}{of}: {why}"]


def environment(recording: Recording) -> dict[str, str]:
    """Describe the GPUs and their software, as a machine file keeps it."""
    gpu, facts, watched = recording.gpus[0], recording.gpus[0].facts, recording.watched
    found: dict[str, str | None] = {
        "gpu": gpu.name,
        "gpus": str(len(recording.gpus)),
        "gpu_memory": units.format_bytes(gpu_datasheet.memory_bytes(gpu)),
        "gpu_capability": gpu.capability or None,
        "gpu_sustained_clock": _megahertz(_first(watched.get(BUSY, ()), "clock_hz")),
        "gpu_sustained_power": _watts(_first(watched.get(BUSY, ()), "power_w")),
        "gpu_idle_power": _watts(_first(watched.get(IDLE, ()), "power_w")),
        "gpu_throttle": ", ".join(
            sorted({reason for of_one in watched.get(BUSY, ()) for sample in of_one for reason in sample.throttle})
        )
        or None,
        **{f"gpu_{name}": version for name, version in recording.software.items()},
    }
    if facts is not None:
        found |= {
            "gpu_driver": facts.driver,
            "gpu_driver_cuda": facts.cuda,
            "gpu_max_clock": _megahertz(facts.max_clock_hz),
            "gpu_memory_clock": _megahertz(facts.max_memory_clock_hz),
            "gpu_power_limit": _watts(facts.power_limit_w),
            "gpu_ecc": facts.ecc,
            "gpu_mig": facts.mig,
        }
    return {name: text for name, text in found.items() if text is not None}


def _megahertz(value: float | None) -> str | None:
    return None if value is None else f"{value / 1e6:.0f} MHz"


def _watts(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f} W"


def _stack(timings: Sequence[Timing], method: str) -> Stack | None:
    """Return the library's file about the software that was timed, with this host's time for a call."""
    stack = machine_fit.stack_of([t for t in timings if t.op.resource != "network"])
    call = _median([t for t in timings if t.op.operator == "host"], "host")
    if stack is None or call is None:
        return stack
    datasheet = stack.datasheet.model_copy(update={"host_call_s": call.value})
    sources = stack.sources | {"datasheet.host_call": method}
    return stack.model_copy(update={"datasheet": datasheet, "sources": sources})
