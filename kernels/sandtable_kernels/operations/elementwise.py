"""What stands between matrix products: adding to the residual stream and normalising it.

Plain NumPy on vectors of a few thousand elements. It takes no bandwidth worth naming, but a call whose code and data
were evicted by the weights in between takes a hundred microseconds, and there are two in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.support import F32, Array, seeded


@dataclass(frozen=True, slots=True, kw_only=True)
class NormWeights:
    """What a block's end adds to the residual stream, and what the norm after it multiplies by and adds; float32 [d].

    None is left out, as in models without biases.
    """

    bias: F32 | None = None
    gain: F32 | None = None
    shift: F32 | None = None


PLAIN = NormWeights()


def norm(x: F32, weights: NormWeights = PLAIN) -> F32:
    """Return ``x`` divided by its root mean square over the last axis, times the gain, plus the shift; float32."""
    scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(1e-6))
    result: F32 = x / scale
    if weights.gain is not None:
        result *= weights.gain
    if weights.shift is not None:
        result += weights.shift
    return result


def add_norm(x: F32, y: F32, weights: NormWeights = PLAIN) -> tuple[F32, F32]:
    """Return ``x + y + bias`` and its `norm`: the new residual stream, and what the next block reads of it."""
    total: F32 = x + y
    if weights.bias is not None:
        total += weights.bias
    return total, norm(total, weights)


class AddNorm(Kernel):
    """Residual addition, bias, normalisation, gain and shift of ``n`` tokens; dims n, d_model."""

    name: ClassVar[str] = "add_norm"
    calibrates: ClassVar[str | None] = "compute"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """One token, and a prompt."""
        sizes = [(1, 1024), (1, 4096), (16, 4096)]
        if not quick:
            sizes += [(1, 2048), (128, 4096), (4, 8192)]
        return [{"n": n, "d_model": d} for n, d in sizes]

    def cost(self, dims: Dims) -> Op:
        """Two inputs and three vectors of weights are read, two results written; eight operations per element."""
        n, d = dims["n"] * dims["d_model"], dims["d_model"]
        return Op(
            name="residual and norm",
            operator="elementwise",
            account="compute",
            flops=8 * n,
            bytes_read=8 * n + 12 * d,
            bytes_written=8 * n,
        )

    @contextmanager
    def prepare(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        """Work on the same arrays; what runs in between evicts them."""
        x, y, weights = self._input(dims, context)

        def call() -> None:
            add_norm(x, y, weights)

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
        x, y, weights = self._input(dims, context)
        bias, gain, shift = (np.asarray(w, np.float64) for w in (weights.bias, weights.gain, weights.shift))
        total = x.astype(np.float64) + y + bias
        normed = total / np.sqrt((total**2).mean(axis=-1, keepdims=True) + 1e-6)
        return np.stack([total, normed * gain + shift])

    def _input(self, dims: Dims, context: KernelContext) -> tuple[F32, F32, NormWeights]:
        shape, d = (dims["n"], dims["d_model"]), (dims["d_model"],)
        bias, gain, shift = (seeded(d, context.seed + part) for part in (2, 3, 4))
        weights = NormWeights(bias=bias, gain=gain, shift=shift)
        return seeded(shape, context.seed), seeded(shape, context.seed + 1), weights
