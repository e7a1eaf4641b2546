"""The commands ``sandtable rpf ...``: fit a recommender to a file of events, ask it, and compare recommenders.

Found by the name of this file; see `sandtable.plugins.command_modules`. What they do lies in `rpf_use` and is imported
when one of them runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandtable.cli.options import FormatOption, FullOption, ReportOption
from sandtable.cli.terminal import Format, emit, progress, say
from sandtable.errors import ConfigError
from sandtable.workload.progress import Step

if TYPE_CHECKING:
    from sandtable.table import Table
    from sandtable_workloads.rpf.rpf_use import Compared

app = typer.Typer(
    help="Fit recommenders to events with times, ask them, and compare them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Events = Annotated[Path, typer.Argument(help="File of events: text with a separator, or Parquet.")]
Model = Annotated[Path, typer.Argument(help="A model that 'fit' wrote.")]
User = Annotated[str | None, typer.Option("--user", help="Column of users.")]
Item = Annotated[str | None, typer.Option("--item", help="Column of items; several joined by '+'.")]
Time = Annotated[str | None, typer.Option("--time", help="Column of times.")]
Unit = Annotated[str | None, typer.Option("--time-unit", help="Of times that are numbers: h, s or ms.")]
Kinds = Annotated[
    list[str] | None,
    typer.Option("--kind", help="A kind of events that count, as buy; several times. All without."),
]
Rating = Annotated[float | None, typer.Option("--min-rating", help="Least rating that counts.")]
Edges = Annotated[Path | None, typer.Option("--edges", help="File of who follows whom, for social variants.")]
Components = Annotated[int, typer.Option("-k", "--components", help="Factors of a user and an item.")]
Decay = Annotated[float, typer.Option("--decay", help="How fast excitation fades, per hour.")]
Iterations = Annotated[int, typer.Option("--max-iter", help="Iterations at most.")]
Tolerance = Annotated[float, typer.Option("--tol", help="Relative change that ends a fit.")]
Seed = Annotated[int, typer.Option("--seed", help="Of all chance.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads; all without.")]


@app.command()
def fit(
    events: Events,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the model.")],
    variant: Annotated[str, typer.Option("--variant", help="pf, hpf, hrpf, srpf, drpf, ...")] = "hrpf",
    components: Components = 20,
    decay: Decay = 1.0,
    edges: Edges = None,
    max_iter: Iterations = 1000,
    tol: Tolerance = 1e-5,
    validation: Annotated[
        float, typer.Option("--validation", help="Share of last events that say when to stop.")
    ] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float64.")] = "float32",
    threads: Threads = None,
    ranks: Annotated[int, typer.Option("--ranks", help="Processes that share the users.")] = 1,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="File from which an ended fit goes on.")
    ] = None,
    drop_duplicates: Annotated[bool, typer.Option("--drop-duplicates", help="Keep one of equal events.")] = False,
    seed: Seed = 0,
    user: User = None,
    item: Item = None,
    time: Time = None,
    time_unit: Unit = None,
    kinds: Kinds = None,
    min_rating: Rating = None,
    format_: FormatOption = Format.table,
) -> None:
    """Fit a recommender to a file of events, and write it to a file."""
    from sandtable_workloads.rpf import rpf_use

    table = rpf_use.read(
        events,
        user=user,
        item=item,
        time=time,
        time_unit=time_unit,
        kinds=kinds,
        min_rating=min_rating,
        drop_duplicates=drop_duplicates,
        say=say,
    )
    options: dict[str, Any] = {"n_components": components, "decay": decay, "max_iter": max_iter, "tol": tol}
    options |= {"dtype": dtype, "n_threads": threads, "random_state": seed}
    options |= {"n_ranks": ranks} if ranks > 1 else {}
    model = rpf_use.estimator_named(variant, options)
    with progress() as shown:
        told = rpf_use.Told(lambda text, done, most: shown(Step(text, done, most)))
        found = rpf_use.fit(
            model,
            table,
            edges=edges,
            validation=validation,
            checkpoint=checkpoint,
            output=output,
            told=told,
            say=say,
        )
    emit(found, format_)


@app.command()
def recommend(
    model: Model,
    user: Annotated[str, typer.Argument(help="Id of a user, as in the events.")],
    at: Annotated[str | None, typer.Option("--at", help="Hour, or date; the end of the events without.")] = None,
    n: Annotated[int, typer.Option("-n", "--number", help="How many items.")] = 20,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="An item to leave out.")] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Print the items that a user will most likely meet at a time, and when it is likely to come back."""
    from sandtable_workloads.rpf import rpf_use

    emit(rpf_use.recommended(model, user, at=at, n=n, exclude=exclude or (), say=say), format_)


