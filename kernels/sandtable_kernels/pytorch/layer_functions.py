"""Parts of a transformer's layer, those between products in fewer passes over memory than autograd's rows.

What is executed and what is timed for it call the same functions. Autograd takes each operator by itself: a norm
becomes a row of element-wise kernels on a CPU, and the gradients of parts of a tensor are made apart and then joined by
a copy. Here they are written where they belong. Results are those of the plain operators within rounding. Letters: B
sequences, T tokens of one, D width, H query heads, K key/value heads, E head dimension, I neurons. Imported only where
something runs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# what a backward pass gets and gives is PyTorch's business, which has no types for it
Context = Any
NORM_EPS = 1e-5


class Norm(nn.RMSNorm):
    """Root-mean-square norm with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` [..., D]."""
        return rms_norm(x, self.weight)


def written_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention that writes its scores to memory; q, k, v [B, H, T, E], ``mask`` [T, T] is added to the scores."""
    scores = torch.matmul(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5 + mask
    return torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """Return ``x`` [..., D] over the root of its rows' mean squares and `NORM_EPS`, times ``gain`` [D].

    PyTorch has one kernel for it on GPUs, and narrow types pass through float32: both are left to it.
    """
    if not x.is_cuda and x.dtype == gain.dtype == torch.float32:
        found: Tensor = _RowNorm.apply(x, gain)
        return found
    return fn.rms_norm(x, (x.shape[-1],), gain, NORM_EPS)


class _RowNorm(torch.autograd.Function):
    """Keeps the input and one number per row; autograd's row of kernels keeps a tensor more."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, gain: Tensor) -> Tensor:
        """Return the norm of ``x`` [..., D]."""
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale.square_().div_(x.shape[-1]).add_(NORM_EPS).rsqrt_()
        ctx.save_for_backward(x, gain, scale)
        return (x * scale).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *outer: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of input and gain."""
        x, gain, scale = ctx.saved_tensors
        width = x.shape[-1]
        work = outer[0] * x
        rows = work.reshape(-1, width)
        of_gain = scale.reshape(-1) @ rows
        # every number of a row changes its scale
        shared = (rows @ gain).view_as(scale).mul_(scale.square().mul_(scale)).div_(-width)
        of_x = torch.mul(outer[0], gain, out=work).mul_(scale).addcmul_(x, shared)
        return of_x, of_gain


def turned_heads(joint: Tensor, turn: Tensor, n_heads: int, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split the joined projection [B, T, H + 2 K, E] into queries, keys and values, the first two with their positions.

    Each pair of neighbours is turned by its position's angle, as one complex product with ``turn`` [T, 1, E/2].
    """
    found: tuple[Tensor, Tensor, Tensor] = _TurnedHeads.apply(joint, turn, (n_heads, n_kv_heads))
    return found


def _pairs(x: Tensor) -> Tensor:
    """Return numbers [..., E] as complex ones [..., E/2], without a copy where they are float32 side by side."""
    wide = x.float()
    return torch.view_as_complex((wide if wide.stride(-1) == 1 else wide.contiguous()).unflatten(-1, (-1, 2)))


class _TurnedHeads(torch.autograd.Function):
    """Turns gradients back into the place that they have in the joined projection's."""

    @staticmethod
    def forward(ctx: Context, joint: Tensor, turn: Tensor, sizes: tuple[int, int]) -> Any:
        """Return queries, keys and values."""
        ctx.save_for_backward(turn)
        turned, values = joint.split((sum(sizes), sizes[1]), dim=2)
        both = torch.view_as_real(_pairs(turned) * turn).flatten(-2).to(joint.dtype)
        return (*both.split(sizes, dim=2), values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *outer: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the joined projection's gradient."""
        (turn,) = ctx.saved_tensors
        sizes = [part.shape[2] for part in outer]
        found = outer[0].new_empty((*outer[0].shape[:2], sum(sizes), outer[0].shape[-1]))
        *turned, values = found.split(sizes, dim=2)
        back = turn.conj().resolve_conj()
        for part, place in zip(outer, turned, strict=False):
            if place.dtype == torch.float32:
                torch.mul(_pairs(part), back, out=_pairs(place))
            else:
                place.copy_(torch.view_as_real(_pairs(part) * back).flatten(-2))
        values.copy_(outer[2])
        return found, None, None


def silu_gated(joint: Tensor) -> Tensor:
    """Return silu of the first half of ``joint`` [..., 2 I] times the second."""
    found: Tensor = _SiluGated.apply(joint)
    return found


class _SiluGated(torch.autograd.Function):
    """Writes the gradients of both halves side by side."""

    @staticmethod
    def forward(ctx: Context, joint: Tensor) -> Tensor:
        """Return the gated values."""
        gate, up = joint.chunk(2, dim=-1)
        opened = fn.silu(gate)
        ctx.save_for_backward(joint, opened)
        return opened * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *outer: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradient of both halves."""
        joint, opened = ctx.saved_tensors
        gate, up = joint.chunk(2, dim=-1)
        found = torch.empty_like(joint)
        of_gate, of_up = found.chunk(2, dim=-1)
        torch.mul(outer[0], opened, out=of_up)
        torch.ops.aten.silu_backward.grad_input(outer[0] * up, gate, grad_input=of_gate)
        return found
