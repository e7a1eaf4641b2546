"""How good a policy is: by the gold score, by the reward model, and how far it went.

Imported only where a run executes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from sandtable_workloads.rlhf.aligned.cached_generation import Sampling, generate, uniforms
from sandtable_workloads.rlhf.aligned.policy_model import Policy, divergences
from sandtable_workloads.rlhf.aligned.ppo_phase import RewardModel
from sandtable_workloads.rlhf.aligned.prompted_lines import Prompt, PromptedLines

# the same draws judge all policies of a seed
DRAWN = 977


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a policy's answers to some prompts came to, one number per prompt.

    Attributes:
        gold, score: By the gold score, and by the reward model.
        kl_reference, kl_sft: Divergence from the reference of its PPO, and from the first fine-tuned model, in nats
            per answer.
        tokens: Of the answers.
    """

    gold: tuple[float, ...]
    score: tuple[float, ...]
    kl_reference: tuple[float, ...]
    kl_sft: tuple[float, ...]
    tokens: tuple[float, ...]

    def means(self) -> dict[str, float]:
        """Return the mean of each."""
        return {name: fmean(values) for name, values in vars(self).items()}


def judged(
    policy: Policy,
    *,
    reference: Policy,
    sft: Policy,
    reward: RewardModel,
    task: PromptedLines,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    seed: int,
) -> Judged:
    """Let a policy answer prompts, and judge its answers."""
    drawn = uniforms(len(prompts), sampling.max_tokens, seed, DRAWN)
    answered = generate(policy, [prompt.tokens for prompt in prompts], drawn, sampling)
    with torch.no_grad():
        scores = reward(answered)
        apart = [
            answered.sums(divergences(policy, other, answered, sampling.temperature)).tolist()
            for other in (reference, sft)
        ]
    return Judged(
        gold=tuple(map(task.gold, prompts, answered.answers())),
        score=tuple(scores.tolist()),
        kl_reference=tuple(apart[0]),
        kl_sft=tuple(apart[1]),
        tokens=tuple(answered.lengths.float().tolist()),
    )


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the share of prompts at which ours is better; equal ones count half."""
    return fmean((a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True))
