"""Events drawn exactly from a model whose parameters are known: what a fit is to find again.

The intensity of user u on item p is ``theta_u . beta_p``, with factors that follow a clock in the dynamic models, plus
for each edge v -> u (u = v is self-excitation) ``tau_vu`` times the kernel ``w exp(-w x)`` since events of v on p, plus
in the item-item model ``phi_u beta_q . beta_p`` times the kernel since events of u on other items q.

`simulate` uses that a linear process of this kind is a population: events of the base rate, each with Poisson numbers
of descendants (Hawkes and Oakes 1974). `thinned` is Ogata's thinning (1981), event by event: the same law, for small
problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.feature_clock import FeatureClock
from sandtable_workloads.rpf.events.event_table import EventTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_MOST_EVENTS = 50_000_000


class Events(NamedTuple):
    """Columns of events in any order."""

    user: Ints
    item: Ints
    time: Floats

    @classmethod
    def joined(cls, parts: list[Events]) -> Events:
        """Return several one after another."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def before(self, end: float) -> Events:
        """Return those before ``end``."""
        kept = self.time < end
        return Events(self.user[kept], self.item[kept], self.time[kept])

    def table(self, parameters: KnownParameters, hours: float) -> EventTable:
        """Return them in order of time, with ids 0 .. U - 1 and 0 .. P - 1."""
        order = np.argsort(self.time, kind="stable")
        return EventTable(
            self.user[order].astype(np.int32),
            self.item[order].astype(np.int32),
            self.time[order],
            np.arange(parameters.n_users),
            np.arange(parameters.n_items),
            start=0.0,
            end=hours,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownParameters:
    """Parameters that events are drawn from.

    Attributes:
        theta: [U, K], or [U, I, K] with a clock.
        beta: [P, K], or [P, J, K] with a clock.
        decay: w of the kernel, per hour.
        source: [E], the user v whose events excite; with none there is no excitation.
        target: [E], the user u who is excited.
        tau: [E], events that one of v brings about of u, on the same item.
        phi: [U], scale of excitation between items; None: there is none.
        clock: What the factors follow; None: they are constant.
    """

    theta: Floats
    beta: Floats
    decay: float = 1.0
    source: Ints | None = None
    target: Ints | None = None
    tau: Floats | None = None
    phi: Floats | None = None
    clock: FeatureClock | None = None

    def __post_init__(self) -> None:
        factors = 2 if self.clock is None else 3
        if self.theta.ndim != factors or self.beta.ndim != factors or self.theta.shape[-1] != self.beta.shape[-1]:
            raise ConfigError(f"theta {self.theta.shape} and beta {self.beta.shape} are no factors of one model")
        if not len(self.sources) == len(self.targets) == len(self.taus):
            raise ConfigError("source, target and tau must be as many")
        if self.clock is not None and self.phi is not None:
            raise ConfigError("excitation between items is known of constant factors only")
        numbers = (self.theta, self.beta, self.taus, np.zeros(0) if self.phi is None else self.phi)
        if not all(np.isfinite(values).all() and (values >= 0).all() for values in numbers) or not self.decay > 0:
            raise ConfigError("parameters of a Poisson process must be finite and not negative, the decay positive")

    @classmethod
    def drawn(
        cls,
        n_users: int,
        n_items: int,
        n_components: int,
        *,
        n_events: float,
        hours: float,
        branching: float = 0.4,
        mean_degree: float = 0.0,
        item_branching: float = 0.0,
        clock: FeatureClock | None = None,
        decay: float = 1.0,
        shape: float = 1.0,
        hyper_shape: float = 1.0,
        hyper_rate: float = 0.1,
        seed: int = 0,
    ) -> KnownParameters:
        """Draw parameters from the hierarchical Gamma priors, and scale them so that a simulation ends.

        The defaults of the priors are those of the authors' code (https://github.com/AHosseini/RPF). Their tails are
        so heavy that a few users and items have most events: a larger ``hyper_shape`` makes them more equal.

        Args:
            n_users: U.
            n_items: P.
            n_components: K.
            n_events: Events to expect, about; theta is scaled to that.
            hours: Length of the records that they are expected in.
            branching: Largest eigenvalue of the excitation of users, to which tau is scaled; 0: there is none.
            mean_degree: Mean number of users whom one follows, drawn at random; everyone also excites themselves.
            item_branching: Likewise of excitation between items, to which phi is scaled.
            clock: What factors follow; None: they are constant.
            decay: w, per hour.
            shape: Of theta, beta, tau and phi.
            hyper_shape: Shape of the rates of these.
            hyper_rate: Rate of the rates of these.
            seed: Of all randomness.
        """
        rng = np.random.default_rng(seed)

        def rows(n: int, *more: int) -> Floats:
            rate = rng.gamma(hyper_shape, 1 / hyper_rate, (n, *(1 for _ in more)))
            return np.asarray(rng.gamma(shape, 1.0, (n, *more)) / np.maximum(rate, 1e-300))

        bins = () if clock is None else (clock.user_table.shape[1], clock.item_table.shape[1])
        theta, beta = rows(n_users, *bins[:1], n_components), rows(n_items, *bins[1:], n_components)
        source, target = _random_edges(n_users, mean_degree, rng) if branching else (np.empty(0, np.int64),) * 2
        tau = rows(n_users)[source] * rng.gamma(shape, 1.0, source.size)
        phi = rows(n_users) if item_branching else None
        draft = cls(
            theta=theta, beta=beta, decay=decay, source=source, target=target, tau=tau, phi=phi, clock=clock
        )
        return draft._scaled(n_events / hours, branching, item_branching)

    def _scaled(self, per_hour: float, branching: float, item_branching: float) -> KnownParameters:
        largest = _largest(self._excite_users, self.n_users)
        scaled = replace(self, tau=self.taus * (branching / largest if largest else 0.0))
        if self.phi is not None:
            items = _largest(self._excite_items, self.n_items)
            scaled = replace(scaled, phi=self.phi * (item_branching / (items * self.phi.max())))
        events = np.zeros(self.n_users)
        while (events := scaled._mean_base() + scaled._excite_users(last := events)).sum() > 1.0001 * last.sum():
            pass
        return replace(scaled, theta=self.theta * (per_hour * (1 - item_branching) / events.sum()))

    def _mean_base(self) -> Floats:
        """Return [U], events per hour of the base rate, in the mean over the clock."""
        bins = range(1 if self.clock is None else self.clock.n_bins)
        rates = [theta @ beta.sum(0) for theta, beta in map(self.factors, bins)]
        return np.asarray(np.mean(rates, axis=0))

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.theta)

    @property
    def n_items(self) -> int:
        """P."""
        return len(self.beta)

    @property
    def sources(self) -> Ints:
        """[E]."""
        return np.empty(0, np.int64) if self.source is None else self.source

    @property
    def targets(self) -> Ints:
        """[E]."""
        return np.empty(0, np.int64) if self.target is None else self.target

    @property
    def taus(self) -> Floats:
        """[E]."""
        return np.empty(0) if self.tau is None else self.tau

    @property
    def edges(self) -> dict[str, Ints]:
        """Who follows whom, as estimators take it: ``user`` follows ``follows``; without self-excitation."""
        others = self.sources != self.targets
        return {"user": self.targets[others], "follows": self.sources[others]}

    @property
    def own_tau(self) -> Floats:
        """[U], self-excitation."""
        own = np.zeros(self.n_users)
        itself = self.sources == self.targets
        own[self.targets[itself]] = self.taus[itself]
        return own

    def factors(self, bin_: int) -> tuple[Floats, Floats]:
        """Return theta [U, K] and beta [P, K] in a bin of the clock."""
        if self.clock is None:
            return self.theta, self.beta
        user, item = self.clock.user_table[bin_], self.clock.item_table[bin_]
        return np.einsum("i,uik->uk", user, self.theta), np.einsum("j,pjk->pk", item, self.beta)

    def base(self, bin_: int = 0) -> Floats:
        """Return [U, P], the base rate per hour in a bin; for few users and items."""
        theta, beta = self.factors(bin_)
        return np.asarray(theta @ beta.T)

    def branching(self) -> float:
        """Return at most how many events one brings about in the mean, descendants not counted; below 1 it dies out.

        The largest eigenvalue of excitation between users, plus that between items under the largest ``phi``.
        """
        return _largest(self._excite_users, self.n_users) + (
            0.0 if self.phi is None else float(self.phi.max()) * _largest(self._excite_items, self.n_items)
        )

    def _excite_users(self, events: Floats) -> Floats:
        excited = np.bincount(self.targets, self.taus * events[self.sources], minlength=self.n_users)
        return excited.astype(np.float64)  # of no edge, zeros are integers

    def _excite_items(self, events: Floats) -> Floats:
        return np.asarray(self.beta @ (events @ self.beta) - (self.beta**2).sum(1) * events)


