"""The phases that learn from examples: a language model, fine-tuned ones, a reward model from pairs of answers.

Imported only where a run executes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as fn
from torch import Tensor

from sandtable_workloads.rlhf.aligned.alignment_settings import Fitting
from sandtable_workloads.rlhf.aligned.policy_model import Answered, Judge, Policy, log_probs
from sandtable_workloads.rlhf.aligned.prompted_lines import END, PAD
from sandtable_workloads.rlhf.aligned.resumable_loop import (
    Figures,
    linear_rate,
    optimizer_of,
    set_rates,
    take_step,
)

# a prompt's tokens and its answer's
Pair = tuple[Sequence[int], Sequence[int]]


def answered(pairs: Sequence[Pair], device: torch.device) -> Answered:
    """Return prompts with answers that are known."""
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    rows = [[*prompt, *answer, *[PAD] * (width - len(prompt) - len(answer))] for prompt, answer in pairs]
    return Answered(
        torch.tensor(rows, device=device),
        torch.tensor([len(prompt) for prompt, _ in pairs], device=device),
        torch.tensor([len(answer) for _, answer in pairs], device=device),
    )


def order_of(seed: Sequence[int], n: int, step: int, batch: int) -> list[int]:
    """Return the examples of a step: each of ``n`` comes once in an epoch, in an order of that epoch's own."""
    numbers = range(step * batch, (step + 1) * batch)
    epochs = {number // n for number in numbers}
    orders = {epoch: np.random.default_rng((*seed, epoch)).permutation(n) for epoch in epochs}
    return [int(orders[number // n][number % n]) for number in numbers]


class Supervised:
    """Next-token prediction of answers behind their prompts."""

    def __init__(self, model: Policy, examples: Callable[[int], Answered], fitting: Fitting) -> None:
        self.model, self.examples, self.fitting = model, examples, fitting
        self.optimizer = optimizer_of((model, fitting.learning_rate), weight_decay=fitting.weight_decay)
        self.carried: Figures = {}

    def step(self, number: int) -> Figures:
        """Learn from one batch."""
        set_rates(self.optimizer, linear_rate(number, self.fitting.steps, 1.0))
        losses: list[Tensor] = []
        parts = self._losses(self.examples(number), losses)
        norm = take_step(parts, self.model, self.optimizer, self.fitting.max_grad_norm)
        return {"loss": sum(map(float, losses)), "grad_norm": norm}

    def _losses(self, examples: Answered, seen: list[Tensor]) -> Iterator[Tensor]:
        """Yield each micro-batch's part of the mean loss of all tokens."""
        n_tokens = len(examples.targets)
        for some in examples.chunks(self.fitting.micro_batch):
            loss = -log_probs(self.model, some).sum() / n_tokens
            seen.append(loss.detach())
            yield loss


@dataclass(frozen=True)
class Preferences:
    """Pairs of answers to the same prompts, the preferred ones first."""

    preferred: Sequence[Pair]
    other: Sequence[Pair]

    def __len__(self) -> int:
        return len(self.preferred)

    def cut(self, n: int) -> tuple[Preferences, Preferences]:
        """Return the first ``n`` pairs, and the others."""
        first, second = self.preferred, self.other
        return Preferences(first[:n], second[:n]), Preferences(first[n:], second[n:])

    def batch(self, rows: Sequence[int], device: torch.device) -> Answered:
        """Return some preferred answers, and then the ones that they were preferred to."""
        return answered([self.preferred[row] for row in rows] + [self.other[row] for row in rows], device)


def bradley_terry_loss(scores: Tensor) -> Tensor:
    """Return the loss of scores [2 B] of preferred answers and of the others (Bradley and Terry, 1952)."""
    preferred, other = scores.chunk(2)
    return -fn.logsigmoid(preferred - other).mean()


class Ranking:
    """A reward model that learns to score the preferred answer higher."""

    def __init__(self, model: Judge, pairs: Preferences, fitting: Fitting, seed: Sequence[int]) -> None:
        self.model, self.pairs, self.fitting, self.seed = model, pairs, fitting, seed
        self.optimizer = optimizer_of((model, fitting.learning_rate), weight_decay=fitting.weight_decay)
        self.carried: Figures = {}

    def step(self, number: int) -> Figures:
        """Learn from one batch of pairs."""
        set_rates(self.optimizer, linear_rate(number, self.fitting.steps, 1.0))
        rows = order_of(self.seed, len(self.pairs), number, self.fitting.batch)
        seen: list[tuple[Tensor, Tensor]] = []
        norm = take_step(self._losses(rows, seen), self.model, self.optimizer, self.fitting.max_grad_norm)
        right = torch.cat([preferred > other for preferred, other in (scores.chunk(2) for _, scores in seen)])
        return {
            "loss": sum(float(loss) for loss, _ in seen),
            "accuracy": float(right.float().mean()),
            "grad_norm": norm,
        }

    def _losses(self, rows: Sequence[int], seen: list[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Yield each micro-batch's part of the mean loss of all pairs; the scores stay in ``seen``."""
        each = max(1, (self.fitting.micro_batch or 2 * len(rows)) // 2)  # both answers of a pair are sequences
        for i in range(0, len(rows), each):
            some = rows[i : i + each]
            scores = self.model.scores(self.pairs.batch(some, self.model.score.weight.device))
            loss = bradley_terry_loss(scores) * (len(some) / len(rows))
            seen.append((loss.detach(), scores.detach()))
            yield loss


def scores_of(model: Judge, pairs: Sequence[Pair], batch: int = 256) -> Tensor:
    """Return a reward model's scores of answers that are known [n], on the host."""
    device = model.score.weight.device
    with torch.no_grad():
        parts = [model.scores(answered(pairs[i : i + batch], device)) for i in range(0, len(pairs), batch)]
    return torch.cat(parts).cpu()


def ranked(model: Judge, pairs: Preferences) -> tuple[Tensor, float]:
    """Return a reward model's scores of all answers, and the share of pairs that it ranks right."""
    scores = scores_of(model, [*pairs.preferred, *pairs.other])
    preferred, other = scores.chunk(2)
    return scores, float((preferred > other).double().mean())


def windows(lines: Sequence[Sequence[int]], n_tokens: int) -> Sequence[Pair]:
    """Cut lines, one after another with end tokens between them, into windows to learn a language from."""
    flat = [token for line in lines for token in (*line, END)]
    return [([END], flat[i : i + n_tokens]) for i in range(0, len(flat) - n_tokens, n_tokens)]
