"""Scenario and machine to prediction: plan, run on the engine, reduce to metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandtable.demand.op import Op
from sandtable.demand.operator import operator_named
from sandtable.engine.process import Process
from sandtable.engine.simulation import Run, run
from sandtable.engine.world import Options
from sandtable.errors import PlanError
from sandtable.hardware import (
    Accelerator,
    Component,
    Frozen,
    Link,
    Machine,
    Memory,
    Processor,
    Storage,
    library,
    number_paths,
)
from sandtable.model.cost_model import CostModel
from sandtable.model.drift import NO_DRIFT, Drift
from sandtable.results import Metric, Prediction, TraceRow
from sandtable.runs import bill, reduction
from sandtable.workload.seam import Scenario, Workload

GUESSED = "numbers of this machine are guesses"


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """A prediction, and what it was reduced from.

    Attributes:
        prediction: The record that is written down.
        run: Units behind the metrics, timeline, and where the time's errors come from.
        process, workload, parameters, machine: What was predicted.
        slopes: By how many percent each metric rises when all ops take a percent longer; those that follow from others
            aside.
        busy_s: Seconds per unit of work in which the machine's processor works.
    """

    prediction: Prediction
    run: Run
    process: Process
    workload: Workload[Any]
    parameters: Frozen
    machine: Machine
    slopes: Mapping[str, float]
    busy_s: float

    def following(self, metrics: Mapping[str, Metric], busy_s: float) -> dict[str, Metric]:
        """Return what follows from metrics by counting: rates, prices, energy, and what the workload derives."""
        each = reduction.unit_time(metrics, self.process, len(self.run.recorder.units[self.process.main_unit]))
        found = reduction.rates(each, self.process.work_unit)
        found |= bill.metrics(self.machine, each, busy_s, self.workload.priced_unit)
        return found | marked(self.workload.derived(self.parameters, self.machine, {**metrics, **found}))


def predict(
    scenario: Scenario,
    workload: Workload[Any],
    parameters: Frozen,
    machine: Machine,
    options: Options | None = None,
    *,
    process: Process | None = None,
    drift: Drift = NO_DRIFT,
) -> tuple[Prediction, list[TraceRow], Run]:
    """Predict ``scenario`` on ``machine``; also returns the timeline and the units behind the metrics.

    ``process`` is the scenario's, for callers that have made it already; ``drift`` is how fast the machine is beside
    its calibration.

    Raises:
        DoesNotFit: it needs more memory than the machine has.
        PlanError: it recorded none of the units that it reports.
    """
    found = foresee(scenario, workload, parameters, machine, options, process=process, drift=drift)
    return found.prediction, found.run.trace, found.run


def foresee(
    scenario: Scenario,
    workload: Workload[Any],
    parameters: Frozen,
    machine: Machine,
    options: Options | None = None,
    *,
    process: Process | None = None,
    drift: Drift = NO_DRIFT,
) -> Foreseen:
    """Predict ``scenario`` on ``machine``, and keep what the prediction was reduced from; see `predict`."""
    process = workload.process(parameters, machine, scenario.seed) if process is None else process
    costs = CostModel(machine, drift)
    result = run(process, costs, options, seed=scenario.seed)
    if process.main_unit not in result.recorder.units:
        known = ", ".join(result.recorder.units) or "nothing"
        raise PlanError(f"{process.workload} reports units {process.main_unit!r} and recorded {known}")
    metrics, slopes = _metrics(process, result, costs, options or Options(), scenario.seed)
    peak = result.peak_memory_bytes
    miss = workload.memory_tolerance_frac * peak
    metrics["peak_memory_bytes"] = Metric(value=peak, low=peak - miss, high=peak + miss, unit="bytes")
    n_units = len(result.recorder.units[process.main_unit])
    breakdown = reduction.breakdown(result.recorder, process) or _per_unit(result.by_account, n_units)
    ops = costs.demands()
    parts = used_parts(ops, machine)
    guesses = guesses_of(ops, parts, machine)
    prediction = Prediction(
        scenario=scenario_record(scenario, parameters),
        machine=machine.name,
        machine_digest=library.digest(machine),
        metrics=metrics,
        breakdown=breakdown,
        memory=result.memory_bytes,
        warnings=process.notes + warnings_of(parts, guesses, machine),
        by_op={name: float(seconds) for name, seconds in sorted(result.by_op.items(), key=lambda item: -item[1])},
        binding_resource=max(breakdown, key=lambda key: breakdown[key]) if breakdown else "",
        guesses=tuple(guesses),
    )
    found = Foreseen(
        prediction=prediction,
        run=result,
        process=process,
        workload=workload,
        parameters=parameters,
        machine=machine,
        slopes=slopes,
        busy_s=breakdown.get("compute", 0.0) + breakdown.get("memory", 0.0),
    )
    derived = found.following(metrics, found.busy_s)
    return replace(found, prediction=prediction.model_copy(update={"metrics": metrics | derived}))


def _metrics(
    process: Process, result: Run, costs: CostModel, options: Options, seed: int
) -> tuple[dict[str, Metric], dict[str, float]]:
    """Return what the units took, and by how many percent each rises with a percent more time for all ops.

    The interval of a process is found by running it with the ends of its ops' times: queues make of a few percent of
    service time a multiple in waiting, which no sum over ops would show.
    """
    ends = [] if process.phases else [end for end in result.ends_frac if end != 1]
    others = [run(process, costs, replace(options, scale=end, trace=False), seed=seed) for end in ends]
    found, *reached = (reduction.collect(one.recorder, process) for one in (result, *others))
    metrics = reduction.metrics_of(found, reached)
    if process.phases:
        return metrics, {name: float(metric.low < metric.high) for name, metric in metrics.items()}
    values = [reduction.metrics_of(one) for one in (found, *reached)]
    scales = (1.0, *ends)
    low, high = (values[choose(range(len(scales)), key=scales.__getitem__)] for choose in (min, max))
    span = math.log(max(scales) / min(scales))
    return metrics, {name: _slope(metric, low.get(name), high.get(name), span) for name, metric in metrics.items()}


def _slope(metric: Metric, low: Metric | None, high: Metric | None, span: float) -> float:
    """Return d ln metric / d ln time over a span of the latter; of the metric over its value where it reaches zero."""
    if low is None or high is None or metric.value == 0 or span == 0:
        return 0.0
    if low.value > 0 and high.value > 0:
        return math.log(high.value / low.value) / span
    return (high.value - low.value) / metric.value / span


def _per_unit(by_account: Mapping[str, float], n_units: int) -> dict[str, float]:
    return {account: seconds / n_units for account, seconds in by_account.items() if seconds > 0}


def marked(derived: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return metrics that follow from others, marked as such."""
    return {name: metric.model_copy(update={"derived": True}) for name, metric in derived.items()}


