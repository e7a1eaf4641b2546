"""Advantages against their closed form, the loss's gradient against the policy gradient, and the penalty's pieces."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PPO is PyTorch's")

from sandtable_workloads.rlhf.aligned.advantages import (  # noqa: E402
    generalised_advantages,
    next_kl_coef,
    policy_loss,
    value_loss,
    whitened,
)
from sandtable_workloads.rlhf.aligned.alignment_settings import Alignment, Fitting, Ppo  # noqa: E402
from sandtable_workloads.rlhf.aligned.cached_generation import Sampling  # noqa: E402
from sandtable_workloads.rlhf.aligned.fitted_phases import Preferences, Ranking, Supervised  # noqa: E402
from sandtable_workloads.rlhf.aligned.policy_model import Answered, Judge, Policy, log_probs  # noqa: E402
from sandtable_workloads.rlhf.aligned.ppo_phase import Optimisation, RewardModel, Setting  # noqa: E402
from sandtable_workloads.training.executed.device import CpuDevice  # noqa: E402

N_TOKENS = 20
SHAPE = Alignment(d_model=16, n_heads=2, n_neurons=24, n_layers=1).shape(12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_are_the_discounted_sums_of_surprises(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([5, 1, 3])
    inside = torch.arange(5) < lengths[:, None]
    rewards, values = (torch.randn(3, 5, generator=generator) * inside for _ in range(2))
    found = generalised_advantages(rewards, values, lengths, gamma, lam)
    for row, n in enumerate(lengths.tolist()):
        after = [*values[row, 1:n].tolist(), 0.0]
        surprises = [rewards[row, t].item() + gamma * after[t] - values[row, t].item() for t in range(n)]
        for t in range(n):
            wanted = sum((gamma * lam) ** (k - t) * surprises[k] for k in range(t, n))
            assert found[row, t].item() == pytest.approx(wanted, abs=1e-5)
        assert not found[row, n:].any()


def test_without_discount_an_advantage_is_the_return_less_the_value() -> None:
    rewards, values = torch.tensor([[0.1, -0.2, 3.0]]), torch.tensor([[1.0, 0.5, 2.0]])
    found = generalised_advantages(rewards, values, torch.tensor([3]), 1.0, 1.0)
    torch.testing.assert_close(found + values, torch.tensor([[2.9, 2.8, 3.0]]))


def test_whitened_numbers_have_mean_nothing_and_variance_one() -> None:
    x = torch.tensor([3.0, 5.0, 9.0, 1.0])
    assert whitened(x).mean().item() == pytest.approx(0, abs=1e-6)
    kept = whitened(x, shift_mean=False)
    assert kept.mean().item() == pytest.approx(x.mean().item(), rel=1e-6)
    assert kept.var(unbiased=False).item() == pytest.approx(1, rel=1e-5)


def answered() -> Answered:
    tokens = torch.tensor([[3, 4, 5, 6, 2, 0], [7, 8, 9, 10, 11, 4]])
    return Answered(tokens, torch.tensor([2, 1]), torch.tensor([3, 5]))


def test_at_ratio_one_the_loss_has_the_gradient_of_the_policy_gradient() -> None:
    policy, some = Policy(SHAPE, N_TOKENS), answered()
    policy.initialise(1)
    advantages = torch.linspace(-1, 1, int(some.lengths.sum()))

    def gradients(loss: Any) -> list[Any]:
        return list(torch.autograd.grad(loss, list(policy.parameters())))

    new = log_probs(policy, some)
    loss, clipped = policy_loss(new, new.detach(), advantages, 0.2)
    plain = -(advantages * log_probs(policy, some)).mean()
    for ours, theirs in zip(gradients(loss), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert clipped == 0


def test_ratios_beyond_the_range_gain_nothing_and_still_lose() -> None:
    old = torch.zeros(4)
    new = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    loss, clipped = policy_loss(new, old, torch.tensor([1.0, -1.0, -1.0, 1.0]), 0.2)
    loss.backward()
    # the first two went the way of their advantage, far enough; the others went against it
    assert new.grad is not None
    assert new.grad[:2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(new.grad[2:], torch.tensor([math.exp(0.5), -math.exp(-0.5)]) / 4)
    assert clipped == 0.5


def test_values_are_held_near_those_of_the_rollout() -> None:
    old, returns = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    new = torch.tensor([0.1, 0.9], requires_grad=True)
    value_loss(new, old, returns, 0.2).backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.tensor([-0.45, 0.0]))


@pytest.mark.parametrize(("kl", "wanted"), [(6.0, 0.2), (60.0, 0.2 * 1.0051200), (0.0, 0.2 * 0.9948800)])
def test_an_adaptive_coefficient_moves_by_the_error_at_most_a_fifth_of_it(kl: float, wanted: float) -> None:
    assert next_kl_coef(0.2, kl, 6.0, 10_000, 256) == pytest.approx(wanted, rel=1e-9)
    assert next_kl_coef(0.2, kl, None, 10_000, 256) == 0.2


def optimisation(*, shared: bool, **changes: float) -> Optimisation:
    policy, reference, judge = Policy(SHAPE, N_TOKENS), Policy(SHAPE, N_TOKENS), Judge(SHAPE, N_TOKENS)
    for model in (policy, reference, judge.trunk):
        model.initialise(3)
    torch.nn.init.constant_(judge.score.weight, 0.1)
    critic = None
    if not shared:
        critic = Judge(SHAPE, N_TOKENS)
        critic.start_from(policy)
    setting = Setting(
        reference=reference,
        reward=RewardModel(judge),
        prompts_of=lambda number: [[3 + number % 5, 4], [5], [6, 7, 8], [9]] * 4,
        sampling=Sampling(max_tokens=8, end=2),
        device=CpuDevice(),
        seed=(1,),
    )
    ppo = Ppo(**({"iterations": 4, "batch": 16, "num_mini_batches": 2, "kl_coef": 0.1} | changes))  # type: ignore[arg-type]
    return Optimisation(policy, critic, ppo, setting)


@pytest.mark.parametrize("shared", [False, True])
def test_ppo_begins_without_divergence_and_goes_where_the_reward_is(shared: bool) -> None:
    phase = optimisation(shared=shared, iterations=12, learning_rate=0.02, kl_coef=0.0)
    figures = [phase.step(number) for number in range(12)]
    assert figures[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert figures[-1]["kl"] > 0.5
    assert figures[-1]["score"] > figures[0]["score"] + 0.05


def test_the_penalty_keeps_the_policy_near_its_reference() -> None:
    far, near = (optimisation(shared=False, iterations=8, learning_rate=0.02, kl_coef=coef) for coef in (0.0, 5.0))
    apart = [[phase.step(number) for number in range(8)][-1]["kl"] for phase in (far, near)]
    assert apart[1] < 0.5 * apart[0]


def test_an_answer_without_an_end_is_worth_less() -> None:
    phase = optimisation(shared=False, missing_eos_penalty=10.0)
    some = phase.rollout(0)
    scored = phase.scored(some)
    plain = optimisation(shared=False, missing_eos_penalty=0.0).scored(some)
    lacking = 1.0 - scored.figures["ended"]
    assert 0 < lacking < 1
    assert scored.figures["score"] == pytest.approx(plain.figures["score"] - 10 * lacking, abs=1e-4)


def test_rewards_sum_to_the_score_less_the_penalty() -> None:
    phase = optimisation(shared=False, kl_coef=0.5, gamma=1.0, lam=1.0, missing_eos_penalty=0.0)
    with torch.no_grad():
        phase.policy.head.weight.add_(0.3 * torch.randn(phase.policy.head.weight.shape))
    some = phase.rollout(0)
    scored = phase.scored(some)
    with torch.no_grad():
        apart = log_probs(phase.policy, some) - log_probs(phase.setting.reference, some)
        wanted = phase.setting.reward(some) - 0.5 * some.sums(apart)
    torch.testing.assert_close(scored.returns[:, 0], wanted, rtol=1e-4, atol=1e-4)
    assert scored.figures["kl"] == pytest.approx(float(some.sums(apart).mean()), rel=1e-4)


def test_small_passes_sum_to_the_whole_step() -> None:
    whole = optimisation(shared=False, num_mini_batches=1)
    parts = optimisation(shared=False, num_mini_batches=1, generation_batch=5, scoring_batch=3, micro_batch=7)
    figures = [[phase.step(number) for number in range(2)] for phase in (whole, parts)]
    for ours, theirs in zip(*figures, strict=True):
        wanted = {
            name: pytest.approx(value, rel=2e-3, abs=1e-5) for name, value in ours.items() if name[-2:] != "_s"
        }
        assert {name: theirs[name] for name in wanted} == wanted


def test_fitting_in_small_passes_is_fitting() -> None:
    losses = []
    for micro_batch in (None, 1, 2):
        policy, judge = Policy(SHAPE, N_TOKENS), Judge(SHAPE, N_TOKENS)
        policy.initialise(1)
        judge.start_from(policy)
        torch.nn.init.constant_(judge.score.weight, 0.1)
        fitting = Fitting(steps=3, batch=2, learning_rate=0.01, micro_batch=micro_batch)
        pairs = Preferences([([3], [4, 2]), ([5, 6], [7, 8, 2])], [([3], [9, 9, 9, 2]), ([5, 6], [2])])
        phases = Supervised(policy, lambda _: answered(), fitting), Ranking(judge, pairs, fitting, (1,))
        losses.append([phase.step(number)["loss"] for phase in phases for number in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][2] < losses[0][0]
    assert losses[0][5] < losses[0][3]
