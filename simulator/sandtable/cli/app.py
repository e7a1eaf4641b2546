"""The command line: parse, call one function, print, leave with the right exit code.

stdout carries the result and nothing else; progress, warnings and hints go to stderr. Heavy libraries are imported
by the commands that use them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import json
import signal
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from sandtable import __version__
from sandtable.cli.terminal import Format, emit, emit_comparison, emit_result, progress, say
from sandtable.errors import CheckFailed, ConfigError, DoesNotFit, SandtableError

if TYPE_CHECKING:
    from sandtable.api import RealRun, Simulation
    from sandtable.results import TraceRow

INTERRUPTED = 130

app = typer.Typer(
    name="sandtable",
    help="Simulate hardware and cost for machine-learning workloads, run the same for real, and compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class What(StrEnum):
    """What can be listed."""

    devices = "devices"
    machines = "machines"
    workloads = "workloads"
    kernels = "kernels"
    scenarios = "scenarios"
    suites = "suites"
    prices = "prices"
    runs = "runs"


FormatOption = Annotated[Format, typer.Option("--format", help="How to print the result.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change the scenario, or its machine (machine.storage=NAME)."),
]
MachineOption = Annotated[
    str | None, typer.Option("--machine", help="Machine name or file instead of the scenario's.")
]
StoreOption = Annotated[Path, typer.Option("--store", help="Folder for the model files that real runs read.")]
TraceOption = Annotated[Path | None, typer.Option("--trace", help="Write a Perfetto timeline to this file.")]
ReportOption = Annotated[Path | None, typer.Option("--report", help="Write an HTML report to this file.")]
STORES = Path("stores")


# --- looking around ----------------------------------------------------------------------------------------


@app.command("list")
def list_(
    what: Annotated[What, typer.Argument(help="What to list.")], format_: FormatOption = Format.table
) -> None:
    """List devices, machines, workloads, kernels, scenarios, suites, prices or runs."""
    from sandtable.report import listing

    emit(listing.listing(what.value), format_)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A device, machine or price list (name or file), or a run.")],
    format_: FormatOption = Format.table,
) -> None:
    """Show a device with the source of every number, or a run with its metrics."""
    from sandtable.hardware import library
    from sandtable.report import listing
    from sandtable.run import run_folder

    looks_like_run = name == "latest" or Path(name).is_dir() or (run_folder.RUNS / name).is_dir()
    if not looks_like_run:
        if format_ is Format.json:
            component = listing.find_device(name)
            print(json.dumps(library.to_yaml_data(component), indent=1, default=str))
        else:
            emit(listing.device_table(listing.find_device(name)), format_)
        return
    run = run_folder.open_run(name)
    found = False
    for result in (run.prediction(), run.measurement()):
        if result is not None:
            found = True
            if format_ is Format.table:
                print(f"{result.kind} of {result.scenario['name']} on {result.machine}")
            emit_result(result, format_)
    comparison = run.comparison()
    if comparison is not None:
        emit_comparison(comparison, format_)
    elif not found:
        raise ConfigError("holds no prediction, measurement or comparison", file=str(run.path))


class New(StrEnum):
    """What can be started from a skeleton."""

    device = "device"
    kernel = "kernel"
    workload = "workload"


@app.command()
def new(
    what: Annotated[New, typer.Argument(help="What to start.")],
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits and underscores.")],
    kind: Annotated[str, typer.Option(help="Kind of device.")] = "storage",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write it.")] = None,
) -> None:
    """Write a commented skeleton of a device, kernel or workload, which loads as it stands."""
    from sandtable.cli import skeletons

    print(skeletons.write(what.value, name, kind=kind, output=output))


@app.command()
def doctor(format_: FormatOption = Format.table) -> None:
    """Say what this machine has, and what would make a measurement on it less valid."""
    from sandtable.report import listing

    emit(listing.doctor_table(), format_)


# --- predicting and running --------------------------------------------------------------------------------


@app.command()
def simulate(
    scenario: Annotated[str, typer.Argument(help="Scenario name or file.")],
    settings: SetOption = None,
    machine: MachineOption = None,
    trace: TraceOption = None,
    report: ReportOption = None,
    per_request: Annotated[
        bool, typer.Option("--per-request", help="Send every storage request through the engine on its own.")
    ] = False,
    format_: FormatOption = Format.table,
) -> None:
    """Predict a scenario: latency, memory, energy and dollars, each with a 90 % interval."""
    from sandtable import api
    from sandtable.run import compare
    from sandtable.workload import scenarios

    changes = scenarios.changes_of(settings)
    found = api.simulate(scenario, changes, machine=machine, trace=trace is not None, per_request=per_request)
    folder = _save(found)
    emit_result(found.prediction, format_)
    _timeline(trace, found.trace, ())
    _report([folder], report)
    _thresholds(compare.check_thresholds(found.case.scenario.thresholds, found.prediction))


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="Scenario name or file.")],
    settings: SetOption = None,
    machine: MachineOption = None,
    store: StoreOption = STORES,
    trace: TraceOption = None,
    report: ReportOption = None,
    format_: FormatOption = Format.table,
) -> None:
    """Execute a scenario for real on this machine, and keep the measurement."""
    from sandtable import api
    from sandtable.run import compare
    from sandtable.workload import scenarios

    with progress() as shown:
        found = api.run(scenario, scenarios.changes_of(settings), machine=machine, store=store, progress=shown)
    folder = _save(found)
    emit_result(found.measurement, format_)
    _timeline(trace, (), found.trace)
    _report([folder], report)
    _thresholds(compare.check_thresholds(found.case.scenario.thresholds, found.measurement))


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
    format_: FormatOption = Format.table,
) -> None:
    """Predict, write the prediction down, run for real, and compare; exit code 3 when it is too far off."""
    from sandtable import api
    from sandtable.study import study
    from sandtable.workload import scenarios

    if sum((bool(names), suite is not None, resume is not None)) != 1:
        raise ConfigError("check needs scenarios, --suite NAME or --resume RUN, one of the three")
    what = study.load(suite) if suite is not None else names or []
    changes = scenarios.changes_of(settings)
    with progress() as shown:
        if resume is not None:
            found = api.resume(resume, store=store, progress=shown)
        else:
            found = api.check(what, changes, machine=machine, store=store, trace=trace is not None, progress=shown)
    comparison, checked = found.comparison, found.cases
    emit_comparison(comparison, format_)
    if found.baseline is not None and format_ in (Format.table, Format.md):
        from sandtable.report import rendering

        emit(rendering.speedup_table(comparison, found.baseline), format_)
    for item in checked:
        for note in (*item.prediction.warnings, *(item.measurement.validity if item.measurement else ())):
            say(f"  ! {item.name}: {note}")
    ran = found.cases[0].repeats.executions
    _timeline(trace, found.cases[0].predicted_trace, ran[-1].trace if ran else ())
    say(f"  saved {found.folder}")
    own = [item.folder.path for item in checked] if len(checked) > 1 else []
    _report([found.folder, *own], report)
    if comparison.verdict == "fail":
        raise CheckFailed("; ".join(comparison.reasons))


@app.command()
def whatif(
    scenario: Annotated[str, typer.Argument(help="Scenario name or file.")],
    settings: SetOption = None,
    machine: MachineOption = None,
    format_: FormatOption = Format.table,
) -> None:
    """Show what a change makes of a prediction, in time and dollars."""
    from sandtable import api
    from sandtable.report import rendering
    from sandtable.workload import scenarios

    if not settings:
        raise ConfigError("whatif needs at least one --set PATH=VALUE: the change to look at")
    found = api.whatif(scenario, scenarios.changes_of(settings), machine=machine)
    emit(rendering.difference_table(found.before, found.after), format_)


@app.command()
def cheapest(
    scenario: Annotated[str, typer.Argument(help="Scenario name or file.")],
    until: Annotated[list[str] | None, typer.Option(help="What to reach: tokens=10B, or loss=2.9.")] = None,
    within: Annotated[str | None, typer.Option(help="A deadline, such as '24 h': the cheapest within it.")] = None,
    budget: Annotated[str | None, typer.Option(help="Such as '500 USD': the fastest that it pays for.")] = None,
    machines: Annotated[str | None, typer.Option(help="Machines to look at, with commas between.")] = None,
    most_devices: Annotated[int, typer.Option("--most-devices", min=1, help="Most devices to use.")] = 64,
    parts: Annotated[
        bool, typer.Option("--parts", help="A part of a machine costs that part; else machines are paid for whole.")
    ] = False,
    spot: Annotated[bool, typer.Option("--spot", help="Take spot prices, where the price lists have one.")] = False,
    settings: SetOption = None,
    format_: FormatOption = Format.table,
) -> None:
    """Search the cheapest configuration under a deadline, or the fastest within a budget."""
    from sandtable.study import cheapest as searching

    found = searching.search(
        scenario,
        settings=settings or (),
        machines=machines,
        until=until or (),
        most_devices=most_devices,
        parts=parts,
        spot=spot,
        within=within,
        budget=budget,
    )
    emit(searching.table(found), format_)
    searching.check(found)


# --- calibrating -------------------------------------------------------------------------------------------


@app.command()
def calibrate(
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute, with wider intervals.")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="Parts to measure: storage,memory,compute,training,link,gpu. gpu: this machine's NVIDIA GPUs, timed "
            "through PyTorch; copies, power, and collectives where there are several."
        ),
    ] = None,
    storage_path: Annotated[Path, typer.Option("--storage-path", help="Folder on the disk to measure.")] = STORES,
    file_size: Annotated[
        str | None, typer.Option("--file-size", help="Size of the test file, such as '4 GiB'.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Machine file to write.")] = Path(
        "this_machine.yaml"
    ),
    cross_check: Annotated[
        str | None, typer.Option("--cross-check", help="'fio': compare the storage curve.")
    ] = None,
    refit: Annotated[
        str | None, typer.Option("--refit", help="Fit a storage device file to its own points.")
    ] = None,
    keep_file: Annotated[bool, typer.Option("--keep-file", help="Keep the test file for the next time.")] = False,
    from_data: Annotated[
        Path | None,
        typer.Option("--from-data", help="Fit operators of device files to this folder of published rows."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --from-data: print, write nothing.")] = False,
    record: Annotated[
        Path | None, typer.Option("--record", help="Keep what was timed on GPUs in this file, to hand on.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Calibrate GPUs from such a file instead of timing them.")
    ] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Measure this machine's storage, memory, processor and GPUs, fit the model, and write a machine file."""
    from sandtable.calibration import session
    from sandtable.cli import calibrate_command

    if from_data is not None:
        _calibrate_from_data(from_data, only, dry_run, format_)
        return
    if refit is not None:
        emit(calibrate_command.refit(refit), format_)
        return
    with progress() as shown:
        found = session.run(
            quick=quick,
            only=only,
            folder=storage_path,
            file_size=file_size,
            output=output,
            cross_check=cross_check,
            keep_file=keep_file,
            progress=shown,
            record=record,
            replay=replay,
        )
    for table in calibrate_command.tables(found):
        emit(table, format_)
    for warning in found.warnings:
        say(f"  ! {warning}")
    say(f"  wrote {output} in {found.seconds:.0f} s")