def _random_edges(n: int, mean_degree: float, rng: Generator) -> tuple[Ints, Ints]:
    """Return source and target of edges: everyone to themselves, and about ``mean_degree`` random others to each."""
    drawn = rng.integers(0, n, (2, round(n * mean_degree)))
    both = np.unique(np.concatenate((drawn, np.tile(np.arange(n), (2, 1))), axis=1), axis=1)
    return both[0], both[1]


def _largest(multiply: Callable[[Floats], Floats], n: int, steps: int = 200) -> float:
    """Return the largest eigenvalue of a matrix [n, n] without negative elements, by powers of it."""
    # a share of the vector stays: the powers of a graph without circles, or of one with a single one, settle too
    vector, value = np.ones(n) / n, 0.0
    for _ in range(steps):
        image = multiply(vector) + vector
        value = float(image.sum() / vector.sum())
        vector = image / image.sum()
    return max(value - 1.0, 0.0)


def simulate(
    parameters: KnownParameters, hours: float, seed: int = 0, most_events: int = _MOST_EVENTS
) -> EventTable:
    """Draw all events from hour 0, before which nothing happened, to ``hours``.

    Raises:
        ConfigError: more than ``most_events``: each brings about one more, or almost.
    """
    rng = np.random.default_rng(seed)
    born = Events.joined(list(_immigrants(parameters, hours, rng)))
    generations, n = [born], born.time.size
    while born.time.size:
        born = Events.joined([*_followed(parameters, born, rng), *_of_other_items(parameters, born, rng)]).before(
            hours
        )
        generations.append(born)
        n += born.time.size
        if n > most_events:
            raise ConfigError(
                f"more than {most_events:,} events: an event brings about up to {parameters.branching():.2f} others, "
                "and from 1 on they grow without end; take a smaller tau or phi, or fewer hours"
            )
    return Events.joined(generations).table(parameters, hours)


