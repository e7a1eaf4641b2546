"""A Llama-style decoder in plain PyTorch, from the shape that the plan counts.

Letters in comments: B sequences, T tokens of one, D width, H query heads, K key/value heads, E head dimension,
I neurons, V vocabulary. Imported only where a run executes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sandtable_kernels.pytorch import layer_functions
from sandtable_kernels.pytorch.layer_functions import Norm
from sandtable_workloads.transformer.shapes import ModelShape

ROPE_BASE = 10_000.0
INITIAL_STD = 0.02


def rope_table(n_tokens: int, head_dim: int, device: torch.device) -> Tensor:
    """Return e^(i angle) of the rotary embedding [T, 1, E/2], complex64 (Su et al., arXiv 2104.09864)."""
    rates = ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    angles = torch.outer(torch.arange(n_tokens, device=device).float(), rates)[:, None, :]
    return torch.polar(torch.ones_like(angles), angles)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention that keeps its scores on chip, as PyTorch provides it; ``mask`` is known to be causal."""
    return fn.scaled_dot_product_attention(q, k, v, is_causal=True)


ATTENTION: dict[str, Any] = {"vanilla": layer_functions.written_attention, "flash": flash_attention}


class Attention(nn.Module):
    """Causal self-attention with rotary positions; fewer key/value heads than query heads are repeated."""

    def __init__(self, shape: ModelShape, *, core: str, recompute: bool) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = shape.n_heads, shape.n_kv_heads, shape.head_dim
        self.qkv = nn.Linear(shape.d_model, (self.n_heads + 2 * self.n_kv_heads) * self.head_dim, bias=False)
        self.output = nn.Linear(self.n_heads * self.head_dim, shape.d_model, bias=False)
        self.core = partial(checkpoint, ATTENTION[core], use_reentrant=False) if recompute else ATTENTION[core]

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
        """Return what attention adds to ``x`` [B, T, D]."""
        b, t, _ = x.shape
        heads = self.qkv(x).view(b, t, -1, self.head_dim)  # [B, T, H + 2 K, E]
        parts = layer_functions.turned_heads(heads, turn, self.n_heads, self.n_kv_heads)
        q, k, v = (part.transpose(1, 2) for part in parts)  # [B, heads, T, E]
        if self.n_kv_heads != self.n_heads:
            k, v = (part.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1) for part in (k, v))
        return self.output(self.core(q, k, v, mask).transpose(1, 2).reshape(b, t, -1))


ACTIVATIONS: dict[str, Any] = {"silu": fn.silu, "gelu": fn.gelu, "relu": fn.relu}


class FeedForward(nn.Module):
    """Gated feed-forward: down(act(gate(x)) * up(x)), or down(act(up(x))) where the shape has no gate."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gated = shape.n_vectors == 3
        self.activation = ACTIVATIONS[shape.activation]
        self.up = nn.Linear(shape.d_model, shape.n_neurons * (2 if self.gated else 1), bias=False)
        self.down = nn.Linear(shape.n_neurons, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the feed-forward adds to ``x`` [B, T, D]."""
        if not self.gated:
            return self.down(self.activation(self.up(x)))
        if self.activation is fn.silu:
            return self.down(layer_functions.silu_gated(self.up(x)))
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, shape: ModelShape, *, core: str, recompute_core: bool) -> None:
        super().__init__()
        self.attention_norm = Norm(shape.d_model)
        self.attention = Attention(shape, core=core, recompute=recompute_core)
        self.ffn_norm = Norm(shape.d_model)
        self.ffn = FeedForward(shape)

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
        """Return the residual stream after this layer, [B, T, D]."""
        x = x + self.attention(self.attention_norm(x), turn, mask)
        return x + self.ffn(self.ffn_norm(x))


class Decoder(nn.Module):
    """Embedding, layers, final norm, output projection; gives the loss of predicting each next token."""

    def __init__(self, shape: ModelShape, *, sequence_tokens: int, core: str, checkpointing: str) -> None:
        super().__init__()
        # every how many layers one keeps its input alone; 0 for none
        self.recompute_every = {"full": 1, "alternate": 2}.get(checkpointing, 0)
        self.embedding = nn.Embedding(shape.vocabulary, shape.d_model)
        selective = checkpointing == "selective"
        self.blocks = nn.ModuleList(
            Block(shape, core=core, recompute_core=selective) for _ in range(shape.n_layers)
        )
        self.norm = Norm(shape.d_model)
        self.head = nn.Linear(shape.d_model, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight
        self.sizes = (sequence_tokens, shape.head_dim, core)
        self.tables: tuple[Tensor, Tensor] | None = None

    def initialise(self, seed: int) -> None:
        """Draw all matrices from a normal distribution of deviation 0.02 (GPT-2's), the same ones for a seed."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    drawn = torch.empty(parameter.shape).normal_(std=INITIAL_STD, generator=generator)
                    parameter.copy_(drawn)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats per token; ``tokens`` and ``targets`` [B, T]."""
        x = self.embedding(tokens)
        turn, mask = self._tables(x)
        for index, block in enumerate(self.blocks):
            if self.recompute_every and index % self.recompute_every == 0 and torch.is_grad_enabled():
                x = checkpoint(block, x, turn, mask, use_reentrant=False)
            else:
                x = block(x, turn, mask)
        logits = self.head(self.norm(x))
        return fn.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def _tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotary table, and the causal mask in the type that the layers work in, made once."""
        if self.tables is None:
            n_tokens, head_dim, core = self.sizes
            mask = torch.empty(0)
            if core == "vanilla":
                mask = torch.full((n_tokens, n_tokens), -torch.inf, device=like.device).triu(1)
            self.tables = (rope_table(n_tokens, head_dim, like.device), mask.to(like.dtype))
        return self.tables
