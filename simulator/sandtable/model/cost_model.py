"""What one operation costs on one machine: seconds with a 90 % interval.

A calibrated machine answers from its fitted laws. Otherwise the data sheet is scaled by what the machine's software
(`sandtable.hardware.Stack`) reaches, and the interval is the wide one which the stack states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import Columns, FloatArray, Operator, PlainOperator, operator_named, plain_seconds
from sandtable.errors import PlanError
from sandtable.hardware import (
    Evidence,
    Link,
    LinkSheet,
    Machine,
    Memory,
    OpEfficiency,
    OpFit,
    Processor,
    Roofline,
    Stack,
    arithmetic_of,
)
from sandtable.model import extrapolation, fitted_constants
from sandtable.model.drift import NO_DRIFT, Drift
from sandtable.model.error_sources import Miss, Source
from sandtable.model.extrapolation import columns_of, kind_of
from sandtable.model.laws import storage_law as storage_model
from sandtable.model.laws.storage_law import StorageLaw, StorageOperator


@dataclass(frozen=True, slots=True)
class OpTime:
    """Seconds that an op takes, with the 90 % interval; ``host_s`` is the part that the host can hide.

    ``law`` names what the seconds follow from: ops of one law are wrong together, those of two on their own, except
    for what all ops of the machine share, ``drift_frac`` of the seconds either way; the interval contains it.
    ``source`` is where its error comes from, for what two runs share of it; that of a sequence is None. ``evidence``
    is that of constants that were fitted to the very device; ``beyond`` is what its interval has in addition, see
    `sandtable.model.extrapolation`.
    """

    seconds: float
    low: float
    high: float
    host_s: float = 0.0
    law: str = ""
    drift_frac: float = 0.0
    source: Source | None = None
    evidence: Evidence | None = None
    beyond: float = 0.0

    def times(self, factor: float) -> OpTime:
        """Return the time of ``factor`` executions in a row."""
        if factor == 1:
            return self
        seconds, low, high, host_s = (part * factor for part in (self.seconds, self.low, self.high, self.host_s))
        return OpTime(
            seconds, low, high, host_s, self.law, self.drift_frac, self.source, self.evidence, self.beyond
        )


ZERO = OpTime(0.0, 0.0, 0.0)
# what an op is called, where it stands in a plan and who does it: no part of what one execution takes
PLACE: dict[str, Any] = {
    "name": "",
    "account": "",
    "section": "",
    "background": False,
    "stream": "",
    "device": 0,
    "repeat": 1,
    "after": None,
}
_demand_of = attrgetter(*(field.name for field in fields(Op) if field.name not in PLACE))


class CostModel:
    """Costs ops on one machine, as fast as it was when it was calibrated or as ``drift`` says; equal demands once.

    Raises:
        PlanError: from `time`, for an op that nothing in the machine can serve.
    """

    def __init__(self, machine: Machine, drift: Drift = NO_DRIFT) -> None:
        self.machine, self.drift = machine, drift
        self.storage_law: StorageLaw = storage_model.law_of(machine.storage)
        self._known: dict[tuple[Any, ...], tuple[Op, OpTime]] = {}
        self._seconds: dict[tuple[Any, ...], float] = {}
        # by identity: the parts are kept, so that no other tuple takes their place
        self._sequences: dict[int, tuple[tuple[Op, ...], OpTime]] = {}

    def time(self, op: Op) -> OpTime:
        """Return the time of all repeats of ``op`` when nothing else uses its resource."""
        if op.parts:
            return self._sequence(op)
        key = _demand_of(op)
        known = self._known.get(key)
        if known is None:
            demand = replace(op, **PLACE)
            known = self._known[key] = demand, self._exposed(demand)
        return known[1].times(op.repeat)

    def prepare(self, ops: Iterable[Op]) -> None:
        """Ask each law once for all of these ops that read columns, so that `time` need not one by one."""
        groups: dict[tuple[Any, ...], dict[tuple[Any, ...], Op]] = {}
        for op in ops:
            key = _demand_of(op)
            if op.shape is not None and key not in self._known and op.resource in ("compute", "memory"):
                variant = operator_named(op.operator).variant(op.shape)
                same = (op.operator, op.dtype, op.role, op.on, op.sharing, op.sustained, variant)
                groups.setdefault(same, {})[key] = op
        for group in groups.values():
            first = next(iter(group.values()))
            columns = zip(*(op.shape for op in group.values()), strict=True)
            shape = type(first.shape)(*(np.array(column, dtype=np.float64) for column in columns))
            times = self.seconds(first, operator_named(first.operator).columns(shape))
            self._seconds.update(zip(group, map(float, times), strict=True))

    def demands(self) -> list[Op]:
        """Return the different demands that were costed so far."""
        return [demand for demand, _ in self._known.values()]

    def _sequence(self, op: Op) -> OpTime:
        """Return the time of ops in a row; a plan holds few different ones, and many ops that consist of them."""
        known = self._sequences.get(id(op.parts))
        if known is None:
            times = [self.time(part) for part in op.parts]
            names = ("seconds", "low", "high", "host_s")
            sums: dict[str, float] = {name: sum(getattr(time, name) for time in times) for name in names}
            known = self._sequences[id(op.parts)] = (op.parts, replace(ZERO, **sums))  # type: ignore[arg-type]
        return known[1].times(op.repeat)

    def _exposed(self, op: Op) -> OpTime:
        """Return the time of one execution, less what the op that hides it hides of it."""
        time = self._once(op).times(self._drift_of(op))
        if time.seconds == 0:
            return time
        source = _source(op, time, self._drift_frac(op), by_bandwidth=self._by_bandwidth(op))
        time = replace(time, source=source)
        if op.hidden_by is None:
            return time
        left = max(0.0, 1 - self.time(op.hidden_by).seconds / time.seconds)
        return replace(time, seconds=time.seconds * left, low=time.low * left, high=time.high * left)

    def _drift_of(self, op: Op) -> float:
        """Return by how much the machine takes longer for an op now; devices with links of their own drift unknown."""
        if op.resource == "network" and (self.machine.accelerator is not None or op.crosses):
            return 1.0
        return self.drift.of(op)

    def _by_bandwidth(self, op: Op) -> bool:
        """Whether moving an operation's bytes takes a processor longer than its arithmetic, by the data sheet.

        The roofline of Williams et al. (2009); operations whose law reads columns are not looked at.
        """
        if op.shape is not None or not op.bytes_read or operator_named(op.operator).resource != "compute":
            return False
        sheet = self._roofline(op)
        return (op.bytes_read + op.bytes_written) / sheet.bandwidth_bytes_per_s > op.flops / sheet.peak(op.dtype)

    def _once(self, op: Op) -> OpTime:
        """Return the time of one execution, with the name of the law that it follows.

        What no fit covers follows one reading of the data sheet, all of it.
        """
        operator = operator_named(op.operator)
        if isinstance(operator, StorageOperator):
            return self._storage(op, operator)
        if op.shape is not None:
            return replace(self._by_columns(op, operator), law=f"{op.on} {operator.fitted_as}")
        if not isinstance(operator, PlainOperator):
            raise PlanError(f"op {op.name!r} needs the shape that the law of {op.operator!r} reads")
        if operator.states_time:
            return replace(ZERO, seconds=op.seconds, low=op.seconds, high=op.seconds, law=op.operator)
        if operator.resource == "link":
            return self._link(op, operator)
        fit = self._fit(op)
        if fit is None:
            return self._datasheet(op, operator)
        kind = f"{op.on} {op.operator}"
        return replace(
            _fitted(op, operator, fit), law=kind if operator.resource == "memory" else f"{kind} {op.dtype}"
        )

    # --- storage and links ---

    def _storage(self, op: Op, operator: StorageOperator) -> OpTime:
        seconds = float(operator.seconds(self.storage_law, {}, op.shape, dtype=op.dtype))
        low, high = operator.spread(self.storage_law)
        time = _interval(seconds, low, high, self.storage_law.drift_frac)
        fit = self.machine.storage.fitted
        return replace(time, law=op.operator, evidence=None if fit is None else operator.evidence(fit))

    def _link(self, op: Op, operator: PlainOperator) -> OpTime:
        accelerator = self.machine.accelerator
        if accelerator is None:
            raise PlanError(f"{self.machine.name!r} has no accelerator to transfer to (op {op.operator!r})")
        link = accelerator.link
        fit = None if link.fitted is None else link.fitted.transfer
        if fit is not None:
            evidence = fit.evidence
            seconds = fit.latency_s.value + op.bytes_read / fit.bandwidth_bytes_per_s.value
            time = _interval(seconds, evidence.residual_low_frac, evidence.residual_high_frac)
            return replace(time, law=op.operator, evidence=evidence)
        efficiency, stack = self._efficiency(op)
        bandwidth = _bandwidth(efficiency, link.datasheet.bandwidth_bytes_per_s)
        seconds = link.datasheet.latency_s + efficiency.overhead_s + op.bytes_read * efficiency.traffic / bandwidth
        return _with_host(op, operator, seconds, efficiency, stack)

    # --- operators whose law reads columns ---

    def _by_columns(self, op: Op, operator: Operator[Any]) -> OpTime:
        constants = self._constants(op, operator)
        prepared = self._seconds.get(_demand_of(op))
        seconds = float(self.seconds(op, operator.columns(op.shape))[0]) if prepared is None else prepared
        extra = float(extrapolation.beyond(operator, constants.about, kind_of(op), columns_of(op)))
        time = _interval(seconds, constants.residual_low_frac, constants.residual_high_frac, beyond=extra)
        least = float(np.asarray(self.least_s(op, op.shape)))
        time = replace(time, low=max(time.low, min(seconds, least)))
        host_s = float(self.issue_s(op.operator, op.shape))
        return replace(time, host_s=host_s, evidence=constants.evidence)

    def seconds(self, op: Op, columns: Columns) -> FloatArray:
        """Return the seconds of many demands of one operator at once: those of ``op``, with these columns.

        Collectives may differ in whether they leave a machine, and follow the constants of the link they use.
        """
        operator = operator_named(op.operator)
        if operator.resource != "network":
            constants, roofline = self._constants(op, operator), self._roofline(op)
            alone = operator.seconds(roofline, constants.values, columns, dtype=op.dtype)
            return np.asarray(alone / self._speed_frac(op, operator))
        crosses, empty = operator.crosses(columns), operator.is_empty(columns)
        seconds = np.zeros(crosses.shape)
        for where in (False, True):
            chosen = (crosses == where) & ~empty
            if chosen.any():
                link, links = self._link_sheet(op, crosses=where)
                values = fitted_constants.resolve_for(op, link, self.machine.stack).values
                part = type(columns)(*(column[chosen] for column in columns))
                seconds[chosen] = operator.seconds(links, values, part, dtype=op.dtype)
        return seconds

    def least_s(self, op: Op, columns: Columns) -> Any:
        """Return the time below which no interval of these demands goes: arithmetic at an accelerator's peak.

        Nothing of memory: a cache may serve part of the traffic that is counted.
        """
        operator = operator_named(op.operator)
        if operator.resource == "network" or op.on == "host":
            return 0.0
        flops = np.asarray(operator.flops(columns))
        return flops / self._roofline(op).peak(op.dtype) if flops.any() else 0.0

    def _speed_frac(self, op: Op, operator: Operator[Any]) -> float:
        """Return the speed of an operator within a step over that of the lone one that its law was fitted to."""
        variant = operator.variant(op.shape)
        key = f"law.{op.operator}.{variant}" if variant else f"law.{op.operator}"
        stack = self.machine.stack
        efficiency = None if stack is None else stack.datasheet.efficiency.get(key)
        speed = 1.0 if efficiency is None or efficiency.rate_frac is None else efficiency.rate_frac
        if op.sustained and operator.dense:
            speed *= self._processor(op)[0].datasheet.sustained_frac or 1.0
        return speed

    def spread(self, op: Op, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """Return predicted over measured at the ends of the 90 % interval of demands as ``op`` with these columns."""
        operator = operator_named(op.operator)
        named = dict(zip(columns._fields, columns, strict=True))
        return fitted_constants.spread(operator, self._constants(op, operator), kind_of(op), named)

    def issue_s(self, operator_name: str, shape: Any) -> Any:
        """Return the time that the host takes to issue an operator, where that goes on beside the device's work."""
        operator, stack = operator_named(operator_name), self.machine.stack
        if stack is None or not stack.datasheet.overlaps_host or operator.resource == "network":
            return 0.0
        efficiency = stack.datasheet.efficiency.get(operator_name)
        stated = 1 if efficiency is None else efficiency.calls
        return operator.calls(stated, shape=shape) * stack.datasheet.host_call_s

    def _constants(self, op: Op, operator: Operator[Any]) -> fitted_constants.Resolved:
        device: Link | Processor
        if operator.resource == "network":
            device = self._link_sheet(op, crosses=op.crosses)[0]
        else:
            device = self._processor(op)[0]
        return fitted_constants.resolve_for(op, device, self.machine.stack)

    def _roofline(self, op: Op) -> Roofline:
        return Roofline.of(*self._processor(op)).share(op.sharing)

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
                f"{self.machine.name!r} names no 'network', and {op.operator} needs one: more ranks than one machine "
                "has"
            )
        n_devices = 1 if accelerator is None else accelerator.n
        return self.machine.network, LinkSheet.of(within, self.machine.network, n_devices)

    # --- plain operations ---

    def _fit(self, op: Op) -> OpFit | None:
        processor, memory = self._processor(op)
        if op.resource == "memory":
            return None if memory.fitted is None else memory.fitted.ops.get(op.operator)
        if processor.fitted is None:
            return None
        laws = processor.fitted.ops.get(op.operator, {})
        return laws.get(op.dtype)  # type: ignore[call-overload,no-any-return]

    def _datasheet(self, op: Op, operator: PlainOperator) -> OpTime:
        efficiency, stack = self._efficiency(op)
        placed = op if efficiency.on is None else replace(op, on=efficiency.on)
        processor, memory = self._processor(placed)
        bandwidth = _bandwidth(efficiency, memory.datasheet.bandwidth_bytes_per_s)
        streaming = op.bytes_moved * efficiency.traffic / bandwidth
        computing = 0.0 if op.flops == 0 else op.flops / _rate(efficiency, processor, op.dtype)
        items = op.n_items * efficiency.per_item_s + op.n_special * efficiency.per_special_s
        seconds = efficiency.overhead_s + items + max(streaming, computing)
        return _with_host(op, operator, seconds, efficiency, stack)

    def _processor(self, op: Op) -> tuple[Processor, Memory]:
        if op.on == "host":
            return self.machine.processor, self.machine.memory
        if self.machine.accelerator is None:
            raise PlanError(f"{self.machine.name!r} has no accelerator to run {op.operator!r} on")
        return self.machine.accelerator.processor, self.machine.accelerator.memory

    def _drift_frac(self, op: Op) -> float:
        """Return how far the part that serves an op drifts, by whatever was timed on it in several passes."""
        if op.resource not in ("memory", "compute"):
            return 0.0
        fitted = self._processor(op)[0].fitted
        laws = () if fitted is None else (law for laws in fitted.ops.values() for law in laws.values())
        return max((law.evidence.drift_frac or 0.0 for law in laws), default=0.0)

    def _efficiency(self, op: Op) -> tuple[OpEfficiency, Stack]:
        stack = self.machine.stack
        if stack is None:
            raise PlanError(
                f"{self.machine.name!r} has no fit for {op.operator!r} and no 'stack' that says what it reaches: "
                "calibrate again, or name a stack"
            )
        table = stack.datasheet.efficiency
        for key in (f"{op.operator}.{op.dtype}", op.operator, "default"):
            if key in table:
                return table[key], stack
        raise PlanError(f"stack {stack.name!r} says nothing of {op.operator!r} and has no 'default'")


