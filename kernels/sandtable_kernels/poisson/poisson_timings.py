"""Passes and factors of Poisson factorization as kernels: what ``sandtable calibrate --only rpf`` times.

Counts lie between those that people ask for. Popularity of items is a power law, and users differ in how many items
they met, as in data that people have. Each part is timed within whole iterations, which leave in the caches what they
leave there in a fit, and threads awake: behind a stream through memory, small parts take more than twice as long.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.poisson import poisson_law as law
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_kernels.poisson.event_pass import EventPass
from sandtable_kernels.poisson.event_triggers import EventTriggers
from sandtable_kernels.poisson.gamma_rows import GammaPrior, GammaRows
from sandtable_kernels.poisson.poisson_law import GammaRowsShape, PoissonPassShape, pass_op, rows_op
from sandtable_kernels.support import Array, compiled

HOURS = 2000.0
DECAY = 1.0
NAMES = "users items pairs events components triggers exponent excited dtype n_cores"
# how often pairs are drawn by popularity; what is still missing then is drawn without
ROUNDS = 12
# whom a user follows, where events have triggers
DEGREE = 8


class PoissonKernel(Kernel):
    """What all of these share; timed with ``n_cores`` threads, 0 for all."""

    calibrates: ClassVar[str | None] = "rpf"

    @contextmanager
    def prepare(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        """Give the call, once made to compile."""
        call, _ = self._ready(dims, context)

        def timed() -> None:
            call()

        yield timed

    def timings(self, dims: Dims, context: KernelContext, *, repeats: int, budget_s: float) -> list[float] | None:
        """Time the call within whole iterations."""
        call, rest = self._ready(dims, context)
        rest()
        samples: list[float] = []
        end = time.perf_counter() + budget_s
        while len(samples) < repeats and (not samples or time.perf_counter() < end):
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
            rest()
        return samples

    def _ready(self, dims: Dims, context: KernelContext) -> tuple[Callable[[], Any], Callable[[], Any]]:
        call, rest = self.calls(dims, context.seed)
        compiled("memory_loops").use_threads(min(dims["n_cores"], context.n_threads) or context.n_threads)
        call()
        return call, rest

    @abstractmethod
    def calls(self, dims: Dims, seed: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Return what is timed, and what else an iteration does, from behind it until it comes again."""


