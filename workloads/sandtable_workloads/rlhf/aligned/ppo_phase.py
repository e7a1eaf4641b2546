"""PPO on answers that a reward model scores, with a penalty for the distance to a reference.

An iteration has three sections, timed apart: rollout draws answers; scoring has the reward, the reference's and the
old log-probabilities and the values; update takes the optimiser's steps. Imported only where a run executes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sandtable_workloads.rlhf.aligned.advantages import (
    generalised_advantages,
    next_kl_coef,
    policy_loss,
    value_loss,
    whitened,
)
from sandtable_workloads.rlhf.aligned.alignment_settings import Ppo
from sandtable_workloads.rlhf.aligned.cached_generation import Sampling, generate, generator_of, uniforms
from sandtable_workloads.rlhf.aligned.policy_model import ActorCritic, Answered, Judge, Policy, log_probs, together
from sandtable_workloads.rlhf.aligned.resumable_loop import (
    Figures,
    linear_rate,
    optimizer_of,
    set_rates,
    take_step,
)
from sandtable_workloads.training.executed.device import Device


@dataclass(frozen=True)
class RewardModel:
    """A judge of whole answers, its scores shifted and scaled."""

    judge: Judge
    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, answered: Answered) -> Tensor:
        """Return one score per answer [B]."""
        return (self.judge.scores(answered) - self.mean) / self.deviation


@dataclass(frozen=True)
class Experience:
    """Answers with what an update needs of each of their tokens, in rows [B, G]; figures of them for the record."""

    answered: Answered
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What PPO works with besides its hyperparameters.

    Attributes:
        reference: The model from which the distance is penalised.
        reward: Scores answers.
        prompts_of: The prompts of an iteration, by its number.
        sampling: How answers are drawn.
        device: Its clock times the sections.
        seed: Of all chance.
        lengths_of: Tokens of each answer of an iteration, to give them these; None lets answers end as they do.
        watch: Told prompts' and answers' tokens of each iteration; returns figures that the policy never sees.
    """

    reference: Policy
    reward: RewardModel
    prompts_of: Callable[[int], Sequence[Sequence[int]]]
    sampling: Sampling
    device: Device
    seed: tuple[int, ...]
    lengths_of: Callable[[int], Tensor] | None = None
    watch: Callable[[int, Answered], Figures] = lambda _, __: {}


