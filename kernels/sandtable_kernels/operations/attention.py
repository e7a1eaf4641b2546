"""Attention of one new token to everything before it, over a cache of keys and values.

Shapes: ``h`` query heads, ``g`` key-value heads (``h`` a multiple of ``g``: equal is multi-head, one is multi-query),
``e`` elements per head. The cache is allocated once for the longest context and filled as tokens come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable.errors import ConfigError
from sandtable_kernels.files.dtypes import decode, itemsize
from sandtable_kernels.support import F32, Array, cold_weights, compiled, cycling, seeded, seeded_weights


def attend(
    q: F32,
    keys: Array,
    values: Array,
    n_ctx: int,
    *,
    dtype: str = "float32",
    out: F32 | None = None,
    scores: F32 | None = None,
    n_threads: int | None = None,
) -> F32:
    """Return ``softmax(q k / sqrt(e)) v`` over the first ``n_ctx`` positions, float32 [h, e].

    Args:
        q: Queries of the new token, float32 [h, e].
        keys: Stored keys [positions, g, e].
        values: Stored values [positions, g, e].
        n_ctx: Positions to attend to, the new one included; at least one.
        dtype: Element type of ``keys`` and ``values``.
        out: Where to write, float32 [h, e].
        scores: Scratch, float32 [h, at least n_ctx]; give it to avoid an allocation per call.
        n_threads: Threads to use; None is all.

    Raises:
        ConfigError: shapes that do not match, or more positions than the cache holds.
        NoDevice: numba is not installed.
    """
    _check(q, keys, values, n_ctx)
    fast = compiled("linear_loops")
    used = compiled("memory_loops").use_threads(n_threads)
    result = np.empty_like(q) if out is None else out
    scratch = np.empty((len(q), n_ctx), np.float32) if scores is None else scores
    fast.attend(q, fast.typed(keys, dtype), fast.typed(values, dtype), n_ctx, result, scratch, used)
    return result


def attend_reference(q: F32, keys: Array, values: Array, n_ctx: int, *, dtype: str = "float32") -> F32:
    """Compute what `attend` does, plainly in NumPy, in float64."""
    _check(q, keys, values, n_ctx)
    group = len(q) // keys.shape[1]
    k, v = (decode(part[:n_ctx], dtype).astype(np.float64).repeat(group, axis=1) for part in (keys, values))
    scores = np.einsum("he,the->ht", q, k) / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    result: F32 = np.einsum("ht,the->he", weights, v).astype(np.float32)
    return result


def _check(q: F32, keys: Array, values: Array, n_ctx: int) -> None:
    if keys.shape != values.shape or keys.shape[2] != q.shape[1] or len(q) % keys.shape[1]:
        raise ConfigError(
            f"queries of shape {q.shape} cannot attend to keys of shape {keys.shape} and values of {values.shape}"
        )
    if not 1 <= n_ctx <= len(keys):
        raise ConfigError(f"{n_ctx} positions asked for, but the cache holds 1 to {len(keys)}")


class Attend(Kernel):
    """Attention of one token; dims n_heads, n_kv_heads, head_dim, n_ctx, dtype (of the cache)."""

    name: ClassVar[str] = "attend"
    calibrates: ClassVar[str | None] = "compute"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Short and long contexts of a 7B model; also grouped and single key-value heads."""
        shapes = [(32, 32, 128, 64), (32, 32, 128, 512)]
        if not quick:
            shapes += [(8, 8, 64, 32), (32, 8, 128, 1024), (32, 32, 128, 2048), (64, 1, 64, 2048)]
        names = ("n_heads", "n_kv_heads", "head_dim", "n_ctx")
        return [
            dict(zip(names, shape, strict=True)) | {"dtype": dtype}
            for shape in shapes
            for dtype in ("float32", "float16")
        ]

    def cost(self, dims: Dims) -> Op:
        """Keys and values are read once per key-value head; each query head does two products with them."""
        cached = dims["n_ctx"] * dims["n_kv_heads"] * dims["head_dim"]
        return Op(
            name="attention",
            operator="attend",
            account="compute",
            dtype=dims["dtype"],
            flops=4 * dims["n_ctx"] * dims["n_heads"] * dims["head_dim"],
            bytes_read=2 * cached * itemsize(dims["dtype"]),
            n_items=dims["n_ctx"],
        )

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold caches of keys and values."""
        pool = cold_weights((2, *self._cache_shape(dims)), dims["dtype"], context.seed)
        q = seeded((dims["n_heads"], dims["head_dim"]), context.seed + 1)
        options: dict[str, Any] = {
            "dtype": dims["dtype"],
            "out": np.empty_like(q),
            "scores": np.empty((dims["n_heads"], dims["n_ctx"]), np.float32),
            "n_threads": context.n_threads,
        }
        return cycling(pool, lambda kv: attend(q, kv[0], kv[1], dims["n_ctx"], **options))

    def example(self) -> Dims:
        """Grouped heads and an odd number of positions."""
        return {"n_heads": 6, "n_kv_heads": 2, "head_dim": 40, "n_ctx": 77, "dtype": "float16"}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the attended values of the fast path, float32 [h, e]."""
        return attend(**self._problem(dims, context), n_threads=context.n_threads)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the attended values computed in NumPy, float32 [h, e]."""
        return attend_reference(**self._problem(dims, context))

    def _cache_shape(self, dims: Dims) -> tuple[int, int, int]:
        return dims["n_ctx"], dims["n_kv_heads"], dims["head_dim"]

    def _problem(self, dims: Dims, context: KernelContext) -> dict[str, Any]:
        shape = self._cache_shape(dims)
        return {
            "q": seeded((dims["n_heads"], dims["head_dim"]), context.seed + 1),
            "keys": seeded_weights(shape, dims["dtype"], context.seed),
            "values": seeded_weights(shape, dims["dtype"], context.seed + 2),
            "n_ctx": dims["n_ctx"],
            "dtype": dims["dtype"],
        }
