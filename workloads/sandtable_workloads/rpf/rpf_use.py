"""What the commands of ``sandtable rpf`` do: read events, fit, recommend, compare; results as tables."""

from __future__ import annotations

import contextlib
import tempfile
import time as clock
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sandtable import units
from sandtable.errors import ConfigError, UnknownName, install_extra
from sandtable.table import Quantity, Table
from sandtable_workloads.rpf.estimators.fit_loop import Iteration
from sandtable_workloads.rpf.estimators.model_store import plain_ids
from sandtable_workloads.rpf.estimators.observed_events import IdIndex
from sandtable_workloads.rpf.evaluated import contenders
from sandtable_workloads.rpf.evaluated import rivals as peers
from sandtable_workloads.rpf.evaluated.evaluation_harness import Evaluation, evaluate
from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
from sandtable_workloads.rpf.evaluated.scored_estimators import of_estimator
from sandtable_workloads.rpf.events.event_checks import hour_of, many
from sandtable_workloads.rpf.events.event_files import FileOptions, read_events
from sandtable_workloads.rpf.events.event_split import chronological_split
from sandtable_workloads.rpf.events.event_store import EVENTS_PER_GROUP, EventStore
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.grouped_files import group_events
from sandtable_workloads.rpf.events.social_edges import SocialEdges, read_edges
from sandtable_workloads.rpf.rpf_variants import estimators
from sandtable_workloads.rpf.scaled.stochastic_fit import StochasticOptions, check_model, fit_stochastic

Say = Callable[[str], None]
# what people see of a comparison, unless they ask for all
SHOWN = ("ndcg", "recall_10", "recall_20", "split_median_h", "next_median_h", "log_likelihood", "train_s")
# when returning times are asked for, as the harness calls it, of the plot
ASKED = "split"
# shares of users back that a table has, and heights of what is drawn in it
BACK_FRACS, BLOCKS = (0.25, 0.5, 0.75, 0.9), " ▁▂▃▄▅▆▇█"


def read(path: Path, options: FileOptions, *, drop_duplicates: bool, say: Say) -> EventTable:
    """Read events from a file, and say what was guessed or odd.

    Raises:
        ConfigError: no such file, a column that is missing, an event that cannot be.
    """
    table = read_events(path, options, duplicates="drop" if drop_duplicates else "keep")
    for note in table.notes:
        say(f"  ! {note}")
    return table


def estimator_named(variant: str, options: Mapping[str, Any]) -> Any:
    """Return an estimator of a variant, not fitted.

    Raises:
        UnknownName: there is no such variant.
    """
    known = estimators()
    name = variant.lower()
    if name not in known:
        raise UnknownName("variant", variant, known)
    model = known[name](**options)
    model.check_params()
    return model


@dataclass
class Told:
    """Says of a fit's iterations which it is, the ELBO, and how fast that still rises.

    Attributes:
        show: Told of each as a text, how many came before it, and how many there are at most.
        before: ELBO of the last.
        ends_s: Seconds from the start to the end of each.
    """

    show: Callable[[str, int, int], None]
    before: float | None = None
    ends_s: list[float] = field(default_factory=list)

    @property
    def usual_s(self) -> float:
        """Seconds that an iteration usually takes: the median, as the first one may wait for compilers."""
        return float(np.median(np.diff(self.ends_s, prepend=0.0))) if self.ends_s else 0.0

    def __call__(self, done: Iteration) -> None:
        """Be told that an iteration is done."""
        self.ends_s.append(done.seconds)
        text = f"ELBO {done.elbo:,.1f}"
        if self.before is not None:
            text += f", {(done.elbo - self.before) / max(abs(self.before), 1e-300):+.1e}"
        if done.held_out is not None:
            text += f", held out {done.held_out:.4f} an event"
        self.before = done.elbo
        self.show(text, done.number - 1, done.most)


def check_output(output: Path) -> None:
    """Refuse a file of a model that cannot be written, before there is one.

    Raises:
        ConfigError: it is a folder, or its own is missing.
    """
    if output.is_dir():
        raise ConfigError(f"{output} is a folder: name the file of the model, such as {output / 'model.npz'}")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output.parent} is no folder: make it first")


