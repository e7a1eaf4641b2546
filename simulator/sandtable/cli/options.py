"""The application that commands add themselves to, and the options that several of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandtable.cli.terminal import Format

app = typer.Typer(
    name="sandtable",
    help="Simulate hardware and cost for machine-learning workloads, run the same for real, and compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

FormatOption = Annotated[Format, typer.Option("--format", help="How to print the result.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change the scenario, or its machine (machine.storage=NAME)."),
]
MachineOption = Annotated[
    str | None, typer.Option("--machine", help="Machine name or file instead of the scenario's.")
]
FullOption = Annotated[bool, typer.Option("--full", help="Print all numbers behind the answer.")]
StoreOption = Annotated[Path, typer.Option("--store", help="Folder for the model files that real runs read.")]
TraceOption = Annotated[Path | None, typer.Option("--trace", help="Write a Perfetto timeline to this file.")]
ReportOption = Annotated[Path | None, typer.Option("--report", help="Write an HTML report to this file.")]
STORES = Path("stores")
