"""Stochastic variational inference: one batch of users at a time, for events that memory has no room for.

Hoffman, Blei, Wang, Paisley, "Stochastic Variational Inference", JMLR 14 (2013). For each batch, what belongs to its
users (theta, tau and the rates of their priors) goes through a few rounds of coordinate ascent; items then take a step
of ``rho = (step + delay) ** -kappa`` along the natural gradient that the batch gives, as if all users were like its
own. Batches come in another random order in each epoch. With one batch, one round and ``rho = 1`` a step is an
iteration of `PoissonEstimator.fit`.

Held in memory are the rows of all users and items, and the events that still excite at the end: those of the last
40 time constants of the decay. What is asked of the model for later times is exact; `partial_fit` cannot go on with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.gamma_rows import GammaRows
from sandtable_workloads.rpf.estimators import fit_memory
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint, FitIdentity
from sandtable_workloads.rpf.estimators.fit_loop import Iteration, State, restore_state, state_arrays
from sandtable_workloads.rpf.estimators.observed_events import IdIndex, ObservedEvents
from sandtable_workloads.rpf.estimators.static_factorization import HPF
from sandtable_workloads.rpf.events.event_store import UserBatch
from sandtable_workloads.rpf.scaled.user_batches import Batches, Scan, batches_of, scan

MODELS = ("PF", "HPF", "HRPF")
E = TypeVar("E", bound=HPF)


@dataclass(frozen=True, kw_only=True)
class StochasticOptions:
    """How to step.

    Attributes:
        n_epochs: Passes over all batches, at most.
        delay: Steps by which the first ones are damped.
        kappa: How fast steps get shorter, above 0.5 and at most 1.
        n_rounds: Rounds of coordinate ascent on a batch's users for each step.
        batch_events: Events of a batch, about, of a table; a store has its own.
    """

    n_epochs: int = 20
    delay: float = 1.0
    kappa: float = 0.7
    n_rounds: int = 2
    batch_events: int = 250_000

    def __post_init__(self) -> None:
        if min(self.n_epochs, self.n_rounds, self.batch_events) < 1:
            raise ConfigError("n_epochs, n_rounds and batch_events are whole numbers of at least 1")
        if not (0.5 < self.kappa <= 1 and self.delay >= 1):
            raise ConfigError(
                f"kappa {self.kappa} must lie above 0.5 and at most at 1, delay {self.delay} at 1 or above"
            )

    def rate(self, step: int) -> float:
        """Return rho of a step, from 0 on."""
        return float((step + self.delay) ** -self.kappa)


def fit_stochastic(
    estimator: E,
    events: Any,
    *,
    options: StochasticOptions | None = None,
    validation: Any = None,
    checkpoint: FitCheckpoint | str | Path | None = None,
    progress: Callable[[Iteration], None] | None = None,
) -> E:
    """Fit an estimator to batches of users, and return it.

    ``elbo_`` is, for each epoch, the sum of what batches reached when their turn came: an estimate. The fit ends when
    it, or the held-out likelihood where there is one, changes by less than ``tol`` from one epoch to the next.

    Args:
        estimator: PF, HPF or HRPF.
        events: An `EventStore` or its path, or events in memory as `PoissonEstimator.fit` takes them.
        options: How to step.
        validation: Later events, whose likelihood is computed after each epoch.
        checkpoint: File, or `FitCheckpoint`, that keeps the fit; its iterations are steps.
        progress: Told of each step.

    Raises:
        ConfigError: another model, or events, options or a checkpoint that cannot be used.
        DoesNotFit: memory has no room for the rows of all users and items, and a batch.
    """
    check_model(estimator)
    estimator.check_params()
    options = options or StochasticOptions()
    batches = batches_of(events, options.batch_events)
    estimator.check_data(batches.n_events, batches.start, batches.end)
    fit = _begun(estimator, batches, options)
    if validation is not None:
        score = estimator._held_out(validation)
        fit.held_out = lambda: (estimator._publish(estimator.state_), score())[1]
    with fit.kept(FitCheckpoint.of(checkpoint)):
        estimator.converged_ = fit.run(progress)
    estimator.elbo_, estimator.held_out_, estimator.n_iter_ = fit.elbo, fit.scores, fit.n_steps
    estimator._publish(estimator.state_)
    return estimator


def check_model(estimator: Any) -> None:
    """Raise ConfigError on an estimator that needs all users at once, or that ranks are to share."""
    if type(estimator).__name__ not in MODELS:
        raise ConfigError(f"{type(estimator).__name__} is not fitted by batches of users: {', '.join(MODELS)} are")
    if estimator.n_ranks > 1:
        raise ConfigError("a fit by batches of users is one process: leave out n_ranks")


def _begun(estimator: HPF, batches: Batches, options: StochasticOptions) -> StochasticFit:
    """Read all events once, and set what `PoissonEstimator.begin` does."""
    fit_memory.check(
        estimator,
        users=batches.n_users,
        items=batches.n_items,
        events=batches.n_events // batches.n_batches,
        otherwise="leave out users and items with few events",
    )
    found = scan(batches, estimator.decay, estimator.observed)
    estimator.user_index_, estimator.item_index_ = IdIndex(batches.user_ids), IdIndex(batches.item_ids)
    estimator.period_, estimator.origin_ = (batches.start, batches.end), batches.origin
    estimator.observed_, estimator.kept_from_ = found.recent, found.kept_from
    sizes = SimpleNamespace(n_users=batches.n_users, n_items=batches.n_items, n_events=batches.n_events)
    # what it reads of events are their numbers, and for how long there could be some
    of_all = cast(ObservedEvents, SimpleNamespace(pairs=sizes, exposure=found.exposure))
    estimator.state_ = estimator._begin(of_all, np.random.default_rng(estimator.random_state))
    return StochasticFit(estimator, batches, options, found)


@dataclass
class StochasticFit:
    """A fit under way: `estimator.state_` is that of all users and items, and changed in place.

    Attributes:
        n_steps: Steps done.
        elbo: Sums over the batches of each whole epoch.
        part: The sum over the batches of the epoch under way.
        scores: Held-out likelihoods after each epoch.
        held_out: Gives one.
    """

    estimator: HPF
    batches: Batches
    options: StochasticOptions
    scan: Scan
    n_steps: int = 0
    elbo: list[float] = field(default_factory=list)
    part: float = 0.0
    scores: list[float] = field(default_factory=list)
    held_out: Callable[[], float] | None = None
    _after: Callable[[int], None] = lambda _: None

    @contextlib.contextmanager
    def kept(self, keeper: FitCheckpoint | None) -> Iterator[None]:
        """Go on from a checkpoint, if there is one, and keep this fit there while inside and at its end."""
        if keeper is None:
            yield
            return
        with keeper.held():
            keep = self._resumed(keeper)
            with keeper.ending(keep) as self._after:
                yield
            keep()

    def _resumed(self, keeper: FitCheckpoint) -> Callable[[], None]:
        """Take up what a checkpoint has; return what writes it anew."""
        estimator, state = self.estimator, self.estimator.state_
        steps = {name: getattr(self.options, name) for name in ("delay", "kappa", "n_rounds", "batch_events")}
        identity = FitIdentity(
            model=f"{type(estimator).__name__} by batches",
            data=self.scan.fingerprint,
            parameters=estimator.get_params() | steps,
        )
        found = keeper.resume(identity)
        if found is not None:
            self.n_steps, self.part = found[0]["n_steps"], found[0]["part"]
            self.elbo, self.scores = found[0]["elbo"], found[0]["held_out"]
            restore_state(state, found[1])

        def keep() -> None:
            history = {"n_steps": self.n_steps, "part": self.part, "elbo": self.elbo, "held_out": self.scores}
            keeper.keep(identity.as_json(), history, state_arrays(state))

        return keep

    def run(self, progress: Callable[[Iteration], None] | None = None) -> bool:
        """Step until done; return whether it converged."""
        n, begin = self.batches.n_batches, time.monotonic()
        most = n * self.options.n_epochs
        while self.n_steps < most and not self._settled():
            epoch, place = divmod(self.n_steps, n)
            if place == 0:
                self.part = 0.0
            index = int(self._order(epoch)[place])
            elbo = self.step(self.batches.batch(index))
            self.n_steps += 1
            self.part += elbo
            score = self._epoch_done() if place == n - 1 else None
            if progress is not None:
                estimate = self.part * n / (place + 1) + self.estimator.state_["beta"].terms
                progress(Iteration(self.n_steps, most, estimate, score, time.monotonic() - begin))
            self._after(self.n_steps)
        return self._settled()

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.random.default_rng([self.estimator.random_state, epoch]).permutation(self.batches.n_batches)

    def _epoch_done(self) -> float | None:
        self.elbo.append(self.part + self.estimator.state_["beta"].terms)
        if self.held_out is not None:
            self.scores.append(self.held_out())
            return self.scores[-1]
        return None

    def _settled(self) -> bool:
        """Whether the last whole epoch changed little; of held-out likelihoods a fall settles as well."""
        past, tol = self.scores if self.held_out is not None else self.elbo, self.estimator.tol
        if len(past) < 2 or self.n_steps % self.batches.n_batches:
            return False
        change = past[-1] - past[-2]
        return (change if self.held_out is not None else abs(change)) < tol * abs(past[-2])

    def step(self, batch: UserBatch) -> float:
        """Improve a batch's users, and move items; return the users' part of the ELBO before the last round."""
        estimator, users = self.estimator, slice(batch.first_user, batch.last_user)
        observed = ObservedEvents(batch.pairs(), self.scan.start[users], self.batches.end)
        estimator._prepare(observed)
        beta = estimator.state_["beta"]
        state: State = {
            name: rows if rows is beta else rows_between(rows, users) for name, rows in estimator.state_.items()
        }
        theta, weights, elbo = state["theta"], beta.weighted(), 0.0
        counts = estimator._expected(observed, state)
        for done in range(self.options.n_rounds):
            if done:
                counts = estimator._expected(observed, state)
            elbo = counts.log_total - float(theta.weighted(observed.exposure) @ weights)
            elbo += sum(rows.terms for rows in state.values() if rows is not beta)
            elbo -= estimator._compensator(observed, state)
            theta.maximise(counts.users, observed.exposure, weights)
            estimator._maximise_others(observed, state, counts)
        self._move(beta, counts.items, theta.weighted(observed.exposure))
        return elbo

    def _move(self, beta: GammaRows, counts: Any, exposed: Any) -> None:
        """Move items to what all users would say if they were like the batch's, by rho of the way."""
        rho, n = self.options.rate(self.n_steps), self.batches.n_batches
        prior_rate, k = beta.prior_rate[:, None], beta.n_components
        shape = beta.shape.astype(np.float64)
        rate = (1 - rho) * shape / beta.mean + rho * (prior_rate + n * exposed)
        shape = (1 - rho) * shape + rho * (beta.prior.shape + n * np.asarray(counts[:, :k], np.float64))
        beta.maximise_rates(shape - beta.prior.shape, rate - prior_rate)


def rows_between(rows: GammaRows, part: slice) -> GammaRows:
    """Return some rows, each a group of its own, as a view: what changes there changes in ``rows``."""
    view = GammaRows(rows.prior, rows.shape[part], rows.mean[part], rows.padded[part], rows.group_rate[part])
    view.refresh()
    return view
