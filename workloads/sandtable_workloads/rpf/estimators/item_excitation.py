"""IIRPF and XIIRPF: events of a user with one item excite later ones of the same user with other items.

Hosseini, Khodadadi, Alizadeh, Arabzadeh, Farajtabar, Zha, Rabiee, "Recurrent Poisson Factorization for Temporal
Recommendation", IEEE TKDE 32(1), 2020. Intensities, priors and hyperparameters are those of the public implementation
(github.com/AHosseini/RPF), since the article's text is not public. Ours are: the passes, linear in events and without
anything as large as items times items (there they are quadratic, with counts [P, P, K]); kernels that integrate to
one; beta updated item by item, for which the bound cannot fall; the events of an item with itself taken out of the
compensator of clusters as they are out of its intensity; distances between clusters, not between items; and clusters
found by k-means where none are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.event_pairs import Floats, Ids
from sandtable_kernels.poisson.gamma_rows import GammaPrior, GammaRows
from sandtable_kernels.poisson.item_pass import ItemCounts, ItemPass, Rows, with_others
from sandtable_workloads.rpf.estimators.event_intensity import LaterEvents
from sandtable_workloads.rpf.estimators.fit_loop import State
from sandtable_workloads.rpf.estimators.observed_events import FollowedEdges, ObservedEvents
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF

Array = NDArray[Any]

_CLUSTERING_ITERATIONS = 50


@dataclass(eq=False)
class ItemExcitation(SRPF):
    """What both have in common: rate ``... + phi_u sum over q != p of alpha_qp sum g(t - s)``, s events of u with q.

    The rest is that of `HRPF`, or of `SRPF` where ``fit`` is given edges.

    Args:
        a_phi: Shape of the prior of a user's phi; a_psi and b_psi of its rate, b_phi the rate where it is given.
    """

    a_phi: float = 1.0
    a_psi: float = 1.0
    b_psi: float = 0.1
    b_phi: float = 0.1

    needs_edges: ClassVar[bool] = False
    _hypers: ClassVar[dict[str, str]] = {"phi": "psi"}
    _shared: ClassVar[tuple[str, ...]] = ("beta",)  # rows that no user owns

    def prior(self, name: str) -> GammaPrior:
        """Return the prior of factors by name; phi too."""
        if name not in self._hypers:
            return super().prior(name)
        hyper, rate = self._hypers[name], None if self.hierarchical else getattr(self, f"b_{name}")
        shape = getattr(self, f"a_{name}")
        return GammaPrior(shape, getattr(self, f"a_{hyper}"), getattr(self, f"b_{hyper}"), rate)

    @property
    def _between(self) -> float:
        """Decay of what an event excites in other items."""
        return self.decay

    # --- inference -------------------------------------------------------------------------------------------------

    def _prepare(self, observed: ObservedEvents) -> None:
        super()._prepare(observed)
        own, triggers = self._pass.own, self._pass.triggers
        self._items = ItemPass(observed.pairs, self._between, self.dtype, own, triggers, self.n_threads)
        self._given = self._items.released(observed.end)

    def _followed(self, observed: ObservedEvents) -> FollowedEdges:
        if observed.edges is not None:
            return observed.edges
        nobody = np.empty(0, np.int32)
        return FollowedEdges(nobody, nobody, observed.pairs.n_users)

    def _begin(self, observed: ObservedEvents, rng: np.random.Generator) -> State:
        state = super()._begin(observed, rng) | self._begin_shared(observed, rng)
        # such that an event is expected to excite a tenth to a half of another
        excites = float(np.mean(self._reach(state)))
        phi = rng.uniform(0.1, 0.5, (observed.pairs.n_users, 1)) / (excites if excites > 0 else 1.0)
        return state | {"phi": GammaRows.start(self.prior("phi"), phi, dtype=self.dtype)}

    def _begin_shared(self, observed: ObservedEvents, rng: np.random.Generator) -> State:
        """Return where inference of rows that no user owns starts, but beta."""
        return {}

    def _iterate(self, observed: ObservedEvents, state: State) -> float:
        theta, beta, phi = (state[name] for name in ("theta", "beta", "phi"))
        counts, others, clusters = self._counted(state)
        weights = beta.weighted()
        given = self._items.given_off(self._given, self._reach(state))
        elbo = sum(rows.terms for name, rows in state.items() if name not in self._shared)
        elbo += counts.log_total - float(theta.weighted(observed.exposure) @ weights)
        # not by BLAS, whose threads wait for one another
        elbo -= float(np.sum(given * phi.mean[:, 0])) + self._compensator(observed, state)
        theta.maximise(counts.users, observed.exposure, weights)
        phi.maximise(others[:, None], given, np.ones(1))
        self._maximise_others(observed, state, counts)
        sums: dict[str, Array] = {
            "elbo": np.array(elbo),
            "items": counts.items,
            "weights": theta.weighted(observed.exposure),
            "received": self._items.received(self._given, phi.mean[:, 0].astype(np.float64)),
        }
        sums = self.all_reduce(sums if clusters is None else sums | {"clusters": clusters})
        terms = sum(state[name].terms for name in self._shared)
        self._maximise_shared(state, sums)
        return float(sums["elbo"]) + terms

    def _rows(self, state: State) -> Rows:
        return Rows(state["theta"], state["beta"], state["phi"], state["tau"])

    def _counted(self, state: State) -> ItemCounts:
        """Return the counts under the responsibilities that ``state`` gives."""
        raise NotImplementedError

    def _reach(self, state: State) -> Floats:
        """Return [P], the sum of E[alpha] from an item to all others: what an event excites for a phi of one."""
        raise NotImplementedError

    def _maximise_shared(self, state: State, sums: Mapping[str, Array]) -> None:
        """Set q of what no user owns to its optimum, given sums over users."""
        raise NotImplementedError

    # --- prediction ------------------------------------------------------------------------------------------------

    def _user_sums(self, state: State) -> dict[str, Array]:
        return super()._user_sums(state) | {"phi": state["phi"].mean.sum(dtype=np.float64)}

    def _publish(self, state: State) -> None:
        super()._publish(state)
        self.phi_ = state["phi"].mean[:, 0]

    def _excitation_items(self, user: int, t: float) -> Floats:
        return super()._excitation_items(user, t) + self._from_others(user, t)

    def _from_others(self, user: int, t: float) -> Floats:
        """Return [P], what a user's earlier events with other items add to the rate of each."""
        pairs = self.observed_.pairs
        if user < 0:
            return np.zeros(pairs.n_items)
        first, last = pairs.user_start[[user, user + 1]]
        bounds = pairs.event_start[first : last + 1]
        time = pairs.time[bounds[0] : bounds[-1]]
        past = time < t
        items = np.repeat(pairs.item[first:last], np.diff(bounds))[past]
        weights = self._between * np.exp(-self._between * (t - time[past]))
        return float(self.phi_[user]) * np.maximum(self._spread(items, weights), 0.0)

    def _spread(self, items: Ids, weights: Floats) -> Floats:
        """Return [P], the sum over events with other ``items`` [n] of alpha times ``weights`` [n]."""
        raise NotImplementedError

    def _excited(self, later: LaterEvents) -> Callable[[], tuple[Floats | float, float]]:
        pairs = later.pairs
        own = super()._excited(later)
        passes = ItemPass(pairs, self._between, np.float64, n_threads=self.n_threads)
        mass = passes.released(later.end) - passes.released(later.start)
        n_known = self.observed_.pairs.n_items
        items = np.where(np.arange(pairs.n_items) < n_known, np.arange(pairs.n_items), -1)

        def beyond() -> tuple[Floats, float]:
            rate, expected = own()
            phi = np.append(self.phi_, self._mean_user("phi")).astype(np.float64)[later.everyone]
            reach, rates = self._at_all(passes, items, phi)
            given = float(passes.given_off(mass, reach) @ phi)
            return rate + rates[later.new], expected + given

        return beyond

    def _at_all(self, passes: ItemPass, items: Array, phi: Floats) -> tuple[Floats, Floats]:
        """Return what an event of each item excites for a phi of one, and what others add to the rate at each event.

        ``items`` are places of known ones or -1, ``phi`` [U] of all users; events are in the order of pairs.
        """
        raise NotImplementedError