def _immigrants(parameters: KnownParameters, hours: float, rng: Generator) -> Iterator[Events]:
    """Yield the events of the base rate, bin by bin of the clock."""
    clock = parameters.clock
    if clock is None:
        user, item = _base_events(*parameters.factors(0), hours, rng)
        yield Events(user, item, rng.random(user.size) * hours)
        return
    first, last = clock.exposure(-clock.phase, 0.0)[0], clock.exposure(-clock.phase, hours)[0]
    for bin_ in range(clock.n_bins):
        user, item = _base_events(*parameters.factors(bin_), float(last[bin_] - first[bin_]), rng)
        # hours of this bin since the first period began, and where they lie
        into = first[bin_] + rng.random(user.size) * (last[bin_] - first[bin_])
        whole = np.floor(into / clock.bin_hours)
        inside = into - whole * clock.bin_hours
        yield Events(user, item, whole * clock.period + bin_ * clock.bin_hours + inside - clock.phase)


def _base_events(theta: Floats, beta: Floats, hours: float, rng: Generator) -> tuple[Ints, Ints]:
    """Draw user and item of the events of constant factors: by component, so that no table [U, P] is needed."""
    n = rng.poisson(theta * beta.sum(0) * hours)
    user = np.repeat(np.arange(len(theta)), n.sum(1))
    component = np.repeat(np.tile(np.arange(n.shape[1]), len(n)), n.ravel())
    return user, _items_of(component, beta, rng)


