"""What the commands of ``sandtable rpf`` do: read events, fit, recommend, compare; results as tables."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from sandtable import units
from sandtable.errors import ConfigError, DoesNotFit, UnknownName
from sandtable.system import limits
from sandtable.table import Quantity, Table
from sandtable_workloads.rpf import rpf_memory
from sandtable_workloads.rpf.estimators.fit_loop import Iteration
from sandtable_workloads.rpf.evaluated import contenders, rivals
from sandtable_workloads.rpf.evaluated.evaluation_harness import Evaluation, evaluate
from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
from sandtable_workloads.rpf.evaluated.scored_estimators import of_estimator
from sandtable_workloads.rpf.events.event_checks import TimeUnit
from sandtable_workloads.rpf.events.event_files import FileOptions, read_events
from sandtable_workloads.rpf.events.event_split import chronological_split
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.social_edges import SocialEdges, read_edges
from sandtable_workloads.rpf.rpf_parameters import Rpf
from sandtable_workloads.rpf.rpf_variants import estimators

Say = Callable[[str], None]
# share of the memory that is free which a fit may take
FREE_FRAC = 0.9
# what people see of a comparison, unless they ask for all
SHOWN = ("ndcg", "recall_10", "recall_20", "split_median_h", "next_median_h", "log_likelihood", "train_s")
# when returning times are asked for, as the harness calls it, of the plot
ASKED = "split"


def read(
    path: Path,
    *,
    user: str | None,
    item: str | None,
    time: str | None,
    time_unit: str | None,
    kinds: Iterable[str] | None = None,
    min_rating: float | None = None,
    drop_duplicates: bool,
    say: Say,
) -> EventTable:
    """Read events from a file, and say what was guessed or odd.

    Raises:
        ConfigError: no such file, a column that is missing, an event that cannot be.
    """
    if time_unit not in (None, *get_args(TimeUnit)):
        raise ConfigError(f"--time-unit is h, s or ms, not {time_unit!r}")
    options = FileOptions(
        user=user,
        item=item,
        time=time,
        time_unit=cast("TimeUnit | None", time_unit),
        kinds=tuple(kinds) if kinds else None,
        min_rating=min_rating,
    )
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
    """Says of a fit's iterations which it is, the ELBO, and how fast that still rises."""

    show: Callable[[str, int, int], None]
    before: float | None = None
    n: int = 0
    seconds: float = 0.0

    def __call__(self, done: Iteration) -> None:
        """Be told that an iteration is done."""
        self.n, self.seconds = done.number, done.seconds
        text = f"ELBO {done.elbo:,.1f}"
        if self.before is not None:
            text += f", {(done.elbo - self.before) / max(abs(self.before), 1e-300):+.1e}"
        if done.held_out is not None:
            text += f", held out {done.held_out:.4f} an event"
        self.before = done.elbo
        self.show(text, done.number, done.most)


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
        ConfigError: a social variant without edges, or edges where they mean nothing; an output that is a folder.
        DoesNotFit: the memory that is free is too small; with what fits.
    """
    if output.is_dir():
        raise ConfigError(f"{output} is a folder: name the file of the model, such as {output / 'model.npz'}")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output.parent} is no folder: make it first")
    events, later = table, None
    if validation:
        split = chronological_split(table, 1 - validation)
        events, later = split.train, split.test
    graph = graph_of(model, edges, events, say)
    check_memory(model, events, graph)
    begin = clock.perf_counter()
    keeper = {} if checkpoint is None else {"checkpoint": checkpoint}
    model.fit(events, None if graph is None else graph.columns, validation=later, progress=told, **keeper)
    seconds = clock.perf_counter() - begin
    model.save(output)
    pairs, k = model.observed_.pairs, model.n_components
    each = told.seconds / max(told.n, 1)
    rows = [
        ("model", type(model).__name__),
        ("events", f"{pairs.n_events:,}"),
        ("users", f"{pairs.n_users:,}"),
        ("items", f"{pairs.n_items:,}"),
        ("components", k),
        ("iterations", f"{model.n_iter_} ({'converged' if model.converged_ else 'not converged'})"),
        ("ELBO", f"{model.elbo_[-1]:,.2f}"),
        *([("held-out log-likelihood an event", f"{model.held_out_[-1]:.4f}")] if model.held_out_ else []),
        ("time", Quantity(seconds, "s")),
        ("time an iteration", Quantity(each, "s")),
        *([("updates", Quantity(pairs.n_events * k / each, "updates/s"))] if each else []),
        ("written", str(output)),
    ]
    return Table(columns=("what", "value"), rows=rows, title="Fitted")


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


def check_memory(model: Any, events: EventTable, graph: SocialEdges | None) -> None:
    """Refuse a fit for which the memory of this machine is too small.

    Raises:
        DoesNotFit: with how much it needs, and what fits.
    """
    counts = Rpf.model_construct(
        variant="srpf" if graph is not None else "hrpf",  # the least of those variants that have more
        users=events.n_users,
        items=events.n_items,
        events=len(events),
        components=model.n_components,
        precision=model.dtype,
        followees=0.0 if graph is None else len(graph) / events.n_users,
    )
    there = FREE_FRAC * limits.memory_bytes()
    needed = sum(rpf_memory.held(counts).values())
    if needed > there:
        fitting = rpf_memory.fitting(counts, there)
        raise DoesNotFit(
            f"the fit needs {units.format_bytes(needed)} and {units.format_bytes(there)} are there: "
            + (
                f"take {fitting}"
                if fitting
                else "no smaller setting fits; stream it from Parquet by stochastic inference"
            )
        )


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
        ConfigError: no model, or a time that is none.
    """
    model = load(path)
    if n < 1:
        raise ConfigError(f"--number must be at least 1, not {n}")
    who = _id_like(user, model.user_ids_)
    place = model.user_index_.place(who)
    if place < 0:
        say(f"  ! {user} was never seen: items are those that anyone would get")
    elif np.diff(model.observed_.pairs.user_events)[place] < 2:
        say(f"  ! {user} has one event only: when a next one follows is hardly known")
    hour = model.period_[1] if at is None else hour_of(at, model.origin_)
    left_out = [_id_like(each, model.item_ids_) for each in exclude]
    rows = [
        (place, str(item), Quantity(rate, "events/h"))
        for place, (item, rate) in enumerate(model.recommend(who, hour, n, left_out), 1)
    ]
    back = model.returning_time(who, hour)
    note = f"next event of {user} after hour {hour:,.1f}: {units.format_seconds(3600 * back)} (median)"
    return Table(columns=("place", "item", "rate"), rows=rows, title=f"For {user}", notes=(note,))