@dataclass(eq=False)
class IIRPF(ItemExcitation):
    """Item-item recurrent Poisson factorization: ``alpha_qp = beta_q . beta_p``, of low rank and never formed.

    Rate ``(theta_u + phi_u z_u(t)) . beta_p + tau_u sum g(t - s)``, where ``z_u`` is the sum of ``g`` times beta of a
    user's earlier events with other items than p.
    """

    def _counted(self, state: State) -> ItemCounts:
        return self._items.factors(self._rows(state))

    def _reach(self, state: State) -> Floats:
        return with_others(state["beta"].mean.astype(np.float64))

    def _maximise_shared(self, state: State, sums: Mapping[str, Array]) -> None:
        from sandtable_kernels.compiled.events.excitation_loops import item_rates

        beta = state["beta"]
        mean = beta.mean.astype(np.float64)
        shape = beta.prior.shape + sums["items"][:, : mean.shape[1]].astype(np.float64)
        rates = np.empty_like(mean)
        item_rates(shape, sums["weights"], beta.prior_rate, sums["received"], mean, rates)
        beta.maximise_rates(sums["items"], rates)

    def _spread(self, items: Ids, weights: Floats) -> Floats:
        beta = self.beta_.astype(np.float64)
        met = beta[items]
        rate = beta @ (weights @ met)
        np.subtract.at(rate, items, weights * (met**2).sum(1))
        return np.asarray(rate)

    def _at_all(self, passes: ItemPass, items: Array, phi: Floats) -> tuple[Floats, Floats]:
        beta = self._beta_of(items).astype(np.float64)
        reach = beta @ self.beta_.sum(0, dtype=np.float64) - np.where(items < 0, 0.0, (beta**2).sum(1))
        return reach, passes.factor_rates(beta, phi)


