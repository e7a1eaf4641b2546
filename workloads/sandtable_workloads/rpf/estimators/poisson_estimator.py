"""The base of all estimators: hyperparameters, ids, the fit around a variant's iterations, and what is asked of a fit.

Conventions are scikit-learn's, without depending on it: constructors only store hyperparameters, fitted attributes end
in an underscore, and `sklearn.base.clone` works. Times are hours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.event_pairs import EventPairs, Floats
from sandtable_kernels.poisson.gamma_rows import GammaPrior
from sandtable_workloads.rpf.estimators import fit_memory
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint, FitIdentity, kept
from sandtable_workloads.rpf.estimators.fit_loop import FitLoop, Iteration, State
from sandtable_workloads.rpf.estimators.observed_events import (
    FollowedEdges,
    IdIndex,
    ObservedEvents,
    event_columns,
)
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.social_edges import SocialEdges

Array = NDArray[Any]

# exp(digamma) of a smaller shape, times that of another, leaves the range of float32
_SMALLEST_SHAPE = 0.05


class NotFitted(ConfigError, AttributeError):
    """What a fit leaves behind was asked for before one; an AttributeError too, as scikit-learn's is."""


class _Fitted:
    """What a fit leaves behind; theta_, beta_ and tau_ are posterior means in the order of ids.

    ``kept_from_`` is the hour from which `observed_` has all events: a fit by batches of users keeps the latest ones.
    """

    user_index_: IdIndex
    item_index_: IdIndex
    period_: tuple[float, float]
    origin_: np.datetime64 | None
    observed_: ObservedEvents
    kept_from_: float
    state_: State
    theta_: Array
    beta_: Array
    tau_: Array
    _over_users: dict[str, Array]
    elbo_: list[float]
    held_out_: list[float]
    n_iter_: int
    converged_: bool

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_") and not name.startswith("_"):
            raise NotFitted(f"{type(self).__name__} is not fitted, and has no {name}: call fit first")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def _forgot(self) -> bool:
        """Whether earlier events than those of `observed_` were fitted as well."""
        return self.kept_from_ > self.period_[0]