class Optimisation:
    """PPO under way."""

    def __init__(self, policy: Policy, critic: Judge | None, ppo: Ppo, setting: Setting) -> None:
        self.policy, self.ppo, self.setting = policy, ppo, setting
        self.model: ActorCritic = ActorCritic(policy, critic)
        if critic is None:
            self.optimizer = optimizer_of((self.model, ppo.learning_rate))
        else:
            self.optimizer = optimizer_of((policy, ppo.learning_rate), (critic, ppo.critic_learning_rate))
        self.carried: Figures = {"kl_coef": ppo.kl_coef}

    def step(self, number: int) -> Figures:
        """Do one iteration."""
        now = self.setting.device.now
        begin = now()
        answered = self.rollout(number)
        drawn = now()
        experience = self.scored(answered)
        scored = now()
        losses = self.update(number, experience)
        seconds = {"rollout_s": drawn - begin, "scoring_s": scored - drawn, "update_s": now() - scored}
        return {**experience.figures, **losses, **self.setting.watch(number, answered), **seconds}

    def rollout(self, number: int) -> Answered:
        """Draw the answers of an iteration."""
        prompts, setting = self.setting.prompts_of(number), self.setting
        drawn = uniforms(len(prompts), setting.sampling.max_tokens, *setting.seed, number)
        lengths = None if setting.lengths_of is None else setting.lengths_of(number)
        each = self.ppo.generation_batch or len(prompts)
        return together(
            [
                generate(
                    self.policy,
                    prompts[i : i + each],
                    drawn[i : i + each],
                    setting.sampling,
                    None if lengths is None else lengths[i : i + each],
                )
                for i in range(0, len(prompts), each)
            ]
        )

    def scored(self, answered: Answered) -> Experience:
        """Score answers, and estimate advantages of their tokens."""
        with torch.no_grad():
            parts = [self._passes(some) for some in answered.chunks(self.ppo.scoring_batch)]
            scores, old, values, distance = (torch.cat(each) for each in zip(*parts, strict=True))
            return self._valued(answered, scores, old, values, distance)

    def _passes(self, answered: Answered) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scores [B], and log-probabilities, values and log-ratios to the reference of the tokens [N]."""
        old, values = self.model(answered, self.ppo.temperature)
        theirs = log_probs(self.setting.reference, answered, self.ppo.temperature)
        return self.setting.reward(answered), old, values, old - theirs

    def _valued(
        self, answered: Answered, scores: Tensor, old: Tensor, values: Tensor, distance: Tensor
    ) -> Experience:
        ppo, last = self.ppo, answered.lengths - 1
        ended = answered.padded(answered.targets).gather(1, last[:, None])[:, 0] == self.setting.sampling.end
        scores = scores - ppo.missing_eos_penalty * (~ended)
        rewards = answered.padded(-self.carried["kl_coef"] * distance)
        rewards[torch.arange(len(last), device=last.device), last] += scores
        if ppo.whiten_rewards:
            rewards = answered.padded(whitened(rewards[answered.places], shift_mean=False))
        valued = answered.padded(values)
        advantages = generalised_advantages(rewards, valued, answered.lengths, ppo.gamma, ppo.lam)
        return Experience(
            answered,
            answered.padded(old),
            valued,
            answered.padded(whitened(advantages[answered.places])),
            advantages + valued,
            {
                "score": float(scores.mean()),
                "kl": float(answered.sums(distance).mean()),
                "kl_coef": self.carried["kl_coef"],
                "ended": float(ended.float().mean()),
                "tokens": float(answered.lengths.float().mean()),
            },
        )

    def update(self, number: int, experience: Experience) -> Figures:
        """Take the optimiser's steps on an iteration's answers, and set the next coefficient."""
        ppo, n_answers = self.ppo, len(experience.answered)
        set_rates(self.optimizer, linear_rate(number, ppo.iterations, 1.0))
        found: list[Figures] = []
        for epoch in range(ppo.num_ppo_epochs):
            order = torch.randperm(n_answers, generator=generator_of(*self.setting.seed, number, epoch))
            for rows in order.to(experience.values.device).chunk(ppo.num_mini_batches):
                found.append(self._learn(experience, rows))
        kl = experience.figures["kl"]
        coefficient = next_kl_coef(self.carried["kl_coef"], kl, ppo.target_kl, ppo.horizon, n_answers)
        self.carried["kl_coef"] = coefficient
        return {key: sum(each[key] for each in found) / len(found) for key in found[0]}

    def _learn(self, experience: Experience, rows: Tensor) -> Figures:
        """Take one step on some of the answers; a critic with a trunk of its own takes its own after the policy."""
        sums: Figures = {}
        if self.model.critic is None:
            return self._step(self.model, self._both(experience, rows), sums, "grad_norm")
        self._step(self.policy, self._policy_parts(experience, rows), sums, "grad_norm")
        return self._step(self.model.critic, self._critic_parts(experience, rows), sums, "critic_grad_norm")

    def _step(self, model: nn.Module, parts: Iterable[tuple[Tensor, Figures]], sums: Figures, norm: str) -> Figures:
        """Step a model from the parts of its loss, and add up their figures and the gradients' norm."""

        def losses() -> Iterator[Tensor]:
            for loss, figures in parts:
                for name, value in figures.items():
                    sums[name] = sums.get(name, 0.0) + value
                yield loss

        sums[norm] = take_step(losses(), model, self.optimizer, self.ppo.max_grad_norm)
        return sums

    def _micro(self, experience: Experience, rows: Tensor) -> Iterator[tuple[Answered, _Of, float]]:
        """Yield each micro-batch, what reads rows of it, and its share of all tokens."""
        n_tokens = int(experience.answered.lengths[rows].sum())
        for some in rows.split(self.ppo.micro_batch or len(rows)):
            answered = experience.answered.take(some)
            yield answered, _Of(some, answered), len(answered.targets) / n_tokens

    def _policy_parts(self, experience: Experience, rows: Tensor) -> Iterator[tuple[Tensor, Figures]]:
        for some, of, share in self._micro(experience, rows):
            new = log_probs(self.policy, some, self.ppo.temperature)
            yield self._objective(new, of, experience, share)

    def _critic_parts(self, experience: Experience, rows: Tensor) -> Iterator[tuple[Tensor, Figures]]:
        for some, of, share in self._micro(experience, rows):
            assert self.model.critic is not None
            yield self._off(self.model.critic.values(some), of, experience, share)

    def _both(self, experience: Experience, rows: Tensor) -> Iterator[tuple[Tensor, Figures]]:
        for some, of, share in self._micro(experience, rows):
            new, values = self.model(some, self.ppo.temperature)
            objective, figures = self._objective(new, of, experience, share)
            off, more = self._off(values, of, experience, share)
            yield objective + off, figures | more

    def _objective(self, new: Tensor, of: _Of, e: Experience, share: float) -> tuple[Tensor, Figures]:
        """Return the policy's part of the loss, and its figures."""
        loss, clipped = policy_loss(new, of(e.log_probs), of(e.advantages), self.ppo.cliprange)
        return loss * share, {"policy_loss": float(loss.detach()) * share, "clipped": float(clipped) * share}

    def _off(self, values: Tensor, of: _Of, e: Experience, share: float) -> tuple[Tensor, Figures]:
        """Return the critic's part of the loss, and its figure."""
        loss = value_loss(values, of(e.values), of(e.returns), self.ppo.cliprange_value)
        return self.ppo.vf_coef * loss * share, {"value_loss": float(loss.detach()) * share}


@dataclass(frozen=True)
class _Of:
    """Reads numbers of the tokens of some answers [N] from rows of all [B, G]."""

    rows: Tensor
    answered: Answered

    def __call__(self, whole: Tensor) -> Tensor:
        return whole[self.rows][self.answered.places]


def frozen(model: nn.Module) -> None:
    """Let a model learn no more."""
    model.requires_grad_(False).eval()
