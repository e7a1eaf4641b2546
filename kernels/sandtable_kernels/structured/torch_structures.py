"""Structured matrices as PyTorch runs them, by ordinary operators that autograd differentiates.

Weights have the shapes of `StructuredProduct.weights_shapes`, so that NumPy's references hold for these as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from sandtable.errors import ConfigError
from sandtable_kernels.structured.baselines.block_shuffle import BlockShuffle
from sandtable_kernels.structured.baselines.circulant import CyclicProduct
from sandtable_kernels.structured.baselines.monarch import Monarch
from sandtable_kernels.structured.baselines.structured_product import StructuredProduct
from sandtable_kernels.structured.structures import structured


def multiply(product: StructuredProduct, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return rows [r, n_in] times a structured matrix, [r, n_out], in the type of the rows."""
    return MULTIPLY[product.structure](product, x, weights)


def _in_turn(product: Any, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Multiply by one dense factor after the other."""
    for weight in weights:
        x = fn.linear(x, weight)
    return x


def _cyclic(product: CyclicProduct, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Multiply by way of transforms, which know float32 and float64 only."""
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    column = fn.pad(weights[0].to(wide), (0, 1))[_column_index(product, x.device)]
    spectra = torch.fft.rfft(x.to(wide), product.length) * torch.fft.rfft(column)
    return torch.fft.irfft(spectra, product.length)[:, : product.n_out].to(x.dtype)


@lru_cache(maxsize=256)
def _column_index(product: CyclicProduct, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept must also serve where gradients are wanted
        return torch.from_numpy(product.column_index()).to(device)


def _monarch(product: Monarch, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Multiply by both factors, as `Monarch.rows` does."""
    b, share = product.n_blocks, product.share
    blocks = _in_groups(x, b, product.width_in)
    hidden = torch.bmm(weights[0], blocks.permute(1, 2, 0)).reshape(b, b, share, len(x))
    mixed = hidden.permute(1, 3, 0, 2).reshape(b, len(x), b * share)
    outputs = torch.bmm(mixed, weights[1].transpose(1, 2))
    return outputs.transpose(0, 1).reshape(len(x), -1)[:, : product.n_out]


def _block_shuffle(product: BlockShuffle, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Multiply each group, and deal the outputs out among the groups."""
    groups = _in_groups(x, product.n_groups, product.width_in)
    outputs = torch.bmm(groups.transpose(0, 1), weights[0].transpose(1, 2))
    return outputs.permute(1, 2, 0).reshape(len(x), -1)[:, : product.n_out]


def _in_groups(x: Tensor, n_groups: int, width: int) -> Tensor:
    """Return rows [r, n_groups, width], with zeros behind them where they are shorter."""
    missing = n_groups * width - x.shape[1]
    return (fn.pad(x, (0, missing)) if missing else x).reshape(len(x), n_groups, width)


MULTIPLY: dict[str, Callable[[Any, Tensor, Sequence[Tensor]], Tensor]] = {
    "dense": _in_turn,
    "low_rank": _in_turn,
    "circulant": _cyclic,
    "toeplitz": _cyclic,
    "monarch": _monarch,
    "block_shuffle": _block_shuffle,
}


class StructuredModule(nn.Module):
    """A structured matrix that learns, without a bias: [..., n_in] to [..., n_out].

    Args:
        structure: One of `MULTIPLY`.
        n_in: Inputs.
        n_out: Outputs.
        options: Of the structure, such as its rank.

    Raises:
        ConfigError: sizes or options that the structure cannot have; inputs of another width.
        UnknownName: no such structure.
    """

    def __init__(self, structure: str, n_in: int, n_out: int, **options: Any) -> None:
        super().__init__()
        self.product = structured(structure, n_in, n_out, **options)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(shape) * spread)
            for shape, spread in zip(self.product.weights_shapes, self.product.spreads, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the last dimension."""
        n_in, n_out = self.product.n_in, self.product.n_out
        if x.shape[-1] != n_in:
            raise ConfigError(f"this {self.product.structure} layer has {n_in} inputs, not {x.shape[-1]}")
        rows = multiply(self.product, x.reshape(-1, n_in), tuple(self.weights))
        return rows.reshape(*x.shape[:-1], n_out)

    def extra_repr(self) -> str:
        """Describe sizes and options in the module's text."""
        return repr(self.product)
