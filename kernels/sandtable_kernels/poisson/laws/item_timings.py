"""Iterations where items excite others as kernels: what ``sandtable calibrate --only rpf`` times of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.poisson.gamma_rows import GammaPrior, GammaRows
from sandtable_kernels.poisson.item_pass import ItemPass, Rows, with_others
from sandtable_kernels.poisson.laws import item_law as law
from sandtable_kernels.poisson.laws.item_law import GivenOffShape, ItemExcitationShape, excitation_op, given_op
from sandtable_kernels.poisson.poisson_timings import DECAY, DEGREE, HOURS, PoissonKernel, drawn, triggered
from sandtable_kernels.support import Array

NAMES = "users items pairs events components clusters triggers exponent dtype n_cores"
# as of the passes without, so that events are drawn once
SIZES = (
    (700, 300, 20_000, 45_000),
    (3_000, 700, 60_000, 150_000),
    (15_000, 3_000, 250_000, 320_000),
    (40_000, 25_000, 300_000, 900_000),
)


class _Between(PoissonKernel):
    """A part of an iteration in which items excite others; dims as in `NAMES`, no clusters where factors do."""

    part: ClassVar[str]
    clustered: ClassVar[bool] = False

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Few and many events and items, narrow and wide rows."""
        found = [
            self._point(*size, k, clusters, 0, 1.0, "float32", n)
            for size in SIZES
            for k, clusters in (((12, 6), (28, 24)) if self.clustered else ((12, 0), (28, 0)))
            for n in (1, 0)
        ]
        more = [(*SIZES[1], 20, 135_000, "float32")]
        more += [] if quick else [(*SIZES[1], 20, 0, "float64"), (*SIZES[2], 60, 0, "float32")]
        clusters = 10 if self.clustered else 0
        return found + [self._point(*row[:5], clusters, row[5], 1.0, row[6], n) for row in more for n in (1, 0)]

    @staticmethod
    def _point(*values: Any) -> Dims:
        return dict(zip(NAMES.split(), values, strict=True))

    def example(self) -> Dims:
        """A few users."""
        return self._point(30, 12, 120, 260, 5, 3 if self.clustered else 0, 300, 1.0, "float32", 1)

    def calls(self, dims: Dims, seed: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """See `PoissonKernel.calls`."""
        one = between_made(dims, seed)
        at = ItemProblem.PARTS.index(self.part)
        others = [getattr(one, name) for name in (*ItemProblem.PARTS[at + 1 :], *ItemProblem.PARTS[:at])]

        def rest() -> None:
            for other in others:
                other()

        rest()
        return getattr(one, self.part), rest


class _Excitation(_Between):
    """A pass in order of time, and the sums over items."""

    part: ClassVar[str] = "counts"

    def cost(self, dims: Dims) -> Op:
        """See `excitation_op`."""
        shape = ItemExcitationShape(
            rows=dims["users"],
            components=dims["components"],
            width=dims["clusters"] if self.clustered else dims["components"],
            pairs=dims["pairs"],
            events=dims["events"],
            triggers=dims["triggers"],
            sources=dims["items"],
            exponent=dims["exponent"],
            n_cores=dims["n_cores"],
            kind=law.CLUSTERS if self.clustered else law.FACTORS,
        )
        return excitation_op(self.name, shape, dims["dtype"])

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the counts of users and items [U + P, K]."""
        counts, k = ItemProblem(dims, context.seed).counts().counts, dims["components"]
        return np.concatenate([np.asarray(part, np.float64)[:, :k] for part in (counts.users, counts.items)])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same, each event against all earlier ones of its user in float64."""
        one = ItemProblem(dims, context.seed)
        pairs, rows = one.events, one.rows
        theta, beta, phi, tau = (each.geometric.astype(np.float64) for each in rows)
        user, item = pairs.event_user, pairs.event_item
        since = pairs.time[:, None] - pairs.time[None, :]
        causes = (since > 0) & (user[:, None] == user[None, :]) & (item[:, None] != item[None, :])
        weight = np.where(causes, DECAY * np.exp(-DECAY * np.where(causes, since, 0.0)), 0.0) * phi[user]
        if self.clustered:
            excites = one.reach[one.cluster[item][None, :], one.cluster[item][:, None]]
        else:
            excites = beta[item] @ beta[item].T
        total = (theta[user] * beta[item]).sum(1) + (weight * excites).sum(1) + tau[user, 0] * one.own
        if one.triggers is not None:
            event = np.repeat(np.arange(pairs.n_events), np.diff(one.triggers.start))
            total += np.bincount(event, tau[one.triggers.edge, 0] * one.triggers.value, pairs.n_events)
        counts = [np.zeros_like(theta), np.zeros_like(beta)]
        share = theta[user] * beta[item] / total[:, None]
        np.add.at(counts[0], user, share)
        np.add.at(counts[1], item, share)
        if not self.clustered:
            weight = weight / total[:, None]
            np.add.at(counts[1], item, beta[item] * (weight @ beta[item]))
            np.add.at(counts[1], item, beta[item] * (weight.T @ beta[item]))
        return np.concatenate(counts)


class FactorExcitation(_Excitation):
    """The pass where factors of items excite."""

    name: ClassVar[str] = "item_factors"


class ClusterExcitation(_Excitation):
    """The pass where clusters of items excite."""

    name: ClassVar[str] = "item_clusters"
    clustered: ClassVar[bool] = True


class GivenOffKernel(_Between):
    """What events give off to others, by users and by items, and rates of items one after another."""

    name: ClassVar[str] = "item_given"
    part: ClassVar[str] = "given"

    def cost(self, dims: Dims) -> Op:
        """See `given_op`."""
        shape = GivenOffShape(dims["pairs"], dims["items"] * dims["components"], dims["n_cores"])
        return given_op(self.name, shape, dims["dtype"])

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return what users give off [U], and rates of items [P, K], one array behind the other."""
        given, rates = ItemProblem(dims, context.seed).given()
        return np.concatenate((given, rates.ravel()))

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same, items against all others."""
        one = ItemProblem(dims, context.seed)
        pairs, beta = one.events, one.rows.beta.mean.astype(np.float64)
        prior, phi = one.rows.beta.prior_rate, one.rows.phi.mean[:, 0].astype(np.float64)
        gone = -np.expm1(-DECAY * (HOURS - pairs.time))
        reach = (beta @ beta.T).sum(1) - (beta**2).sum(1)
        given = np.bincount(pairs.event_user, gone * reach[pairs.event_item], pairs.n_users)
        weight = np.bincount(pairs.event_item, gone * phi[pairs.event_user], pairs.n_items)
        rates = np.empty_like(beta)
        for p in range(len(beta)):
            others = np.arange(len(beta)) != p
            rates[p] = 1.0 + weight[p] * beta[others].sum(0) + weight[others] @ beta[others]
            beta[p] = one.shapes[p] / (rates[p] + prior[p])
        return np.concatenate((given, rates.ravel()))


# --- data ----------------------------------------------------------------------------------------------------------


class ItemProblem:
    """Events, factors and what excites, and the parts of an iteration in order."""

    PARTS = ("counts", "given", "maximise")

    def __init__(self, dims: Dims, seed: int) -> None:
        rng, k, dtype = np.random.default_rng(seed), dims["components"], dims["dtype"]
        self.events = drawn(**{name: dims[name] for name in ("users", "items", "pairs", "events", "exponent")})
        self.own = self.events.own_excitation(DECAY, dtype)
        self.triggers = triggered(self.events, dims["triggers"], dtype) if dims["triggers"] else None
        n_edges = DEGREE * dims["users"] if dims["triggers"] else 0
        sizes = ((dims["users"], k), (dims["items"], k), (dims["users"], 1), (dims["users"] + n_edges, 1))
        rows = (GammaRows.start(GammaPrior(), rng.uniform(0.1, 0.5, size), dtype=dtype) for size in sizes)
        self.rows = Rows(*rows)
        n = dims["clusters"]
        self.cluster, self.reach = (
            rng.integers(0, max(n, 1), dims["items"], np.int32),
            rng.uniform(0.1, 0.5, (n, n)),
        )
        self.shapes = rng.gamma(2.0, 1.0, (dims["items"], k))
        self.whole = ItemPass(self.events, DECAY, dtype, self.own, self.triggers, dims["n_cores"] or None)
        self._released, self._ones = self.whole.released(HOURS), np.ones(dims["users"])

    def counts(self) -> Any:
        """Pass over the events."""
        if self.reach.size:
            return self.whole.clusters(self.rows, self.cluster, self.reach)
        return self.whole.factors(self.rows)

    def given(self) -> tuple[Array, Array]:
        """Return what users give off [U], and rates of items [P, K]."""
        from sandtable_kernels.compiled.events.excitation_loops import item_rates

        mean = self.rows.beta.mean.astype(np.float64)
        given = self.whole.given_off(self._released, with_others(mean))
        received = self.whole.received(self._released, self.rows.phi.mean[:, 0].astype(np.float64))
        rates, base = np.empty_like(mean), np.ones(mean.shape[1])
        item_rates(self.shapes, base, self.rows.beta.prior_rate, received, mean, rates)
        return given, rates

    def maximise(self) -> None:
        """Make all factors anew."""
        theta, beta, phi, tau = self.rows
        ones, k = self._ones, theta.n_components
        theta.maximise(theta.counts, ones, np.ones(k))
        for rows in (phi, tau):
            n = rows.mean.shape[0]
            rows.maximise(np.full((n, 1), 0.5), np.ones(n), np.ones(1))
        beta.maximise(beta.counts, np.ones(beta.mean.shape[0]), np.ones(k))


@lru_cache(maxsize=1)
def _between_made(key: tuple[tuple[str, Any], ...], seed: int) -> ItemProblem:
    return ItemProblem(dict(key), seed)


def between_made(dims: Dims, seed: int) -> ItemProblem:
    """Return the problem of a point; the last one is kept."""
    return _between_made(tuple(sorted(dims.items())), seed)