def hour_of(text: str, origin: Any) -> float:
    """Return the hour of a number, or of a date where events had dates.

    Raises:
        ConfigError: it is neither.
    """
    try:
        hour = float(text)
    except ValueError:
        try:
            moment = np.datetime64(text.removesuffix("Z"), "s")
        except ValueError:
            raise ConfigError(f"--at needs an hour or a date such as 2024-05-01T18:00, not {text!r}") from None
        if origin is None:
            raise ConfigError("--at is a date, and the events had hours: give an hour") from None
        return float((moment - np.datetime64(origin, "s")) / np.timedelta64(3600, "s"))
    if not np.isfinite(hour):
        raise ConfigError(f"--at needs an hour that is a number, not {text!r}")
    return hour


def _id_like(text: str, ids: Any) -> Any:
    """Return an id from the command line as the model has them: numbers where those are numbers."""
    first = ids[0] if len(ids) else text
    if isinstance(first, int | np.integer):
        try:
            return int(text)
        except ValueError:
            return text
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
    def returns(self) -> Table:
        """Shares of users who are back within some hours: those who really were, and by each recommender."""
        asked = [(each.name, each.returning[ASKED]) for each in self.evaluations if ASKED in each.returning]
        if not asked:
            raise ConfigError("nothing to plot: no recommender says when users come back")
        series = [("actual", asked[0][1].actual), *((name, errors.estimated) for name, errors in asked)]
        shares = np.linspace(0.01, 0.99, 50)
        rows = [(name, float(q), float(np.quantile(hours, q))) for name, hours in series for q in shares]
        return Table(columns=("model", "share back", "within"), units=("", "", "h"), rows=rows)


def compare(
    variants: Sequence[str],
    table: EventTable,
    options: Mapping[str, Any],
    *,
    train: float,
    edges: Path | None,
    rivals: bool,
    told: Callable[[str], None],
) -> Compared:
    """Train variants and simpler recommenders on the first events and judge them by the others.

    Raises:
        ConfigError: no event is left to train on or to test, an unknown variant, a social one without edges.
    """
    graph = None if edges is None else read_edges(edges).between(table.user_ids, unknown="drop")
    held = HeldOut.of(table, None if graph is None else (graph.user, graph.follows), train)
    chosen = [contenders.popularity(), contenders.own_counts(), contenders.recency()]
    for variant in variants:
        model = estimator_named(variant, options)
        if model.needs_edges and graph is None:
            raise ConfigError(f"{variant} needs to know who follows whom: --edges FILE")
        chosen.append(of_estimator(partial(estimator_named, variant, options)))
    chosen += _rivals(options) if rivals else []
    return Compared(evaluate(chosen, held, told), held.split.summary())


def _rivals(options: Mapping[str, Any]) -> list[contenders.Contender]:
    return rivals.installed(options["n_components"], options["random_state"])


def _words(name: str) -> str:
    unit = " (h)" if name.endswith("_h") else " (s)" if name.endswith("_s") else ""
    said = name.removesuffix("_h").removesuffix("_s").replace("_", " ").replace("recall ", "recall@")
    return said.replace("log likelihood", "log-lik.").replace(" median", "") + unit