def scenario_record(scenario: Scenario, parameters: Frozen) -> dict[str, Any]:
    """Return the scenario as it was run: its own fields, and every parameter with its default filled in."""
    return scenario.model_dump(by_alias=True) | {"parameters": parameters.model_dump(mode="json")}


def used_parts(ops: Sequence[Op], machine: Machine) -> list[Component]:
    """Return the parts of a machine whose numbers the times of these ops rest on."""
    resources = {op.resource for op in ops}
    used = {op.on for op in ops if op.resource in ("compute", "memory")}
    accelerator = machine.accelerator
    found: list[Component | None] = []
    if "host" in used or not used:
        found += [machine.processor, machine.memory]
    if "storage" in resources:
        found.append(machine.storage)
    if accelerator is not None:
        found += [accelerator.processor, accelerator.memory] if "accelerator" in used else []
        found.append(accelerator.link if "link" in resources else None)
    if "network" in resources:
        found.append(machine.group_link)
        found.append(machine.network if any(op.crosses for op in ops) else None)
    return [part for part in (*found, machine.stack) if part is not None]


def guesses_of(ops: Sequence[Op], parts: Sequence[Component], machine: Machine) -> list[str]:
    """Return ``part: path`` of every guessed number that the metrics of these ops rest on, prices and power included.

    Shares of a data sheet and the software's own spread stand in where no law reads an operation's shape.
    """
    by_share = any(op.shape is None and not op.seconds for op in ops)
    paths = [(part.name, path) for part in (machine, *parts) for path in part.guesses()]
    unused = () if by_share else ("datasheet.efficiency.default", "datasheet.residual")
    paths = [(name, path) for name, path in paths if not path.startswith(unused)]
    return [f"{name}: {path}" for name, path in dict.fromkeys([*paths, *_given(ops, parts)])]


def _given(ops: Sequence[Op], parts: Sequence[Component]) -> Iterator[tuple[str, str]]:
    """Yield family and path of every guess that the laws of these ops take as given on these parts."""
    devices = [part for part in parts if isinstance(part, Processor | Link)]
    for name in dict.fromkeys(device.family for device in devices):
        members = [device for device in devices if device.family == name]
        read = {
            operator_named(op.operator).fitted_as
            for op in ops
            if op.shape is not None and any(_serves(device, op) for device in members)
        }
        # what every device of the family states itself is read nowhere else
        own = set.intersection(*({*number_paths(device)} for device in members))
        for path in library.family(name).guesses():
            if path.split(".")[1] in read and path not in own:
                yield name, path


def _serves(device: Processor | Link, op: Op) -> bool:
    """Whether ops like this one run on a device of this kind."""
    if op.resource == "network" or isinstance(device, Link):
        return op.resource == "network" and isinstance(device, Link)
    return (op.on == "accelerator") == isinstance(device, Accelerator)


def warnings_of(parts: Sequence[Component], guesses: Sequence[str], machine: Machine) -> tuple[str, ...]:
    """Say what makes predictions that rest on these parts and guesses less certain."""
    warnings = []
    # constants of an accelerator's operators are its processor's, and say what a memory of its own gives
    own = None if machine.accelerator is None else machine.accelerator.memory
    skipped = None if own is machine.memory else own
    uncalibrated = dict.fromkeys(
        part.name
        for part in parts
        if isinstance(part, Processor | Memory | Storage) and part.fitted is None and part is not skipped
    )
    if uncalibrated:
        warnings.append(f"not calibrated, data sheet only: {', '.join(uncalibrated)}; intervals are wide")
    if guesses:
        shown = "; ".join(guesses[:3]) + ("; …" if len(guesses) > 3 else "")
        warnings.append(f"{len(guesses)} {GUESSED} ({shown})")
    return tuple(warnings)
