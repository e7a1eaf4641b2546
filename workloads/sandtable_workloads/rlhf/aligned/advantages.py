"""The arithmetic of PPO: rewards with a penalty of distance, advantages, clipped losses, the penalty's coefficient.

Letters in comments: B answers, G tokens of the longest, N tokens of all. Imported only where a run executes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def generalised_advantages(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Tensor:
    """Return the advantage of each token [B, G] (Schulman et al., arXiv 1506.02438, equation 16).

    Args:
        rewards: Of each token [B, G]; zero behind an answer's end.
        values: Of the state before each token [B, G]; zero behind the end.
        lengths: Tokens of each answer [B]: what comes behind has no value.
        gamma: Discount.
        lam: Weight of longer looks ahead.
    """
    n = rewards.shape[1]
    going = torch.arange(1, n + 1, device=rewards.device) < lengths[:, None]
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], dim=1) * going
    surprises = rewards + gamma * following - values
    found, ahead = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for place in reversed(range(n)):
        ahead = surprises[:, place] + gamma * lam * going[:, place] * ahead
        found[:, place] = ahead
    return found


def whitened(x: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Return numbers with variance 1, and mean 0 unless it is to stay."""
    mean = x.mean()
    found = (x - mean) * torch.rsqrt(x.var(unbiased=False) + 1e-8)
    return found if shift_mean else found + mean


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Return the clipped objective's loss, and the share of tokens at which it was clipped.

    Args:
        new: Log-probabilities of tokens [N].
        old: The same when they were drawn.
        advantages: Of the tokens [N].
        cliprange: How far a ratio may leave 1 and still gain.
    """
    ratio = torch.exp(new - old)
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.maximum(plain, clipped).mean(), (clipped > plain).float().mean()


def value_loss(new: Tensor, old: Tensor, returns: Tensor, cliprange: float) -> Tensor:
    """Return half the squared error of values [N], the larger one of theirs and that of values kept near ``old``."""
    near = torch.clamp(new, old - cliprange, old + cliprange)
    return 0.5 * torch.maximum((new - returns) ** 2, (near - returns) ** 2).mean()


def next_kl_coef(kl_coef: float, kl: float, target: float | None, horizon: float, n_answers: int) -> float:
    """Return the coefficient for the next answers (Ziegler et al., arXiv 1909.08593, section 2.2).

    Args:
        kl_coef: The one of these answers.
        kl: Their mean divergence, in nats per answer.
        target: Divergence that is aimed at; None keeps the coefficient.
        horizon: The coefficient moves by the relative error, cut at 20 %, times ``n_answers`` over this.
        n_answers: How many answers these are.
    """
    if target is None:
        return kl_coef
    error = min(0.2, max(-0.2, kl / target - 1.0))
    return kl_coef * (1.0 + error * n_answers / horizon)
