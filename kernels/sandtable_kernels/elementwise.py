"""What stands between matrix products: adding to the residual stream and normalising it.

Plain NumPy on vectors of a few thousand elements. It takes no bandwidth worth naming, but a call whose code and data
were evicted by the weights in between takes a hundred microseconds, and there are two in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import numpy as np

from sandtable.plan import Dims, Kernel, KernelContext, Op
from sandtable_kernels.support import F32, Array, seeded


def norm(x: F32) -> F32:
    """Return ``x`` divided by its root mean square over the last axis, float32."""
    scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(1e-6))
    result: F32 = x / scale
    return result


def add_norm(x: F32, y: F32) -> tuple[F32, F32]:
    """Return ``x + y`` and its `norm`: the new residual stream, and what the next block reads of it."""
    total: F32 = x + y
    return total, norm(total)


class AddNorm(Kernel):
    """Residual addition and normalisation of ``n`` tokens; dims n, d_model."""

    name: ClassVar[str] = "add_norm"
    calibrates: ClassVar[str | None] = "compute"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """One token, and a prompt."""
        sizes = [(1, 1024), (1, 4096), (16, 4096)]
        if not quick:
            sizes += [(1, 2048), (128, 4096), (4, 8192)]
        return [{"n": n, "d_model": d} for n, d in sizes]

    def cost(self, dims: Dims) -> Op:
        """Two inputs are read and two results written; five operations per element."""
        n = dims["n"] * dims["d_model"]
        return Op(
            name="residual and norm",
            kind="elementwise",
            account="compute",
            flops=5 * n,
            bytes_read=8 * n,
            bytes_written=8 * n,
        )

    @contextmanager
    def prepare(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        """Work on the same arrays; what runs in between evicts them."""
        x, y = self._input(dims, context)

        def call() -> None:
            add_norm(x, y)

        call()
        yield call

    def example(self) -> Dims:
        """A few odd-sized tokens."""
        return {"n": 3, "d_model": 37}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return sum and norm, float32 [2, n, d]."""
        return np.stack(add_norm(*self._input(dims, context)))

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64."""
        x, y = (part.astype(np.float64) for part in self._input(dims, context))
        total = x + y
        return np.stack([total, total / np.sqrt((total**2).mean(axis=-1, keepdims=True) + 1e-6)])

    def _input(self, dims: Dims, context: KernelContext) -> tuple[F32, F32]:
        shape = (dims["n"], dims["d_model"])
        return seeded(shape, context.seed), seeded(shape, context.seed + 1)
