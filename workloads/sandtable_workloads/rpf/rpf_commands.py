"""The commands ``sandtable rpf ...``: fit a recommender to a file of events, ask it, and compare recommenders.

Found by the name of this file; see `sandtable.plugins.command_modules`. What they do lies in `rpf_use` and is imported
when one of them runs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sandtable.cli.options import FormatOption, FullOption, ReportOption
from sandtable.cli.terminal import Format, emit, progress, say
from sandtable.errors import ConfigError
from sandtable.workload.progress import Step

if TYPE_CHECKING:
    from sandtable.table import Table
    from sandtable_workloads.rpf.events.event_checks import TimeUnit
    from sandtable_workloads.rpf.events.event_files import FileOptions
    from sandtable_workloads.rpf.events.event_table import EventTable
    from sandtable_workloads.rpf.rpf_use import Compared
    from sandtable_workloads.rpf.scaled.stochastic_fit import StochasticOptions

app = typer.Typer(
    help="Fit recommenders to events with times, ask them, and compare them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Model = Annotated[Path, typer.Argument(help="A model that 'fit' wrote.")]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which events to read, and of what columns; names are guessed where none is given."""

    events: Annotated[Path, typer.Argument(help="File of events: text with a separator, or Parquet.")]
    user: Annotated[str | None, typer.Option("--user", help="Column of users.")] = None
    item: Annotated[str | None, typer.Option("--item", help="Column of items; several joined by '+'.")] = None
    time: Annotated[str | None, typer.Option("--time", help="Column of times.")] = None
    time_unit: Annotated[str | None, typer.Option("--time-unit", help="Of times that are numbers: h, s or ms.")] = (
        None
    )
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", help="A kind of events that count, as buy; several times. All without."),
    ] = None
    min_rating: Annotated[float | None, typer.Option("--min-rating", help="Least rating that counts.")] = None
    drop_duplicates: Annotated[bool, typer.Option("--drop-duplicates", help="Keep one of equal events.")] = False

    @property
    def options(self) -> FileOptions:
        """What to read of the file."""
        from sandtable_workloads.rpf.events.event_files import FileOptions

        return FileOptions(
            user=self.user,
            item=self.item,
            time=self.time,
            time_unit=cast("TimeUnit | None", self.time_unit),
            kinds=tuple(self.kinds) if self.kinds else None,
            min_rating=self.min_rating,
        )

    def table(self) -> EventTable:
        """Read all of them into memory."""
        from sandtable_workloads.rpf import rpf_use

        return rpf_use.read(self.events, self.options, drop_duplicates=self.drop_duplicates, say=say)


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How to fit whatever is fitted."""

    components: Annotated[int, typer.Option("-k", "--components", help="Factors of a user and an item.")] = 20
    decay: Annotated[float, typer.Option("--decay", help="How fast excitation fades, per hour.")] = 1.0
    edges: Annotated[
        Path | None, typer.Option("--edges", help="File of who follows whom, for social variants.")
    ] = None
    max_iter: Annotated[int, typer.Option("--max-iter", help="Iterations at most.")] = 1000
    tol: Annotated[float, typer.Option("--tol", help="Relative change that ends a fit.")] = 1e-5
    threads: Annotated[int | None, typer.Option("--threads", help="Threads; all without.")] = None
    seed: Annotated[int, typer.Option("--seed", help="Of all chance.")] = 0

    def options(self, **more: Any) -> dict[str, Any]:
        """Return the hyperparameters of an estimator."""
        found = {"n_components": self.components, "decay": self.decay, "max_iter": self.max_iter, "tol": self.tol}
        return {**found, "n_threads": self.threads, "random_state": self.seed, **more}


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How to fit events that memory has no room for."""

    stochastic: Annotated[
        bool,
        typer.Option(
            "--stochastic", help="Fit by batches of users from disk (pf, hpf, hrpf), of any number of events."
        ),
    ] = False
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="With --stochastic: passes over all batches at most; 20 without.")
    ] = None
    batch_events: Annotated[
        int | None,
        typer.Option("--batch-events", help="With --stochastic: events of a batch, about; 250,000 without."),
    ] = None
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", help="With --stochastic: folder that keeps the batches, to be given as EVENTS again."
        ),
    ] = None

    def __post_init__(self) -> None:
        given = {"--epochs": self.epochs, "--batch-events": self.batch_events, "--store": self.store}
        alone = [name for name, value in given.items() if value is not None]
        if alone and not self.stochastic:
            raise ConfigError(f"{alone[0]} means something with --stochastic only")
        for name, value in list(given.items())[:2]:
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")

    def options(self) -> StochasticOptions:
        """Return how to step."""
        from sandtable_workloads.rpf.scaled.stochastic_fit import StochasticOptions

        return StochasticOptions() if self.epochs is None else StochasticOptions(n_epochs=self.epochs)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take options in groups: those of each parameter that is a dataclass stand in its place."""
    own: list[Any] = [*inspect.signature(command, eval_str=True).parameters.values()]
    groups = {each.name: each.annotation for each in own if hasattr(each.annotation, "__dataclass_fields__")}
    options = {name: inspect.signature(kind, eval_str=True).parameters for name, kind in groups.items()}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: kind(**{each: given.pop(each) for each in options[name]}) for name, kind in groups.items()}
        command(**given, **made)

    flat = [option for each in own for option in options.get(each.name, {each.name: each}).values()]
    flat = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in flat]
    run.__dict__.pop("__wrapped__")
    vars(run)["__signature__"] = inspect.Signature(flat)
    run.__annotations__ = {each.name: each.annotation for each in flat}
    return run


@app.command()
@grouped
def fit(
    reading: Reading,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the model.")],
    fitting: Fitting,
    streaming: Streaming,
    variant: Annotated[str, typer.Option("--variant", help="pf, hpf, hrpf, srpf, drpf, ...")] = "hrpf",
    validation: Annotated[
        float, typer.Option("--validation", help="Share of last events that say when to stop.")
    ] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float64.")] = "float32",
    ranks: Annotated[int, typer.Option("--ranks", help="Processes that share the users.")] = 1,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="File from which an ended fit goes on.")
    ] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Fit a recommender to a file of events, and write it to a file."""
    from sandtable_workloads.rpf import rpf_use

    model = rpf_use.estimator_named(variant, fitting.options(dtype=dtype, n_ranks=ranks))
    rpf_use.check_output(output)
    with progress() as shown:
        told = rpf_use.Told(lambda text, done, most: shown(Step(text, done, most)))
        if streaming.stochastic:
            if validation or fitting.edges is not None:
                raise ConfigError(
                    "--stochastic ends by its ELBO, without edges: leave out --validation and --edges"
                )
            found = rpf_use.fit_streamed(
                model,
                reading.events,
                reading.options,
                streaming.options(),
                batch_events=streaming.batch_events,
                drop_duplicates=reading.drop_duplicates,
                keep=streaming.store,
                checkpoint=checkpoint,
                output=output,
                shown=shown,
                told=told,
                say=say,
            )
        else:
            found = rpf_use.fit(
                model,
                reading.table(),
                edges=fitting.edges,
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
@grouped
def evaluate(
    reading: Reading,
    fitting: Fitting,
    variants: Annotated[
        list[str] | None,
        typer.Option("--variant", help="A variant to compare; several times. hpf and hrpf without."),
    ] = None,
    train: Annotated[float, typer.Option("--train", help="Share of the first events to learn from.")] = 0.8,
    rivals: Annotated[
        bool, typer.Option("--rivals/--no-rivals", help="With hpfrec, poismf and implicit, where installed.")
    ] = True,
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
    table = reading.table()
    with progress() as shown:
        compared = rpf_use.compare(
            variants or ["hpf", "hrpf"],
            table,
            fitting.options(),
            train=train,
            edges=fitting.edges,
            rivals=rivals,
            told=shown,
            say=say,
        )
    shown_figures = rpf_use.SHOWN if format_ is Format.table and not full else ()
    emit(compared.table(shown_figures), format_)
    if compared.has_returns and format_ is Format.table:
        emit(rpf_use.users_back(compared.returns), format_)
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
