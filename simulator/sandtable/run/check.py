"""Predict, write the prediction down, run for real, compare.

The cases of a suite are executed in shuffled rounds, so that a slow minute of the machine does not fall on one case,
with a short re-probe of the machine before each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sandtable.engine.process import Process
from sandtable.engine.world import Options
from sandtable.results import ComparedMetric, Comparison, Measurement, Prediction, TraceRow
from sandtable.run import compare, measure, predict
from sandtable.run.run_folder import RunFolder
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import ExecutionContext


@dataclass(slots=True)
class Checked:
    """One case on its way: its folder, its process and prediction, and what its runs showed so far."""

    case: Case
    process: Process
    folder: RunFolder
    prediction: Prediction
    predicted_trace: list[TraceRow]
    repeats: measure.Repeats = field(default_factory=lambda: measure.Repeats(executions=(), probes=()))
    measurement: Measurement | None = None

    @property
    def name(self) -> str:
        """Name of the scenario."""
        return self.case.scenario.name


def check(
    cases: Sequence[Case],
    context: ExecutionContext,
    *,
    name: str,
    trace: bool = False,
    on_result: Callable[[Checked], None] = lambda _: None,
) -> tuple[Comparison, list[Checked], RunFolder]:
    """Predict all cases, run them, and compare. What is done so far is on disk at every moment.

    Raises:
        KeyboardInterrupt: passed on after the finished part was compared and saved.
    """
    base = RunFolder.create(name)
    checked = [_predicted(case, context, base if len(cases) == 1 else None, base, trace) for case in cases]
    try:
        _rounds(checked, context, on_result)
    finally:
        comparison = _compare(checked)
        base.save(comparison)
    return comparison, checked, base


def _predicted(
    case: Case, context: ExecutionContext, own: RunFolder | None, base: RunFolder, trace: bool
) -> Checked:
    parameters, notes = case.workload.resolve(case.parameters, context)
    case = replace(case, parameters=parameters)
    process = case.workload.process(parameters, case.machine, case.scenario.seed)
    prediction, rows, _ = predict.predict(
        case.scenario, case.workload, parameters, case.machine, Options(trace=trace), process=process
    )
    prediction = prediction.model_copy(update={"warnings": (*notes, *prediction.warnings)})
    folder = own or RunFolder.create(case.scenario.name, base.path)
    folder.save(prediction)
    folder.save_inputs(case.scenario, case.machine)
    return Checked(case=case, process=process, folder=folder, prediction=prediction, predicted_trace=rows)


def _rounds(checked: Sequence[Checked], context: ExecutionContext, on_result: Callable[[Checked], None]) -> None:
    rng = np.random.default_rng(0)
    for item in checked:
        item.case.workload.prepare(item.case.parameters, item.case.machine, item.case.scenario.seed, context)
    most = max(item.case.scenario.repeats for item in checked)
    for index in range(most):
        for position in rng.permutation(len(checked)):
            item = checked[int(position)]
            if index < item.case.scenario.repeats:
                context.progress(f"{item.name}: run {index + 1} of {item.case.scenario.repeats}")
                _execute(item, context)
                on_result(item)


def _execute(item: Checked, context: ExecutionContext) -> None:
    case = item.case
    probe = measure.probe(case.machine, context)
    execution = measure.execute(case.scenario, case.workload, case.parameters, case.machine, context)
    item.repeats = measure.Repeats(
        executions=(*item.repeats.executions, execution), probes=(*item.repeats.probes, probe)
    )
    item.measurement = measure.measurement_of(
        case.scenario, case.parameters, case.machine, item.process, item.repeats, case.workload
    )
    item.folder.save(item.measurement)


def compared(item: Checked) -> list[ComparedMetric]:
    """Return the compared metrics of one case, none if it has not run."""
    return [] if item.measurement is None else compare.compare(item.prediction, item.measurement)


def _compare(checked: Sequence[Checked]) -> Comparison:
    rows = [row for item in checked for row in compared(item)]
    crossed = [
        f"{item.name}: {sentence} does not hold"
        for item in checked
        if item.measurement is not None
        for sentence, held, _ in compare.check_thresholds(item.case.scenario.thresholds, item.measurement)
        if not held
    ]
    for item in checked:
        own = compared(item)
        if own and len(checked) > 1:
            item.folder.save(compare.judge(own))
    return compare.judge(rows, extra=crossed)
