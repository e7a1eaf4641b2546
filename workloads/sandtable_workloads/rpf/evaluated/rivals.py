"""Other packages' factorizations in the same harness: `hpfrec`, `poismf` and `implicit`, each where it is installed.

They learn from how often a user met an item and know nothing of time; what they know then does not change with the
events that are held out.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import missing_extra
from sandtable_workloads.rpf.evaluated.contenders import Contender, SteadyRates
from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut

Factors = tuple[NDArray[Any], NDArray[Any]]


def installed(n_components: int = 20, seed: int = 0) -> list[Contender]:
    """Return the contenders whose packages are here."""
    every = (("hpfrec", hpfrec), ("poismf", poismf), ("implicit", implicit_als), ("implicit", implicit_bpr))
    return [make(n_components, seed) for package, make in every if package not in missing()]


def missing() -> list[str]:
    """Return the packages that are not here."""
    return [package for package in ("hpfrec", "poismf", "implicit") if importlib.util.find_spec(package) is None]


def hpfrec(n_components: int, seed: int = 0, iterations: int = 150) -> Contender:
    """Hierarchical Poisson factorization of counts, by the same coordinate ascent as `HPF`.

    Its products are counts of the training's hours, and so rates, which have a likelihood.
    """

    def factors(held: HeldOut) -> Factors:
        frame = importlib.import_module("pandas").DataFrame(
            dict(zip(("UserId", "ItemId", "Count"), held.counts, strict=True))
        )
        made = _package("hpfrec").HPF(
            k=n_components,
            random_seed=seed + 1,  # its 0 is no seed
            maxiter=iterations,
            reindex=False,
            verbose=False,
            keep_all_objs=False,
            keep_data=False,
        )
        made.fit(frame)
        return made.Theta / held.train_hours, made.Beta

    return _contender("hpfrec", factors, rates=True)


def poismf(n_components: int, seed: int = 0) -> Contender:
    """Poisson factorization by conjugate gradients; its regularization shrinks, so that it has no rates."""

    def factors(held: HeldOut) -> Factors:
        made = _package("poismf").PoisMF(k=n_components, random_state=seed + 1)
        made.fit(_matrix(held).tocoo())
        return made.A, made.B

    return _contender("poismf", factors)


def implicit_als(n_components: int, seed: int = 0) -> Contender:
    """Alternating least squares of weighted implicit feedback."""

    def factors(held: HeldOut) -> Factors:
        als = _package("implicit", "implicit.als").AlternatingLeastSquares
        return _fitted_factors(als(factors=n_components, random_state=seed), held)

    return _contender("implicit ALS", factors)


def implicit_bpr(n_components: int, seed: int = 0) -> Contender:
    """Bayesian personalized ranking: pairs of an item that was met and one that was not."""

    def factors(held: HeldOut) -> Factors:
        bpr = _package("implicit", "implicit.bpr").BayesianPersonalizedRanking
        return _fitted_factors(bpr(factors=n_components, random_state=seed), held)

    return _contender("implicit BPR", factors)


def _contender(name: str, factors: Callable[[HeldOut], Factors], *, rates: bool = False) -> Contender:
    def train(held: HeldOut) -> SteadyRates:
        with warnings.catch_warnings():
            # advice about threads of other libraries
            warnings.simplefilter("ignore")
            of_users, of_items = factors(held)
        return SteadyRates(
            held, _padded(of_users, held.n_users, rates=rates), _padded(of_items, held.n_items, rates=rates), rates
        )

    return Contender(name, train)


def _fitted_factors(model: Any, held: HeldOut) -> Factors:
    model.fit(_matrix(held), show_progress=False)
    return np.asarray(model.user_factors), np.asarray(model.item_factors)


def _matrix(held: HeldOut) -> Any:
    from scipy.sparse import csr_matrix

    users, items, counts = held.counts
    return csr_matrix((counts.astype(np.float32), (users, items)), shape=(held.n_users, held.n_items))


def _padded(rows: NDArray[Any], n: int, *, rates: bool) -> NDArray[Any]:
    """Return n rows: those behind the last that a package saw are means where they are rates, else nothing."""
    missing = n - rows.shape[0]
    fill = rows.mean(0) if rates else np.zeros(rows.shape[1], rows.dtype)
    return np.concatenate((rows, np.tile(fill, (missing, 1)))) if missing > 0 else rows


def _package(name: str, module: str | None = None) -> Any:
    try:
        return importlib.import_module(module or name)
    except ImportError:
        raise missing_extra(name, "bench") from None