def fit(
    model: Any,
    table: EventTable,
    *,
    edges: Path | None,
    validation: float,
    checkpoint: Path | None,
    output: Path,
    told: Told,
    say: Say,
) -> Table:
    """Fit a model, write it, and return what came of it.

    Raises:
        ConfigError: a social variant without edges, or edges where they mean nothing; ids that no file keeps.
        DoesNotFit: the memory that is free is too small; with what fits.
    """
    for ids in (table.user_ids, table.item_ids):
        plain_ids(ids)
    events, later = table, None
    if validation:
        split = chronological_split(table, 1 - validation)
        events, later = split.train, split.test
    n_users, n_items = len(events.user_ids), len(events.item_ids)
    if model.n_components > min(n_users, n_items):
        counts = f"{many(n_users, 'user')} and {many(n_items, 'item')}"
        say(f"  ! {model.n_components:,} components for {counts}: more than the fewer of them tell nothing more")
    graph = graph_of(model, edges, events, say)
    begin = clock.perf_counter()
    keeper = {} if checkpoint is None else {"checkpoint": checkpoint}
    model.fit(events, None if graph is None else graph.columns, validation=later, progress=told, **keeper)
    seconds = clock.perf_counter() - begin
    model.save(output)
    return _fitted(model, len(events), told, seconds, output)


def fit_streamed(
    model: Any,
    path: Path,
    columns: FileOptions,
    options: StochasticOptions,
    *,
    batch_events: int | None,
    drop_duplicates: bool,
    keep: Path | None,
    checkpoint: Path | None,
    output: Path,
    shown: Callable[[str], None],
    told: Told,
    say: Say,
) -> Table:
    """Fit a model to events of any number, batch by batch from disk, write it, and return what came of it.

    Args:
        model: PF, HPF or HRPF.
        path: A file of events in any order, or the folder of an `EventStore`, which is taken as it is.
        columns: What to read of a file.
        options: How to step.
        batch_events: Events of a batch, about; None: as many as a store usually has.
        drop_duplicates: Whether to keep one of equal events.
        keep: Folder in which to keep a file's batches; None: they lie beside ``output`` until the fit ends.
        checkpoint: File that keeps the fit.
        output: File of the model.
        shown: Told how many events are read.
        told: Told of each step.
        say: Told what was guessed or is odd.

    Raises:
        ConfigError: a variant that needs all users at once; a store that is to be cut otherwise; see `read`.
        DoesNotFit: the memory that is free is too small for the rows of all users and items.
    """
    check_model(model)
    stored = (path / "events.parquet").exists()
    if stored and (batch_events is not None or keep is not None):
        raise ConfigError(f"{path} is a store of events in batches already: leave out --batch-events and --store")
    with tempfile.TemporaryDirectory(prefix=".sandtable-events-", dir=output.absolute().parent) as folder:
        begin = clock.perf_counter()
        store = (
            EventStore(path)
            if stored
            else group_events(
                path,
                keep or Path(folder) / "events",
                columns,
                duplicates="drop" if drop_duplicates else "keep",
                events_per_group=batch_events or EVENTS_PER_GROUP,
                progress=shown,
                say=lambda note: say(f"  ! {note}"),
            )
        )
        fit_stochastic(model, store, options=options, checkpoint=checkpoint, progress=told)
        seconds = clock.perf_counter() - begin
    model.save(output)
    return _fitted(model, store.n_events, told, seconds, output, n_batches=store.n_batches)


