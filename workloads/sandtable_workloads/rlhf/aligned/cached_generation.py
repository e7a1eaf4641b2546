"""Answers drawn token by token with a cache of keys and values, in a batch that shrinks as answers end.

Prompts lie right-aligned, so that all rows write the same column of the cache; rotary positions are relative, and
columns serve as well as positions. Each token is drawn with one uniform number that belongs to its row and place: the
same numbers give the same answers whether or not rows that ended are dropped. Imported only where a run executes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor

from sandtable_workloads.rlhf.aligned.policy_model import Answered, Policy

# rows are dropped once this share of them has ended: moving the cache costs a step or so
DROPPED_FRAC = 0.25
# tokens between two looks at how many have ended: on a GPU a look waits for all that was queued
LOOK_EVERY = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_tokens: Tokens of the longest answer.
        end: Token that ends one.
        temperature: Logits are divided by it.
        top_p: Tokens are drawn among the likeliest that together have this probability.
        drop_ended: Whether the batch shrinks as answers end.
    """

    max_tokens: int
    end: int
    temperature: float = 1.0
    top_p: float = 1.0
    drop_ended: bool = True


def uniforms(n_rows: int, max_tokens: int, *seed: int) -> Tensor:
    """Return the numbers in [0, 1) that tokens are drawn with, [B, G], the same for a seed on every device."""
    return torch.rand((n_rows, max_tokens), generator=generator_of(*seed))


def generator_of(*seed: int) -> torch.Generator:
    """Return a generator on the host whose seed is made of several numbers."""
    return torch.Generator().manual_seed(hash(seed) % (1 << 63))


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    drawn: Tensor,
    sampling: Sampling,
    lengths: Tensor | None = None,
) -> Answered:
    """Answer prompts.

    Args:
        policy: Whose rotary table holds the longest prompt and ``sampling.max_tokens``.
        prompts: Tokens of each, at least one.
        drawn: One uniform number for each row and place, see `uniforms`.
        sampling: How tokens are drawn.
        lengths: Tokens of each answer [B], to give them these and no others: the end token then ends none.
    """
    device = policy.embedding.weight.device
    with torch.inference_mode():
        batch = _Batch(policy, prompts, drawn.to(device), sampling, None if lengths is None else lengths.to(device))
        while batch.step():
            pass
    return _side_by_side(prompts, batch.tokens, batch.lengths.clone())


class _Batch:
    """Answers under way: which rows are still there, their cache, and what all rows have so far."""

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        drawn: Tensor,
        sampling: Sampling,
        wanted: Tensor | None,
    ) -> None:
        self.policy, self.drawn, self.sampling, self.wanted = policy, drawn, sampling, wanted
        width = max(map(len, prompts))
        device = policy.embedding.weight.device
        aligned = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        first = torch.tensor([width - len(p) for p in prompts], device=device)
        self.tokens = torch.zeros(drawn.shape, dtype=torch.long, device=device)
        self.lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self.rows = torch.arange(len(prompts), device=device)
        self.cache = Cache(policy, first, width + sampling.max_tokens)
        self.logits = self.cache.advance(aligned)
        self.n_done = 0

    def step(self) -> bool:
        """Draw one token of each row that is left, and return whether any row goes on."""
        chosen = draw(self.logits, self.drawn[self.rows, self.n_done], self.sampling)
        self.tokens[self.rows, self.n_done] = chosen
        self.n_done += 1
        going = self.lengths[self.rows] == 0
        ended = chosen == self.sampling.end if self.wanted is None else self.wanted[self.rows] == self.n_done
        self.lengths[self.rows[going & ended]] = self.n_done
        if self.n_done == self.sampling.max_tokens:
            self.lengths[self.lengths == 0] = self.n_done
            return False
        chosen = self._dropping(chosen, going & ~ended)
        if chosen is not None:
            self.logits = self.cache.advance(chosen[:, None])
        return chosen is not None

    def _dropping(self, chosen: Tensor, going: Tensor) -> Tensor | None:
        """Return the tokens of the rows that stay; None once all have ended."""
        if self.n_done % LOOK_EVERY[chosen.device.type]:
            return chosen
        n_going = int(going.sum())
        if n_going == 0:
            return None
        if not self.sampling.drop_ended or n_going > (1 - DROPPED_FRAC) * len(going):
            return chosen
        kept = going.nonzero()[:, 0]
        self.rows = self.rows[kept]
        self.cache.keep(kept)
        return chosen[kept]


