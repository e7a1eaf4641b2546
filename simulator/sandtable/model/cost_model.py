"""What one operation costs on one machine: seconds with a 90 % interval.

A calibrated machine answers from its fitted laws. Otherwise the data sheet is scaled by what the machine's software
(`sandtable.hardware.Stack`) reaches, and the interval is the wide one which the stack states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sandtable.demand.op import OPERATOR_COLUMNS, RESOURCE_OF_KIND, Op
from sandtable.errors import PlanError
from sandtable.hardware import DTYPE_BYTES, Link, Machine, Memory, OpEfficiency, OpFit, Processor, Stack
from sandtable.model import fitted_constants
from sandtable.model.law import Columns, FloatArray, LinkSheet, OperatorLaw, Sheet
from sandtable.model.laws import storage_law as storage_model
from sandtable.model.laws.storage_law import StorageLaw


@dataclass(frozen=True, slots=True)
class OpTime:
    """Seconds that an op takes, with the 90 % interval; ``host_s`` is the part that the host can hide.

    ``law`` names what the seconds follow from: ops of one law are wrong together, those of two on their own, except
    for what all ops of the machine share, ``drift_frac`` of the seconds either way; the interval contains it.
    """

    seconds: float
    low: float
    high: float
    host_s: float = 0.0
    law: str = ""
    drift_frac: float = 0.0

    def times(self, factor: float) -> OpTime:
        """Return the time of ``factor`` executions in a row."""
        return replace(
            self,
            seconds=self.seconds * factor,
            low=self.low * factor,
            high=self.high * factor,
            host_s=self.host_s * factor,
        )


ZERO = OpTime(0.0, 0.0, 0.0)


class CostModel:
    """Costs ops on one machine; equal demands are costed once.

    Raises:
        PlanError: from `time`, for an op that nothing in the machine can serve.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.storage_law: StorageLaw = storage_model.law_of(machine.storage)
        self._known: dict[Op, OpTime] = {}
        # by identity: the parts are kept, so that no other tuple takes their place
        self._sequences: dict[int, tuple[tuple[Op, ...], OpTime]] = {}

    def time(self, op: Op) -> OpTime:
        """Return the time of all repeats of ``op`` when nothing else uses its resource."""
        if op.parts:
            return self._sequence(op)
        demand = replace(op, name="", account="", section="", lane="", place=0, repeat=1, after=None)
        known = self._known.get(demand)
        if known is None:
            known = self._known[demand] = replace(self._exposed(demand), law=self._law(demand))
        return known if op.repeat == 1 else known.times(op.repeat)

    def demands(self) -> list[Op]:
        """Return the different demands that were costed so far."""
        return list(self._known)

    def _sequence(self, op: Op) -> OpTime:
        """Return the time of ops in a row; a plan holds few different ones, and many ops that consist of them."""
        known = self._sequences.get(id(op.parts))
        if known is None:
            times = [self.time(part) for part in op.parts]
            names = ("seconds", "low", "high", "host_s")
            sums: dict[str, float] = {name: sum(getattr(time, name) for time in times) for name in names}
            known = self._sequences[id(op.parts)] = (op.parts, replace(ZERO, **sums))  # type: ignore[arg-type]
        return known[1] if op.repeat == 1 else known[1].times(op.repeat)

    def _exposed(self, op: Op) -> OpTime:
        """Return the time of one execution, less what the op that it is behind hides of it."""
        time = self._once(op)
        if op.behind is None or time.seconds == 0:
            return time
        left = max(0.0, 1 - self.time(op.behind).seconds / time.seconds)
        return replace(time, seconds=time.seconds * left, low=time.low * left, high=time.high * left)

    def _once(self, op: Op) -> OpTime:
        if op.kind == "startup":
            return replace(ZERO, seconds=op.seconds, low=op.seconds, high=op.seconds)
        if op.shape:
            return self._operator(op)
        if op.resource == "storage":
            return self._storage(op)
        if op.resource == "link":
            return self._link(op)
        fit = self._fit(op)
        return self._datasheet(op) if fit is None else self._fitted(op, fit)

    def _law(self, op: Op) -> str:
        """Name the law that an op follows; what no fit covers follows one reading of the data sheet, all of it."""
        if op.resource == "storage" or op.kind == "startup":
            return op.kind
        if op.shape:
            law = fitted_constants.law_of(op.kind)
            return f"{op.on} {op.kind if law is None else law.kind}"
        if op.resource == "link":
            link = None if self.machine.accelerator is None else self.machine.accelerator.link
            return "data sheet" if link is None or link.fitted is None or link.fitted.transfer is None else op.kind
        if self._fit(op) is None:
            return "data sheet"
        return f"{op.on} {op.kind}" if op.resource == "memory" else f"{op.on} {op.kind} {op.dtype}"

    # --- storage and links ---

    def _storage(self, op: Op) -> OpTime:
        law = self.storage_law
        if op.kind == "random_read":
            seconds = storage_model.batch_s(law, op.n_chunks, op.chunk_bytes, op.concurrency)
            return _interval(seconds, law.residual_low_frac, law.residual_high_frac, law.drift_frac)
        seconds = storage_model.sequential_s(law, op.bytes_read)
        return _interval(seconds, law.sequential_low_frac, law.sequential_high_frac, law.drift_frac)

    def _link(self, op: Op) -> OpTime:
        accelerator = self.machine.accelerator
        if accelerator is None:
            raise PlanError(f"{self.machine.name!r} has no accelerator to transfer to (op {op.kind!r})")
        link = accelerator.link
        fit = None if link.fitted is None else link.fitted.transfer
        if fit is not None:
            evidence = fit.evidence
            seconds = fit.latency_s.value + op.bytes_read / fit.bandwidth_bytes_per_s.value
            return _interval(seconds, evidence.residual_low_frac, evidence.residual_high_frac)
        efficiency, stack = self._efficiency(op)
        bandwidth = _bandwidth(efficiency, link.datasheet.bandwidth_bytes_per_s)
        seconds = link.datasheet.latency_s + efficiency.overhead_s + op.bytes_read * efficiency.traffic / bandwidth
        return self._with_host(op, seconds, efficiency, stack)

    # --- operators with a law of their own ---

    def _operator(self, op: Op) -> OpTime:
        law = _law_of(op.kind)
        constants = self._constants(law, op)
        seconds = float(self.seconds(op, law.columns(op.shape))[0])
        time = _interval(seconds, constants.residual_low_frac, constants.residual_high_frac)
        return replace(time, host_s=self.issue_s(op.kind, op.shape))

    def seconds(self, op: Op, columns: Columns) -> FloatArray:
        """Return the seconds of many operators of one kind at once: those of ``op``, with these columns.

        Collectives may differ in whether they leave a machine, and follow the constants of the link they use.
        """
        law = _law_of(op.kind)
        if op.resource != "network":
            constants, sheet = self._constants(law, op), self._sheet(op)[1]
            alone = law.seconds(sheet, constants.values, columns, dtype=op.dtype, op=op.kind)
            return np.asarray(alone / self._speed_frac(op))
        crosses = columns["n_ranks"] > columns["ranks_per_machine"]
        seconds = np.zeros(crosses.shape)
        for where in (False, True):
            chosen = (crosses == where) & (columns["n_ranks"] > 1)
            if chosen.any():
                part = {name: column[chosen] for name, column in columns.items()}
                link, sheet_of_link = self._link_sheet(op, crosses=where)
                values = fitted_constants.resolve(law, link, self._software(law, op), self.machine.stack).values
                seconds[chosen] = law.seconds(sheet_of_link, values, part, dtype=op.dtype, op=op.kind)
        return seconds

    def _speed_frac(self, op: Op) -> float:
        """Return the speed of an operator within a step over that of the lone one that its law was fitted to."""
        stack = self.machine.stack
        key = f"law.{op.kind}.vanilla" if _is_vanilla(op) else f"law.{op.kind}"
        efficiency = None if stack is None else stack.datasheet.efficiency.get(key)
        speed = 1.0 if efficiency is None or efficiency.rate_frac is None else efficiency.rate_frac
        if op.sustained and op.kind == "gemm":
            speed *= self._place(op)[0].datasheet.sustained_frac or 1.0
        return speed

    def spread(self, op: Op) -> tuple[float, float]:
        """Return predicted over measured at the ends of the 90 % interval of the operator's law."""
        constants = self._constants(_law_of(op.kind), op)
        return constants.residual_low_frac, constants.residual_high_frac

    def issue_s(self, kind: str, shape: Sequence[float | FloatArray]) -> Any:
        """Return the time that the host takes to issue an operator, where that goes on beside the device's work.

        Products of a batch, as those of experts are, are calls of their own.
        """
        stack = self.machine.stack
        if stack is None or not stack.datasheet.overlaps_host or RESOURCE_OF_KIND[kind] == "network":
            return 0.0
        efficiency = stack.datasheet.efficiency.get(kind)
        calls: Any = 1 if efficiency is None else efficiency.calls
        if kind == "stream":
            calls = shape[OPERATOR_COLUMNS[kind].index("n_kernels")]
        elif kind == "gemm":
            calls = calls * shape[OPERATOR_COLUMNS[kind].index("batch")]
        return calls * stack.datasheet.host_call_s

    def _constants(self, law: OperatorLaw, op: Op) -> fitted_constants.Resolved:
        if op.resource == "network":
            device: Link | Processor = self._link_sheet(op, crosses=op.crosses)[0]
        else:
            device = self._place(op)[0]
        software = self._software(law, op)
        if op.sharing > 1:
            # processes that share a device have constants of their own, where they were measured
            shared = fitted_constants.resolve(law, device, software + fitted_constants.SHARED, self.machine.stack)
            if shared.origin != "typical":
                return shared
        return fitted_constants.resolve(law, device, software, self.machine.stack)

    def _software(self, law: OperatorLaw, op: Op) -> str:
        stack = self.machine.stack
        if stack is None:
            return ""
        if op.resource == "network" and op.kind in stack.software:
            return stack.software[op.kind]
        if _is_vanilla(op):
            return stack.software.get("attention.vanilla", stack.software.get(law.kind, stack.name))
        # some software multiplies one type in a way of its own: 'gemm.fp8_block'
        return stack.software.get(f"{law.kind}.{op.dtype}", stack.software.get(law.kind, stack.name))

    def _sheet(self, op: Op) -> tuple[Processor, Sheet]:
        processor, memory = self._place(op)
        return processor, Sheet.of(processor, memory).share(op.sharing)

    def _link_sheet(self, op: Op, *, crosses: bool) -> tuple[Link, LinkSheet]:
        accelerator = self.machine.accelerator
        within = self.machine.group_link
        if within is None:
            raise PlanError(
                f"{self.machine.name!r} names no link between processes: calibrate it with 'sandtable calibrate "
                "--only link', or set 'process_link'"
            )
        if not crosses:
            return within, LinkSheet.of(within)
        if self.machine.network is None:
            raise PlanError(
                f"{self.machine.name!r} names no 'network', and {op.kind} needs one: more ranks than one machine has"
            )
        n_devices = 1 if accelerator is None else accelerator.n
        return self.machine.network, LinkSheet.of(within, self.machine.network, n_devices)

    # --- compute and memory ---

    def _fit(self, op: Op) -> OpFit | None:
        processor, memory = self._place(op)
        if op.resource == "memory":
            return None if memory.fitted is None else memory.fitted.ops.get(op.kind)
        if processor.fitted is None:
            return None
        laws = processor.fitted.ops.get(op.kind, {})
        return laws.get(op.dtype)  # type: ignore[call-overload,no-any-return]

    def _fitted(self, op: Op, fit: OpFit) -> OpTime:
        streaming = 0.0 if fit.bandwidth_bytes_per_s is None else op.bytes_moved / fit.bandwidth_bytes_per_s.value
        computing = 0.0 if fit.rate_flops_per_s is None else op.flops / fit.rate_flops_per_s.value
        work = streaming + computing if fit.serial else max(streaming, computing)
        seconds = fit.overhead_s.value + op.n_items * fit.per_item_s.value + work
        known = fit.evidence
        return _interval(seconds, known.residual_low_frac, known.residual_high_frac, known.drift_frac or 0.0)

    def _datasheet(self, op: Op) -> OpTime:
        efficiency, stack = self._efficiency(op)
        placed = op if efficiency.on is None else replace(op, on=efficiency.on)
        processor, memory = self._place(placed)
        bandwidth = _bandwidth(efficiency, memory.datasheet.bandwidth_bytes_per_s)
        streaming = op.bytes_moved * efficiency.traffic / bandwidth
        computing = 0.0 if op.flops == 0 else op.flops / _rate(efficiency, processor, op.dtype)
        seconds = efficiency.overhead_s + op.n_items * efficiency.per_item_s + max(streaming, computing)
        return self._with_host(op, seconds, efficiency, stack)

    def _with_host(self, op: Op, device_s: float, efficiency: OpEfficiency, stack: Stack) -> OpTime:
        sheet = stack.datasheet
        calls = op.n_items if op.kind == "host" else efficiency.calls
        host = calls * sheet.host_call_s + (sheet.dynamic_shape_s if op.dynamic else 0.0)
        seconds = device_s if sheet.overlaps_host else device_s + host
        time = _interval(seconds, sheet.residual_low_frac, sheet.residual_high_frac)
        return replace(time, host_s=host if sheet.overlaps_host else 0.0)

    def _place(self, op: Op) -> tuple[Processor, Memory]:
        if op.on == "host":
            return self.machine.processor, self.machine.memory
        if self.machine.accelerator is None:
            raise PlanError(f"{self.machine.name!r} has no accelerator to run {op.kind!r} on")
        return self.machine.accelerator.processor, self.machine.accelerator.memory

    def _efficiency(self, op: Op) -> tuple[OpEfficiency, Stack]:
        stack = self.machine.stack
        if stack is None:
            raise PlanError(
                f"{self.machine.name!r} has no fit for {op.kind!r} and no 'stack' that says what it reaches: "
                "calibrate again, or name a stack"
            )
        table = stack.datasheet.efficiency
        for key in (f"{op.kind}.{op.dtype}", op.kind, "default"):
            if key in table:
                return table[key], stack
        raise PlanError(f"stack {stack.name!r} says nothing of {op.kind!r} and has no 'default'")


