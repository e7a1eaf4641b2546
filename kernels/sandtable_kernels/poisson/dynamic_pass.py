"""What an iteration asks of events whose factors follow a clock: counts, and the rates that exposure adds.

Rows of users are [U I, K], feature i of user u in row ``u I + i``; those of items [P J, K].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.event_cells import EventCells
from sandtable_kernels.poisson.event_pairs import EventPairs, Floats, Ints
from sandtable_kernels.poisson.event_pass import EventCounts, by_source, own_excitation
from sandtable_kernels.poisson.event_triggers import EventTriggers, TriggerRows, no_triggers
from sandtable_kernels.poisson.feature_clock import ActiveFeatures, FeatureClock, Phase
from sandtable_kernels.poisson.gamma_rows import GammaRows

Array = NDArray[Any]
# Chunks of users and items, as many whatever the threads; users of equal start that are summed at once.
N_CHUNKS = 64
PIECE = 4096


class _Cells(NamedTuple):
    """What compiled loops read of `EventCells`, and ``share``, which one leaves to the other."""

    user_start: Ints
    bin: Array
    item: Array
    event_start: Ints
    item_start: Ints
    by_item: Ints
    item_bin: Array
    item_user: Array
    share: Array


class DynamicPass:
    """Passes over the same events, again and again; see `EventPass`, whose factors know no time.

    Args:
        pairs: N events.
        dtype: Of factors, float32 or float64.
        clock: Features of users and items, I and J.
        start: [U], the hour from which each user is observed.
        end: The hour until which all are.
        own: [N], excitation of each event by earlier ones of its pair; None in models without excitation.
        triggers: Events of other users that excite these; None in models without edges.
        n_threads: None: all. Results do not depend on it.
    """

    def __init__(
        self,
        pairs: EventPairs,
        dtype: Any,
        clock: FeatureClock,
        start: Floats,
        end: float,
        own: Array | None = None,
        triggers: EventTriggers | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.clock, self.n_threads = clock, n_threads
        self._n_users, self._n_items = pairs.n_users, pairs.n_items
        cells = EventCells.of(pairs, clock.bins(pairs.time), clock.n_bins)
        kept = {name: getattr(cells, name) for name in _Cells._fields if name != "share"}
        self._cells = _Cells(**kept, share=np.empty(cells.n_cells, dtype))
        self._own = None if own is None else own[cells.order]
        self._triggers = no_triggers(dtype) if triggers is None else _reordered(triggers, cells.order)
        self._user_chunks, self._item_chunks = cells.chunks(N_CHUNKS), cells.chunks(N_CHUNKS, of_items=True)
        self._of_users, self._of_items = (_as(each, dtype) for each in (clock.of_users, clock.of_items))
        # kept from call to call: memory that is new costs more than what is written to it
        self._rates = np.empty((0, 0))
        self._start, self._end = clock.place(start), clock.place(np.array([end]))
        self._by_start = np.argsort(self._start.bin, kind="stable")
        self._pieces, self._piece_bin = _pieces(self._start.bin[self._by_start])

    def __call__(self, theta: GammaRows, beta: GammaRows, tau: GammaRows | None = None) -> EventCounts:
        """Return the counts that users' and items' factors give, and ``tau`` [U + E, 1]: users' own, then edges'.

        Counts of users and items are written to `GammaRows.counts`: the next pass writes over them.
        """
        logs, excited = self.over_users(theta, beta, tau)
        self.over_items(theta, beta)
        return EventCounts(logs, theta.counts, beta.counts, *by_source(excited, self._n_users))

    def over_users(self, theta: GammaRows, beta: GammaRows, tau: GammaRows | None = None) -> tuple[float, Floats]:
        """Write the counts of users; return the sum of log intensities and the events excited [U + E], if any."""
        from sandtable_kernels.compiled import dynamic_loops
        from sandtable_kernels.compiled.memory_loops import use_threads

        use_threads(self.n_threads)
        own = own_excitation(self._own, tau, theta.padded.dtype)
        rest = theta.padded, beta.padded, theta.counts, own, self._triggers
        logs = dynamic_loops.user_pass(self._user_chunks, self._cells, self._of_users, self._of_items, *rest)
        return float(logs), own[2]

    def over_items(self, theta: GammaRows, beta: GammaRows) -> None:
        """Write the counts of items, after those of users."""
        from sandtable_kernels.compiled import dynamic_loops
        from sandtable_kernels.compiled.memory_loops import use_threads

        use_threads(self.n_threads)
        rest = theta.padded, beta.padded, beta.counts
        dynamic_loops.item_pass(self._item_chunks, self._cells, self._of_users, self._of_items, *rest)

    def rates_of_users(self, item_totals: Array, theta: Array) -> tuple[Floats, float]:
        """Return [U I, K], what exposure adds to the rates of users, and the events that are expected of ``theta``.

        ``item_totals`` [J, K] sum items' means, ``theta`` are means of rows of users. The next call
        writes over the rates.
        """
        from sandtable_kernels.compiled import dynamic_loops
        from sandtable_kernels.compiled.memory_loops import use_threads

        use_threads(self.n_threads)
        accrued = self.clock.accrued(item_totals)
        until = _at(accrued, self._end)[0]
        means = theta.reshape(self._n_users, -1, theta.shape[1])
        if self._rates.shape != theta.shape:
            self._rates = np.empty(theta.shape)
        rates = self._rates.reshape(means.shape)
        expected = dynamic_loops.rates_of_users(self._user_chunks, accrued, until, self._start, means, rates)
        return self._rates, float(expected)

    def rates_of_items(self, theta: Array) -> Floats:
        """Return [J, K], what exposure adds to the rates of any item; ``theta`` are means of rows of users."""
        from sandtable_kernels.compiled import dynamic_loops
        from sandtable_kernels.compiled.memory_loops import use_threads

        rows = theta.reshape(self._n_users, -1, theta.shape[1])
        sums = np.empty((self._piece_bin.size, 3, *rows.shape[1:]))
        whole = self._end.periods[0] - self._start.periods
        use_threads(self.n_threads)
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


def sum_of_items(means: Array, n_items: int) -> Floats:
    """Return [J, K], the sums over items of ``means`` [P J, K]."""
    return np.asarray(means.reshape(n_items, -1, means.shape[1]).sum(0, dtype=np.float64))


def _at(accrued: Floats, place: Phase) -> Floats:
    """Return [n, I, K], what accrues until each place."""
    low, high = accrued[place.bin], accrued[place.bin + 1]
    periods, share = (each[:, None, None] for each in (place.periods, place.share))
    return np.asarray(periods * accrued[-1] + low + share * (high - low))


def _as(features: ActiveFeatures, dtype: Any) -> ActiveFeatures:
    return features._replace(value=features.value.astype(dtype))


def _reordered(triggers: EventTriggers, order: Ints) -> TriggerRows:
    """Return ``start``, ``edge`` and ``value`` of the sparse rows of ``triggers`` in another order of events."""
    lengths = np.diff(triggers.start)[order]
    start = np.concatenate(([0], np.cumsum(lengths)))
    at = np.repeat(triggers.start[order] - start[:-1], lengths) + np.arange(start[-1])
    return start, triggers.edge[at], triggers.value[at]


def _pieces(bins: Ints) -> tuple[Ints, Ints]:
    """Cut sorted ``bins`` [n] where they change and after `PIECE`: return bounds [pieces + 1] and bins of pieces."""
    cuts = np.union1d(np.flatnonzero(np.diff(bins)) + 1, np.arange(0, bins.size, PIECE))
    return np.append(cuts, bins.size), bins[cuts]
