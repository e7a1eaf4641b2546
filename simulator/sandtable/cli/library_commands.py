"""Commands about what there is: list, show, new, doctor."""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sandtable.cli.options import (
    FormatOption,
    app,
)
from sandtable.cli.terminal import Format, emit, emit_comparison, emit_result, say
from sandtable.errors import ConfigError


class What(StrEnum):
    """What can be listed."""

    devices = "devices"
    machines = "machines"
    workloads = "workloads"
    models = "models"
    stacks = "stacks"
    kernels = "kernels"
    scenarios = "scenarios"
    suites = "suites"
    prices = "prices"
    runs = "runs"


@app.command("list")
def list_(
    what: Annotated[What, typer.Argument(help="What to list.")], format_: FormatOption = Format.table
) -> None:
    """List devices, machines, workloads, models, stacks, kernels, scenarios, suites, prices or runs."""
    from sandtable.report import listing

    emit(listing.listing(what.value, lambda text: say(f"  ! {text}")), format_)


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A device, machine, scenario or price list (name or file), a workload, a model or a run."
        ),
    ],
    format_: FormatOption = Format.table,
) -> None:
    """Show a device with its sources, what a scenario or workload can be told, a model's sizes, or a run's metrics."""
    from sandtable.hardware import library
    from sandtable.report import described, listing
    from sandtable.runs import run_folder

    looks_like_run = name == "latest" or Path(name).is_dir() or (run_folder.RUNS / name).is_dir()
    if not looks_like_run or (Path(name) / "config.json").is_file():
        table = None if name in library.device_files() else described.show(name)
        if table is not None and format_ is Format.table and "parameter" in table.columns:
            print(described.text_of(table, shutil.get_terminal_size((100, 24)).columns))
        elif table is not None:
            emit(table, format_)
        elif format_ is Format.json:
            component = listing.find_device(name)
            print(json.dumps(library.to_yaml_data(component), indent=1, default=str))
        else:
            emit(listing.device_table(listing.find_device(name)), format_)
        return
    run = run_folder.open_run(name)
    found, comparison = False, run.comparison()
    if comparison is not None and format_ is Format.table:
        emit_comparison(comparison, format_)
    for result in (run.prediction(), run.measurement()):
        if result is not None:
            found = True
            if format_ is Format.table:
                print(f"{result.kind} of {result.scenario['name']} on {result.machine}")
            emit_result(result, format_)
    if comparison is not None and format_ is not Format.table:
        emit_comparison(comparison, format_)
    if comparison is None and not found:
        raise ConfigError("holds no prediction, measurement or comparison", file=str(run.path))


class New(StrEnum):
    """What can be started from a skeleton."""

    device = "device"
    kernel = "kernel"
    workload = "workload"
    scenario = "scenario"


@app.command()
def new(
    what: Annotated[New, typer.Argument(help="What to start.")],
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits and underscores.")],
    kind: Annotated[str, typer.Option(help="Kind of device.")] = "storage",
    like: Annotated[str | None, typer.Option(help="The ready-made scenario that a new one begins as.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write it.")] = None,
) -> None:
    """Write a commented skeleton of a device, scenario, kernel or workload, which loads as it stands."""
    from sandtable.cli import skeletons

    print(skeletons.write(what.value, name, kind=kind, output=output, like=like))


@app.command()
def doctor(format_: FormatOption = Format.table) -> None:
    """Say what this machine has, and what would make a measurement on it less valid."""
    from sandtable.report import listing

    emit(listing.doctor_table(), format_)