class Cache:
    """Keys and values of all layers, [B, 2 K, T, E] each, and the way of new tokens through the layers.

    ``first`` is the column of each row's first token: none looks at the columns before.
    """

    def __init__(self, policy: Policy, first: Tensor, n_tokens: int) -> None:
        shape, like = policy.shape, policy.embedding.weight
        self.policy, self.n_tokens = policy, 0
        self.blocks: list[Any] = list(policy.blocks)
        self.layers = [
            like.new_empty((len(first), 2 * shape.n_kv_heads, n_tokens, shape.head_dim))
            for _ in range(shape.n_layers)
        ]
        self.sides = self._sides()
        self.turn = policy.turns(like)
        columns = torch.arange(n_tokens, device=like.device)
        self.seen = (columns >= first[:, None]) if bool((first > 0).any()) else None

    @property
    def n_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def _sides(self) -> list[tuple[Tensor, Tensor]]:
        """Return the parts of all layers that hold keys and values, so that a step does not cut them out anew."""
        n_kv = self.policy.shape.n_kv_heads
        return [(layer[:, :n_kv], layer[:, n_kv:]) for layer in self.layers]

    def keep(self, rows: Tensor) -> None:
        """Keep some rows."""
        self.layers = [layer[rows] for layer in self.layers]
        self.sides = self._sides()
        self.seen = None if self.seen is None else self.seen[rows]

    def advance(self, tokens: Tensor) -> Tensor:
        """Take in the next tokens [B, t] of each row, and return the logits behind the last of them [B, V]."""
        policy, begin, end = self.policy, self.n_tokens, self.n_tokens + tokens.shape[1]
        x, mask, turn = policy.embedding(tokens), self._mask(begin, end), self.turn[begin:end]
        for block, layer, sides in zip(self.blocks, self.layers, self.sides, strict=True):
            room, seen = layer[:, :, begin:end], (sides[0][:, :, :end], sides[1][:, :, :end])
            x = x + self._attend(block.attention, block.attention_norm(x), room, seen, turn, mask)
            x = x + block.ffn(block.ffn_norm(x))
        self.n_tokens = end
        logits: Tensor = policy.head(policy.norm(x[:, -1]))
        return logits

    def _mask(self, begin: int, end: int) -> Tensor | None:
        """Return what new tokens may look at [B or 1, 1, t, T]; None where that is everything."""
        if end - begin == 1:
            return None if self.seen is None else self.seen[:, None, None, :end]
        causal = torch.ones((end - begin, end), dtype=torch.bool, device=self.turn.device).tril(begin)
        if self.seen is None:
            return causal[None, None]
        # padding looks at itself: a softmax of nothing would be no number
        itself = torch.eye(end, dtype=torch.bool, device=causal.device)[begin:]
        return (causal & self.seen[:, None, :end] | itself)[:, None]

    def _attend(
        self,
        attention: Any,
        x: Tensor,
        room: Tensor,
        sides: tuple[Tensor, Tensor],
        turn: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Return what attention adds; new keys and values go into ``room``, a part of all of them, ``sides``."""
        b, t, _ = x.shape
        n_heads, n_kv = attention.n_heads, attention.n_kv_heads
        heads = attention.qkv(x).view(b, t, -1, attention.head_dim)
        turned = heads[:, :, : n_heads + n_kv].unflatten(-1, (-1, 2))
        if heads.dtype == torch.float32:
            torch.view_as_complex(turned).mul_(turn)
        else:
            turned.copy_(torch.view_as_real(torch.view_as_complex(turned.float()) * turn))
        heads = heads.transpose(1, 2)
        room.copy_(heads[:, n_heads:])
        seen = fn.scaled_dot_product_attention(
            heads[:, :n_heads], *sides, attn_mask=mask, enable_gqa=n_kv != n_heads
        )
        found: Tensor = attention.output(seen.transpose(1, 2).reshape(b, t, -1))
        return found


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Return one token per row [B]: the one at which the summed probability passes ``uniform`` [B] of the whole."""
    scores = logits.float()
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    probabilities = torch.softmax(scores, dim=-1)
    if sampling.top_p < 1.0:
        return _draw_top(probabilities, uniform, sampling.top_p)
    return _at(probabilities.cumsum(-1), uniform)


def _draw_top(probabilities: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """Draw among the likeliest tokens: those before which less than ``top_p`` is summed."""
    ordered, tokens = probabilities.sort(dim=-1, descending=True)
    summed = ordered.cumsum(-1)
    kept = torch.where(summed - ordered < top_p, ordered, 0.0)
    return tokens.gather(1, _at(kept.cumsum(-1), uniform)[:, None])[:, 0]


def _at(summed: Tensor, uniform: Tensor) -> Tensor:
    """Return the first place whose sum is above ``uniform`` of the last; below it even where that rounds up."""
    whole = summed[:, -1]
    wanted = torch.minimum(uniform * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(summed, wanted[:, None], right=True)[:, 0]


def _side_by_side(prompts: Sequence[Sequence[int]], answers: Tensor, lengths: Tensor) -> Answered:
    """Move answers right behind their prompts, with zeros after them."""
    device = answers.device
    prompt_lengths = torch.tensor([len(p) for p in prompts], device=device)
    width = int((prompt_lengths + lengths).max())
    tokens = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts], device=device)
    found = Answered(tokens, prompt_lengths, lengths)
    rows, places = found.places
    tokens[rows, found.columns] = answers[rows, places]
    return found
