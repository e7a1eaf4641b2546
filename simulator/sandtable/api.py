"""The functions that notebooks and scripts call; the command line calls the same. `sandtable` offers them by name.

Each names a scenario by its name in the library or by a path, changes it by dotted paths as ``--set`` does, and returns
an object that shows as a table in a notebook and gives pandas frames with ``to_frame()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import Machine, library
from sandtable.results import Answer, Comparison, Measurement, Metric, Prediction, Result, TraceRow
from sandtable.runs import predict
from sandtable.runs.answers.answer_card import answered, answering
from sandtable.runs.answers.caveats import main_seconds
from sandtable.studies import evaluate, paired
from sandtable.studies.difference_card import difference_answer
from sandtable.studies.paired import Change
from sandtable.studies.study import Study, load, pair
from sandtable.table import Framed
from sandtable.workload import scenarios
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import Workload, workload_named

if TYPE_CHECKING:
    from pandas import DataFrame

    from sandtable.calibration.calibrated import Calibrated
    from sandtable.engine.recorder import Recorder
    from sandtable.published.scoring import PublishedReport
    from sandtable.runs import check as checking
    from sandtable.runs.kept_execution import RunUnderWay
    from sandtable.studies.outcome import Outcome
    from sandtable.workload.seam import ExecutionContext

STORES = Path("stores")
Changes = Mapping[str, Any]
Progress = Callable[[str], None]


def _silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class _Outcome(Framed):
    """A scenario's result, the units of work behind it, and its timeline."""

    case: Case
    result: Result
    recorder: Recorder
    trace: Sequence[TraceRow] = ()

    @property
    def answer(self) -> Answer | None:
        """What it comes to, in at most eight lines."""
        return self.result.answer

    def __getitem__(self, metric: str) -> Metric:
        """Return a metric, such as ``latency_s.p95`` or ``tokens_per_s``.

        Raises:
            UnknownName: with the nearest names.
        """
        if metric not in self.result.metrics:
            raise UnknownName("metric", metric, self.result.metrics)
        return self.result.metrics[metric]

    def to_frame(self, of: str = "metrics") -> DataFrame:
        """Return a pandas frame of the ``metrics``, the ``steps`` (a row per unit of work), the ``ops`` or ``memory``.

        Raises:
            UnknownName: anything else.
        """
        import pandas as pd

        if of == "steps":
            return pd.concat([pd.DataFrame(table) for table in self.recorder.tables()], ignore_index=True)
        frames: dict[str, Callable[[], DataFrame]] = {
            "metrics": lambda: metrics_frame(self.result),
            "ops": lambda: _column("seconds", "op", getattr(self.result, "by_op", {})),
            "memory": lambda: _column("bytes", "kind", self.result.memory),
        }
        if of not in frames:
            raise UnknownName("frame", of, (*frames, "steps"))
        return frames[of]()