@dataclass(eq=False)
class PoissonEstimator(_Fitted):
    """What PF, HPF and the recurrent factorizations share; a variant overrides the hooks at the end of the class.

    Args:
        n_components: K, components of a user's and an item's factors.
        decay: w of the kernel ``g(x) = w exp(-w x)`` of excitation, per hour.
        max_iter: Iterations at most.
        tol: Relative change of the ELBO, or of the held-out likelihood where ``validation`` is given, that ends a fit.
        a_theta: Shape of the prior of users' factors; a_beta of items', a_tau of excitation.
        a_eta: Shape, with b_eta the rate, of the prior of a user's rate; xi of an item's, mu of a source's.
        hierarchical: Whether the rates of priors are learned; otherwise they are b_theta, b_beta and b_tau.
        observed: ``user``: a user is observed from one gap before the first event on; ``period``: all the time.
        dtype: Of factors: float32 or float64; sums are float64.
        n_threads: Threads of compiled loops; None: all. Results do not depend on it.
        n_ranks: Processes that share out the users, each with its threads; results differ by the rounding of sums.
        random_state: Seed.
        warm_start: Whether ``fit`` begins at what was fitted before.
    """

    n_components: int = 20
    _: KW_ONLY
    decay: float = 1.0
    max_iter: int = 1000
    tol: float = 1e-5
    a_theta: float = 1.0
    a_beta: float = 1.0
    a_tau: float = 1.0
    a_eta: float = 1.0
    b_eta: float = 0.1
    a_xi: float = 1.0
    b_xi: float = 0.1
    a_mu: float = 1.0
    b_mu: float = 0.1
    hierarchical: bool = True
    b_theta: float = 0.1
    b_beta: float = 0.1
    b_tau: float = 0.1
    observed: Literal["user", "period"] = "user"
    dtype: str = "float32"
    n_threads: int | None = None
    n_ranks: int = 1
    random_state: int = 0
    warm_start: bool = False

    # --- hyperparameters -----------------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyperparameters; ``deep`` is there for scikit-learn."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    def set_params(self, **params: Any) -> Self:
        """Set hyperparameters.

        Raises:
            ConfigError: a name that is none of them.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ConfigError(f"{type(self).__name__} has no parameter {name!r}: there are {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn asks of an estimator in a pipeline or a search: this one needs no target."""
        import importlib

        utils = importlib.import_module("sklearn.utils")
        return utils.Tags(estimator_type=None, target_tags=utils.TargetTags(required=False))

    def check_params(self) -> None:
        """Raise ConfigError on a hyperparameter that cannot be used."""
        for name, value in self.get_params().items():
            if (name[:2] in ("a_", "b_") or name in ("decay", "tol")) and not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number, not {value}")
        for name in ("n_components", "max_iter", "n_ranks"):
            if not (isinstance(value := getattr(self, name), int | np.integer) and value >= 1):
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value}")
        if self.dtype not in ("float32", "float64"):
            raise ConfigError(f"dtype is float32 or float64, not {self.dtype}")
        if self.observed not in ("user", "period"):
            raise ConfigError(f"observed is user or period, not {self.observed}")
        smallest = min(self.a_theta, self.a_beta)
        if self.dtype == "float32" and smallest < _SMALLEST_SHAPE:
            raise ConfigError(f"a shape of {smallest} needs dtype float64: float32 holds no such small factors")

    def check_data(self, n_events: int, first: float, last: float) -> None:
        """Raise ConfigError where so many events from hour ``first`` to ``last`` cannot bear what is to be fitted."""
        if not last > first:
            raise ConfigError(
                f"all events are at hour {first:g}: rates need a time to have been seen in, as period=(start, end)"
            )
        if self.n_components > n_events:
            raise ConfigError(
                f"{self.n_components} components are more than {n_events} events can tell apart: set n_components to "
                f"{max(1, n_events // 10)} or less"
            )

    def prior(self, name: str) -> GammaPrior:
        """Return the prior of users' factors, items' factors or excitation: theta, beta or tau."""
        hyper = {"theta": "eta", "beta": "xi", "tau": "mu"}[name]
        return GammaPrior(
            shape=getattr(self, f"a_{name}"),
            hyper_shape=getattr(self, f"a_{hyper}"),
            hyper_rate=getattr(self, f"b_{hyper}"),
            rate=None if self.hierarchical else getattr(self, f"b_{name}"),
        )

    @property
    def user_ids_(self) -> Array:
        """Ids of users, in the order of the rows of theta_."""
        return self.user_index_.ids

    @property
    def item_ids_(self) -> Array:
        """Ids of items, in the order of the rows of beta_."""
        return self.item_index_.ids

    # --- fitting -------------------------------------------------------------------------------------------------

    def fit(
        self,
        events: Any,
        edges: Any = None,
        *,
        period: tuple[float, float] | None = None,
        validation: Any = None,
        checkpoint: FitCheckpoint | str | Path | None = None,
        progress: Callable[[Iteration], None] | None = None,
    ) -> Self:
        """Fit to events: a table with columns user, item and time in hours, or three arrays.

        Args:
            events: What happened.
            edges: Who follows whom: columns ``user`` and ``follows``. Models without a graph refuse it.
            period: From when to when events could be seen; the first and the last event's time without.
            validation: Later events whose likelihood says when to stop.
            checkpoint: File, or `FitCheckpoint`, that keeps the fit so that it goes on after a kill.
            progress: Told of each iteration.

        Raises:
            ConfigError: hyperparameters or events that cannot be used.
            DoesNotFit: memory is too small; with what fits.
        """
        self.begin(events, edges, period=period)
        self._improve(self.max_iter, validation, checkpoint, progress)
        return self

    def begin(self, events: Any, edges: Any = None, *, period: tuple[float, float] | None = None) -> Self:
        """Do all of `fit` but its iterations: events in order, and where inference starts."""
        self.check_params()
        table = EventTable.of(events)
        n_edges = None if edges is None else len(SocialEdges.of(edges))
        fit_memory.check(self, users=table.n_users, items=table.n_items, events=len(table), edges=n_edges)
        self.origin_ = table.origin
        before = (self.state_, self.observed_) if self.warm_start and hasattr(self, "state_") else None
        known = before is not None
        self.user_index_ = self.user_index_.extended(table.user_ids) if known else IdIndex(table.user_ids)
        self.item_index_ = self.item_index_.extended(table.item_ids) if known else IdIndex(table.item_ids)
        user = self.user_index_.places(table.user_ids)[table.user_code]
        item = self.item_index_.places(table.item_ids)[table.item_code]
        self._observe(user, item, table.time, edges, (table.start, table.end) if period is None else period)
        self.state_ = self._begin(self.observed_, np.random.default_rng(self.random_state))
        if before is not None:
            self._carry_over(*before)
        return self

    def partial_fit(self, events: Any, edges: Any = None, *, n_iter: int = 10) -> Self:
        """Add later events to those that were fitted, and improve the fit by ``n_iter`` iterations.

        Users and items that are new begin at the prior. The first call is a `fit` of as many iterations.

        Raises:
            ConfigError: see `fit`; a model that was fitted by batches, and has not kept its events.
        """
        if not hasattr(self, "state_"):
            most, self.max_iter = self.max_iter, n_iter
            try:
                return self.fit(events, edges)
            finally:
                self.max_iter = most
        if self._forgot:
            raise ConfigError(
                f"a fit by batches keeps no event before hour {self.kept_from_:g}, and so cannot go on with more: "
                "fit all of them, by batches again or at once"
            )
        user, item, time = event_columns(events, self.origin_)
        old, before = self.observed_, self.state_
        self.user_index_, self.item_index_ = self.user_index_.extended(user), self.item_index_.extended(item)
        pairs = old.pairs
        users = np.concatenate((pairs.event_user, self.user_index_.places(user)))
        items = np.concatenate((pairs.event_item, self.item_index_.places(item)))
        times = np.concatenate((pairs.time, time))
        period = self.period_[0], max(self.period_[1], float(times.max()))
        self._observe(users, items, times, edges if edges is not None else self._edge_ids(), period)
        self.state_ = self._begin(self.observed_, np.random.default_rng(self.random_state))
        self._carry_over(before, old)
        self._improve(n_iter, None, None, None)
        return self

    def save(self, path: str | Path) -> None:
        """Write the fitted model, with its events, to one file."""
        from sandtable_workloads.rpf.estimators.model_store import save_model

        save_model(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the fitted model that `save` wrote.

        Raises:
            ConfigError: the file is missing, damaged, or holds another model than this class.
        """
        from sandtable_workloads.rpf.estimators.model_store import load_model

        model = load_model(path)
        if not isinstance(model, cls):
            raise ConfigError(f"holds a model {type(model).__name__}, not {cls.__name__}", file=str(path))
        return model

    def _observe(
        self, user: Array, item: Array, time: Floats, edges: Any, period: tuple[float, float] | None
    ) -> None:
        """Put events in order as `observed_`."""
        first, last = period if period is not None else (float(time.min()), float(time.max()))
        if not np.all((time >= first) & (time <= last)):
            raise ConfigError(f"an event lies outside the period from {first:g} to {last:g} hours")
        self.check_data(time.size, first, last)
        pairs = EventPairs.of(user, item, time, len(self.user_index_), len(self.item_index_))
        start = pairs.first_seen(first, last) if self.observed == "user" else np.full(pairs.n_users, first)
        self.period_, self.kept_from_ = (first, last), first
        self.observed_ = ObservedEvents(pairs, start, last, self._edges(edges))
        self._prepare(self.observed_)

    def _edges(self, edges: Any) -> FollowedEdges | None:
        if edges is None:
            return None
        if not self.social:
            raise ConfigError(f"{type(self).__name__} knows no edges between users: a social model does")
        known = SocialEdges.of(edges).between(self.user_ids_)
        source, destination = (self.user_index_.places(ids) for ids in (known.follows, known.user))
        return FollowedEdges.of(source, destination, len(self.user_index_))

    def _edge_ids(self) -> Any:
        edges = self.observed_.edges
        return (
            None if edges is None else (self.user_index_.ids[edges.destination], self.user_index_.ids[edges.source])
        )

    def _improve(
        self,
        most: int,
        validation: Any,
        checkpoint: FitCheckpoint | str | Path | None,
        progress: Callable[[Iteration], None] | None,
    ) -> None:
        """Iterate from `state_` on, and publish what came out."""
        if self.n_ranks > 1:
            from sandtable_workloads.rpf.scaled import rank_fit

            rank_fit.improve(self, most, validation, checkpoint, progress)
            return
        held_out = None if validation is None else partial(self._score_now, self._held_out(validation))
        loop = FitLoop(
            lambda: self._iterate(self.observed_, self.state_),
            most=most,
            tol=self.tol,
            held_out=held_out,
            progress=progress,
        )
        with kept(checkpoint, self.identity, loop, self.state_):
            self.converged_ = loop.run()
        self.elbo_, self.n_iter_ = loop.elbo, len(loop.elbo)
        self.held_out_ = loop.held_out_scores
        self._publish(self.state_)

    def _held_out(self, events: Any) -> Callable[[], float]:
        """Return what gives the log-likelihood per event of later events under the parameters as they then are."""
        return self._likelihood(self._later(events))

    def _score_now(self, score: Callable[[], float]) -> float:
        self._publish(self.state_)
        return score()

    def identity(self) -> FitIdentity:
        """Return what a checkpoint must have in common with this fit."""
        return FitIdentity(
            model=type(self).__name__, data=self.observed_.fingerprint(), parameters=self.get_params()
        )

    # --- what a variant overrides ----------------------------------------------------------------------------------

    # whether a fit can take edges between users, and whether it must
    social: ClassVar[bool] = False
    needs_edges: ClassVar[bool] = False
    # fitted arrays that `_begin` goes on from, kept with a model besides its state
    also_kept: ClassVar[tuple[str, ...]] = ()

    def all_reduce(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Return the sums of arrays over all processes that share a fit: once an iteration; here there is one."""
        return arrays

    def _prepare(self, observed: ObservedEvents) -> None:
        """Compute what iterations need of the events besides their order."""

    def _later(self, events: Any) -> Any:
        """Return later events in order together with those that were fitted."""
        raise NotImplementedError

    def _likelihood(self, later: Any) -> Callable[[], float]:
        """Return what gives the log-likelihood per event of what `_later` gave, under the parameters as they then are.

        Each of the processes that share a fit gives the later events of its own users.
        """
        raise NotImplementedError

    def _rows_before(self, name: str, n: int, old: ObservedEvents) -> tuple[Array, Array]:
        """Return which of the ``n`` rows of an earlier fit to ``old`` are which rows now: ids keep their places."""
        return np.arange(n), np.arange(n)

    def _carry_over(self, before: State, old: ObservedEvents) -> None:
        """Overwrite rows of `state_` by those of an earlier fit to ``old``."""
        for name, rows in self.state_.items():
            was, now = self._rows_before(name, before[name].shape.shape[0], old)
            if before[name].shape[was].shape != rows.shape[now].shape:
                raise ConfigError("a warm start needs as many components and features as the fit before had")
            for part in ("shape", "mean"):
                getattr(rows, part)[now] = getattr(before[name], part)[was]
            rows.refresh()

    def _begin(self, observed: ObservedEvents, rng: np.random.Generator) -> State:
        """Return where inference starts: rows by name; rows of users, items and edges are in the order of ids."""
        raise NotImplementedError

    def _iterate(self, observed: ObservedEvents, state: State) -> float:
        """Improve ``state`` in place by one round of coordinate ascent; return the ELBO of what it was."""
        raise NotImplementedError

    def _publish(self, state: State) -> None:
        """Set the fitted attributes: means as theta_ [U, K], beta_ [P, K], tau_ [U] and what else there is."""
        raise NotImplementedError
