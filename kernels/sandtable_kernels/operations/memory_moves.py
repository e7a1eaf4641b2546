"""Operations that only move or read memory: their timings fit the memory part of a machine.

Buffers are larger than the last-level cache, or cycle through a pool that is, so that memory is measured and not the
cache. Data are int64 words; copies count their bytes twice, once read and once written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable.demand.operator import PlainOperator, Resource
from sandtable_kernels.files.buffers import aligned_empty
from sandtable_kernels.neurons.neuron_cache import CacheDelta, NeuronCache, WindowIndex
from sandtable_kernels.support import F32, Array, Ids, cold_copies, compiled, cycling

WORD_BYTES: Final = 8
MOST_LAYERS: Final = 256
WINDOW: Final = 4  # tokens, as OPT 6.7B and Falcon 7B are run (LLM in a flash, appendix C)


def _words(n_words: int, seed: int) -> Ids:
    """Return int64 words, page-aligned; a short random block repeated, for random bits are slow to draw."""
    words = aligned_empty(max(1, n_words), np.int64)
    words[:] = np.resize(np.random.default_rng(seed).integers(0, 1 << 40, 1 << 12), words.shape)
    return words


def _threads(context: KernelContext) -> int:
    used: int = compiled("memory_loops").use_threads(context.n_threads)
    return used


class MemoryRead(Kernel):
    """One pass over a buffer that adds up its words; dims n_bytes."""

    name: ClassVar[str] = "memory_read"
    calibrates: ClassVar[str | None] = "memory"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From one megabyte to a layer of a 7B model."""
        sizes = (1 << 20, 16 << 20, 128 << 20)
        return [{"n_bytes": n} for n in (sizes if quick else (*sizes, 1 << 18, 4 << 20, 256 << 20))]

    def cost(self, dims: Dims) -> Op:
        """Every byte is read once."""
        return Op(name="read", operator="memory_read", account="memory", bytes_read=dims["n_bytes"], n_items=1)

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold buffers."""
        fast, used = compiled("memory_loops"), _threads(context)
        n_words, n_buffers = dims["n_bytes"] // WORD_BYTES, cold_copies(dims["n_bytes"])
        buffers = _words(n_buffers * n_words, context.seed).reshape(n_buffers, n_words)
        return cycling(buffers, lambda words: fast.read_sum(words, used))

    def example(self) -> Dims:
        """A buffer that four streams and two threads do not divide evenly."""
        return {"n_bytes": 8 * 10_007}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the sum of the words, int64 [1]."""
        words = _words(dims["n_bytes"] // WORD_BYTES, context.seed)
        return np.array([compiled("memory_loops").read_sum(words, _threads(context))])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the sum computed in NumPy, int64 [1]."""
        return np.array([_words(dims["n_bytes"] // WORD_BYTES, context.seed).sum()])


class Copy(Kernel):
    """A copy from one buffer to another; dims n_bytes."""

    name: ClassVar[str] = "copy"
    calibrates: ClassVar[str | None] = "memory"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From one megabyte to a hundred."""
        sizes = (1 << 20, 16 << 20, 128 << 20)
        return [{"n_bytes": n} for n in (sizes if quick else (*sizes, 1 << 18, 4 << 20, 64 << 20))]

    def cost(self, dims: Dims) -> Op:
        """Every byte is read once and written once."""
        n = dims["n_bytes"]
        return Op(name="copy", operator="copy", account="memory", bytes_read=n, bytes_written=n, n_items=1)

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold pairs of buffers."""
        fast, used = compiled("memory_loops"), _threads(context)
        n_words, n_pairs = dims["n_bytes"] // WORD_BYTES, cold_copies(2 * dims["n_bytes"])
        pairs = _words(n_pairs * 2 * n_words, context.seed).reshape(n_pairs, 2, n_words)
        return cycling(pairs, lambda pair: fast.copy(pair[1], pair[0], used))

    def example(self) -> Dims:
        """A buffer that two threads do not divide evenly."""
        return {"n_bytes": 8 * 10_007}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the copy, int64 words."""
        words = _words(dims["n_bytes"] // WORD_BYTES, context.seed)
        target = np.zeros_like(words)
        compiled("memory_loops").copy(target, words, _threads(context))
        return target

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the words themselves."""
        return _words(dims["n_bytes"] // WORD_BYTES, context.seed)


class _RowCopy(Kernel):
    """What gathering and inserting rows share; dims n_rows, row_bytes."""

    calibrates: ClassVar[str | None] = "memory"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Rows of one vector or one record of a small and of a 7B model; from a few to a tenth of a layer."""
        sizes = [(100, 16384), (1638, 16384), (400, 4096)]
        if not quick:
            sizes += [(16, 4096), (400, 32768), (1638, 8192)]
        return [{"n_rows": n, "row_bytes": row} for n, row in sizes]

    def cost(self, dims: Dims) -> Op:
        """Every row is read once and written once."""
        n = dims["n_rows"] * dims["row_bytes"]
        rows = dims["n_rows"]
        return Op(name=self.name, operator=self.name, account="memory", bytes_read=n, bytes_written=n, n_items=rows)

    def example(self) -> Dims:
        """A few short rows."""
        return {"n_rows": 37, "row_bytes": 488}

    def _rows(self, n_rows: int, dims: Dims, seed: int) -> Ids:
        n_words = dims["row_bytes"] // WORD_BYTES
        return _words(n_rows * n_words, seed).reshape(n_rows, n_words)


class Gather(_RowCopy):
    """Rows picked at random from a large buffer, side by side into a small one; dims n_rows, row_bytes."""

    name: ClassVar[str] = "gather"

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through disjoint sets of rows of one large buffer, and as many targets."""
        fast, used, n = compiled("memory_loops"), _threads(context), dims["n_rows"]
        n_sets = max(2, cold_copies(2 * n * dims["row_bytes"]))
        source = self._rows(n_sets * n, dims, context.seed)
        sets = np.random.default_rng(context.seed).permutation(len(source)).reshape(n_sets, n)
        targets = self._rows(n_sets * n, dims, context.seed).reshape(n_sets, n, -1)
        pairs = list(zip(targets, np.sort(sets, axis=1), strict=True))
        return cycling(pairs, lambda pair: fast.gather_rows(pair[0], source, pair[1], used))

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the gathered rows."""
        source, rows = self._problem(dims, context)
        target = np.empty_like(source[: len(rows)])
        compiled("memory_loops").gather_rows(target, source, rows, _threads(context))
        return target

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the rows picked with NumPy."""
        source, rows = self._problem(dims, context)
        return source[rows]

    def _problem(self, dims: Dims, context: KernelContext) -> tuple[Ids, Ids]:
        source = self._rows(4 * dims["n_rows"], dims, context.seed)
        return source, np.random.default_rng(context.seed).permutation(len(source))[: dims["n_rows"]]


class Insert(_RowCopy):
    """Rows of a staging buffer appended to the occupied rows of a cache; dims n_rows, row_bytes."""

    name: ClassVar[str] = "insert"

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through staging buffers, each inserted at a place of its own in one large cache."""
        fast, used, n = compiled("memory_loops"), _threads(context), dims["n_rows"]
        n_sets = max(2, cold_copies(2 * n * dims["row_bytes"]))
        staging = self._rows(n_sets * n, dims, context.seed).reshape(n_sets, n, -1)
        cache = self._rows(n_sets * n, dims, context.seed)
        places = list(zip(np.arange(n_sets * n).reshape(n_sets, n), staging, strict=True))
        return cycling(places, lambda place: fast.scatter_rows(cache, place[0], place[1], 0, used))

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return a cache, half occupied, after the insertion."""
        staging, cache, rows = self._problem(dims, context)
        compiled("memory_loops").scatter_rows(cache, rows, staging, 0, _threads(context))
        return cache

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the same cache after NumPy put the rows in."""
        staging, cache, rows = self._problem(dims, context)
        cache[rows] = staging
        return cache

    def _problem(self, dims: Dims, context: KernelContext) -> tuple[Ids, Ids, Ids]:
        n = dims["n_rows"]
        cache = self._rows(2 * n, dims, context.seed + 1)
        return self._rows(n, dims, context.seed), cache, np.arange(n, 2 * n)


@dataclass(frozen=True, slots=True)
class _LayerCache:
    """One layer's cache in steady state, and the active sets that keep it there."""

    cache: NeuronCache
    active: list[Ids]
    bias: F32

    def step(self, token: int, n_threads: int) -> CacheDelta:
        """Update for ``token``, whose active set comes round again when all have been; work out where to read to."""
        delta = self.cache.index.update(self.active[token % len(self.active)], token)
        self.cache.apply_moves(delta, n_threads=n_threads)
        self.cache.set_bias(delta, self.bias)
        self.cache.row_addresses(delta.rows)
        return delta


class CacheUpdateOperator(PlainOperator):
    """Making room in a cache of neurons, and looking up which it holds."""

    name: ClassVar[str] = "cache_update"
    resource: ClassVar[Resource] = "memory"


class CacheUpdate(Kernel):
    """Bookkeeping and moves of one token on one layer's cache; dims n_active, n_new, row_bytes.

    The active set slides along a ring of neurons in random order: each token brings ``n_new`` neurons, which stay
    active for ``n_active / n_new`` tokens, and ``n_new`` fall out of the window of four. Where the new ones are to be
    read to is worked out, and their biases are set; loading is not included.
    """

    name: ClassVar[str] = "cache_update"
    calibrates: ClassVar[str | None] = "memory"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """A layer of OPT 6.7B (10 % active, 2.4 % new), smaller sets, and rows of float32."""
        sizes = [(1700, 400, 16384), (492, 100, 16384), (64, 16, 4096)]
        if not quick:
            sizes += [(1700, 100, 16384), (1700, 400, 32768), (256, 64, 8192)]
        return [{"n_active": a, "n_new": n, "row_bytes": row} for a, n, row in sizes]

    def cost(self, dims: Dims) -> Op:
        """One row is read and written per neuron dropped, and every active neuron is looked up."""
        n = dims["n_new"] * dims["row_bytes"]
        return Op(
            name="cache update",
            operator="cache_update",
            account="memory",
            bytes_read=n,
            bytes_written=n,
            n_items=dims["n_active"],
        )

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through the caches of several layers, as a token does, one token after another."""
        row_bytes = (dims["n_active"] + WINDOW * dims["n_new"]) * dims["row_bytes"]
        n_layers = min(cold_copies(row_bytes), MOST_LAYERS)
        layers = [self._layer(dims, context.seed + i) for i in range(n_layers)]
        tokens = {"now": 0}
        for token in range(WINDOW + 1):
            for layer in layers:
                layer.step(token, context.n_threads)
            tokens["now"] = (token + 1) * len(layers)

        def call(layer: _LayerCache) -> None:
            layer.step(tokens["now"] // len(layers), context.n_threads)
            tokens["now"] += 1

        return cycling(layers, call)

    def example(self) -> Dims:
        """A small layer."""
        return {"n_active": 40, "n_new": 7, "row_bytes": 64}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the records present after twelve tokens, in the order of their neurons, float32."""
        layer = self._layer(dims, context.seed)
        cache, index = layer.cache, layer.cache.index
        for token in range(12):
            delta = layer.step(token, context.n_threads)
            cache.insert_copy(delta.rows, self._records(delta.missing, dims))
        return cache.used_matrix()[np.argsort(index.present())]

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the records of all neurons that the last four of the twelve tokens used."""
        active = self._layer(dims, context.seed).active
        used = [active[token % len(active)] for token in range(12 - WINDOW, 12)]
        return self._records(np.unique(np.concatenate(used)), dims)

    def _records(self, neurons: Ids, dims: Dims) -> Array:
        records = np.repeat(neurons[:, None], dims["row_bytes"] // 4, axis=1)
        return records.astype(np.float32)

    def _layer(self, dims: Dims, seed: int) -> _LayerCache:
        n_active, n_new = dims["n_active"], dims["n_new"]
        n_steps = max(10, -(-n_active // n_new) + WINDOW + 1)
        ring = np.random.default_rng(seed).permutation(n_steps * n_new)
        places = np.arange(n_active) + n_new * np.arange(n_steps)[:, None]
        active = [np.sort(ring[place % len(ring)]) for place in places]
        index = WindowIndex(len(ring), n_active + WINDOW * n_new, WINDOW)
        options: dict[str, Any] = {"d_model": dims["row_bytes"] // 4, "n_vectors": 1, "dtype": "float32"}
        bias = np.arange(len(ring), dtype=np.float32)
        return _LayerCache(NeuronCache(index, **options), active, bias)
