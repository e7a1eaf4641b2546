"""What the layers of a vision network demand, forward and backward, as eager PyTorch runs them one by one.

Letters: r rows (pixels of all images), c and d channels in and out, k the side of a window, b bytes of an element.
Nothing is fused: a batch norm and an activation each read and write the whole map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sandtable.demand.op import Op, Where
from sandtable.demand.operator import operator_named
from sandtable.demand.operator_shapes import GemmShape, MemoryBoundShape
from sandtable.hardware import DTYPE_BYTES, Machine
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.networks import Kind, Layer, Network

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
PRODUCTS: tuple[Kind, ...] = ("conv", "pointwise", "linear")
# what takes no time: a view
VIEWS: tuple[Kind, ...] = ("slice",)
# kernels of one tensor's step of SGD: weight decay, momentum times and plus, weights plus
SGD_KERNELS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """How layers are run: how often a step does what a `Network` counts once, the type, where, with what share."""

    n: int
    dtype: str
    on: Where
    sharing: int

    @classmethod
    def of(cls, p: ButterflyVision, machine: Machine) -> Runs:
        """Return how these parameters are run on a machine."""
        on: Where = "host" if machine.accelerator is None else "accelerator"
        cores = machine.processor.datasheet.cores
        sharing = 1 if on == "accelerator" or p.threads is None else max(1, cores // p.threads)
        return cls(n=p.n_images, dtype=p.precision, on=on, sharing=sharing)

    @property
    def item(self) -> float:
        """Bytes of an element."""
        return DTYPE_BYTES[self.dtype]

    def op(self, name: str, operator: str, shape: Any, section: str) -> Op:
        """Return an op that runs so."""
        return Op(
            name=name,
            operator=operator,
            account="compute",
            dtype=self.dtype,
            flops=float(operator_named(operator).flops(shape)),
            shape=shape,
            sharing=self.sharing,
            sustained=True,
            on=self.on,
            section=section,
        )

    def moving(self, name: str, elements: float, section: str, kernels: float = 1.0) -> Op:
        """Return element-wise work that moves so many elements."""
        return self.op(name, "memory_bound", MemoryBoundShape(elements * self.item, kernels), section)


def inference_ops(network: Network, runs: Runs) -> tuple[Op, ...]:
    """Return a forward pass, without a section."""
    return tuple(_forward(network, runs, ""))


def training_ops(network: Network, runs: Runs) -> tuple[Op, ...]:
    """Return a step: forward with the loss, backward, and SGD."""
    return (*_forward(network, runs, FORWARD), *_backward(network, runs), *_update(network, runs))


def _forward(network: Network, runs: Runs, section: str) -> Iterator[Op]:
    for layer in network.layers:
        if layer.kind in VIEWS:
            continue
        if layer.is_structured:
            yield from _structured(layer, runs, section, passes=1)
        elif layer.kind in PRODUCTS:
            yield runs.op(layer.kind, "gemm", product_of(layer, runs.n), section)
        else:
            moved = runs.n * (layer.input_elements + layer.activation_elements)
            yield runs.moving(layer.kind, moved, section)


def product_of(layer: Layer, n: int) -> GemmShape:
    """Return the product that a dense layer is for ``n`` images: r d c, with k k c for c of a convolution."""
    return GemmShape(n * layer.pixels, layer.n_out, layer.kernel**2 * layer.n_in)


def _structured(layer: Layer, runs: Runs, section: str, passes: int) -> Iterator[Op]:
    rows, per_row = runs.n * layer.pixels, layer.matrix.multiplications / max(2, layer.base)
    yield runs.moving(layer.kind, passes * 2 * rows * per_row, section)


def _backward(network: Network, runs: Runs) -> Iterator[Op]:
    for layer in reversed(network.layers):
        if layer.kind in VIEWS:
            continue
        if layer.is_structured:
            yield from _structured(layer, runs, BACKWARD, passes=2)
        elif layer.kind in PRODUCTS:
            m, n, k, *_ = product_of(layer, runs.n)
            yield runs.op(layer.kind, "gemm", GemmShape(m, k, n), BACKWARD)
            yield runs.op(layer.kind, "gemm", GemmShape(k, n, m), BACKWARD)
        else:
            moved = runs.n * (2 * layer.input_elements + layer.activation_elements)
            yield runs.moving(layer.kind, moved, BACKWARD)


def _update(network: Network, runs: Runs) -> Iterator[Op]:
    trained = [layer for layer in network.layers if layer.parameters]
    # weights, gradients and momentum are read, and two of them written
    yield runs.moving("sgd", 5 * network.parameters, OPTIMIZER, SGD_KERNELS * len(trained))
