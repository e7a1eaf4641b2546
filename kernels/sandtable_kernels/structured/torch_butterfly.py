"""The butterfly transform as a function of PyTorch's tensors: differentiable, on any device.

On the CPU float32 and bfloat16 run the compiled loops of `sandtable_kernels.structured.butterfly` on the tensors' own
memory; on NVIDIA GPUs they run `sandtable_kernels.cuda.triton_butterfly`. `butterfly_levels` is the same in ordinary
operations, one level after another: for every other device and element type, for gradients of gradients, and for
``torch.compile``, which traces and fuses it. Imported only where PyTorch is used.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from torch import Tensor
from torch.autograd.function import once_differentiable

from sandtable.errors import ConfigError
from sandtable_kernels.structured import butterfly as host
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.support import Array

# element types of the compiled loops, and of the kernels of GPUs
ON_HOST = (torch.float32, torch.bfloat16)
ON_GPU = (torch.float32, torch.bfloat16, torch.float16)
NARROW = (torch.bfloat16, torch.float16)


def butterfly(x: Tensor, weights: Tensor, layout: ButterflyLayout, *, residual: bool = True) -> Tensor:
    """Return the transform of the rows of ``x`` [..., n_in] as [..., n_out], by the fastest way there is.

    Args:
        x: rows; copied where they do not lie one after another.
        weights: of the layout's ``weights_shape``, of the same element type and on the same device as ``x``. Where
            autocast is on, both are narrowed to its type first, as those of a linear layer are.
        layout: the transform's shape.
        residual: add each square transform's input to its output.

    Raises:
        ConfigError: another shape, element type or device.
    """
    if torch.is_autocast_enabled(x.device.type):
        narrow = torch.get_autocast_dtype(x.device.type)
        x, weights = x.to(narrow), weights.to(narrow)
    _check(x, weights, layout)
    way = None if torch.compiler.is_compiling() else _fast_way(x.device.type, x.dtype)
    if way is None or x.numel() == 0:
        return butterfly_levels(x, weights, layout, residual=residual)
    rows = x.reshape(-1, layout.n_in).contiguous()
    # what autograd keeps beside a call costs a fifth of a small one
    wanted = torch.is_grad_enabled() and (rows.requires_grad or weights.requires_grad)
    call = OnHost.transformed if way is OnHost and not wanted else way.apply
    result: Tensor = call(rows, weights.contiguous(), layout, residual)
    return result.view(*x.shape[:-1], layout.n_out)


def butterfly_levels(x: Tensor, weights: Tensor, layout: ButterflyLayout, *, residual: bool = True) -> Tensor:
    """Return the same by ordinary operations of PyTorch; narrow types are summed in float32."""
    if x.dtype in NARROW:
        return butterfly_levels(x.float(), weights.float(), layout, residual=residual).to(x.dtype)
    side = layout.side
    split = layout.n_blocks if layout.n_in > layout.n_out else 1
    parts = fn.pad(x, (0, split * side - layout.n_in)).unflatten(-1, (split, side))
    start = fn.pad(parts, (0, layout.size - side))
    y = start
    for index, stride in enumerate(layout.strides):
        y = level(y, weights[:, index], stride)
    if residual:
        y = y + start
    y = y[..., :side]
    return y.sum(-2) if split > 1 else y.flatten(-2)[..., : layout.n_out]


def level(x: Tensor, weights: Tensor, stride: int) -> Tensor:
    """Return one level's outputs [..., blocks, size] for ``x`` [..., blocks or 1, size] and [blocks, size, base]."""
    n_blocks, size, base = weights.shape
    groups = x.unflatten(-1, (size // (base * stride), base, stride))
    factors = weights.view(n_blocks, size // (base * stride), base, stride, base)
    terms = [groups[..., j, :].unsqueeze(-2) * factors[..., j] for j in range(base)]
    return torch.stack(terms).sum(0).flatten(-3)


def _check(x: Tensor, weights: Tensor, layout: ButterflyLayout) -> None:
    if x.shape[-1:] != (layout.n_in,):
        raise ConfigError(f"rows of {layout.n_in} numbers are transformed, not a tensor {tuple(x.shape)}")
    if tuple(weights.shape) != tuple(layout.weights_shape):
        raise ConfigError(f"weights of this butterfly are {layout.weights_shape}, not {tuple(weights.shape)}")
    if x.dtype != weights.dtype or not x.dtype.is_floating_point:
        raise ConfigError(
            f"a butterfly with weights of {weights.dtype} does not take rows of {x.dtype}: convert one of them, or "
            "use torch.autocast"
        )
    if x.device != weights.device:
        raise ConfigError(f"rows on {x.device} do not meet weights on {weights.device}: move one of them")


@lru_cache(maxsize=32)
def _fast_way(device: str, dtype: torch.dtype) -> Any:
    """Return the autograd function for a device and element type, or None where only ordinary operations are."""
    if device == "cpu" and dtype in ON_HOST and find_spec("numba") is not None:
        return OnHost
    if device == "cuda" and dtype in ON_GPU and find_spec("triton") is not None:
        from sandtable_kernels.cuda.triton_butterfly import OnGpu

        return OnGpu
    return None


class OnHost(torch.autograd.Function):
    """The compiled loops, on the memory of tensors of the CPU, with as many threads as PyTorch uses."""

    @staticmethod
    def transformed(x: Tensor, weights: Tensor, layout: ButterflyLayout, residual: bool) -> Tensor:
        """Return rows [r, n_out] for ``x`` [r, n_in]."""
        y = x.new_empty(x.shape[0], layout.n_out)
        threads = torch.get_num_threads()
        host.butterfly(memory(x), memory(weights), layout, residual=residual, out=memory(y), n_threads=threads)
        return y

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, layout: ButterflyLayout, residual: bool) -> Tensor:
        """Return rows [r, n_out] for ``x`` [r, n_in]; backward makes the levels again, and keeps none of them.

        The context is taken here, as a ``setup_context`` of its own costs 20 us a call.
        """
        ctx.layout, ctx.residual = layout, residual
        ctx.save_for_backward(x, weights)
        return OnHost.transformed(x, weights, layout, residual)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        """Return gradients by the input and by the weights."""
        x, weights = ctx.saved_tensors
        grads = host.butterfly_backward(
            memory(x),
            memory(weights),
            memory(grad_outputs[0].contiguous()),
            ctx.layout,
            residual=ctx.residual,
            n_threads=torch.get_num_threads(),
        )
        by_x, by_weights = (tensor(part, x.dtype) for part in grads)
        return by_x, by_weights, None, None


def memory(values: Tensor) -> Array:
    """Return a tensor's memory as NumPy sees it, without a copy; bfloat16 as its bits, uint16."""
    plain = values.detach()
    if plain.dtype != torch.bfloat16:
        return plain.numpy()  # type: ignore[no-any-return]
    bits: Array = plain.view(torch.int16).numpy().view(np.uint16)
    return bits


def tensor(values: Array, dtype: torch.dtype) -> Tensor:
    """Return a result as a tensor of ``dtype``, without a copy where it is of that type."""
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).to(dtype)
    return torch.from_numpy(values).to(dtype)
