"""Events drawn from known parameters, and which models should be better on them: the cases of the study.

Each kind of event has a control that lacks what the model is about: no excitation, followed users drawn anew, the same
preferences at all hours. Fits are told the number of components and the decay that the events were drawn with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sandtable_kernels.poisson.feature_clock import FeatureClock
from sandtable_workloads.rpf.estimators.dynamic_factorization import DRPF
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
from sandtable_workloads.rpf.estimators.static_factorization import HPF
from sandtable_workloads.rpf.evaluated.contenders import Contender, own_counts, popularity, recency
from sandtable_workloads.rpf.evaluated.evaluation_harness import Evaluation, evaluate
from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
from sandtable_workloads.rpf.evaluated.scored_estimators import of_estimator
from sandtable_workloads.rpf.evaluated.study_tables import RECOVERY, SHUFFLED, SIZES, Figures
from sandtable_workloads.rpf.events.simulated_events import KnownParameters, simulate

Floats = NDArray[np.float64]
USERS, ITEMS, COMPONENTS = 80, 80, 4
HOURS, DECAY = 672.0, 0.5
BASE_EVENTS = 6_000  # expected, those that others excite not counted
FOLLOWED = 4
RECOVERED = 20, 15, 3  # users, items, components of the records that get ever longer
PER_HOUR = 10.0  # events in them


# --- what is drawn --------------------------------------------------------------------------------------------------


def _factors(rng: Generator, *, shape: float = 0.5, features: tuple[int, ...] = ()) -> tuple[Floats, Floats]:
    """Return theta and beta, the fewer of a row's numbers large the smaller ``shape``, before theta is scaled."""
    theta = rng.gamma(shape, size=(USERS, *features, COMPONENTS))
    return theta, rng.gamma(shape, size=(ITEMS, *features, COMPONENTS))


def _parameters(factors: tuple[Floats, Floats], hours: float, events: float, **others: Any) -> KnownParameters:
    """Scale theta such that as many events of the base are expected."""
    draft = KnownParameters(theta=factors[0], beta=factors[1], decay=DECAY, **others)
    bins = 1 if draft.clock is None else draft.clock.n_bins
    per_hour = np.mean([draft.base(b).sum() for b in range(bins)])
    return replace(draft, theta=draft.theta * (events / (hours * float(per_hour))))


def _excited(rng: Generator, low: float = 0.3, high: float = 0.8) -> dict[str, Any]:
    """Return self-excitation of everybody."""
    everyone = np.arange(USERS)
    return {"source": everyone, "target": everyone, "tau": rng.uniform(low, high, USERS)}


def _recurring(seed: int) -> KnownParameters:
    rng = np.random.default_rng([seed, 1])
    return _parameters(_factors(rng), HOURS, BASE_EVENTS, **_excited(rng))


def _lasting(seed: int) -> KnownParameters:
    return _parameters(_factors(np.random.default_rng([seed, 2])), HOURS, 2 * BASE_EVENTS)


def _social(seed: int, *, in_vain: bool = False) -> KnownParameters:
    rng = np.random.default_rng([seed, 3])
    follower = np.repeat(np.arange(USERS), FOLLOWED)
    step = np.concatenate([rng.choice(USERS - 1, FOLLOWED, replace=False) for _ in range(USERS)]) + 1
    own = _excited(rng, 0.1, 0.3)
    weight = rng.uniform(0.05, 0.2, follower.size) * (not in_vain)
    edges = {
        "source": np.concatenate((own["source"], (follower + step) % USERS)),
        "target": np.concatenate((own["target"], follower)),
        "tau": np.concatenate((own["tau"], weight)),
    }
    return _parameters(_factors(rng), HOURS, BASE_EVENTS, **edges)


def _dynamic(seed: int, *, steady: bool = False) -> KnownParameters:
    rng = np.random.default_rng([seed, 4])
    clock = FeatureClock.of()
    theta, beta = _factors(rng, shape=0.1, features=(clock.user_table.shape[1],))
    if steady:
        theta, beta = (np.repeat(rows[:, :1], rows.shape[1], 1) for rows in (theta, beta))
    return _parameters((theta, beta), HOURS, 2 * BASE_EVENTS, clock=clock, **_excited(rng, 0.1, 0.3))


# --- what is fitted -------------------------------------------------------------------------------------------------


def _fitted(model: type[HPF], seed: int) -> Contender:
    return of_estimator(
        lambda: model(
            COMPONENTS,
            decay=DECAY,
            max_iter=300,
            observed="period",
            dtype="float64",
            n_threads=1,
            random_state=seed,
        )
    )