def _source(op: Op, time: OpTime, drift_frac: float, *, by_bandwidth: bool) -> Source:
    """Return where the error of an op's time comes from: its interval less the drift, which it joins in squares.

    ``drift_frac`` is that of the part which serves it, for laws whose own fit does not know it.
    """
    joined = math.log1p(time.drift_frac)
    ends = (math.log(time.seconds / time.low), math.log(time.high / time.seconds))
    within = joined**2 + time.beyond**2
    miss = Miss(*(math.sqrt(max(0.0, end**2 - within)) for end in ends))
    drift = joined or math.log1p(drift_frac)
    return Source.of(op, time.law, miss, drift, time.evidence, beyond=time.beyond, by_bandwidth=by_bandwidth)


def _fitted(op: Op, operator: PlainOperator, fit: OpFit) -> OpTime:
    seconds = plain_seconds(
        fit.constants(),
        n_items=op.n_items,
        n_special=op.n_special,
        n_bytes=op.bytes_moved,
        flops=op.flops,
        serial=fit.serial,
    )
    known = fit.evidence
    extra = float(extrapolation.beyond(operator, known, kind_of(op), columns_of(op)))
    low, high, drift_frac = known.residual_low_frac, known.residual_high_frac, known.drift_frac or 0.0
    time = _interval(float(seconds), low, high, drift_frac, beyond=extra)
    return replace(time, evidence=known)