def _calibrate_from_data(folder: Path, only: str | None, dry_run: bool, format_: Format) -> None:
    from sandtable.published import fit_rows

    found = fit_rows.fit_all(folder, None if only is None else [name.strip() for name in only.split(",")])
    paths = [] if dry_run else fit_rows.write(found)
    for table in found.tables:
        emit(table, format_)
    for note in found.notes:
        say(f"  ! {note}")
    for path in paths:
        say(f"  wrote {path}")


@app.command()
def published(
    data: Annotated[
        Path | None, typer.Argument(help="Folder of published measurements; none: those shipped.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="One data set.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for scatter plots.")] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Predict published measurements, and score the predictions."""
    from sandtable.published import scoring
    from sandtable.report import rendering, scatter

    result = scoring.run(data, only=only)
    if format_ is Format.json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        emit(rendering.published_table(result), format_)
        if format_ is Format.table:
            for line in rendering.published_notes(result):
                print(line)
    if plots is not None:
        for path in scatter.write_plots(result, plots):
            say(f"  plot: {path}")


@app.command()
def findings(
    workload: Annotated[str, typer.Argument(help="A workload made after a paper.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for data and plots.")] = Path(
        "runs/findings"
    ),
    format_: FormatOption = Format.table,
) -> None:
    """Predict what a workload's paper found, and write each figure with its data."""
    from sandtable.report import lines
    from sandtable.study.finding import findings_of
    from sandtable.workload.seam import workload_named

    found = findings_of(workload_named(workload).name)
    emit(lines.summary(found), format_)
    for path in lines.write(found, output):
        say(f"  {path}")


@app.command("report")
def report_(
    runs: Annotated[list[str], typer.Argument(help="Run folders, run names, or 'latest'.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML report of runs."""
    from sandtable.run import run_folder

    _report([run_folder.open_run(name).path for name in runs], output)


# --- shared ------------------------------------------------------------------------------------------------


def _save(found: Simulation | RealRun) -> Path:
    from sandtable.run import run_folder

    folder = run_folder.RunFolder.create(found.case.scenario.name)
    folder.save(found.result)
    folder.save_inputs(found.case.scenario, found.case.machine)
    say(f"  saved {folder.path}")
    return folder.path


def _timeline(output: Path | None, predicted: Sequence[TraceRow], measured: Sequence[TraceRow]) -> None:
    if output is None:
        return
    from sandtable.report.timeline import write_trace

    write_trace(output, predicted, measured)
    say(f"  timeline: {output} (open it at ui.perfetto.dev)")


def _report(runs: Sequence[Path], output: Path | None) -> None:
    if output is None:
        return
    from sandtable.report.html import write_report

    write_report(runs, output)
    say(f"  report: {output}")


def _thresholds(checks: list[tuple[str, bool, float]]) -> None:
    for sentence, held, value in checks:
        say(f"  {'✓' if held else '✗'} {sentence}   {value:.4g}")
    missed = [sentence for sentence, held, _ in checks if not held]
    if missed:
        raise CheckFailed(f"does not hold: {'; '.join(missed)}")


def _version(value: bool) -> None:
    if value:
        print(f"sandtable {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Hold the options that every command shares."""
    root.debug = debug  # type: ignore[attr-defined]


def main() -> None:
    """Run the command line; every deliberate error leaves with its own exit code and one sentence."""
    # whoever ends a program politely gets what Ctrl-C gets: the finished part is compared and saved
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="sandtable")
    except SandtableError as error:
        _leave(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        # a file or folder that the user named: a full disk does not fit, all else is the wrong name
        name = error.filename2 or error.filename
        where = "" if name is None else f"{name}: "
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _leave(f"{where}{error.strerror or error}", DoesNotFit.exit_code if full else ConfigError.exit_code)
    except (KeyboardInterrupt, SystemExit) as left:
        # typer turns an interruption into this exit code
        code = INTERRUPTED if isinstance(left, KeyboardInterrupt) else left.code
        if code == INTERRUPTED:
            say("sandtable: interrupted; what was finished is saved")
        sys.exit(code)
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(sentence: str, code: int) -> NoReturn:
    if getattr(root, "debug", False):
        traceback.print_exc()
    say(f"sandtable: {sentence}")
    sys.exit(code)


if __name__ == "__main__":
    main()