def _column(name: str, index: str, values: Mapping[str, float]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame({name: pd.Series(values, dtype=float)}).rename_axis(index)


def metrics_frame(result: Result) -> DataFrame:
    """Return the metrics of a prediction or a measurement, a row each: value, ends of the 90 % interval, unit."""
    import pandas as pd

    rows = {name: metric.model_dump(exclude={"samples"}) for name, metric in result.metrics.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")


class Simulation(_Outcome):
    """What `simulate` foresees."""

    @property
    def prediction(self) -> Prediction:
        """The record that is written down."""
        assert isinstance(self.result, Prediction)
        return self.result


@dataclass(frozen=True, kw_only=True)
class RealRun(_Outcome):
    """What `run` measured, and the run folder that keeps it, if one does."""

    folder: Path | None = None

    @property
    def measurement(self) -> Measurement:
        """The record that is written down."""
        assert isinstance(self.result, Measurement)
        return self.result


def load_machine(name: str | Path, changes: Changes | None = None) -> Machine:
    """Load a machine by name or path, changed by dotted path: ``{"storage": "samsung_990_pro_2tb"}``.

    Raises:
        ConfigError: no such machine, or a file that is none, with file and line.
    """
    return library.load_machine(str(name), changes)


def simulate(
    scenario: str | Path,
    changes: Changes | None = None,
    *,
    machine: str | Path | None = None,
    trace: bool = False,
    per_request: bool = False,
) -> Simulation:
    """Predict a scenario: latency, memory, energy and dollars, each with a 90 % interval.

    Args:
        scenario: Name or path.
        changes: By dotted path, as in ``{"parameters.micro_batch": 8, "machine.storage": "samsung_990_pro_2tb"}``.
        machine: Name or path of another machine.
        trace: Keep the timeline.
        per_request: Send every storage request through the engine on its own.

    Raises:
        ConfigError: a scenario, change or machine that cannot be used.
        DoesNotFit: it needs more memory than the machine has.
    """
    from sandtable.engine.world import Options

    case = scenarios.load(str(scenario), changes=changes, machine=None if machine is None else str(machine))
    options = Options(trace=trace, per_request=per_request)
    with answering(case):
        found = predict.foresee(case.scenario, case.workload, case.parameters, case.machine, options)
    result = answered(found.prediction, case, main_seconds(found))
    return Simulation(case=case, result=result, recorder=found.run.recorder, trace=found.run.trace)


def run(
    scenario: str | Path,
    changes: Changes | None = None,
    *,
    machine: str | Path | None = None,
    store: str | Path = STORES,
    progress: Progress = _silent,
    keep: bool = False,
) -> RealRun:
    """Execute a scenario for real on this machine.

    Args:
        scenario: Name or path.
        changes: By dotted path; see `simulate`.
        machine: Name or path of the machine that the scenario is planned for.
        store: Folder for the model files that are read.
        progress: Told which repeat goes on.
        keep: Write each repeat into a run folder as soon as it is done, so that `resume_run` can go on.

    Raises:
        ConfigError: a scenario that cannot be used or executed.
        NoDevice: a device or a package that this machine lacks.
        DoesNotFit: too little memory or disk.
        KeyboardInterrupt: passed on, with a note of what is kept.
    """
    from sandtable.runs import measure
    from sandtable.runs.kept_execution import RunUnderWay

    case = scenarios.load(str(scenario), changes=changes, machine=None if machine is None else str(machine))
    context = measure.execution_context(Path(store), progress)
    with answering(case):
        parameters, notes = case.workload.resolve(case.parameters, context)
        return _executed(RunUnderWay(case=replace(case, parameters=parameters), notes=notes), context, keep=keep)


def resume_run(run: str | Path = "latest", *, store: str | Path = STORES, progress: Progress = _silent) -> RealRun:
    """Finish a run that was ended, from its folder, its name or the latest; repeats that are kept are not run again.

    Raises:
        ConfigError: no such run, or one that is a check or a prediction.
        NoDevice, DoesNotFit: as `run`.
    """
    from sandtable.runs import measure, run_folder
    from sandtable.runs.kept_execution import RunUnderWay

    under_way = RunUnderWay.reopened(run_folder.open_run(str(run)))
    return _executed(under_way, measure.execution_context(Path(store), progress), keep=True)


def _executed(under_way: RunUnderWay, context: ExecutionContext, *, keep: bool) -> RealRun:
    """Do all repeats that are left, and keep them where that is wanted."""
    from sandtable.runs import measure

    case = under_way.case
    result, repeats = None, under_way.repeats
    try:
        for measurement, repeats in measure.measure(
            case.scenario, case.workload, case.parameters, case.machine, context, under_way.repeats
        ):
            warnings = (*under_way.notes, *measurement.validity, *measurement.warnings)
            result = answered(measurement.model_copy(update={"warnings": warnings}), case)
            if keep:
                under_way.keep(result, repeats)
    except KeyboardInterrupt as ended:
        if said := under_way.ended():
            ended.add_note(said)
        raise
    assert result is not None  # there is one repeat at least
    last, folder = repeats.executions[-1], under_way.folder
    kept_in = None if folder is None else folder.path
    return RealRun(case=case, result=result, recorder=last.recorder, trace=list(last.trace), folder=kept_in)


@dataclass(frozen=True, kw_only=True)
class Check(Framed):
    """Predictions beside measurements: a verdict, what was compared, and the folder that keeps it all."""

    comparison: Comparison
    cases: Sequence[checking.Checked]
    folder: Path
    baseline: str | None = None

    @property
    def answer(self) -> Answer | None:
        """Whether the predictions hold, in at most eight lines."""
        return self.comparison.answer

    def to_frame(self) -> DataFrame:
        """Return a row for each compared metric of each scenario; errors are predicted / measured - 1."""
        import pandas as pd

        return pd.DataFrame([row.model_dump() for row in self.comparison.comparisons])

    def pairs(self) -> DataFrame:
        """Return a row for each two scenarios: the predicted ratio of their mean times, and the measured one.

        See `sandtable.studies.suite_pairs`; ``covered`` knows how far repeats lie apart, ``covered_alone`` does not.
        """
        import pandas as pd

        from sandtable.studies import suite_pairs

        return pd.DataFrame(suite_pairs.records(suite_pairs.pairs(suite_pairs.ran(self.cases))))


def check(
    scenarios_or_suite: str | Path | Study | Iterable[str | Path],
    changes: Changes | None = None,
    *,
    machine: str | Path | None = None,
    store: str | Path = STORES,
    trace: bool = False,
    progress: Progress = _silent,
) -> Check:
    """Predict, write the prediction down, run for real, and compare.

    Args:
        scenarios_or_suite: One scenario or several, by name or path, or a suite.
        changes: By dotted path, made to all of them; see `simulate`.
        machine: Name or path of the machine that they are planned for.
        store: Folder for the model files that are read.
        trace: Keep timelines.
        progress: Told which run goes on.

    Raises:
        ConfigError, NoDevice, DoesNotFit: as `run`.
    """
    from sandtable.runs import check as checking
    from sandtable.runs import measure

    # before a machine is loaded, which may have to be calibrated first
    measure.check_needs(_workloads(scenarios_or_suite))
    suite = _as_study(scenarios_or_suite)
    if suite is not None and suite.needs_accelerator:
        measure.check_accelerator()
    cases, name, baseline = cases_of(scenarios_or_suite, changes, machine)
    context = measure.execution_context(Path(store), progress)
    comparison, checked, folder = checking.check(cases, context, name=name, baseline=baseline, trace=trace)
    return Check(comparison=comparison, cases=checked, folder=folder.path, baseline=baseline)


def resume(run: str | Path = "latest", *, store: str | Path = STORES, progress: Progress = _silent) -> Check:
    """Finish a check that was ended, from its folder, its name or the latest.

    Raises:
        ConfigError: no such run, or one that is no check.
        NoDevice, DoesNotFit: as `run`.
    """
    from sandtable.runs import check as checking
    from sandtable.runs import measure, run_folder

    folder = run_folder.open_run(str(run))
    comparison, checked, about = checking.resume(folder, measure.execution_context(Path(store), progress))
    return Check(comparison=comparison, cases=checked, folder=folder.path, baseline=about.baseline)


def _as_study(what: str | Path | Study | Iterable[str | Path]) -> Study | None:
    """Return a suite, given itself or by name; None for scenarios."""
    if isinstance(what, str | Path) and str(what) in scenarios.suite_files():
        return load(str(what))
    return what if isinstance(what, Study) else None


def _workloads(what: str | Path | Study | Iterable[str | Path]) -> list[Workload[Any]]:
    """Return the workloads of scenarios or of a suite, without loading what else these name."""
    suite = _as_study(what)
    if suite is not None:
        return [workload_named(suite.scenario().workload)]
    names = [what] if isinstance(what, str | Path) else what
    return [workload_named(scenarios.read(str(name)).workload) for name in names]


def cases_of(
    what: str | Path | Study | Iterable[str | Path],
    changes: Changes | None = None,
    machine: str | Path | None = None,
) -> tuple[list[Case], str, str | None]:
    """Return the cases of scenarios or of a suite, a name for them together, and that of a suite's baseline."""
    suite, on = _as_study(what), None if machine is None else str(machine)
    if suite is not None:
        changed = suite.changed({**(changes or {}), **({"machine": on} if on else {})})
        return list(changed.resolved()), suite.name, suite.baseline
    names = [what] if isinstance(what, str | Path) else list(what)
    cases = [scenarios.load(str(name), changes=changes, machine=on) for name in names]
    if not cases:
        raise ConfigError("nothing to check: name a scenario or a suite")
    return cases, cases[0].scenario.name, None


@dataclass(frozen=True, kw_only=True)
class Difference(Framed):
    """Two predictions of one scenario, before and after a change, and what becomes of each metric.

    The errors that both share are taken out of the ratios, see `sandtable.studies.paired`.
    """

    before: Prediction
    after: Prediction
    changes: Mapping[str, Change]
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> Answer:
        """How many times as much work, how sure that is, and what it saves."""
        return difference_answer(self.before, self.after, self.changes, self.asked)

    def __getitem__(self, metric: str) -> Change:
        """Return what becomes of a metric.

        Raises:
            UnknownName: with the nearest names.
        """
        if metric not in self.changes:
            raise UnknownName("metric of both", metric, self.changes)
        return self.changes[metric]

    def to_frame(self) -> DataFrame:
        """Return a row for each metric: before, after, after / before - 1, and the ratio after / before.

        ``ratio_low`` to ``ratio_high`` is the 90 % interval of the ratio, ``probability`` that of a change for the
        better, and ``saved`` (with ``saved_low`` and ``saved_high``) the money before less that after.
        """
        import pandas as pd

        old, new = self.before.metrics, self.after.metrics
        rows = {
            name: {"before": old[name].value, "after": new[name].value, "unit": old[name].unit}
            | self._changed(name)
            for name in old
            if name in new
        }
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")
        frame.insert(2, "change_frac", frame["after"] / frame["before"] - 1)
        return frame

    def _changed(self, name: str) -> dict[str, float | None]:
        change = self.changes.get(name)
        if change is None:
            return {}
        own = {key: getattr(change, key) for key in ("ratio", "ratio_low", "ratio_high", "probability")}
        saved = change.saved
        return own if saved is None else own | paired.saving(saved)


def whatif(scenario: str | Path, changes: Changes, *, machine: str | Path | None = None) -> Difference:
    """Predict a scenario before and after changes.

    Raises:
        ConfigError, DoesNotFit: as `simulate`; no change is given.
    """
    if not changes:
        raise ConfigError("whatif needs at least one change to look at")
    both = pair(str(scenario), dict(changes), machine=None if machine is None else str(machine))
    before, after = evaluate.predictions(both)
    found = paired.changes(before, after)
    return Difference(before=before.prediction, after=after.prediction, changes=found, asked=dict(changes))


def study(
    base: str | Path | Study,
    axes: Mapping[str, Sequence[Any]] | None = None,
    *,
    changes: Changes | None = None,
) -> Outcome:
    """Predict every combination of ``axes``, values by dotted path, of a scenario or of a study.

    The outcome has a row for each point, says of those that cannot run why, and gives a frame and the best.

    Raises:
        ConfigError: a path or a value that is none.
    """
    grid = base if isinstance(base, Study) else Study(name="study", base=str(base))
    grid = grid.model_copy(update={"axes": {**grid.axes, **{path: list(v) for path, v in (axes or {}).items()}}})
    return evaluate.predicted(grid.changed(changes or {}))


def calibrate(
    *,
    quick: bool = True,
    only: str | None = None,
    storage_path: str | Path = STORES,
    output: str | Path = f"{library.THIS_MACHINE}.yaml",
    progress: Progress = _silent,
) -> Calibrated:
    """Measure this machine, fit the model to it, and write a machine file.

    Args:
        quick: About a minute and a half, with wider intervals.
        only: Parts, with commas between: storage, memory, compute, gpu, and those that kernels declare, as training.
        storage_path: A folder on the disk to measure.
        output: The machine file.
        progress: Told what is measured.

    Raises:
        ConfigError: settings that cannot be used.
        NoDevice: a package, a program or a GPU that is missing.
    """
    from sandtable.calibration import session

    return session.run(quick=quick, only=only, folder=Path(storage_path), output=Path(output), progress=progress)


def score(folder: str | Path | None = None, only: str | None = None) -> PublishedReport:
    """Predict published measurements, those of a folder or those shipped, and score the predictions.

    Raises:
        ConfigError: no such folder, or no known file in it.
    """
    from sandtable.published import scoring

    return scoring.run(None if folder is None else Path(folder), only=only)


def devices() -> DataFrame:
    """Return the device files of the library: name, kind, title, and whether numbers were fitted."""
    return _listed("devices")


def prices() -> DataFrame:
    """Return the price lists: a row for each instance and region, in USD/h."""
    return _listed("prices")


def list_runs() -> DataFrame:
    """Return the runs of the current folder."""
    return _listed("runs")


def _listed(what: str) -> DataFrame:
    from sandtable.report import listing

    return listing.listing(what).to_frame()