class _Pass(PoissonKernel):
    """A pass over events; dims as in `NAMES`."""

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Few and many pairs a user, items that caches hold and items that they do not, narrow and wide rows."""
        sizes = [
            (3_000, 700, 60_000, 150_000),
            (15_000, 3_000, 250_000, 320_000),
            (40_000, 25_000, 300_000, 900_000),
            (90_000, 120_000, 450_000, 700_000),
            (12_000, 250_000, 500_000, 1_100_000),
        ]
        rows = [(*size, k, 0, 1.0, "float32") for size in sizes for k in (12, 28)]
        rows += [(*size, 20, 0, exponent, "float32") for size in sizes[2:4] for exponent in (0.0, 0.6)]
        if not quick:
            rows += [
                (*size, k, 0, 1.0, dtype) for size in sizes[::2] for k, dtype in ((70, "float32"), (20, "float64"))
            ]
            rows += [(700, 300, 20_000, 45_000, k, 0, 1.0, "float32") for k in (8, 44)]
            rows += [(250_000, 40_000, 700_000, 900_000, 20, 0, 1.0, "float32")]
        return [point for row in rows for point in self.points(row)]

    def points(self, row: tuple[Any, ...]) -> list[Dims]:
        """Return the points of a row: on one core and on all."""
        names = NAMES.split()
        return [dict(zip(names, (*row[:7], self.excites, *row[7:], n), strict=True)) for n in (1, 0)]

    excites: ClassVar[bool] = False

    def example(self) -> Dims:
        """A few users."""
        row = (40, 25, 300, 700, 5, 0, 1.0, self.excites, "float32", 1)
        return dict(zip(NAMES.split(), row, strict=True))

    def shape(self, dims: Dims) -> PoissonPassShape:
        """Return the pass over users."""
        kind = law.SOCIAL if dims["triggers"] else law.EXCITED if dims["excited"] else law.USERS
        return PoissonPassShape(
            rows=dims["users"],
            components=dims["components"],
            pairs=dims["pairs"],
            events=dims["events"],
            triggers=dims["triggers"],
            sources=dims["items"],
            exponent=dims["exponent"],
            n_cores=dims["n_cores"],
            kind=kind,
        )

    def cost(self, dims: Dims) -> Op:
        """See `pass_op`."""
        return pass_op(self.name, self.shape(dims), dims["dtype"])

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the counts of users and items [U + P, K]."""
        counts = made(dims, context.seed)()
        k = dims["components"]
        return np.concatenate([np.asarray(part, np.float64)[:, :k] for part in (counts.users, counts.items)])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same, event by event in float64."""
        one = made(dims, context.seed)
        pairs, theta, beta = (
            one.events,
            one.theta.geometric.astype(np.float64),
            one.beta.geometric.astype(np.float64),
        )
        user, item = pairs.event_user, pairs.event_item
        both = theta[user] * beta[item]
        total = both.sum(1)
        if one.own is not None:
            assert one.tau is not None
            total = total + one.tau.geometric[user, 0] * one.own
        if one.triggers is not None:
            assert one.tau is not None
            event = np.repeat(np.arange(pairs.n_events), np.diff(one.triggers.start))
            values = one.tau.geometric[one.triggers.edge, 0] * one.triggers.value
            total = total + np.bincount(event, values, pairs.n_events)
        counts = np.zeros((dims["users"] + dims["items"], dims["components"]))
        np.add.at(counts, user, both / total[:, None])
        np.add.at(counts, dims["users"] + item, both / total[:, None])
        return counts


class PoissonUserPass(_Pass):
    """The pass over users without excitation."""

    name: ClassVar[str] = "poisson_users"

    def calls(self, dims: Dims, seed: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """See `PoissonKernel.calls`."""
        one = made(dims, seed)

        def rest() -> None:
            one.over_items()
            one.maximise()

        return one.over_users, rest


class ExcitedUserPass(PoissonUserPass):
    """The pass over users whom their own earlier events excite."""

    name: ClassVar[str] = "poisson_excited"
    excites: ClassVar[bool] = True


class SocialUserPass(PoissonUserPass):
    """The pass over users whom events of those whom they follow excite as well."""

    name: ClassVar[str] = "poisson_social"
    excites: ClassVar[bool] = True

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """More and more that others excite."""
        sizes = [
            (3_000, 700, 60_000, 150_000),
            (15_000, 3_000, 250_000, 320_000),
            (40_000, 25_000, 300_000, 900_000),
        ]
        found = [
            (*size, k, size[3] * tenths // 10, 1.0, "float32")
            for size in sizes[: 2 if quick else 3]
            for tenths in (2, 9, 35)
            for k in (20,)
        ]
        found += [(700, 300, 20_000, 45_000, 8, 30_000, 1.0, "float32")]
        found += [] if quick else [(*sizes[1], 20, 300_000, 1.0, "float64")]
        return [point for row in found for point in self.points(row)]

    def example(self) -> Dims:
        """A few users."""
        return {**super().example(), "triggers": 900}


class PoissonItemPass(_Pass):
    """The pass over items, behind one over users."""

    name: ClassVar[str] = "poisson_items"

    def shape(self, dims: Dims) -> PoissonPassShape:
        """Return the pass over items, which gathers rows of users by their activity."""
        users = super().shape(dims)
        return users._replace(
            rows=dims["items"], sources=dims["users"], events=0, triggers=0, exponent=law.ACTIVITY, kind=law.ITEMS
        )

    def calls(self, dims: Dims, seed: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """See `PoissonKernel.calls`."""
        one = made(dims, seed)
        one.over_users()

        def rest() -> None:
            one.maximise()
            one.over_users()

        return one.over_items, rest


class GammaRowsKernel(PoissonKernel):
    """Factors made anew, and sums of their means; dims rows, components, sums, dtype, n_cores."""

    name: ClassVar[str] = "gamma_rows"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Few and many rows, of one factor and of many, with and without sums."""
        rows = [(n, k) for n in (700, 15_000, 90_000) for k in (1, 11, 28)]
        rows += [] if quick else [(n, k) for n in (3_000, 40_000) for k in (12, 70)] + [(250_000, 1), (250_000, 20)]
        found = [
            (n, k, sums, "float32", cores)
            for n, k in rows
            for sums in ((0,) if k == 1 else (0, 2))
            for cores in (1, 0)
        ]
        found += [] if quick else [(n, 20, 1, "float64", cores) for n in (3_000, 40_000) for cores in (1, 0)]
        return [self._point(*row) for row in found]

    @staticmethod
    def _point(rows: int, components: int, sums: int, dtype: str, n_cores: int) -> Dims:
        return {"rows": rows, "components": components, "sums": sums, "dtype": dtype, "n_cores": n_cores}

    def example(self) -> Dims:
        """A few rows."""
        return self._point(30, 5, 1, "float32", 1)

    def cost(self, dims: Dims) -> Op:
        """See `rows_op`."""
        shape = GammaRowsShape(*(dims[name] for name in ("rows", "components", "sums", "n_cores")))
        return rows_op(self.name, shape, dims["dtype"])

    def _problem(self, dims: Dims, seed: int) -> tuple[GammaRows, Array, Array, Array]:
        rng, size = np.random.default_rng(seed), (dims["rows"], dims["components"])
        rows = GammaRows.start(GammaPrior(), rng.uniform(0.5, 1.5, size), dtype=dims["dtype"])
        counts = rows.counts
        counts[:, : size[1]] = rng.gamma(1.0, 2.0, size)
        exposure, n = rng.uniform(0.5, 1.5, sum(size)), size[0]
        return rows, counts, exposure[:n], exposure[n:]

    def calls(self, dims: Dims, seed: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Return the update with its sums, some before it and some behind, and the passes that write counts."""
        n, behind = dims["rows"], dims["sums"] // 2
        around = {"users": n, "items": n // 4 + 10, "pairs": 3 * n, "events": 4 * n, "triggers": 0, "exponent": 1.0}
        one = Problem({**dims, **around, "excited": False}, seed)
        rows, exposure, weights = one.theta, np.full(n, HOURS), np.ones(dims["components"])

        def update() -> None:
            for _ in range(dims["sums"] - behind):
                rows.weighted(exposure)
            rows.maximise(rows.counts, exposure, weights)
            for _ in range(behind):
                rows.weighted(exposure)

        return update, one

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the geometric means of one update [R, K]."""
        rows, counts, exposure, weights = self._problem(dims, context.seed)
        rows.maximise(counts, exposure, weights)
        return np.array(rows.geometric)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same by SciPy's digamma function in float64."""
        from scipy.special import digamma

        rows, counts, exposure, weights = self._problem(dims, context.seed)
        rate = np.multiply.outer(exposure, weights) + rows.prior_rate[:, None]
        shape = rows.prior.shape + counts[:, : dims["components"]].astype(np.float64)
        return np.asarray(np.exp(digamma(shape)) / rate)


# --- data ----------------------------------------------------------------------------------------------------------


class Problem:
    """Events, factors and what excites, and the two halves of a pass over them."""

    def __init__(self, dims: Dims, seed: int) -> None:
        rng, k, dtype = np.random.default_rng(seed), dims["components"], dims["dtype"]
        self.events = drawn(**_data(dims))
        self.own = self.events.own_excitation(DECAY, dtype) if dims["excited"] else None
        self.triggers = None
        n_edges = 0
        if dims["triggers"]:
            self.triggers = triggered(self.events, dims["triggers"], dtype)
            n_edges = DEGREE * dims["users"]
        self.theta, self.beta = (
            GammaRows.start(GammaPrior(), rng.uniform(0.5, 1.5, (n, k)), dtype=dtype)
            for n in (dims["users"], dims["items"])
        )
        tau = rng.uniform(0.1, 0.5, (dims["users"] + n_edges, 1))
        self.tau = GammaRows.start(GammaPrior(), tau, dtype=dtype) if dims["excited"] else None
        self._exposure = np.full(dims["users"], HOURS)
        self.whole = EventPass(self.events, dtype, self.own, self.triggers, dims["n_cores"] or None)

    def __call__(self) -> Any:
        """Return the counts of a whole pass."""
        return self.whole(self.theta, self.beta, self.tau)

    def over_users(self) -> None:
        """Pass over users."""
        self.whole.over_users(self.theta, self.beta, self.tau)

    def over_items(self) -> None:
        """Pass over items."""
        self.whole.over_items(self.theta, self.beta)

    def maximise(self) -> None:
        """Make all factors anew, with the sums that an iteration takes of them."""
        weights = self.beta.weighted()
        self.theta.weighted(self._exposure)
        self.theta.maximise(self.theta.counts, self._exposure, weights)
        weights = self.theta.weighted(self._exposure)
        if self.tau is not None:
            n = self.tau.shape.shape[0]
            self.tau.maximise(np.full((n, 1), 0.5), np.ones(n), np.ones(1))
        self.beta.maximise(self.beta.counts, np.ones(self.events.n_items), weights)


@lru_cache(maxsize=1)
def _made(key: tuple[tuple[str, Any], ...], seed: int) -> Problem:
    return Problem(dict(key), seed)


def made(dims: Dims, seed: int) -> Problem:
    """Return the problem of a point; the last one is kept."""
    return _made(tuple(sorted(dims.items())), seed)


def _data(dims: Dims) -> dict[str, Any]:
    return {name: dims[name] for name in ("users", "items", "pairs", "events", "exponent")}


@lru_cache(maxsize=16)
def drawn(users: int, items: int, pairs: int, events: int, exponent: float) -> EventPairs:
    """Return events with exactly these counts: items by popularity, users of unequal activity, bursts of visits."""
    rng = np.random.default_rng(0)
    activity = np.cumsum(rng.lognormal(0.0, 1.0, users))
    popular = np.cumsum(np.arange(1.0, items + 1) ** -exponent)
    names, keys = rng.permutation(items), np.empty(0, np.int64)
    for round_ in count():
        if keys.size >= pairs:
            break
        n = pairs - keys.size + pairs // 8 + 16
        user = np.searchsorted(activity, rng.random(n) * activity[-1])
        item = names[np.searchsorted(popular, rng.random(n) * popular[-1])]
        if round_ > ROUNDS:  # what is popular has been met
            user, item = rng.integers(0, users, n), rng.integers(0, items, n)
        keys = np.union1d(keys, user * items + item)
    keys = rng.permutation(keys)[:pairs]
    which = np.concatenate((np.arange(pairs), rng.integers(0, pairs, events - pairs)))
    time = np.sort(rng.random(events)) * HOURS
    again = which[pairs:]
    time[pairs:] = np.minimum(time[again] + rng.exponential(2.0, again.size), HOURS)
    return EventPairs.of(keys[which] // items, keys[which] % items, time, users, items)


def triggered(pairs: EventPairs, n: int, dtype: Any) -> EventTriggers:
    """Return ``n`` triggers of these events, each over one of `DEGREE` edges to its user."""
    rng = np.random.default_rng(1)
    per_event = np.bincount(rng.integers(0, pairs.n_events, n), minlength=pairs.n_events)
    edge = (
        pairs.n_users
        + DEGREE * np.repeat(pairs.event_user, per_event).astype(np.int32)
        + rng.integers(0, DEGREE, n)
    )
    start = np.concatenate(([0], np.cumsum(per_event)))
    return EventTriggers(start, edge.astype(np.int32), rng.exponential(0.1, n).astype(dtype))