def _fitted(model: Any, n_events: int, told: Told, seconds: float, output: Path, n_batches: int = 0) -> Table:
    k, each = model.n_components, told.usual_s
    ended = "converged" if model.converged_ else "not converged"
    done = (
        f"{model.n_iter_ / n_batches:g} epochs of {n_batches} batches of users" if n_batches else f"{model.n_iter_}"
    )
    of_each = n_events / max(n_batches, 1)
    rows = [
        ("model", type(model).__name__),
        ("events", f"{n_events:,}"),
        ("users", f"{model.user_ids_.size:,}"),
        ("items", f"{model.item_ids_.size:,}"),
        ("components", k),
        ("iterations", f"{done} ({ended})"),
        ("ELBO", f"{model.elbo_[-1]:,.2f}"),
        *([("held-out log-likelihood an event", f"{model.held_out_[-1]:.4f}")] if model.held_out_ else []),
        ("time", Quantity(seconds, "s")),
        ("time a batch" if n_batches else "time an iteration", Quantity(each, "s")),
        *([("updates", Quantity(of_each * k / each, "updates/s"))] if each else []),
        ("written", str(output)),
    ]
    notes: tuple[str, ...] = ()
    if model.kept_from_ > model.period_[0]:
        end = moment(model.period_[1], model.origin_)
        notes = (f"of what excites only the latest is kept: ask for recommendations from {end} on",)
    return Table(columns=("what", "value"), rows=rows, title="Fitted", notes=notes)


def graph_of(model: Any, path: Path | None, events: EventTable, say: Say) -> SocialEdges | None:
    """Return the edges of a social variant between users who have events.

    Raises:
        ConfigError: edges are missing, or mean nothing to this variant.
    """
    name = type(model).__name__.lower()
    if path is None and model.needs_edges:
        raise ConfigError(f"{name} needs to know who follows whom: --edges FILE")
    if path is None:
        return None
    if not model.social:
        raise ConfigError(f"{name} has no use for --edges: srpf, dsrpf, iirpf and xiirpf have")
    seen = np.flatnonzero(events.events_per_user)
    found = read_edges(path).between(events.user_ids[seen], unknown="drop")
    for note in found.notes:
        say(f"  ! {note}")
    return found


