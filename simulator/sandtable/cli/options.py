"""The application that commands add themselves to, and the options that several of them share."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sandtable import plugins
from sandtable.cli.terminal import Format


class Commands(TyperGroup):
    """The commands of the core, and after them the groups that installed packages add, imported when asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in plugins.command_modules() if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return one of the core's, or what another package's module calls its ``app``."""
        own = super().get_command(ctx, cmd_name)
        module = None if own is not None else plugins.command_modules().get(cmd_name)
        if module is None:
            return own
        group = typer.main.get_command(importlib.import_module(module).app)
        group.name = cmd_name
        return group


app = typer.Typer(
    name="sandtable",
    cls=Commands,
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
