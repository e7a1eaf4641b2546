"""The decoder as a policy and as a judge: log-probabilities of answers, values of their tokens, scores of them whole.

Letters in comments: B answers, P tokens of the longest prompt, G of the longest answer, T = P + G, N tokens of all
answers together, D width, V vocabulary. A prompt and its answer lie side by side and padding is on the right, where
causal attention never looks from: no mask is needed. Imported only where a run executes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from sandtable_workloads.training.executed.decoder import Decoder
from sandtable_workloads.transformer.shapes import ModelShape


class Policy(Decoder):
    """A decoder that is asked for the tokens after a prompt."""

    def __init__(self, shape: ModelShape, n_tokens: int) -> None:
        super().__init__(shape, sequence_tokens=n_tokens, core="flash", checkpointing="none")
        self.shape = shape

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the last layer's output behind its norm [B, T, D] of ``tokens`` [B, T]."""
        x = self.embedding(tokens)
        turn, mask = self._tables(x)
        for block in self.blocks:
            x = block(x, turn[: tokens.shape[1]], mask)
        return self.norm(x)

    def turns(self, like: Tensor) -> Tensor:
        """Return the rotary table [T, 1, E/2] on a tensor's device."""
        return self._tables(like)[0]

    def _tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Make the tables so that gradients can pass by them, whoever asks first."""
        with torch.inference_mode(False):
            return super()._tables(like)


class Judge(nn.Module):
    """A decoder without its output projection that gives one number per token: a reward model, or a critic."""

    def __init__(self, shape: ModelShape, n_tokens: int) -> None:
        super().__init__()
        self.trunk = Policy(shape, n_tokens)
        del self.trunk.head  # what gives logits is none of its business
        self.score = nn.Linear(shape.d_model, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def start_from(self, policy: Policy) -> None:
        """Take over the layers of a policy."""
        self.trunk.load_state_dict({k: v for k, v in policy.state_dict().items() if not k.startswith("head.")})

    def scores(self, answered: Answered) -> Tensor:
        """Return one score per answer [B], read at its last token."""
        last = answered.prompt_lengths + answered.lengths - 1
        rows = torch.arange(len(last), device=last.device)
        found: Tensor = self.score(self.trunk.hidden(answered.tokens)[rows, last]).squeeze(-1)
        return found

    def values(self, answered: Answered) -> Tensor:
        """Return one value per token of an answer [N], read at the token before it."""
        found: Tensor = self.score(answered.before(self.trunk.hidden(answered.tokens))).squeeze(-1)
        return found


@dataclass(frozen=True)
class Answered:
    """Prompts with their answers behind them.

    Attributes:
        tokens: Prompt, answer, padding [B, T].
        prompt_lengths: Tokens of each prompt [B].
        lengths: Tokens of each answer, the end token included [B]; at least 1.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Row and place within the answer, from 0, of each of the answers' tokens, row by row: [N] each."""
        spots = torch.arange(int(self.lengths.max()), device=self.tokens.device)
        rows, places = (spots < self.lengths[:, None]).nonzero(as_tuple=True)
        return rows, places

    @cached_property
    def columns(self) -> Tensor:
        """Column of each of the answers' tokens [N]."""
        rows, places = self.places
        return self.prompt_lengths[rows] + places

    @cached_property
    def targets(self) -> Tensor:
        """The answers' tokens [N]."""
        return self.tokens[self.places[0], self.columns]

    def before(self, hidden: Tensor) -> Tensor:
        """Return what [B, T, D] holds at the token before each of the answers' tokens [N, D]."""
        return hidden[self.places[0], self.columns - 1]

    def padded(self, flat: Tensor) -> Tensor:
        """Return numbers of the answers' tokens [N] as rows with zeros behind them [B, G]."""
        found = flat.new_zeros(len(self), int(self.lengths.max()))
        found[self.places] = flat
        return found

    def sums(self, flat: Tensor) -> Tensor:
        """Return the sums over each answer [B] of numbers of its tokens [N]."""
        return flat.new_zeros(len(self)).index_add_(0, self.places[0], flat)

    def answers(self) -> list[list[int]]:
        """Return the answers' tokens, row by row."""
        flat, ends = self.targets.tolist(), self.lengths.cumsum(0).tolist()
        return [flat[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def take(self, rows: Tensor) -> Answered:
        """Return some of the rows, as long as the longest of them."""
        prompts, lengths = self.prompt_lengths[rows], self.lengths[rows]
        return Answered(self.tokens[rows, : int((prompts + lengths).max())], prompts, lengths)

    def chunks(self, n: int | None) -> Iterator[Answered]:
        """Yield ``n`` rows at a time, each as long as its longest; all together for None."""
        if n is None or n >= len(self):
            yield self
            return
        for rows in torch.arange(len(self), device=self.tokens.device).split(n):
            yield self.take(rows)


def together(parts: Sequence[Answered]) -> Answered:
    """Return the rows of several one after another."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.tokens.shape[1] for part in parts)
    return Answered(
        torch.cat([fn.pad(part.tokens, (0, width - part.tokens.shape[1])) for part in parts]),
        torch.cat([part.prompt_lengths for part in parts]),
        torch.cat([part.lengths for part in parts]),
    )


def answer_logits(policy: Policy, answered: Answered, temperature: float = 1.0) -> Tensor:
    """Return the logits that each of the answers' tokens was chosen by [N, V], float32."""
    logits: Tensor = policy.head(answered.before(policy.hidden(answered.tokens))).float()
    return logits if temperature == 1.0 else logits / temperature


def log_probs(policy: Policy, answered: Answered, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of each of the answers' tokens [N], in nats."""
    return -fn.cross_entropy(answer_logits(policy, answered, temperature), answered.targets, reduction="none")


def divergences(policy: Policy, reference: Policy, answered: Answered, temperature: float = 1.0) -> Tensor:
    """Return KL(policy ‖ reference) of the next token's distribution at each of the answers' tokens [N], in nats.

    Over the whole vocabulary, so that none is negative; their sums over answers that the policy drew estimate the
    divergence of whole answers.
    """
    ours = fn.log_softmax(answer_logits(policy, answered, temperature), dim=-1)
    theirs = fn.log_softmax(answer_logits(reference, answered, temperature), dim=-1)
    return (ours.exp() * (ours - theirs)).sum(-1).clamp(min=0.0)


class ActorCritic(nn.Module):
    """A policy with its critic: a model of its own, or a head on the policy's trunk where none is given."""

    def __init__(self, policy: Policy, critic: Judge | None) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        if critic is None:
            self.value_head = nn.Linear(policy.shape.d_model, 1, bias=False)
            nn.init.zeros_(self.value_head.weight)
            self.value_head.to(policy.embedding.weight.device)

    def forward(self, answered: Answered, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each of the answers' tokens, and the value before it: [N] each."""
        if self.critic is not None:
            return log_probs(self.policy, answered, temperature), self.critic.values(answered)
        before = answered.before(self.policy.hidden(answered.tokens))
        logits = self.policy.head(before).float() / temperature
        found = -fn.cross_entropy(logits, answered.targets, reduction="none")
        return found, self.value_head(before).squeeze(-1)
