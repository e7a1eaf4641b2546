"""Numbers that a layer holds beside its input and output in PyTorch: while it runs, and for the backward pass.

Between the factors of a structure they are counted as `sandtable_kernels.structured.torch_structures` makes them, whose
locals live until the layer's end. Workspace is oneDNN's, on a CPU: weights brought into another order. Tests hold all
of them to the allocator.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from sandtable_kernels.pytorch.vision_demand import Maps, Setting, is_native
from sandtable_kernels.structured.baselines.block_shuffle import BlockShuffle
from sandtable_kernels.structured.baselines.circulant import CyclicProduct
from sandtable_kernels.structured.baselines.low_rank import LowRank
from sandtable_kernels.structured.baselines.monarch import Monarch
from sandtable_kernels.structured.structures import structured
from sandtable_workloads.butterfly.networks import Layer

# oneDNN lays the weights of groups out in blocks of so many channels in and out, those of lone channels as well, where
# it sums up their gradient
BLOCK = 16


class Between(NamedTuple):
    """Numbers beside a layer's input and output.

    Per row the most while it runs, and what a backward pass reads; and once, whatever the rows: weights transformed.
    """

    running: int = 0
    kept: int = 0
    once: int = 0


@lru_cache(maxsize=1024)
def between(layer: Layer) -> Between:
    """Return what a layer holds between its factors; nothing where it has one factor, or is a butterfly."""
    if not layer.is_structured or layer.structure == "butterfly":
        return Between()
    match structured(layer.structure, layer.n_in, layer.n_out, **dict(layer.options)):
        case LowRank(rank=rank):
            return Between(rank, rank)
        case CyclicProduct(length=length):
            # rows filled up, their spectra, and the product with that of the weights; results are as long, and then cut
            spectrum, filled = length + 2, length if layer.n_in < length else 0
            kept = filled + spectrum + length - layer.n_out
            return Between(2 * spectrum - layer.n_out, kept, length + spectrum)
        case Monarch() as product:
            return _monarch(product)
        case BlockShuffle() as product:
            wide = _filled(product.n_in, product.n_groups)
            outputs = product.n_groups * product.width_out * _copies(product.n_groups)
            return Between(wide + outputs - product.n_out, wide)
        case _:
            return Between()


def _monarch(product: Monarch) -> Between:
    b = product.n_blocks
    wide, hidden, outputs = _filled(product.n_in, b), b * b * product.share, b * product.width_out * _copies(b)
    # shares of one number are brought before their block by strides alone
    mixed = hidden if product.share > 1 and b > 1 else 0
    return Between(wide + hidden + mixed + outputs - product.n_out, wide + hidden)


def _copies(n_groups: int) -> int:
    """Return how often outputs lie in memory: by groups, and dealt out among them unless there is one group alone."""
    return 2 if n_groups > 1 else 1


def _filled(n_in: int, n_groups: int) -> int:
    """Return the width of a copy with zeros behind each row, 0 where the row fills the groups."""
    return -(-n_in // n_groups) * n_groups if n_in % n_groups else 0


def workspace(layer: Layer, n: int, n_threads: int) -> int:
    """Return what a convolution of ``n`` images works in: weights in oneDNN's order, or windows as rows of a product.

    See `sandtable_kernels.pytorch.vision_demand.is_native` for which of the two it is.
    """
    if layer.is_structured or layer.kind not in ("conv", "pointwise"):
        return 0
    depth, maps = layer.kernel**2 * layer.n_in, Maps(n, layer.side_out, layer.side_out)
    if not is_native(maps, layer.n_in, Setting(n_cores=n_threads), kernel=layer.kernel, stride=layer.stride):
        return depth * layer.n_out
    return depth * maps.positions if layer.kernel > 1 else 0


def backward_workspace(layer: Layer, n: int, n_threads: int) -> int:
    """Return the same of the gradient of its weights."""
    if layer.kind == "depthwise":
        return layer.n_out * (layer.kernel * BLOCK) ** 2
    return workspace(layer, n, n_threads)