def _is_vanilla(op: Op) -> bool:
    """Whether it is attention that writes its scores to memory."""
    return op.kind == "attention" and bool(op.shape) and not op.shape[OPERATOR_COLUMNS["attention"].index("flash")]


def _law_of(kind: str) -> OperatorLaw:
    law = fitted_constants.law_of(kind)
    if law is None:
        raise PlanError(f"op kind {kind!r} has no law that reads a shape")
    return law


def _bandwidth(efficiency: OpEfficiency, datasheet_bytes_per_s: float) -> float:
    if efficiency.bandwidth_bytes_per_s is not None:
        return efficiency.bandwidth_bytes_per_s
    return datasheet_bytes_per_s * (1.0 if efficiency.bandwidth_frac is None else efficiency.bandwidth_frac)


def _rate(efficiency: OpEfficiency, processor: Processor, dtype: str) -> float:
    peaks = processor.datasheet.peak_flops_per_s
    # a processor without units for a dtype computes it in the next wider one that it has
    usable = [name for name in peaks if DTYPE_BYTES[name] >= DTYPE_BYTES[dtype]]
    peak = peaks.get(dtype) or (max(peaks[name] for name in usable) if usable else None)  # type: ignore[call-overload]
    if peak is None:
        raise PlanError(f"{processor.name!r} states no arithmetic rate for {dtype}")
    return float(peak) * (1.0 if efficiency.rate_frac is None else efficiency.rate_frac)


def _interval(seconds: float, residual_low: float, residual_high: float, drift: float = 0.0) -> OpTime:
    """A law that predicts high (predicted / measured = residual_high) means the truth may be lower by that much."""
    return OpTime(seconds, seconds / residual_high, seconds / residual_low, drift_frac=drift)
