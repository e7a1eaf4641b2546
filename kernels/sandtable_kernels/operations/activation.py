"""What stands between the two halves of a feed-forward block: the activation, times the other projection if gated.

Plain NumPy on vectors of some ten thousand elements, of which each takes an exponential where the activation is smooth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Final

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable.demand.operator import PlainOperator, Resource
from sandtable_kernels.support import F32, Array, seeded

_GELU: Final = np.float32(np.sqrt(2 / np.pi))


def _silu(x: Array) -> Array:
    # exp of large numbers overflows to infinity, whose reciprocal is the right zero
    with np.errstate(over="ignore"):
        result: Array = x / (1 + np.exp(-x))
    return result


def _gelu(x: Array) -> Array:
    result: Array = x * (1 + np.tanh(_GELU * (x + x.dtype.type(0.044715) * x * x * x))) / 2
    return result


ACTIVATIONS: Final[dict[str, Callable[[Array], Array]]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
    "silu": _silu,
    "gelu": _gelu,
}
SMOOTH: Final = ("silu", "gelu")


def activated(before: F32, up: F32 | None, activation: str) -> F32:
    """Return ``act(before)``, times ``up`` where the block is gated; float32, of the shape of ``before``.

    Args:
        before: What the activation is applied to: the gate's projection, or the only one.
        up: The other projection of a gated block; None without a gate.
        activation: "relu", "relu2", "silu" or "gelu" (by its tanh, as models are trained with it).
    """
    result: F32 = ACTIVATIONS[activation](before)
    return result if up is None else result * up


class ActivationOperator(PlainOperator):
    """The activation of a feed-forward block, with its gate."""

    name: ClassVar[str] = "activation"
    resource: ClassVar[Resource] = "compute"


class FfnActivation(Kernel):
    """The activation of ``n`` tokens; dims n, n_neurons, activation, gated."""

    name: ClassVar[str] = "ffn_activation"
    calibrates: ClassVar[str | None] = "compute"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """One token of a small and of a 7B model, and a short prompt; smooth and not."""
        sizes = [(1, 2048), (1, 11008), (16, 11008)]
        if not quick:
            sizes += [(1, 28672), (16, 4096)]
        kinds = (("silu", True), ("relu", False))
        return [
            {"n": n, "n_neurons": neurons, "activation": activation, "gated": gated}
            for n, neurons in sizes
            for activation, gated in kinds
        ]

    def cost(self, dims: Dims) -> Op:
        """One or two inputs are read and one result written; an exponential for each element of a smooth one."""
        n, gated, smooth = dims["n"] * dims["n_neurons"], dims["gated"], dims["activation"] in SMOOTH
        return Op(
            name="activation",
            operator="activation",
            account="compute",
            flops=(4 if smooth else 1) * n + (n if gated else 0),
            bytes_read=4 * n * (2 if gated else 1),
            bytes_written=4 * n,
            n_special=n if smooth else 0,
        )

    @contextmanager
    def prepare(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        """Work on the same arrays, which a product has just written."""
        before, up = self._input(dims, context)

        def call() -> None:
            activated(before, up, dims["activation"])

        call()
        yield call

    def example(self) -> Dims:
        """A gated block of an odd size."""
        return {"n": 3, "n_neurons": 37, "activation": "silu", "gated": True}

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Return the activated neurons, float32 [n, n_neurons]."""
        return activated(*self._input(dims, context), dims["activation"])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64, by the sigmoid where it is SiLU."""
        before, up = self._input(dims, context)
        wide = before.astype(np.float64)
        if dims["activation"] == "silu":
            wide = wide * (0.5 + 0.5 * np.tanh(wide / 2))
        else:
            wide = ACTIVATIONS[dims["activation"]](wide)
        return wide if up is None else wide * up

    def _input(self, dims: Dims, context: KernelContext) -> tuple[F32, F32 | None]:
        shape = (dims["n"], dims["n_neurons"])
        return seeded(shape, context.seed), seeded(shape, context.seed + 1) if dims["gated"] else None
