"""Rows of independent Gamma factors, each with a rate that is Gamma itself: what theta, beta and tau are made of.

A factor x_rk has the prior Gamma(shape, rate of its group), the rate Gamma(hyper_shape, hyper_rate); q is
Gamma(shape_rk, rate_rk) and Gamma for the rate. All in shape and rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

# parts of rows that are summed on their own: the same whatever the threads
N_CHUNKS = 64


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
        padded: [R, W], exp(E[ln x]) and zeros up to the width that compiled passes take.
        group_rate: [G], rate of q of a group's rate; its shape follows from the prior and the group's size.
        group: [R], the group of a row; None where every row is a group of its own.
        terms: Priors and entropies of the evidence lower bound, of the factors and of the rates as they are.
    """

    prior: GammaPrior
    shape: Array
    mean: Array
    padded: Array
    group_rate: Floats
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
        from sandtable_kernels.compiled.events.row_vectors import padded_zeros

        means = np.ascontiguousarray(means, dtype)
        rates = np.full(means.shape[0] if n_groups is None else n_groups, prior.hyper_rate)
        rows = cls(
            prior,
            np.full_like(means, prior.shape),
            means,
            padded_zeros(means.shape[0], means.shape[1], dtype),
            rates,
            group,
        )
        rows.refresh()
        return rows

    @property
    def geometric(self) -> Array:
        """[R, K], exp(E[ln x])."""
        return self.padded[:, : self.n_components]

    @property
    def n_components(self) -> int:
        """K."""
        return int(self.shape.shape[1])

    @cached_property
    def counts(self) -> Array:
        """[R, W], where a pass writes what `maximise` then takes."""
        from sandtable_kernels.compiled.events.row_vectors import padded_zeros

        return np.asarray(padded_zeros(self.shape.shape[0], self.n_components, self.padded.dtype))

    @cached_property
    def group_shape(self) -> Floats:
        """[G], shape of q of a group's rate; [1] where it is the same for all."""
        sizes = np.ones(1) if self.group is None else np.bincount(self.group, minlength=self.group_rate.size)
        return np.asarray(self.prior.hyper_shape + sizes * (self.n_components * self.prior.shape), np.float64)

    @property
    def group_mean(self) -> Floats:
        """[G], the expected rate of a group."""
        if self.prior.rate is not None:
            return np.full(self.group_rate.size, self.prior.rate)
        return np.asarray(self.group_shape / self.group_rate)

    @property
    def prior_rate(self) -> Floats:
        """[R], the expected rate of a row's prior."""
        return self.group_mean if self.group is None else self.group_mean[self.group]

    def maximise(self, counts: Array, exposure: Array, weights: Array) -> None:
        """Set q of the factors, then of their rates, to the optimum given ``counts`` [R, K or W].

        ``exposure`` [R] times ``weights`` [K] is what a factor's rate has beyond its prior's.
        """
        exposure, weights = (np.ascontiguousarray(values, np.float64) for values in (exposure, weights))
        self._follow(self._take(counts, (exposure, weights), self.prior_rate))

    def maximise_rates(self, counts: Array, rates: Array) -> None:
        """Do as `maximise`, given the rates beyond the prior's themselves: [R, K], or [M, K] for rows in turn."""
        self._follow(self._take(counts, (np.ascontiguousarray(rates, np.float64),), self.prior_rate))

    def refresh(self) -> None:
        """Make all else follow from shapes and means."""
        rates = self.shape.astype(np.float64) / self.mean
        counts = self.shape.astype(np.float64) - self.prior.shape
        self._follow(self._take(counts, (rates,), np.zeros(self.shape.shape[0])))

    @cached_property
    def _chunks(self) -> NDArray[np.int64]:
        return np.asarray(np.arange(N_CHUNKS + 1) * self.shape.shape[0] // N_CHUNKS, np.int64)

    def _take(self, counts: Array, rates: tuple[Array, ...], prior_rate: Floats) -> Floats:
        """Set q of the factors; return the sums of their means [R]."""
        from scipy.special import gammaln

        from sandtable_kernels.compiled.events import gamma_loops

        factors, totals = (self.shape, self.mean, self.padded), np.empty(self.shape.shape[0])
        shape = float(self.prior.shape)
        terms = gamma_loops.maximise(self._chunks, shape, prior_rate, counts, rates, factors, totals)
        self._entropies = float(terms) - self.shape.size * float(gammaln(shape))
        return totals

    def _follow(self, totals: Floats) -> None:
        """Set q of the groups' rates to the optimum given sums of means [R], and `terms` to what holds then."""
        from scipy.special import gammaln

        prior = self.prior
        total = self._by_group(totals)
        if prior.rate is not None:
            self.terms = self._entropies + self.shape.size * prior.shape * float(np.log(prior.rate))
            self.terms -= prior.rate * float(total.sum())
            return
        self.group_rate[:] = prior.hyper_rate + total
        # what is left of a rate's prior, its factors' priors and its entropy at this optimum
        constant = prior.hyper_shape * np.log(prior.hyper_rate) - gammaln(prior.hyper_shape)
        per_group = constant + gammaln(self.group_shape) - self.group_shape * np.log(self.group_rate)
        self.terms = self._entropies + float(np.sum(per_group))

    def _by_group(self, totals: Floats) -> Floats:
        """Return the sums over groups [G] of sums over rows [R]."""
        if self.group is None:
            return totals
        return np.asarray(np.bincount(self.group, totals, minlength=self.group_rate.size), np.float64)

    def weighted(self, exposure: Array | None = None) -> Floats:
        """Return [K], the sum of the means over rows, each times its ``exposure`` [R]."""
        from sandtable_kernels.compiled.events import gamma_loops

        weights = np.ones(self.mean.shape[0]) if exposure is None else np.ascontiguousarray(exposure, np.float64)
        return np.asarray(gamma_loops.weighted_sums(self._chunks, weights, self.mean))

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
