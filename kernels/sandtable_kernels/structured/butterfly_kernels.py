"""The butterfly transform and its gradients as kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.files.dtypes import decode, encode
from sandtable_kernels.pytorch.vision_demand import Setting
from sandtable_kernels.structured.butterfly import (
    butterfly,
    butterfly_backward,
    butterfly_backward_reference,
    butterfly_reference,
    initial_weights,
)
from sandtable_kernels.structured.butterfly_law import butterfly_op
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.support import Array, cold_copies, cycling, seeded

SIZES = ((64, 64), (256, 256), (512, 256), (1024, 1024))
MORE_SIZES = ((32, 64), (128, 512), (192, 192), (2048, 2048), (4096, 4096))
ROWS = (16, 256, 2048)


class ButterflyKernel(Kernel):
    """Rows times a butterfly with residual; dims rows, n_in, n_out, base, dtype."""

    name: ClassVar[str] = "butterfly"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Widths of the pointwise layers of vision networks and beyond, a few rows to many."""
        sizes = SIZES if quick else SIZES + MORE_SIZES
        points = [self._point(rows, *size, 4, "float32") for size in sizes for rows in ROWS]
        others = [(2, "float32"), (8, "float32"), (4, "bfloat16")]
        return points + [self._point(256, n, n, *other) for other in others for n in (256, 1024)]

    @staticmethod
    def _point(rows: int, n_in: int, n_out: int, base: int, dtype: str) -> Dims:
        return {"rows": rows, "n_in": n_in, "n_out": n_out, "base": base, "dtype": dtype}

    def example(self) -> Dims:
        """Odd sides, so that there is padding and more than one square transform."""
        return self._point(37, 53, 97, 4, "float32")

    def cost(self, dims: Dims) -> Op:
        """See `butterfly_op`."""
        return butterfly_op(self.name, _layout(dims), dims["rows"], Setting(dtype=dims["dtype"]))

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold rows, as those of a layer are that were written by the one before."""
        layout, x, weights = _problem(dims, context)
        out, n_threads = np.empty((len(x), layout.n_out), x.dtype), context.n_threads
        return cycling(_cold(x), lambda rows: butterfly(rows, weights, layout, out=out, n_threads=n_threads))

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the results of the fast path, float32 [rows, n_out]."""
        layout, x, weights = _problem(dims, context)
        return decode(butterfly(x, weights, layout, n_threads=context.n_threads), dims["dtype"])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return the results summed in float64, float32 [rows, n_out]."""
        layout, x, weights = _problem(dims, context)
        return butterfly_reference(decode(x, dims["dtype"]), decode(weights, dims["dtype"]), layout)


class ButterflyBackwardKernel(ButterflyKernel):
    """The gradients of a butterfly by its rows and by its weights; dims as `ButterflyKernel`."""

    name: ClassVar[str] = "butterfly_backward"

    def cost(self, dims: Dims) -> Op:
        """See `butterfly_op`."""
        setting = Setting(dtype=dims["dtype"], training=True, backward=True)
        return butterfly_op(self.name, _layout(dims), dims["rows"], setting)

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Cycle through cold rows."""
        layout, x, weights = _problem(dims, context)
        grad, n_threads = _gradient(dims, context), context.n_threads
        return cycling(_cold(x), lambda rows: butterfly_backward(rows, weights, grad, layout, n_threads=n_threads))

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return both gradients of the fast path, one after the other, float32."""
        layout, x, weights = _problem(dims, context)
        grads = butterfly_backward(x, weights, _gradient(dims, context), layout, n_threads=context.n_threads)
        return np.concatenate([decode(grads[0], dims["dtype"]).ravel(), grads[1].ravel()])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """Return both by their definition: the transform is linear in each of its levels."""
        layout, x, weights = _problem(dims, context)
        x, weights, grad = (decode(array, dims["dtype"]) for array in (x, weights, _gradient(dims, context)))
        grads = butterfly_backward_reference(x, weights, grad, layout)
        return np.concatenate([grad.ravel() for grad in grads]).astype(np.float32)


def _layout(dims: Dims) -> ButterflyLayout:
    return ButterflyLayout(dims["n_in"], dims["n_out"], dims["base"])


def _problem(dims: Dims, context: KernelContext) -> tuple[ButterflyLayout, Array, Array]:
    layout, dtype = _layout(dims), dims["dtype"]
    weights = initial_weights(layout, np.random.default_rng(context.seed))
    x = seeded((dims["rows"], layout.n_in), context.seed + 1)
    return layout, encode(x, dtype), encode(weights, dtype)


def _gradient(dims: Dims, context: KernelContext) -> Array:
    return encode(seeded((dims["rows"], dims["n_out"]), context.seed + 2), dims["dtype"])


def _cold(x: Array) -> Array:
    pool = np.empty((cold_copies(x.nbytes), *x.shape), x.dtype)
    pool[:] = x
    return pool
