"""What iterations by the clock are made of as kernels: what ``sandtable calibrate --only rpf`` times beside passes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.poisson.dynamic_pass import DynamicPass, sum_of_items
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_kernels.poisson.feature_clock import FeatureClock, named_features
from sandtable_kernels.poisson.gamma_rows import GammaPrior, GammaRows
from sandtable_kernels.poisson.laws import dynamic_law as law
from sandtable_kernels.poisson.laws.dynamic_law import CellPassShape, ClockRatesShape, cells_op, rates_op
from sandtable_kernels.poisson.poisson_law import ACTIVITY
from sandtable_kernels.poisson.poisson_timings import DECAY, DEGREE, HOURS, PoissonKernel, drawn, triggered
from sandtable_kernels.support import Array

NAMES = "users items pairs cells events components triggers exponent features dtype n_cores"
WEEKLY, DAILY = "weekdays_and_hours", "hours"
# of the bins of a clock, how far apart those of a pair's visits lie: all are met before one is met again
STRIDE = 5
SIZES = (
    (600, 300, 12_000, 20_000, 30_000),
    (3_000, 1_000, 60_000, 120_000, 150_000),
    (8_000, 4_000, 150_000, 400_000, 500_000),
)


class _Clock(PoissonKernel):
    """A part of an iteration by the clock; dims as in `NAMES`."""

    # the method of `ClockProblem` that is timed
    part: ClassVar[str]

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Few and many users and items, narrow and wide rows, one feature at once and two."""
        rows = [(*size, k, 0, 1.0, WEEKLY, "float32") for size in SIZES for k in (8, 20)]
        rows += [(*size, 20, 0, 1.0, DAILY, "float32") for size in SIZES[:2]]
        rows += (
            [] if quick else [(*SIZES[1], 20, 0, 1.0, WEEKLY, "float64"), (*SIZES[0], 44, 0, 1.0, DAILY, "float32")]
        )
        return [self._point(*row, n) for row in (*rows, *self.more()) for n in (1, 0)]

    def more(self) -> Sequence[tuple[Any, ...]]:
        """Return further rows of the grid."""
        return ()

    @staticmethod
    def _point(*values: Any) -> Dims:
        return dict(zip(NAMES.split(), values, strict=True))

    def example(self) -> Dims:
        """A few users."""
        return self._point(30, 12, 120, 200, 260, 5, 0, 1.0, DAILY, "float32", 1)

    def calls(self, dims: Dims, seed: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """See `PoissonKernel.calls`."""
        one = clock_made(dims, seed)
        at = ClockProblem.PARTS.index(self.part)
        others = [getattr(one, name) for name in (*ClockProblem.PARTS[at + 1 :], *ClockProblem.PARTS[:at])]
        for name in ClockProblem.PARTS:
            getattr(one, name)()

        def rest() -> None:
            for other in others:
                other()

        return getattr(one, self.part), rest


class _Cells(_Clock):
    """A pass over cells."""

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the counts of users and items [U I + P J, K]."""
        one, k = ClockProblem(dims, context.seed), dims["components"]
        one.over_users()
        one.over_items()
        counts = [np.asarray(rows.counts, np.float64)[:, :k] for rows in (one.theta, one.beta)]
        return np.concatenate(counts)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same, event by event in float64."""
        one, k = ClockProblem(dims, context.seed), dims["components"]
        pairs, table = one.events, one.clock.user_table
        user, item, features = pairs.event_user, pairs.event_item, table.shape[1]
        held = table[one.clock.bins(pairs.time)]
        theta, beta = (rows.geometric.astype(np.float64).reshape(-1, features, k) for rows in (one.theta, one.beta))
        mine, theirs = (np.einsum("ni,nik->nk", held, rows) for rows in (theta[user], beta[item]))
        total = (mine * theirs).sum(1) + one.tau.geometric[user, 0] * one.own
        if one.triggers is not None:
            event = np.repeat(np.arange(pairs.n_events), np.diff(one.triggers.start))
            values = one.tau.geometric[one.triggers.edge, 0] * one.triggers.value
            total = total + np.bincount(event, values, pairs.n_events)
        counts = [np.zeros_like(rows) for rows in (theta, beta)]
        for rows, whose, other, found in ((theta, user, theirs, counts[0]), (beta, item, mine, counts[1])):
            np.add.at(found, whose, held[:, :, None] * rows[whose] * (other / total[:, None])[:, None, :])
        return np.concatenate([found.reshape(-1, k) for found in counts])


class CellUserPass(_Cells):
    """The pass over users whose factors follow the clock, and whom their own and others' events excite."""

    name: ClassVar[str] = "clock_users"
    part: ClassVar[str] = "over_users"

    def more(self) -> Sequence[tuple[Any, ...]]:
        """Return those with what others excite."""
        return [(*SIZES[0], 20, 30_000, 1.0, WEEKLY, "float32"), (*SIZES[1], 20, 500_000, 1.0, DAILY, "float32")]

    def cost(self, dims: Dims) -> Op:
        """See `cells_op`."""
        table = named_features(dims["features"]).table
        (n_bins, features), active = table.shape, float(table.sum(1).mean())
        shape = CellPassShape(
            rows=dims["users"],
            own_features=features,
            components=dims["components"],
            cells=dims["cells"],
            active=active,
            mixed=2 * active * law.bins_of_users(dims["cells"], dims["users"], n_bins),
            events=dims["events"],
            triggers=dims["triggers"],
            sources=dims["items"],
            features=features,
            exponent=dims["exponent"],
            n_cores=dims["n_cores"],
        )
        return cells_op(self.name, shape, dims["dtype"])


class CellItemPass(_Cells):
    """The pass over items behind it."""

    name: ClassVar[str] = "clock_items"
    part: ClassVar[str] = "over_items"

    def cost(self, dims: Dims) -> Op:
        """See `cells_op`."""
        table = named_features(dims["features"]).table
        (n_bins, features), active, cells = table.shape, float(table.sum(1).mean()), dims["cells"]
        spread = law.bins_of_items(cells, dims["items"], dims["exponent"], n_bins) + cells / law.BLOCK
        shape = CellPassShape(
            rows=dims["items"],
            own_features=features,
            components=dims["components"],
            cells=cells,
            active=active,
            mixed=active * spread,
            events=0,
            triggers=0,
            sources=dims["users"],
            features=features,
            exponent=ACTIVITY,
            n_cores=dims["n_cores"],
            kind=law.ITEMS,
        )
        return cells_op(self.name, shape, dims["dtype"])


class _Rates(_Clock):
    """What exposure adds to rates."""

    kind: ClassVar[int]

    def cost(self, dims: Dims) -> Op:
        """See `rates_op`."""
        n_bins, features = named_features(dims["features"]).table.shape
        summed = dims["items"] * features if self.kind == law.USERS else 0
        shape = ClockRatesShape(
            dims["users"], features, dims["components"], n_bins, summed, dims["n_cores"], self.kind
        )
        return rates_op(self.name, shape, dims["dtype"])

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the rates [rows, K]."""
        return np.array(getattr(ClockProblem(dims, context.seed), self.part)(), np.float64)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same from the hours of each bin for each user."""
        one, k = ClockProblem(dims, context.seed), dims["components"]
        exposure, table = one.clock.exposure(one.start, HOURS), one.clock.user_table
        theta, beta = (
            rows.mean.astype(np.float64).reshape(-1, table.shape[1], k) for rows in (one.theta, one.beta)
        )
        return self.expected(exposure, table, theta, beta)

    @abstractmethod
    def expected(self, exposure: Array, table: Array, theta: Array, beta: Array) -> Array:
        """Return rates given hours [U, B], features [B, I], and means [U, I, K] and [P, I, K]."""


class UserRates(_Rates):
    """Rates of users, and the events that are expected of them."""

    name: ClassVar[str] = "clock_user_rates"
    part: ClassVar[str] = "rates_of_users"
    kind: ClassVar[int] = law.USERS

    def expected(self, exposure: Array, table: Array, theta: Array, beta: Array) -> Array:
        """See `_Rates.expected`."""
        rates = np.einsum("ub,bi,bk->uik", exposure, table, table @ beta.sum(0))
        return np.asarray(rates.reshape(-1, rates.shape[2]))


class ItemRates(_Rates):
    """Rates that any item has."""

    name: ClassVar[str] = "clock_item_rates"
    part: ClassVar[str] = "rates_of_items"
    kind: ClassVar[int] = law.ITEMS

    def expected(self, exposure: Array, table: Array, theta: Array, beta: Array) -> Array:
        """See `_Rates.expected`."""
        return np.asarray(np.einsum("ub,bi,uik,bj->jk", exposure, table, theta, table))


# --- data ----------------------------------------------------------------------------------------------------------


class ClockProblem:
    """Events of exactly as many cells, factors, and the parts of an iteration in order."""

    PARTS = ("over_users", "over_items", "rates_of_users", "maximise_users", "rates_of_items", "maximise_items")

    def __init__(self, dims: Dims, seed: int) -> None:
        rng, dtype = np.random.default_rng(seed), dims["dtype"]
        table, period = named_features(dims["features"])
        self.clock, self._k, self._dtype = FeatureClock(table, table, period), dims["components"], dtype
        self.events = visited(*(dims[name] for name in NAMES.split()[:5]), dims["exponent"], dims["features"])
        self.own = self.events.own_excitation(DECAY, dtype)
        self.triggers = triggered(self.events, dims["triggers"], dtype) if dims["triggers"] else None
        n_edges = DEGREE * dims["users"] if dims["triggers"] else 0
        self.theta, self.beta = (self._rows(rng, dims[whose]) for whose in ("users", "items"))
        tau = rng.uniform(0.1, 0.5, (dims["users"] + n_edges, 1))
        self.tau = GammaRows.start(GammaPrior(), tau, dtype=dtype)
        self.start = np.asarray(rng.uniform(0, HOURS / 2, dims["users"]))
        links = (self.own, self.triggers, dims["n_cores"] or None)
        self.whole = DynamicPass(self.events, dtype, self.clock, self.start, HOURS, *links)
        self._rates: Any = None

    def _rows(self, rng: np.random.Generator, n: int) -> GammaRows:
        features = self.clock.user_table.shape[1]
        group = np.repeat(np.arange(n), features)
        means = rng.uniform(0.5, 1.5, (n * features, self._k)) / 10
        return GammaRows.start(GammaPrior(), means, group=group, n_groups=n, dtype=self._dtype)

    def over_users(self) -> None:
        """Pass over users."""
        self.whole.over_users(self.theta, self.beta, self.tau)

    def over_items(self) -> None:
        """Pass over items."""
        self.whole.over_items(self.theta, self.beta)

    def rates_of_users(self) -> Array:
        """Return rates of users [U I, K]."""
        totals = sum_of_items(self.beta.mean, self.events.n_items)
        self._rates = self.whole.rates_of_users(totals, self.theta.mean)[0]
        return np.asarray(self._rates)

    def maximise_users(self) -> None:
        """Make users' factors anew."""
        self.theta.maximise_rates(self.theta.counts, self._rates)

    def rates_of_items(self) -> Array:
        """Return rates of any item [J, K]."""
        self._rates_of_items = self.whole.rates_of_items(self.theta.mean)
        return self._rates_of_items

    def maximise_items(self) -> None:
        """Make items' factors anew."""
        self.beta.maximise_rates(self.beta.counts, self._rates_of_items)


@lru_cache(maxsize=1)
def _clock_made(key: tuple[tuple[str, Any], ...], seed: int) -> ClockProblem:
    return ClockProblem(dict(key), seed)


def clock_made(dims: Dims, seed: int) -> ClockProblem:
    """Return the problem of a point; the last one is kept."""
    return _clock_made(tuple(sorted(dims.items())), seed)


@lru_cache(maxsize=8)
def visited(
    users: int, items: int, pairs: int, cells: int, events: int, exponent: float, features: str
) -> EventPairs:
    """Return events with exactly these counts: the visits of a pair lie in bins of their own, other events in those."""
    rng, one = np.random.default_rng(2), drawn(users, items, pairs, cells, exponent)
    n_bins, period = len(named_features(features).table), named_features(features).period
    pair, nth = one.event_pair, np.arange(cells) - one.event_start[one.event_pair]
    bins = (rng.integers(0, n_bins, pairs)[pair] + STRIDE * nth) % n_bins
    cell = np.concatenate((np.arange(cells), rng.integers(0, cells, events - cells)))
    whole = rng.integers(0, int(HOURS // period), events)
    time = (whole + (bins[cell] + rng.random(events)) / n_bins) * period
    return EventPairs.of(one.event_user[cell], one.event_item[cell], time, users, items)