def _with_references(*models: type[HPF]) -> Callable[[HeldOut, int], list[Evaluation]]:
    """Return what evaluates models beside the simplest recommenders."""

    def evaluated(held: HeldOut, seed: int) -> list[Evaluation]:
        return evaluate([popularity(), own_counts(), recency(), *(_fitted(each, seed) for each in models)], held)

    return evaluated


def shuffled(held: HeldOut, seed: int) -> HeldOut:
    """Return the same events with followed users dealt out anew: everybody follows as many, and is by as many."""
    assert held.edges is not None
    user, follows = held.edges
    return HeldOut(held.split, (user, np.random.default_rng([seed, 5]).permutation(follows)))


def _with_shuffled_edges(held: HeldOut, seed: int) -> list[Evaluation]:
    others = evaluate([replace(_fitted(SRPF, seed), name=SHUFFLED)], shuffled(held, seed))
    return [*_with_references(HPF, HRPF, SRPF)(held, seed), *others]


def _comparing(
    parameters: Callable[[int], KnownParameters], evaluated: Callable[[HeldOut, int], list[Evaluation]]
) -> Callable[[int], tuple[int, Figures]]:
    def run(seed: int) -> tuple[int, Figures]:
        known = parameters(seed)
        events, edges = simulate(known, HOURS, seed), known.edges
        held = HeldOut.of(events, (edges["user"], edges["follows"]))
        found = {each.name: each.figures() for each in evaluated(held, seed)}
        for figures in found.values():
            del figures["train_s"]  # says something only of a machine that does nothing else
        return len(events), found

    return run


def runs_of_cases() -> dict[str, Callable[[int], tuple[int, Figures]]]:
    """Return what draws, fits and evaluates with a seed, by the names of `CASES`: events drawn, and figures."""
    recurrent, social, dynamic = (_with_references(*each) for each in ((HPF, HRPF), (HRPF, SRPF), (HRPF, DRPF)))
    return {
        "events recur": _comparing(_recurring, recurrent),
        "nothing recurs": _comparing(_lasting, recurrent),
        "followed users excite": _comparing(_social, _with_shuffled_edges),
        "they excite nobody": _comparing(partial(_social, in_vain=True), social),
        "preferences by the clock": _comparing(_dynamic, dynamic),
        "the same at all hours": _comparing(partial(_dynamic, steady=True), dynamic),
        RECOVERY: recovered,
    }


# --- parameters found again -----------------------------------------------------------------------------------------


def recovered(seed: int, sizes: Sequence[int] = SIZES) -> tuple[int, Figures]:
    """Fit HRPF to ever longer parts of one record; return relative errors by the number of events.

    ``base`` is the norm of the error of all rates ``theta . beta`` over the norm of these, ``tau`` likewise,
    ``tau_bias`` the mean error of tau over its mean.
    """
    rng = np.random.default_rng([seed, 6])
    users, items, k = RECOVERED
    theta, beta = rng.gamma(1.0, size=(users, k)), rng.gamma(1.0, size=(items, k))
    everyone, tau = np.arange(users), rng.uniform(0.3, 0.8, users)
    per_hour = float((theta @ beta.sum(0) / (1 - tau)).sum()) / PER_HOUR
    known = KnownParameters(
        theta=theta / per_hour, beta=beta, decay=DECAY, source=everyone, target=everyone, tau=tau
    )
    events = simulate(known, 1.05 * max(sizes) / PER_HOUR, seed)
    found: Figures = {}
    for size in sizes:
        part = events.taken(slice(0, size), end=float(events.time[size - 1]))
        found[str(size)] = _errors(
            known,
            HRPF(
                k,
                decay=DECAY,
                max_iter=2000,
                tol=1e-8,
                observed="period",
                dtype="float64",
                n_threads=1,
                random_state=seed,
            ).fit(part),
        )
    return max(sizes), found


def _errors(known: KnownParameters, fitted: HRPF) -> dict[str, float]:
    theta, beta, tau = np.zeros_like(known.theta), np.zeros_like(known.beta), np.zeros(known.n_users)
    users, items = np.asarray(fitted.user_ids_, np.int64), np.asarray(fitted.item_ids_, np.int64)
    theta[users], beta[items], tau[users] = fitted.theta_, fitted.beta_, fitted.tau_
    true, off = known.base(), tau - known.own_tau
    return {
        "base": float(np.linalg.norm(theta @ beta.T - true) / np.linalg.norm(true)),
        "tau": float(np.linalg.norm(off) / np.linalg.norm(known.own_tau)),
        "tau_bias": float(off.mean() / known.own_tau.mean()),
        "iterations": float(fitted.n_iter_),
    }