# --- asking --------------------------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    """Read a model that was written.

    Raises:
        ConfigError: it is none.
    """
    from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator

    return PoissonEstimator.load(path)


def recommended(path: Path, user: str, *, at: str | None, n: int, exclude: Iterable[str], say: Say) -> Table:
    """Return the items of highest intensity for a user, with their rates, and when the user is likely to return.

    Raises:
        ConfigError: no model, a time that is none or that the model cannot say, or no number of items.
    """
    model = load(path)
    who = _id_like(user, model.user_index_)
    place = model.user_index_.place(who)
    if place < 0:
        say(f"  ! {user} was never seen: items are those that anyone would get")
    elif np.diff(model.observed_.pairs.user_events)[place] < 2:
        say(f"  ! {user} has one event only: when a next one follows is hardly known")
    hour = model.period_[1] if at is None else hour_of(at, model.origin_)
    if hour < model.period_[0]:
        asked, first = (moment(each, model.origin_) for each in (hour, model.period_[0]))
        say(f"  ! {asked} lies before all events, the first of which is at {first}")
    left_out = [_id_like(each, model.item_index_) for each in exclude]
    for each in left_out:
        if model.item_index_.place(each) < 0:
            say(f"  ! --exclude {each}: no event was with such an item")
    rows = [
        (place, str(item), Quantity(rate, "events/h"))
        for place, (item, rate) in enumerate(model.recommend(who, hour, n, left_out), 1)
    ]
    back = model.returning_time(who, hour)
    since = moment(hour, model.origin_)
    note = f"next event of {user} after {since}: {units.format_seconds(3600 * back)} (median)"
    return Table(columns=("place", "item", "rate"), rows=rows, title=f"For {user}", notes=(note,))


def moment(hour: float, origin: np.datetime64 | None) -> str:
    """Return an hour as people read it: as a date where hour 0 is one."""
    if origin is None:
        return f"hour {hour:,.1f}"
    date = origin.astype("datetime64[s]") + np.timedelta64(round(3600 * hour), "s")
    return str(date).replace("T", " ")


def _id_like(text: str, index: IdIndex) -> Any:
    """Return an id from the command line as the model has it: a text, a number or a UUID, whichever it knows."""
    for kind in (str, int, float, uuid.UUID):
        with contextlib.suppress(ValueError):
            if index.place(kind(text)) >= 0:
                return kind(text)
    return text


# --- comparing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """Recommenders side by side, and when users came back by each."""

    evaluations: Sequence[Evaluation]
    summary: str

    def table(self, shown: Sequence[str] = ()) -> Table:
        """Return a row for each recommender, of those figures that are ``shown``, or of all."""
        names = list(dict.fromkeys(name for each in self.evaluations for name in each.figures()))
        names = [name for name in names if not shown or name in shown]
        figures = [(each.name, each.figures()) for each in self.evaluations]
        rows = [(name, *(float(f"{found[n]:.4g}") if n in found else "" for n in names)) for name, found in figures]
        return Table(columns=("model", *map(_words, names)), rows=rows, notes=(self.summary,))

    @property
    def has_returns(self) -> bool:
        """Whether any of them says when users come back."""
        return any(ASKED in each.returning for each in self.evaluations)

    @property
    def returns(self) -> Table:
        """Shares of users who are back within some hours: those who really were, and by each recommender."""
        asked = [(each.name, each.returning[ASKED]) for each in self.evaluations if ASKED in each.returning]
        if not asked:
            raise ConfigError("nothing to plot: no recommender says when users come back")
        series = [("actual", asked[0][1].actual), *((name, errors.estimated) for name, errors in asked)]
        shares = np.linspace(0.01, 0.99, 50)
        rows = [(name, float(q), float(np.quantile(hours, q))) for name, hours in series for q in shares]
        return Table(columns=("model", "share back", "within"), units=("", "", "h"), rows=rows)


def users_back(returns: Table) -> Table:
    """Return hours within which shares of users are back, and the share over time as a line of blocks.

    Hours of the line go up by equal factors, from the least to the most of all rows.
    """
    of_each: dict[str, list[tuple[float, float]]] = {}
    for name, share, hours in returns.rows:
        of_each.setdefault(name, []).append((float(hours), float(share)))
    every = np.array([hours for points in of_each.values() for hours, _ in points])
    most = max(float(every.max()), 1e-3)
    grid = np.geomspace(min(max(float(every.min()), most / 1e3), most), most, 32)
    rows = []
    for name, points in of_each.items():
        hours, share = np.array(points).T
        steps = np.searchsorted(hours, grid, side="right") * (len(BLOCKS) - 1) // hours.size
        within = (Quantity(3600 * float(np.interp(each, share, hours)), "s") for each in BACK_FRACS)
        rows.append((name, *within, "".join(BLOCKS[step] for step in steps)))
    heads = [f"{round(100 * each)} % back" for each in BACK_FRACS]
    note = (
        f"over time: share of users back, {grid[0]:.3g} to {grid[-1]:.3g} hours after the split, by equal factors"
    )
    return Table(columns=("model", *heads, "over time"), rows=rows, title="Returning times", notes=(note,))


def compare(
    variants: Sequence[str],
    table: EventTable,
    options: Mapping[str, Any],
    *,
    train: float,
    edges: Path | None,
    rivals: bool,
    told: Callable[[str], None],
    say: Say,
) -> Compared:
    """Train variants and simpler recommenders on the first events and judge them by the others.

    Raises:
        ConfigError: no event is left to train on or to test, an unknown variant, a social one without edges.
    """
    graph = None if edges is None else read_edges(edges).between(table.user_ids, unknown="drop")
    for note in () if graph is None else graph.notes:
        say(f"  ! {note}")
    held = HeldOut.of(table, None if graph is None else (graph.user, graph.follows), train)
    chosen = [contenders.popularity(), contenders.own_counts(), contenders.recency()]
    for variant in variants:
        model = estimator_named(variant, options)
        if model.needs_edges and graph is None:
            raise ConfigError(f"{variant} needs to know who follows whom: --edges FILE")
        chosen.append(of_estimator(partial(estimator_named, variant, options)))
    if rivals:
        chosen += peers.installed(options["n_components"], options["random_state"])
        if missing := peers.missing():
            say(f"  ! without {', '.join(missing)}, which are not installed: {install_extra('bench')}")
    return Compared(evaluate(chosen, held, told), held.split.summary())


def _words(name: str) -> str:
    unit = " (h)" if name.endswith("_h") else " (s)" if name.endswith("_s") else ""
    said = name.removesuffix("_h").removesuffix("_s").replace("_", " ").replace("recall ", "recall@")
    return said.replace("log likelihood", "log-lik.").replace(" median", "") + unit
