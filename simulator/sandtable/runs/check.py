"""Predict, write the prediction down, run for real, compare.

The cases of a suite are executed in shuffled rounds, so that a slow minute of the machine does not fall on one case,
with short probes of the machine before each. A run is compared with what the same plan and constants predict for the
speed that these found, and the error of what was written down before is kept beside it. What was executed is on disk
at every moment, and a check that was ended goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sandtable.engine.process import Process
from sandtable.engine.world import Options
from sandtable.errors import ConfigError
from sandtable.model.drift import Drift
from sandtable.results import ComparedMetric, Comparison, Measurement, Prediction, Record, TraceRow
from sandtable.runs import compare, kept_execution, measure, predict
from sandtable.runs.answers.answer_card import answered, answering
from sandtable.runs.answers.caveats import main_seconds
from sandtable.runs.answers.check_card import Pair, check_answer, repeatability
from sandtable.runs.run_folder import RunFolder
from sandtable.workload.progress import Step
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import ExecutionContext

CHECK = "check"


class CheckList(Record):
    """What a check is about, kept in its folder: its name, and the folder of each case within it."""

    name: str
    folders: tuple[str, ...]
    baseline: str | None = None


@dataclass(slots=True)
class Checked:
    """One case on its way: its folder, its process and prediction, and what its runs showed so far.

    ``foreseen`` is what the prediction was reduced from, where it was made here and not read back.
    """

    case: Case
    process: Process
    folder: RunFolder
    prediction: Prediction
    predicted_trace: list[TraceRow]
    foreseen: predict.Foreseen | None = None
    repeats: measure.Repeats = measure.NO_REPEATS
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
    baseline: str | None = None,
    trace: bool = False,
) -> tuple[Comparison, list[Checked], RunFolder]:
    """Predict all cases, run them, and compare. What is done so far is on disk at every moment.

    Raises:
        KeyboardInterrupt: passed on after the finished part was compared and saved.
    """
    base = RunFolder.create(name)
    checked = [_predicted(case, context, base if len(cases) == 1 else None, base, trace) for case in cases]
    folders = tuple(item.folder.path.relative_to(base.path).as_posix() for item in checked)
    base.save(CheckList(name=name, folders=folders, baseline=baseline), CHECK)
    return _finished(checked, context, base), checked, base


def resume(base: RunFolder, context: ExecutionContext) -> tuple[Comparison, list[Checked], CheckList]:
    """Do what is left of a check that was ended; predictions stay those that were written down before.

    Raises:
        ConfigError: the folder holds no check, or a part of it is missing or damaged.
        KeyboardInterrupt: as from `check`.
    """
    found = base.load(CheckList, CHECK)
    if found is None:
        raise ConfigError("holds no check that could go on", file=str(base.path))
    checked = [_reopened(RunFolder(base.path / folder)) for folder in found.folders]
    return _finished(checked, context, base), checked, found


def _finished(checked: Sequence[Checked], context: ExecutionContext, base: RunFolder) -> Comparison:
    """Do all runs that are missing, and compare; what ends them early is passed on after that."""
    try:
        _rounds(checked, context)
    except KeyboardInterrupt as ended:
        ended.add_note(f"what was finished is saved: go on with 'sandtable check --resume {base.path}'")
        raise
    finally:
        comparison = _compare(checked, base)
        base.save(comparison)
    return comparison


def _reopened(folder: RunFolder) -> Checked:
    prediction = folder.prediction()
    if prediction is None:
        raise ConfigError("holds no prediction", file=str(folder.path))
    case = kept_execution.case_of(folder, prediction.scenario["parameters"])
    process = case.workload.process(case.parameters, case.machine, case.scenario.seed)
    repeats = kept_execution.load(folder, case.scenario.repeats)
    item = Checked(
        case=case, process=process, folder=folder, prediction=prediction, predicted_trace=[], repeats=repeats
    )
    if repeats.executions:
        _measured(item)
    return item


def _predicted(
    case: Case, context: ExecutionContext, own: RunFolder | None, base: RunFolder, trace: bool
) -> Checked:
    with answering(case):
        parameters, notes = case.workload.resolve(case.parameters, context)
        case = replace(case, parameters=parameters)
        process = case.workload.process(parameters, case.machine, case.scenario.seed)
        found = predict.foresee(
            case.scenario, case.workload, parameters, case.machine, Options(trace=trace), process=process
        )
    noted = found.prediction.model_copy(update={"warnings": (*notes, *found.prediction.warnings)})
    prediction = answered(noted, case, main_seconds(found))
    folder = own or RunFolder.create(case.scenario.name, base.path)
    folder.save(prediction)
    folder.save_inputs(case.scenario, case.machine)
    return Checked(
        case=case,
        process=process,
        folder=folder,
        prediction=prediction,
        predicted_trace=found.run.trace,
        foreseen=found,
    )


def _rounds(checked: Sequence[Checked], context: ExecutionContext) -> None:
    rng = np.random.default_rng(0)
    for item in checked:
        item.case.workload.prepare(item.case.parameters, item.case.machine, item.case.scenario.seed, context)
    most = max(item.case.scenario.repeats for item in checked)
    wanted = sum(item.case.scenario.repeats for item in checked)
    for index in range(most):
        for position in rng.permutation(len(checked)):
            item = checked[int(position)]
            if len(item.repeats.executions) <= index < item.case.scenario.repeats:
                done = sum(len(other.repeats.executions) for other in checked)
                text = f"{item.name}: run {index + 1} of {item.case.scenario.repeats}"
                context.progress(Step(text, done, wanted))
                _execute(item, context)


def _execute(item: Checked, context: ExecutionContext) -> None:
    case = item.case
    probes = measure.probe(case.machine, context, case.workload.needs)
    execution = measure.execute(case.scenario, case.workload, case.parameters, case.machine, context)
    kept_execution.save(item.folder, len(item.repeats.executions), execution, probes)
    item.repeats = item.repeats.and_one(execution, probes)
    _measured(item)


def _measured(item: Checked) -> None:
    case = item.case
    measured = measure.measurement_of(
        case.scenario, case.parameters, case.machine, item.process, item.repeats, case.workload
    )
    item.measurement = answered(measured, case)
    item.folder.save(item.measurement)


def _as_fast_as_it_was(item: Checked) -> Prediction:
    """Return the prediction for the speed that probes found before the runs; the one written down if they say nothing.

    It knows nothing of the runs themselves: the plan, the constants and the times of probes alone make it.
    """
    if item.measurement is None or not item.measurement.drift:
        return item.prediction
    case, drift = item.case, Drift(item.measurement.drift)
    found, *_ = predict.predict(
        case.scenario, case.workload, case.parameters, case.machine, process=item.process, drift=drift
    )
    return found


def _compared(item: Checked, prediction: Prediction) -> list[ComparedMetric]:
    """Return the compared metrics of one case, none if it has not run."""
    if item.measurement is None:
        return []
    return compare.compare(prediction, item.measurement, item.case.workload.judged)


def _compare(checked: Sequence[Checked], base: RunFolder) -> Comparison:
    predictions = [_as_fast_as_it_was(item) for item in checked]
    by_case = [_compared(item, found) for item, found in zip(checked, predictions, strict=True)]
    for item, own in zip(checked, by_case, strict=True):
        if own and len(checked) > 1:
            item.folder.save(compare.judge(own))
    done, wanted = (
        sum(counts)
        for counts in zip(*((len(i.repeats.executions), i.case.scenario.repeats) for i in checked), strict=True)
    )
    pairs = [Pair(item.case, found, item.measurement) for item, found in zip(checked, predictions, strict=True)]
    judged = _judged(checked, [row for own in by_case for row in own])
    if done == wanted:
        return judged.model_copy(update={"answer": check_answer(judged, pairs)})
    left = f"{done} of {wanted} runs are done: finish with 'sandtable check --resume {base.path}'"
    judged = judged.model_copy(update={"verdict": "inconclusive", "reasons": (*judged.reasons, left)})
    return judged.model_copy(update={"answer": check_answer(judged, pairs, left)})


def _judged(checked: Sequence[Checked], rows: Sequence[ComparedMetric]) -> Comparison:
    """Judge all rows, with the thresholds that were crossed and the errors of what was written down before."""
    crossed = [
        f"{item.name}: {sentence} does not hold"
        for item in checked
        if item.measurement is not None
        for sentence, held, _ in compare.check_thresholds(item.case.scenario.thresholds, item.measurement)
        if not held
    ]
    measured = [item.measurement for item in checked if item.measurement is not None]
    judged = compare.judge(rows, extra=crossed, repeats_frac=[repeatability(one) for one in measured])
    if not any(one.drift for one in measured):
        return judged
    written = compare.judge([row for item in checked for row in _compared(item, item.prediction)])
    return judged.model_copy(update={"as_calibrated": written.summary})
