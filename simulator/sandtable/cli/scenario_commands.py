"""Commands about one scenario: simulate, run, check, whatif."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sandtable.cli.options import (
    STORES,
    FormatOption,
    FullOption,
    MachineOption,
    ReportOption,
    SetOption,
    StoreOption,
    TraceOption,
    app,
)
from sandtable.cli.saving import check_thresholds, save_report, save_run, save_timeline
from sandtable.cli.terminal import Format, emit, emit_comparison, emit_result, progress, put, refusing, say
from sandtable.errors import CheckFailed, ConfigError

if TYPE_CHECKING:
    from sandtable.api import Check


@app.command()
def simulate(
    scenario: Annotated[str, typer.Argument(help="Scenario name or file.")],
    settings: SetOption = None,
    machine: MachineOption = None,
    trace: TraceOption = None,
    report: ReportOption = None,
    full: FullOption = False,
    per_request: Annotated[
        bool, typer.Option("--per-request", help="Send every storage request through the engine on its own.")
    ] = False,
    format_: FormatOption = Format.table,
) -> None:
    """Predict a scenario: latency, memory, energy and dollars, each with a 90 % interval."""
    from sandtable import api
    from sandtable.runs import compare
    from sandtable.workload import scenarios

    changes = scenarios.changes_of(settings)
    with refusing(format_):
        found = api.simulate(scenario, changes, machine=machine, trace=trace is not None, per_request=per_request)
    emit_result(found.prediction, format_, full=full)
    folder = save_run(found, hint=not full and format_ is Format.table)
    save_timeline(trace, found.trace, ())
    save_report([folder], report)
    check_thresholds(compare.check_thresholds(found.case.scenario.thresholds, found.prediction))


@app.command()
def run(
    scenario: Annotated[str | None, typer.Argument(help="Scenario name or file.")] = None,
    settings: SetOption = None,
    machine: MachineOption = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="Finish a run that was ended: its folder, name, or 'latest'.")
    ] = None,
    store: StoreOption = STORES,
    trace: TraceOption = None,
    report: ReportOption = None,
    full: FullOption = False,
    format_: FormatOption = Format.table,
) -> None:
    """Execute a scenario for real on this machine, and keep the measurement."""
    from sandtable import api
    from sandtable.runs import compare
    from sandtable.workload import scenarios

    if (scenario is None) == (resume is None):
        raise ConfigError("run needs a scenario, or --resume RUN, one of the two")
    changes = scenarios.changes_of(settings)
    with refusing(format_), progress() as shown:
        if resume is not None:
            found = api.resume_run(resume, store=store, progress=shown)
        else:
            found = api.run(scenario or "", changes, machine=machine, store=store, progress=shown, keep=True)
    folder = save_run(found, hint=not full and format_ is Format.table)
    emit_result(found.measurement, format_, full=full)
    save_timeline(trace, (), found.trace)
    save_report([folder], report)
    check_thresholds(compare.check_thresholds(found.case.scenario.thresholds, found.measurement))


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Scenario names or files.")] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="A suite of scenarios, such as flash-quick.")] = None,
    settings: SetOption = None,
    machine: MachineOption = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="Finish a check that was ended: its folder, name, or 'latest'.")
    ] = None,
    store: StoreOption = STORES,
    trace: TraceOption = None,
    report: ReportOption = None,
    full: FullOption = False,
    format_: FormatOption = Format.table,
) -> None:
    """Predict, write the prediction down, run for real, and compare; exit code 3 when it is too far off."""
    from sandtable import api
    from sandtable.runs import predict
    from sandtable.studies import study
    from sandtable.workload import scenarios

    if sum((bool(names), suite is not None, resume is not None)) != 1:
        raise ConfigError("check needs scenarios, --suite NAME or --resume RUN, one of the three")
    what = study.load(suite) if suite is not None else names or []
    changes = scenarios.changes_of(settings)
    with refusing(format_), progress() as shown:
        if resume is not None:
            found = api.resume(resume, store=store, progress=shown)
        else:
            found = api.check(what, changes, machine=machine, store=store, trace=trace is not None, progress=shown)
    comparison, checked = found.comparison, found.cases
    emit_comparison(comparison, format_, full=full)
    if len(checked) > 1 and format_ in (Format.table, Format.md):
        _emit_pairs(found, format_, full=full)
    for item in checked:
        for note in (*item.prediction.warnings, *(item.measurement.validity if item.measurement else ())):
            if full or format_ is not Format.table or predict.GUESSED not in note:
                say(f"  ! {item.name}: {note}")
    ran = found.cases[0].repeats.executions
    save_timeline(trace, found.cases[0].predicted_trace, ran[-1].trace if ran else ())
    say(f"  saved {found.folder}")
    own = [item.folder.path for item in checked] if len(checked) > 1 else []
    save_report([found.folder, *own], report)
    if comparison.verdict == "fail":
        raise CheckFailed("; ".join(comparison.reasons))


def _emit_pairs(found: Check, format_: Format, *, full: bool) -> None:
    """Print how many times as fast as the baseline each scenario is, and whether the intervals of ratios hold."""
    from sandtable.studies import suite_pairs

    ran = suite_pairs.ran(found.cases)
    if found.baseline is not None and (full or format_ is Format.md):
        emit(suite_pairs.speedups(ran, found.baseline), format_)
    pairs = suite_pairs.pairs(ran)
    if pairs and format_ is Format.table:
        put(f"  {suite_pairs.coverage(pairs).sentence()}")


@app.command()
def whatif(
    scenario: Annotated[str, typer.Argument(help="Scenario name or file.")],
    settings: SetOption = None,
    machine: MachineOption = None,
    report: ReportOption = None,
    full: FullOption = False,
    format_: FormatOption = Format.table,
) -> None:
    """Show what a change makes of a prediction, in time and dollars."""
    from sandtable import api
    from sandtable.studies import paired
    from sandtable.workload import scenarios

    if not settings:
        raise ConfigError("whatif needs at least one --set PATH=VALUE: the change to look at")
    with refusing(format_):
        found = api.whatif(scenario, scenarios.changes_of(settings), machine=machine)
    programs = format_ in (Format.csv, Format.json)
    table = paired.table(found.before, found.after, found.changes, saved=programs)
    emit(table, format_, answer=found.answer, full=full)
    if report is not None:
        from sandtable.report import study_report

        study_report.write_difference(found.answer, found.before, found.after, found.changes, report)
        say(f"  report: {report}")