@app.command()
def evaluate(
    events: Events,
    variants: Annotated[
        list[str] | None,
        typer.Option("--variant", help="A variant to compare; several times. hpf and hrpf without."),
    ] = None,
    train: Annotated[float, typer.Option("--train", help="Share of the first events to learn from.")] = 0.8,
    components: Components = 20,
    decay: Decay = 1.0,
    edges: Edges = None,
    max_iter: Iterations = 200,
    tol: Tolerance = 1e-5,
    rivals: Annotated[
        bool, typer.Option("--rivals/--no-rivals", help="With hpfrec, poismf and implicit, where installed.")
    ] = True,
    threads: Threads = None,
    seed: Seed = 0,
    user: User = None,
    item: Item = None,
    time: Time = None,
    time_unit: Unit = None,
    kinds: Kinds = None,
    min_rating: Rating = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write a plot of returning times: .svg or .png.")
    ] = None,
    report: ReportOption = None,
    full: FullOption = False,
    format_: FormatOption = Format.table,
) -> None:
    """Compare recommenders on later events: ranks among all items, returning times, likelihood, seconds."""
    from sandtable_workloads.rpf import rpf_use

    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise ConfigError(f"--plot {plot}: write a name that ends with .svg or .png")
    table = rpf_use.read(
        events,
        user=user,
        item=item,
        time=time,
        time_unit=time_unit,
        kinds=kinds,
        min_rating=min_rating,
        drop_duplicates=False,
        say=say,
    )
    options: dict[str, Any] = {"n_components": components, "decay": decay, "max_iter": max_iter, "tol": tol}
    options |= {"n_threads": threads, "random_state": seed}
    with progress() as shown:
        compared = rpf_use.compare(
            variants or ["hpf", "hrpf"], table, options, train=train, edges=edges, rivals=rivals, told=shown
        )
    shown_figures = rpf_use.SHOWN if format_ is Format.table and not full else ()
    emit(compared.table(shown_figures), format_)
    if plot is not None:
        from sandtable.report import figures

        figures.save(returns_figure(compared.returns), plot)
        say(f"  plot: {plot}")
    if report is not None:
        save_report(compared, report)
        say(f"  report: {report}")


def save_report(compared: Compared, path: Path) -> None:
    """Write a page with the table and the plot of a comparison."""
    from sandtable.report.html import Block, Page, Section, write

    blocks = (
        Block(kind="text", text=compared.summary),
        Block(kind="table", table=compared.table()),
        Block(kind="plot", text="When users come back", table=compared.returns, draw=returns_figure),
    )
    section = Section(id="compared", title="Recommenders on later events", blocks=blocks)
    write(Page(title="Recommenders of events, compared", sections=(section,)), path)


def returns_figure(data: Table) -> Any:
    """Draw the shares of users who are back within some hours, the actual ones first, in ink."""
    from sandtable.report import figures

    figure, axis = figures.one_axis(2.9, x="hours from the split", y="share of users back")
    for index, name in enumerate(dict.fromkeys(row[0] for row in data.rows)):
        points = [(max(hours, 1e-3), share) for model, share, hours in data.rows if model == name]
        colour = figures.look(index - 1)["color"] if index else figures.INK
        axis.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1.2 if index else 2.0)
    axis.set_xscale("log")
    axis.set_ylim(0, 1)
    figures.legend_below(figure)
    return figure
