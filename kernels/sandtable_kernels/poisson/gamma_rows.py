"""Rows of independent Gamma factors, each with a rate that is Gamma itself: what theta, beta and tau are made of.

A factor x_rk has the prior Gamma(shape, rate of its group), the rate Gamma(hyper_shape, hyper_rate); q is
Gamma(shape_rk, rate_rk) and Gamma for the rate. All in shape and rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class GammaPrior:
    """The prior of a factor: its shape, and its rate, which is Gamma(hyper_shape, hyper_rate) unless it is given."""

    shape: float = 1.0
    hyper_shape: float = 1.0
    hyper_rate: float = 0.1
    rate: float | None = None

    @property
    def expected_rate(self) -> float:
        """The rate, or its mean."""
        return self.hyper_shape / self.hyper_rate if self.rate is None else self.rate


@dataclass
class GammaRows:
    """R rows of K factors under q, and the rates of their groups.

    Attributes:
        prior: What they are drawn from.
        shape: [R, K] of q.
        mean: [R, K], shape over rate.
        geometric: [R, K], exp(E[ln x]).
        group_rate: [G], rate of q of a group's rate; its shape follows from the prior and the group's size.
        group: [R], the group of a row; None where every row is a group of its own.
        terms: Priors and entropies of the evidence lower bound, of the factors and of the rates as they are.
    """

    prior: GammaPrior
    shape: Array
    mean: Array
    geometric: Array
    group_rate: NDArray[np.float64]
    group: NDArray[np.int64] | None = None
    terms: float = field(default=0.0)
    _entropies: float = field(default=0.0, repr=False)

    @classmethod
    def start(
        cls,
        prior: GammaPrior,
        means: Array,
        *,
        group: NDArray[np.int64] | None = None,
        n_groups: int | None = None,
        dtype: Any = np.float64,
    ) -> GammaRows:
        """Begin at q with the prior's shape and ``means`` [R, K]; groups are rows unless ``group`` says otherwise."""
        means = np.ascontiguousarray(means, dtype)
        n_groups = means.shape[0] if n_groups is None else n_groups
        rates = np.full(n_groups, prior.hyper_rate)
        rows = cls(prior, np.empty_like(means), means, np.empty_like(means), rates, group)
        rows._take(np.full(means.shape, prior.shape, np.float64), prior.shape / means.astype(np.float64))
        rows.follow()
        return rows

    @property
    def n_components(self) -> int:
        """K."""
        return int(self.shape.shape[1])

    @property
    def group_shape(self) -> NDArray[np.float64]:
        """[G], shape of q of a group's rate."""
        n = self.group_rate.size
        sizes = np.ones(n) if self.group is None else np.bincount(self.group, minlength=n)
        return np.asarray(self.prior.hyper_shape + sizes * self.n_components * self.prior.shape)

    @property
    def group_mean(self) -> NDArray[np.float64]:
        """[G], the expected rate of a group."""
        if self.prior.rate is not None:
            return np.full(self.group_rate.size, self.prior.rate)
        return self.group_shape / self.group_rate

    @property
    def prior_rate(self) -> NDArray[np.float64]:
        """[R], the expected rate of a row's prior."""
        return self.group_mean if self.group is None else self.group_mean[self.group]

    def maximise(self, counts: Array, exposure: Array, weights: Array) -> None:
        """Set q of the factors, then of their rates, to the optimum given ``counts`` [R, K].

        ``exposure`` [R] times ``weights`` [K] is what a factor's rate has beyond its prior's.
        """
        self.maximise_rates(counts, np.multiply.outer(exposure, weights))

    def maximise_rates(self, counts: Array, rates: Array) -> None:
        """Do as `maximise`, given the rates [R, K] beyond the prior's themselves."""
        shape = self.prior.shape + np.asarray(counts, np.float64)
        self._take(shape, rates + self.prior_rate[:, None])
        self.follow()

    def _take(self, shape: Array, rate: Array) -> None:
        from scipy.special import digamma, gammaln

        psi = digamma(shape)
        self.shape[:] = shape
        self.mean[:] = shape / rate
        self.geometric[:] = np.exp(psi) / rate
        self._entropies = float(
            np.sum(shape + gammaln(shape) - shape * psi + self.prior.shape * (psi - np.log(rate)))
            - shape.size * gammaln(self.prior.shape)
        )

    def follow(self) -> None:
        """Set q of the groups' rates to the optimum, and `terms` to what holds then."""
        from scipy.special import digamma, gammaln

        prior, n = self.prior, self.group_rate.size
        per_row = self.mean.sum(1, dtype=np.float64)
        total = per_row if self.group is None else np.bincount(self.group, per_row, minlength=n)
        terms = self._entropies
        factors = self.group_shape - prior.hyper_shape
        if prior.rate is not None:
            self.terms = terms + float(factors.sum()) * float(np.log(prior.rate)) - prior.rate * float(total.sum())
            return
        self.group_rate[:] = prior.hyper_rate + total
        shape, rate = self.group_shape, self.group_rate
        log_mean = digamma(shape) - np.log(rate)
        terms += float(np.sum(factors * log_mean - shape / rate * total))
        terms += float(np.sum((prior.hyper_shape - 1) * log_mean - prior.hyper_rate * shape / rate))
        terms += n * float(prior.hyper_shape * np.log(prior.hyper_rate) - gammaln(prior.hyper_shape))
        self.terms = terms + float(np.sum(shape - np.log(rate) + gammaln(shape) + (1 - shape) * digamma(shape)))

    def weighted(self, exposure: Array | None = None) -> NDArray[np.float64]:
        """Return [K], the sum of the means over rows, each times its ``exposure`` [R]."""
        if exposure is None:
            return np.asarray(self.mean.sum(0, dtype=np.float64))
        return np.asarray(exposure @ self.mean, np.float64)

    def arrays(self) -> dict[str, Array]:
        """Return what a checkpoint must keep of these rows."""
        return {
            "shape": self.shape,
            "mean": self.mean,
            "geometric": self.geometric,
            "group_rate": self.group_rate,
            "terms": np.array(self.terms),
        }

    def restore(self, arrays: dict[str, Array]) -> None:
        """Take back what `arrays` gave."""
        for name in ("shape", "mean", "geometric", "group_rate"):
            getattr(self, name)[:] = arrays[name]
        self.terms = float(arrays["terms"])