def _items_of(component: Ints, beta: Floats, rng: Generator) -> Ints:
    """Draw an item for each component [n], in proportion to its factor."""
    item = np.empty(component.size, np.int64)
    for k in range(beta.shape[1]):
        mine = np.flatnonzero(component == k)
        sums = np.cumsum(beta[:, k])
        item[mine] = np.searchsorted(sums, rng.random(mine.size) * sums[-1], side="right")
    return np.minimum(item, len(beta) - 1)


def _followed(parameters: KnownParameters, of: Events, rng: Generator) -> Iterator[Events]:
    """Yield what events bring about along edges, on the same item."""
    order = np.argsort(parameters.sources, kind="stable")
    begin = np.searchsorted(parameters.sources[order], np.arange(parameters.n_users + 1))
    n = np.diff(begin)[of.user]
    event = np.repeat(np.arange(of.user.size), n)
    edge = order[begin[of.user][event] + np.arange(event.size) - (np.cumsum(n) - n)[event]]
    n_born = rng.poisson(parameters.taus[edge])
    event, edge = np.repeat(event, n_born), np.repeat(edge, n_born)
    yield Events(parameters.targets[edge], of.item[event], of.time[event] + _delays(parameters, event.size, rng))


def _of_other_items(parameters: KnownParameters, of: Events, rng: Generator) -> Iterator[Events]:
    """Yield what events bring about of the same user on other items; those on the same one are thinned out."""
    if parameters.phi is None:
        return
    beta = parameters.beta
    n = rng.poisson(parameters.phi[of.user][:, None] * beta[of.item] * beta.sum(0))
    event = np.repeat(np.arange(of.user.size), n.sum(1))
    component = np.repeat(np.tile(np.arange(n.shape[1]), len(n)), n.ravel())
    item = _items_of(component, beta, rng)
    other = item != of.item[event]
    event, item = event[other], item[other]
    yield Events(of.user[event], item, of.time[event] + _delays(parameters, event.size, rng))


def _delays(parameters: KnownParameters, n: int, rng: Generator) -> Floats:
    return rng.exponential(1 / parameters.decay, n)


def thinned(parameters: KnownParameters, hours: float, seed: int = 0) -> EventTable:
    """Draw the same by Ogata's thinning, event by event over all users and items: [U, P] work for each candidate."""
    rng = np.random.default_rng(seed)
    bases = np.array(
        [parameters.base(b) for b in range(1 if parameters.clock is None else parameters.clock.n_bins)]
    )
    bound = bases.max(0).sum()
    influence = parameters.beta @ parameters.beta.T if parameters.phi is not None else None
    excited = np.zeros_like(bases[0])
    found: list[tuple[int, int, float]] = []
    time = 0.0
    while True:
        most = bound + excited.sum()  # nothing rises until the next event
        wait = rng.exponential(1 / most) if most > 0 else np.inf
        time += wait
        if time >= hours:
            break
        excited *= np.exp(-parameters.decay * wait)
        rate = bases[0 if parameters.clock is None else int(parameters.clock.bins(np.array([time]))[0])] + excited
        if rng.random() * most < rate.sum():
            user, item = divmod(int(rng.choice(rate.size, p=rate.ravel() / rate.sum())), parameters.n_items)
            found.append((user, item, time))
            _excite(parameters, influence, excited, user, item)
    rows = np.array(found, np.float64).reshape(-1, 3)
    return Events(rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2]).table(parameters, hours)


def _excite(parameters: KnownParameters, influence: Floats | None, excited: Floats, user: int, item: int) -> None:
    along = parameters.sources == user
    np.add.at(excited[:, item], parameters.targets[along], parameters.decay * parameters.taus[along])
    if influence is not None and parameters.phi is not None:
        others = np.arange(len(influence)) != item
        excited[user, others] += parameters.decay * parameters.phi[user] * influence[item, others]