def _with_host(op: Op, operator: PlainOperator, device_s: float, efficiency: OpEfficiency, stack: Stack) -> OpTime:
    """Return the time of an operation that follows the data sheet, with the host's part in it."""
    sheet = stack.datasheet
    calls = operator.calls(efficiency.calls, n_items=op.n_items)
    host = float(calls * sheet.host_call_s + (sheet.dynamic_shape_s if op.dynamic else 0.0))
    seconds = device_s if sheet.overlaps_host else device_s + host
    time = _interval(seconds, sheet.residual_low_frac, sheet.residual_high_frac)
    return replace(time, host_s=host if sheet.overlaps_host else 0.0, law="data sheet")


def _bandwidth(efficiency: OpEfficiency, datasheet_bytes_per_s: float) -> float:
    if efficiency.bandwidth_bytes_per_s is not None:
        return efficiency.bandwidth_bytes_per_s
    return datasheet_bytes_per_s * (1.0 if efficiency.bandwidth_frac is None else efficiency.bandwidth_frac)


def _rate(efficiency: OpEfficiency, processor: Processor, dtype: str) -> float:
    peaks = {str(name): rate for name, rate in processor.datasheet.peak_flops_per_s.items()}
    peak = peaks[arithmetic_of(peaks, dtype, processor.name)]
    return peak * (1.0 if efficiency.rate_frac is None else efficiency.rate_frac)


def _interval(
    seconds: float, residual_low: float, residual_high: float, drift: float = 0.0, beyond: float = 0.0
) -> OpTime:
    """A law that predicts high (predicted / measured = residual_high) means the truth may be lower by that much.

    What it lies ``beyond`` the shapes that were fitted joins in squares.
    """
    if beyond:
        residual_low = math.exp(-math.hypot(math.log(residual_low), beyond))
        residual_high = math.exp(math.hypot(math.log(residual_high), beyond))
    return OpTime(seconds, seconds / residual_high, seconds / residual_low, drift_frac=drift, beyond=beyond)
