"""What an iteration asks of events whose factors follow a clock: counts, and the rates that exposure adds.

Rows of users are [U I, K], feature i of user u in row ``u I + i``; those of items [P J, K].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_cells import EventCells
from sandtable_kernels.poisson.event_pairs import EventPairs, Floats, Ints
from sandtable_kernels.poisson.event_pass import EventCounts
from sandtable_kernels.poisson.feature_clock import ActiveFeatures, FeatureClock, Phase

Array = NDArray[Any]
# Chunks of users and items, as many whatever the threads; users of equal start that are summed at once.
N_CHUNKS = 64
PIECE = 4096


class _Cells(NamedTuple):
    """What compiled loops read of cells, and ``inverse``, which they keep there; see `EventCells`."""

    user_start: Ints
    bin: Array
    item: Array
    event_start: Ints
    item_start: Ints
    by_item: Ints
    item_bin: Array
    item_user: Array
    inverse: Array


class _Excited(NamedTuple):
    """Values of events in the order of cells: of users' own earlier ones [N], and over edges, as sparse rows."""

    own: Array
    tau: Array
    start: Ints
    edge: Array
    value: Array
    by_edge: Array
    counts: Floats


class DynamicPass:
    """Passes over the events of ``pairs``, by a ``clock``.

    Args:
        pairs: N events.
        clock: Features of users and items.
        start: [U], the hour from which each user is observed.
        end: The hour until which all are.
        own: [N], what users' own earlier events excite, in the order of ``pairs``; None without.
        dtype: Of factors.
        n_threads: Threads; None: all. Results do not depend on it.
    """

    def __init__(
        self,
        pairs: EventPairs,
        clock: FeatureClock,
        start: Floats,
        end: float,
        *,
        own: Array | None = None,
        dtype: Any = np.float32,
        n_threads: int | None = None,
    ) -> None:
        self.clock, self.dtype, self.n_threads = clock, np.dtype(dtype), n_threads
        cells = EventCells.of(pairs, clock.bins(pairs.time), clock.n_bins)
        self._n_users, self._n_items = pairs.n_users, pairs.n_items
        kept = {name: getattr(cells, name) for name in _Cells._fields if name != "inverse"}
        self._cells = _Cells(**kept, inverse=np.empty(cells.n_cells, self.dtype))
        self._own = np.empty(0, self.dtype) if own is None else own[cells.order].astype(self.dtype)
        self._user_chunks, self._item_chunks = cells.chunks(N_CHUNKS), cells.chunks(N_CHUNKS, of_items=True)
        self._of_users, self._of_items = (_as(each, self.dtype) for each in (clock.of_users, clock.of_items))
        self._start, self._end = clock.place(start), clock.place(np.array([end]))
        self._by_start = np.argsort(self._start.bin, kind="stable")
        self._pieces, self._piece_bin = _pieces(self._start.bin[self._by_start])

    def counts(self, theta: Array, beta: Array, tau: Array | None = None) -> EventCounts:
        """Return the counts given geometric means of rows of users, of items, and of users' own excitation [U]."""
        from sandtable_kernels.compiled import dynamic_loops
        from sandtable_kernels.compiled.memory_loops import use_threads

        use_threads(self.n_threads)
        theta, beta = self._shaped(theta, self._n_users), self._shaped(beta, self._n_items)
        tau = np.empty(0, self.dtype) if tau is None else np.ascontiguousarray(tau, self.dtype)
        nothing = np.empty(0, self.dtype)
        excited = _Excited(
            self._own, tau, np.empty(0, np.int64), np.empty(0, np.int32), nothing, nothing, np.empty(0)
        )
        users, items = np.empty(theta.shape, self.dtype), np.empty(beta.shape)
        own = np.empty(self._n_users)
        features = self._of_users, self._of_items
        log_total = dynamic_loops.pass_users(
            self._user_chunks, self._cells, theta, beta, *features, excited, users, own
        )
        dynamic_loops.pass_items(self._item_chunks, self._cells, theta, beta, *features, items)
        k = theta.shape[2]
        return EventCounts(log_total, users.reshape(-1, k), items.reshape(-1, k), own if self._own.size else None)

    def _shaped(self, rows: Array, n: int) -> Array:
        return np.ascontiguousarray(rows, self.dtype).reshape(n, -1, rows.shape[1])

    def rates_of_users(self, item_totals: Array) -> Array:
        """Return [U I, K], what exposure adds to the rates of users; ``item_totals`` [J, K] sum items' means."""
        from sandtable_kernels.compiled import dynamic_loops

        accrued = self.clock.accrued(item_totals)
        rates = np.empty((self._n_users, *accrued.shape[1:]), self.dtype)
        dynamic_loops.rates_of_users(self._user_chunks, accrued, _at(accrued, self._end)[0], self._start, rates)
        return rates.reshape(-1, accrued.shape[2])

    def rates_of_items(self, theta: Array) -> Floats:
        """Return [J, K], what exposure adds to the rates of any item; ``theta`` are means of rows of users."""
        from sandtable_kernels.compiled import dynamic_loops

        rows = self._shaped(theta, self._n_users)
        sums = np.empty((self._piece_bin.size, 3, *rows.shape[1:]))
        whole = self._end.periods[0] - self._start.periods
        dynamic_loops.sums_by_start(self._pieces, self._by_start, self._start.share, whole, rows, sums)
        in_bin = np.zeros((self.clock.n_bins, 2, *rows.shape[1:]))
        np.add.at(in_bin, self._piece_bin, sums[:, :2])
        starting, partly = in_bin[:, 0], in_bin[:, 1]
        # what users have past them when they begin: all of the bins before theirs, and a share of theirs
        later = np.cumsum(starting[::-1], axis=0)[::-1]
        until = np.clip(self._end.bin[0] + self._end.share[0] - np.arange(self.clock.n_bins), 0, 1)
        exposed = sums[:, 2].sum(0) + until[:, None, None] * later[0] - (later - starting) - partly
        per_bin = self.clock.bin_hours * np.einsum("bi,bik->bk", self.clock.user_table, exposed)
        return np.asarray(self.clock.item_table.T @ per_bin)


def _at(accrued: Floats, place: Phase) -> Floats:
    """Return [n, I, K], what accrues until each place."""
    low, high = accrued[place.bin], accrued[place.bin + 1]
    periods, share = (each[:, None, None] for each in (place.periods, place.share))
    return np.asarray(periods * accrued[-1] + low + share * (high - low))


def _as(features: ActiveFeatures, dtype: np.dtype[Any]) -> ActiveFeatures:
    return features._replace(value=features.value.astype(dtype))


def _pieces(bins: Ints) -> tuple[Ints, Ints]:
    """Cut sorted ``bins`` [n] where they change and after `PIECE`: return bounds [pieces + 1] and bins of pieces."""
    cuts = np.union1d(np.flatnonzero(np.diff(bins)) + 1, np.arange(0, bins.size, PIECE))
    return np.append(cuts, bins.size), bins[cuts]
