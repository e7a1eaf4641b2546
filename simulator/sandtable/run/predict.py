"""Scenario and machine to prediction: plan, run on the engine, reduce to metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sandtable import units
from sandtable.demand.op import Op
from sandtable.demand.plan import Plan
from sandtable.engine.plan_process import Options, Run, run
from sandtable.errors import DoesNotFit
from sandtable.hardware import Component, Frozen, Machine, Memory, Processor, Storage, library
from sandtable.model.cost_model import CostModel
from sandtable.results import Metric, Prediction, TraceRow, statistic_function
from sandtable.run import bill
from sandtable.workload.seam import STATISTICS, Samples, Scenario, Workload, collect


def predict(
    scenario: Scenario,
    workload: Workload[Any],
    parameters: Frozen,
    machine: Machine,
    options: Options | None = None,
    *,
    plan: Plan | None = None,
) -> tuple[Prediction, list[TraceRow], Run]:
    """Predict ``scenario`` on ``machine``; also returns the timeline and the steps behind the metrics.

    ``plan`` is the scenario's, for callers that have made it already.

    Raises:
        DoesNotFit: the plan needs more memory than the machine has.
    """
    plan = workload.plan(parameters, machine, scenario.seed) if plan is None else plan
    check_memory(plan, machine)
    result = run(plan, CostModel(machine), options)
    metrics = metrics_of(collect(result.steps, plan), statistics=STATISTICS)
    peak = sum(plan.memory_bytes.values())
    miss = workload.memory_tolerance_frac * peak
    metrics["peak_memory_bytes"] = Metric(value=peak, low=peak - miss, high=peak + miss, unit="bytes")
    metrics |= rates(metrics, plan.work_unit)
    breakdown = mean_breakdown(result, plan)
    metrics |= bill.metrics(machine, metrics, breakdown, plan.work_unit)
    metrics |= workload.derived(parameters, machine, metrics)
    ops = plan.different_ops()
    parts = used_parts(ops, machine)
    guesses = guesses_of(ops, parts, machine)
    prediction = Prediction(
        scenario=scenario_record(scenario, parameters),
        machine=machine.name,
        machine_digest=library.digest(machine),
        metrics=metrics,
        breakdown=breakdown,
        memory=dict(plan.memory_bytes),
        warnings=tuple(plan.notes) + warnings_of(parts, guesses, machine),
        by_op={name: float(seconds) for name, seconds in sorted(result.by_op.items(), key=lambda item: -item[1])},
        binding_resource=max(breakdown, key=lambda key: breakdown[key]) if breakdown else "",
        guesses=tuple(guesses),
    )
    return prediction, result.trace, result


def scenario_record(scenario: Scenario, parameters: Frozen) -> dict[str, Any]:
    """Return the scenario as it was run: its own fields, and every parameter with its default filled in."""
    return scenario.model_dump(by_alias=True) | {"parameters": parameters.model_dump(mode="json")}


def check_memory(plan: Plan, machine: Machine) -> None:
    """Refuse a plan whose resident bytes exceed the machine's memory, with the table of what needs how much."""
    memory = machine.memory if machine.accelerator is None else machine.accelerator.memory
    needed, has = sum(plan.memory_bytes.values()), memory.datasheet.capacity_bytes
    if machine.accelerator is not None:
        has += machine.memory.datasheet.capacity_bytes
    if needed > has:
        parts = ", ".join(
            f"{kind} {units.format_bytes(size)}"
            for kind, size in sorted(plan.memory_bytes.items(), key=lambda i: -i[1])
        )
        raise DoesNotFit(
            f"{plan.workload} needs {units.format_bytes(needed)} of memory and {machine.name} has "
            f"{units.format_bytes(has)} ({parts})"
        )


def metrics_of(samples: Mapping[str, Samples], statistics: tuple[str, ...]) -> dict[str, Metric]:
    """Reduce samples to metrics: one value where there is a single sample, else one per statistic."""
    metrics: dict[str, Metric] = {}
    for name, sample in samples.items():
        if len(sample.value) == 1:
            metrics[name] = _metric(name, sample, "mean")
            continue
        for statistic in statistics:
            metrics[f"{name}.{statistic}"] = _metric(name, sample, statistic)
    return metrics


def _metric(name: str, sample: Samples, statistic: str) -> Metric:
    reduce = statistic_function(statistic)
    value, low, high = (float(reduce(np.asarray(part), axis=0)) for part in (sample.value, sample.low, sample.high))
    return Metric(value=value, low=min(low, value), high=max(high, value), unit=units.unit_of(name))


def rates(metrics: Mapping[str, Metric], work_unit: str) -> dict[str, Metric]:
    """Return units of work per second, from the mean latency of one."""
    latency = metrics.get("latency_s.mean") or metrics["latency_s"]
    name = f"{work_unit}s_per_s"
    rate = Metric(value=1 / latency.value, low=1 / latency.high, high=1 / latency.low, unit=units.unit_of(name))
    return {name: rate}


def mean_breakdown(result: Run, plan: Plan) -> dict[str, float]:
    """Return the mean seconds per step of the main phase, by account."""
    steps = result.phase(plan.main_phase)
    accounts = steps[0].by_account if steps else {}
    means = {account: float(np.mean([step.by_account[account] for step in steps])) for account in accounts}
    return {account: value for account, value in means.items() if value > 0}


def used_parts(ops: Sequence[Op], machine: Machine) -> list[Component]:
    """Return the parts of a machine whose numbers the times of these ops rest on."""
    resources = {op.resource for op in ops}
    places = {op.on for op in ops if op.resource in ("compute", "memory")}
    accelerator = machine.accelerator
    found: list[Component | None] = []
    if "host" in places or not places:
        found += [machine.processor, machine.memory]
    if "storage" in resources:
        found.append(machine.storage)
    if accelerator is not None:
        found += [accelerator.processor, accelerator.memory] if "accelerator" in places else []
        found.append(accelerator.link if "link" in resources else None)
    if "network" in resources:
        found.append(machine.group_link)
        found.append(machine.network if any(op.crosses for op in ops) else None)
    return [part for part in (*found, machine.stack) if part is not None]


def guesses_of(ops: Sequence[Op], parts: Sequence[Component], machine: Machine) -> list[str]:
    """Return ``part: path`` of every guessed number that the metrics of these ops rest on, prices and power included.

    Shares of a data sheet and the software's own spread stand in where no law reads an operation's shape.
    """
    by_share = any(not op.shape and op.resource != "storage" and op.kind != "startup" for op in ops)
    paths = [(part.name, path) for part in (machine, *parts) for path in part.guesses()]
    unused = () if by_share else ("datasheet.efficiency.default", "datasheet.residual")
    return [f"{name}: {path}" for name, path in paths if not path.startswith(unused)]


def warnings_of(parts: Sequence[Component], guesses: Sequence[str], machine: Machine) -> tuple[str, ...]:
    """Say what makes predictions that rest on these parts and guesses less certain."""
    warnings = []
    # constants of an accelerator's operators are its processor's, and say what its memory gives
    of_accelerator = None if machine.accelerator is None else machine.accelerator.memory
    uncalibrated = [
        part.name
        for part in parts
        if isinstance(part, Processor | Memory | Storage) and part.fitted is None and part is not of_accelerator
    ]
    if uncalibrated:
        warnings.append(f"not calibrated, data sheet only: {', '.join(uncalibrated)}; intervals are wide")
    if guesses:
        shown = "; ".join(guesses[:3]) + ("; …" if len(guesses) > 3 else "")
        warnings.append(f"{len(guesses)} numbers of this machine are guesses ({shown})")
    return tuple(warnings)