@dataclass(eq=False)
class XIIRPF(ItemExcitation):
    """Extended item-item recurrent Poisson factorization: ``alpha_qp = pi_cd distance_cd / nu``, of clusters c and d.

    Item q is of cluster c, p of d; ``pi_`` [C, C] is from c to d, in the order of ``cluster_names_``. Users' own
    returns decay at ``decay``, excitation of other items at ``decay_items``. Items that come later, by `partial_fit`
    and without a given cluster, join the largest one.

    Args:
        decay: w of the kernel of excitation by the same item, per hour.
        decay_items: w of that by other items.
        clusters: The cluster of every item, by id or as two columns of ids and clusters; or how many to find, by
            k-means of the components' shares in beta of an HRPF.
        distances: [C, C] between clusters, in ascending order of their names; None: all are ``nu``.
        nu: Distance at which excitation is pi itself.
        a_pi: Shape of the prior of pi; a_rho and b_rho of a cluster's rate, b_pi the rate where it is given.
    """

    decay: float = 0.1
    decay_items: float = 0.1
    clusters: int | Mapping[Any, Any] | Sequence[Any] = 10
    distances: Any = None
    nu: float = 1.0
    a_pi: float = 1.0
    a_rho: float = 1.0
    b_rho: float = 0.1
    b_pi: float = 0.1

    _hypers: ClassVar[dict[str, str]] = {"phi": "psi", "pi": "rho"}
    _shared: ClassVar[tuple[str, ...]] = ("beta", "pi")
    also_kept: ClassVar[tuple[str, ...]] = ("cluster_", "cluster_names_")

    @property
    def _between(self) -> float:
        return self.decay_items

    @property
    def _n_clusters(self) -> int:
        """How many clusters to find; 0 where they are given."""
        return int(self.clusters) if isinstance(self.clusters, int | np.integer) else 0

    def check_params(self) -> None:
        """Raise ConfigError on a hyperparameter that cannot be used."""
        super().check_params()
        for name in ("decay_items", "nu"):
            if not (np.isfinite(value := getattr(self, name)) and value > 0):
                raise ConfigError(f"{name} must be a positive number, not {value}")
        pair = isinstance(self.clusters, list | tuple) and len(self.clusters) == 2
        if not (pair or isinstance(self.clusters, Mapping)) and not self._n_clusters >= 1:
            raise ConfigError(
                f"clusters must be at least 1, or the cluster of every item by id, not {self.clusters!r}"
            )

    def fit(self, events: Any, edges: Any = None, **options: Any) -> Self:
        """Do as every estimator; clusters are found anew unless the start is a warm one."""
        if not self.warm_start:
            for name in self.also_kept:
                self.__dict__.pop(name, None)
        return super().fit(events, edges, **options)

    # --- clusters --------------------------------------------------------------------------------------------------

    def _begin_shared(self, observed: ObservedEvents, rng: np.random.Generator) -> State:
        if self._n_clusters:
            self._find_clusters(self._n_clusters, observed)
        elif isinstance(self.clusters, Mapping | Sequence):
            self._take_clusters(self.clusters)
        n = self.cluster_names_.size
        pi = rng.uniform(0.5, 1.5, (n, n)) / observed.pairs.n_items
        return {"pi": GammaRows.start(self.prior("pi"), pi)}

    def _find_clusters(self, n: int, observed: ObservedEvents) -> None:
        """Set the cluster [P] of each item, and the names [C] of clusters, unless they are known from before."""
        n_items = observed.pairs.n_items
        if not hasattr(self, "cluster_"):
            self.cluster_ = _found_clusters(self._factors(observed), min(n, n_items), self.random_state)
            self.cluster_names_ = np.arange(self.cluster_.max() + 1)
        largest = np.bincount(self.cluster_).argmax()
        self.cluster_ = np.append(self.cluster_, np.full(n_items - self.cluster_.size, largest, np.int32))

    def _take_clusters(self, clusters: Mapping[Any, Any] | Sequence[Any]) -> None:
        given = clusters if isinstance(clusters, Mapping) else dict(zip(*clusters, strict=True))
        ids = self.item_index_.ids.tolist()
        missing = [item for item in ids if item not in given]
        if missing:
            raise ConfigError(f"clusters has no cluster of item {missing[0]!r} ({len(missing)} items have none)")
        names = sorted(set(given.values()))
        place = {name: i for i, name in enumerate(names)}
        self.cluster_, self.cluster_names_ = (
            np.array([place[given[item]] for item in ids], np.int32),
            np.array(names),
        )

    def _factors(self, observed: ObservedEvents) -> Array:
        """Return beta [P, K] of an HRPF of the same events."""
        options = {name: getattr(self, name) for name in HRPF().get_params()}
        plain = HRPF(**options)
        plain._prepare(observed)
        state = plain._begin(observed, np.random.default_rng(self.random_state))
        for _ in range(_CLUSTERING_ITERATIONS):  # whatever max_iter: a fit that goes on finds the same clusters
            plain._iterate(observed, state)
        return state["beta"].mean.astype(np.float64)

    @property
    def _scale(self) -> Floats:
        """[C, C] (from, to), what pi is multiplied by."""
        n = self.cluster_names_.size
        if self.distances is None:
            return np.ones((n, n))
        distances = np.asarray(self.distances, np.float64)
        if distances.shape != (n, n) or not (np.isfinite(distances) & (distances >= 0)).all():
            raise ConfigError(f"distances must be {n} x {n} numbers of at least 0, one row for each cluster")
        return distances / self.nu

    @property
    def _targets(self) -> Floats:
        """[C, C] (from, to), the same summed over all items of a cluster but the one itself."""
        n = self.cluster_names_.size
        return np.asarray(self._scale * (np.bincount(self.cluster_, minlength=n) - np.eye(n)))

    # --- inference -------------------------------------------------------------------------------------------------

    def _counted(self, state: State) -> ItemCounts:
        return self._items.clusters(self._rows(state), self.cluster_, state["pi"].geometric * self._scale)

    def _reach(self, state: State) -> Floats:
        return np.asarray((state["pi"].mean * self._targets).sum(1)[self.cluster_], np.float64)

    def _maximise_shared(self, state: State, sums: Mapping[str, Array]) -> None:
        state["beta"].maximise(sums["items"], np.ones(self.cluster_.size), sums["weights"])
        received = np.bincount(self.cluster_, sums["received"], self.cluster_names_.size)
        state["pi"].maximise_rates(sums["clusters"], received[:, None] * self._targets)

    # --- prediction ------------------------------------------------------------------------------------------------

    def _publish(self, state: State) -> None:
        super()._publish(state)
        self.pi_ = state["pi"].mean

    @property
    def _alpha(self) -> Floats:
        """[C, C], what an item of one cluster (row) excites in one of another."""
        return np.asarray(self.pi_ * self._scale)

    def _spread(self, items: Ids, weights: Floats) -> Floats:
        alpha = self._alpha
        by_cluster = np.bincount(self.cluster_[items], weights, alpha.shape[0])
        rate = (by_cluster @ alpha)[self.cluster_]
        np.subtract.at(rate, items, weights * np.diag(alpha)[self.cluster_[items]])
        return np.asarray(rate)

    def _decaying(self, user: int, t: float) -> list[tuple[float, float]]:
        from_others = float(self._from_others(user, t).sum())
        own = float(super()._excitation_items(user, t).sum()) - from_others
        return [(max(own, 0.0), self.decay), (from_others, self.decay_items)]

    def _at_all(self, passes: ItemPass, items: Array, phi: Floats) -> tuple[Floats, Floats]:
        n = self.cluster_names_.size
        alpha = np.zeros((n + 1, n + 1))  # what is unknown has a cluster of its own, which excites nothing
        alpha[:n, :n] = self._alpha
        cluster = np.append(self.cluster_, n).astype(np.int32)[items]
        reach = np.append((self.pi_ * self._targets).sum(1), 0.0)[cluster]
        return reach, passes.cluster_rates(cluster, alpha, phi)


def _found_clusters(factors: Array, n: int, seed: int) -> Ids:
    """Return the cluster [P] of each item by its components' shares: k-means, those without an item left out."""
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(seed)
    shares = factors / factors.sum(1, keepdims=True)
    centres = shares[rng.integers(shares.shape[0], size=1)]
    while centres.shape[0] < n and (gap := cdist(shares, centres, "sqeuclidean").min(1)).any():
        centres = np.vstack((centres, shares[rng.choice(gap.size, p=gap / gap.sum())]))
    label = cdist(shares, centres).argmin(1)
    for _ in range(_CLUSTERING_ITERATIONS):
        label = np.unique(label, return_inverse=True)[1].reshape(-1)
        centres = np.array([np.bincount(label, part) for part in shares.T]).T / np.bincount(label)[:, None]
        before, label = label, cdist(shares, centres).argmin(1)
        if (label == before).all():
            break
    return np.unique(label, return_inverse=True)[1].reshape(-1).astype(np.int32)
