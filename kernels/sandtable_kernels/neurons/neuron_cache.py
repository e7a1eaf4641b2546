"""The neurons of one layer that are kept in memory: which, in which rows, and their records.

LLM in a flash, section 3.3. A matrix is allocated once; its first ``n_used`` rows hold the records of the neurons
used by the last ``window`` tokens. For a new token, neurons that fell out of the window are deleted, each by
overwriting its row with the last occupied one, and the missing ones are appended. Nothing is ever reallocated, and
the occupied rows are always a prefix, so that the feed-forward block is computed over ``matrix[:n_used]``.

`WindowIndex` is the bookkeeping alone. The planner uses it to count what would be loaded; the executor uses the same
object under a `NeuronCache`, which holds the records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sandtable.errors import ConfigError, DoesNotFit
from sandtable_kernels.files.buffers import address, aligned_empty
from sandtable_kernels.files.dtypes import itemsize, storage_dtype
from sandtable_kernels.support import F32, Array, Ids, compiled

# rows together smaller than this are copied by one thread: starting a second costs more
_PARALLEL_BYTES = 256 << 10
_NEVER = -(1 << 62)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheDelta:
    """What one token changes. Carry out the moves first, then load the missing neurons into their rows.

    Attributes:
        missing: Neurons to load, int64 [n], ascending.
        rows: The row of each missing neuron, int64 [n]: the n rows after the ones that stay.
        moves_src: Rows whose records move, int64; all beyond the rows that stay.
        moves_dst: Where each moves to; all among the rows that stay, so that moves are independent of each other.
        n_evicted: Neurons dropped.
        n_forced: Those among them that were still in the window, dropped to make room.
        n_hits: Active neurons that were present.
        n_used: Occupied rows afterwards.
    """

    missing: Ids
    rows: Ids
    moves_src: Ids
    moves_dst: Ids
    n_evicted: int
    n_forced: int
    n_hits: int
    n_used: int


class WindowIndex:
    """Which neuron is in which row, for one layer; arrays are allocated once.

    Args:
        n_neurons: Neurons of the layer.
        capacity_rows: Rows of the cache.
        window: Keep what the last ``window`` tokens used, the current one included. Zero keeps nothing: every
            token loads all of its neurons.
        layer: Number of the layer, for error messages.

    Attributes:
        row_of: Row of each neuron, int32 [n_neurons]; -1 where absent.
        pointer: Neuron of each row, int64 [capacity_rows]; only the first ``n_used`` count.
        last_used: Token that last used each neuron, int64 [n_neurons].
        n_used: Occupied rows.
    """

    def __init__(self, n_neurons: int, capacity_rows: int, window: int, *, layer: int | None = None) -> None:
        if n_neurons < 1 or capacity_rows < 0 or window < 0:
            raise ConfigError(
                f"a cache needs at least one neuron, and no negative capacity or window; got {n_neurons} neurons, "
                f"{capacity_rows} rows, window {window}"
            )
        self.n_neurons = n_neurons
        self.capacity_rows = capacity_rows
        self.window = window
        self.layer = layer
        self.n_used = 0
        self.row_of = np.full(n_neurons, -1, np.int32)
        self.pointer = np.full(capacity_rows, -1, np.int64)
        self.last_used = np.full(n_neurons, _NEVER, np.int64)
        self._ages = np.empty(capacity_rows, np.int64)
        self._dead = np.empty(capacity_rows, np.bool_)

    @property
    def nbytes(self) -> int:
        """Memory held by the bookkeeping, in bytes."""
        arrays = (self.row_of, self.pointer, self.last_used, self._ages, self._dead)
        return sum(array.nbytes for array in arrays)

    def update(self, active: Ids, token: int) -> CacheDelta:
        """Make room for, and take in, the neurons that token number ``token`` uses.

        When they and the window do not fit together, the window shrinks for this token: the least recently used
        neurons go first (as for Persimmon, appendix C).

        Args:
            active: Neurons used, int64, strictly ascending.
            token: Number of the token; not smaller than in earlier calls.

        Raises:
            ConfigError: ids that are not ascending or not neurons of this layer.
            DoesNotFit: more active neurons than rows. The index is unchanged then.
        """
        self._check(active)
        missing = active[self.row_of[active] < 0] if self.window else active.copy()
        self.last_used[active] = token
        dead, n_forced = self._mark_dead(token, len(missing))
        n_left = self.n_used - int(np.count_nonzero(dead))
        gone, targets, sources = self._delete(dead, n_left)
        rows = np.arange(n_left, n_left + len(missing), dtype=np.int64)
        self.pointer[n_left : n_left + len(missing)] = missing
        self.row_of[missing] = rows
        self.n_used = n_left + len(missing)
        return CacheDelta(
            missing=missing,
            rows=rows,
            moves_src=sources,
            moves_dst=targets,
            n_evicted=len(gone),
            n_forced=n_forced,
            n_hits=len(active) - len(missing),
            n_used=self.n_used,
        )

    def clear(self) -> None:
        """Forget all neurons."""
        self.row_of[self.pointer[: self.n_used]] = -1
        self.last_used[:] = _NEVER
        self.n_used = 0

    def present(self) -> Ids:
        """Return the neurons present, in the order of their rows, int64 [n_used]; a view."""
        return self.pointer[: self.n_used]

    def rows_of(self, neurons: Ids) -> Ids:
        """Return the rows of ``neurons``, int64; -1 where absent."""
        return self.row_of[neurons].astype(np.int64)

    def _check(self, active: Ids) -> None:
        if len(active) > self.capacity_rows:
            where = "the layer" if self.layer is None else f"layer {self.layer}"
            raise DoesNotFit(
                f"{where} needs {len(active)} rows for the neurons of one token, but its cache has a budget of "
                f"{self.capacity_rows} rows"
            )
        if len(active) and not (active[0] >= 0 and active[-1] < self.n_neurons and _ascending(active)):
            raise ConfigError(f"active neurons must be ascending ids from 0 to {self.n_neurons - 1}, each once")

    def _mark_dead(self, token: int, n_missing: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], int]:
        """Mark the rows to delete: out of the window, and then as many more as room demands; return how many more."""
        n = self.n_used
        ages, dead = self._ages[:n], self._dead[:n]
        np.take(self.last_used, self.pointer[:n], out=ages, mode="clip")
        if self.window == 0:
            dead[:] = True
            return dead, 0
        np.less_equal(ages, token - self.window, out=dead)
        excess = n - int(np.count_nonzero(dead)) + n_missing - self.capacity_rows
        if excess > 0:
            spare = np.flatnonzero(~dead & (ages < token))
            dead[spare[np.argsort(ages[spare], kind="stable")[:excess]]] = True
        return dead, max(0, excess)

    def _delete(self, dead: Array, n_left: int) -> tuple[Ids, Ids, Ids]:
        """Delete the marked rows; return them, the rows to overwrite, and the rows that move there."""
        gone = np.flatnonzero(dead)
        self.row_of[self.pointer[gone]] = -1
        targets = gone[: np.searchsorted(gone, n_left)]
        sources = np.flatnonzero(~dead[n_left:])[::-1] + n_left  # last row first, as the paper deletes
        moved = self.pointer[sources]
        self.pointer[targets] = moved
        self.row_of[moved] = targets
        return gone, targets, sources


def overhead_bytes(n_neurons: int, capacity_rows: int) -> int:
    """Return what a cache takes beside its records: row and age of every neuron; bias and bookkeeping of every row."""
    per_neuron = 4 + 8  # row_of, last_used
    per_row = 8 + 8 + 1 + 4  # pointer, age, mark, bias
    return n_neurons * per_neuron + capacity_rows * per_row


def _ascending(ids: Ids) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


class NeuronCache:
    """The records of the neurons that a `WindowIndex` keeps: the executor's side.

    Args:
        index: The bookkeeping; shared, not copied.
        d_model: Elements of one vector.
        n_vectors: Vectors of a record: 2 is up and down, 3 is up, gate and down.
        dtype: Element type of the weights.
        row_bytes: Distance between rows in bytes, at least one record; a store that pads its records gives its
            padded size, so that a direct read can land in a row. None is one record.

    Attributes:
        matrix: Stored records [capacity_rows, row elements], page-aligned, never reallocated.
        bias: Bias of each row, float32 [capacity_rows].
    """

    def __init__(
        self,
        index: WindowIndex,
        *,
        d_model: int,
        n_vectors: int = 2,
        dtype: str = "float32",
        row_bytes: int | None = None,
    ) -> None:
        self.index = index
        self.dtype = dtype
        self.vector_bytes = d_model * itemsize(dtype)
        self.record_bytes = n_vectors * self.vector_bytes
        self.row_bytes = self.record_bytes if row_bytes is None else row_bytes
        if self.row_bytes < self.record_bytes or self.row_bytes % itemsize(dtype):
            raise ConfigError(
                f"rows of {self.row_bytes} bytes cannot hold records of {self.record_bytes} bytes of {dtype}"
            )
        shape = (index.capacity_rows, self.row_bytes // itemsize(dtype))
        self.matrix: Array = aligned_empty(shape, storage_dtype(dtype))
        self.bias: F32 = np.zeros(index.capacity_rows, np.float32)

    @property
    def nbytes(self) -> int:
        """Memory held by records and biases, in bytes."""
        return int(self.matrix.nbytes + self.bias.nbytes)

    def apply_moves(self, delta: CacheDelta, *, n_threads: int | None = None) -> None:
        """Move the records and biases of the rows that fill deleted ones. Before loading what is missing.

        Raises:
            NoDevice: numba is not installed.
        """
        if len(delta.moves_src):
            fast, n_bytes = compiled("memory_loops"), len(delta.moves_src) * self.row_bytes
            used = fast.use_threads(n_threads if n_bytes > _PARALLEL_BYTES else 1)
            fast.move_rows(self.matrix, self.bias, delta.moves_src, delta.moves_dst, used)

    def row_addresses(self, rows: Ids, vector: int | None = None) -> Ids:
        """Return the memory address of each row, or of its vector number ``vector``, int64 [n].

        Direct reads can be given these: the record then lands in the cache without a copy.
        """
        offset = 0 if vector is None else vector * self.vector_bytes
        return address(self.matrix) + offset + rows * self.row_bytes

    def insert_copy(
        self, rows: Ids, staging: Array, *, vector: int | None = None, n_threads: int | None = None
    ) -> None:
        """Copy records, or only their vector number ``vector``, from a staging buffer into ``rows``.

        Args:
            rows: Rows to fill, int64 [n].
            staging: Stored elements [at least n, elements]; at most one row, or one vector, long.
            vector: Which vector the buffer holds; None is whole records.
            n_threads: Threads to use; None is all.

        Raises:
            ConfigError: a buffer too short, too wide or of another element type.
            NoDevice: numba is not installed.
        """
        start = 0 if vector is None else vector * self.vector_bytes // self.matrix.itemsize
        room = self.matrix.shape[1] if vector is None else self.vector_bytes // self.matrix.itemsize
        if staging.dtype != self.matrix.dtype or staging.shape[1] > room or len(staging) < len(rows):
            raise ConfigError(
                f"a staging buffer of shape {staging.shape} and type {staging.dtype} cannot fill {len(rows)} rows "
                f"of {room} elements of type {self.matrix.dtype}"
            )
        fast = compiled("memory_loops")
        n_bytes = len(rows) * staging.shape[1] * staging.itemsize
        used = fast.use_threads(n_threads if n_bytes > _PARALLEL_BYTES else 1)
        fast.scatter_rows(self.matrix, rows, np.ascontiguousarray(staging), start, used)

    def set_bias(self, delta: CacheDelta, layer_bias: F32) -> None:
        """Take the biases of the missing neurons from those of the whole layer, float32 [n_neurons]."""
        self.bias[delta.rows] = layer_bias[delta.missing]

    def used_matrix(self) -> Array:
        """Return the occupied rows [n_used, row elements]: a view of the prefix."""
        return self.matrix[: self.index.n_used]

    def used_bias(self) -> F32:
        """Return the biases of the occupied rows, float32 [n_used]: a view."""
        return self.bias[: self.index.n_used]
