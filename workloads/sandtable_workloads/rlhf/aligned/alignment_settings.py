"""What an alignment is told. Hyperparameters of PPO carry TRL's names. No PyTorch in here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sandtable_workloads.transformer.shapes import ModelShape

Reference = Literal["sft", "soup"]


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """A phase that learns from examples: steps of ``batch``, a learning rate that rises first and falls linearly.

    ``micro_batch`` sequences go forward and backward at once; all of a step without.
    """

    steps: int
    batch: int
    learning_rate: float
    micro_batch: int | None = None
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Ppo:
    """PPO as TRL does it.

    Attributes:
        iterations: Batches of answers.
        batch: Prompts of an iteration.
        num_mini_batches, num_ppo_epochs: Optimiser steps of an epoch, and passes over an iteration's answers.
        generation_batch, scoring_batch, micro_batch: Prompts answered at once, answers scored at once, and answers
            that go forward and backward at once; all there are without.
        learning_rate, critic_learning_rate: Of the policy and of a critic with a trunk of its own; falling linearly.
        reference: Whose distance is penalised: the first fine-tuned model, or the soup.
        alpha: Share of the first fine-tuned model in the soup; the other gets the rest.
        kl_coef: Penalty per nat of a token's log-ratio to the reference.
        target_kl: Nats per answer that an adaptive coefficient steers to; None keeps ``kl_coef``.
        horizon: Answers in which an adaptive coefficient moves by the relative error, about.
        gamma, lam: Of generalised advantage estimation (arXiv 1506.02438).
        cliprange, cliprange_value: How far ratios and values may move in an iteration's loss.
        vf_coef: Weight of the critic's loss.
        whiten_rewards: Scale rewards to variance 1 before advantages are estimated.
        missing_eos_penalty: Taken off the score of an answer that does not end ("EOS trick").
        temperature, top_p: Of answers.
        shared_critic: The critic is a head on the policy's trunk; else a model of its own, from the reward model.
    """

    iterations: int = 80
    batch: int = 64
    num_mini_batches: int = 1
    num_ppo_epochs: int = 2
    generation_batch: int | None = None
    scoring_batch: int | None = None
    micro_batch: int | None = None
    learning_rate: float = 1e-3
    critic_learning_rate: float = 1e-3
    max_grad_norm: float = 1.0
    reference: Reference = "sft"
    alpha: float = 0.5
    kl_coef: float = 0.2
    target_kl: float | None = None
    horizon: float = 10_000.0
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    whiten_rewards: bool = False
    missing_eos_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    shared_critic: bool = False


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Everything that an alignment's results follow from.

    Attributes:
        seed: Of weights, data, noise and answers.
        text: Path of a text; None for the one that ships.
        vocabulary: Tokens at most.
        max_answer: Tokens of an answer at most, the end token included.
        n_layers, d_model, n_heads, n_neurons: Of all models.
        base, sft, reward_model: Phases before PPO. The two fine-tuned models differ by seed and order of data alone.
        pairs, held_out_pairs: Preferences that the reward model learns from, and is tested on.
        label_noise: Preferences follow the logistic of the difference of gold scores divided by it; 0 follows it
            always.
        ppo: The last phase.
        evaluated: Prompts of each kind that models are judged on.
        checkpoint_steps: Steps, or iterations of PPO, between checkpoints.
        device, n_threads: ``cpu`` or ``cuda``; threads of PyTorch. Equal results need equal ones.
    """

    seed: int = 1
    text: str | None = None
    vocabulary: int = 768
    max_answer: int = 16
    n_layers: int = 2
    d_model: int = 64
    n_heads: int = 4
    n_neurons: int = 176
    base: Fitting = field(default_factory=lambda: Fitting(steps=600, batch=64, learning_rate=4e-3))
    sft: Fitting = field(default_factory=lambda: Fitting(steps=150, batch=64, learning_rate=2e-3))
    reward_model: Fitting = field(
        default_factory=lambda: Fitting(steps=200, batch=64, learning_rate=2e-3, weight_decay=0.1)
    )
    pairs: int = 6144
    held_out_pairs: int = 512
    label_noise: float = 0.05
    ppo: Ppo = field(default_factory=Ppo)
    evaluated: int = 256
    checkpoint_steps: int = 50
    device: Literal["cpu", "cuda"] = "cpu"
    n_threads: int = 1

    def shape(self, vocabulary: int) -> ModelShape:
        """Return the shape of all models, with that many tokens."""
        return ModelShape(
            name="aligned",
            n_layers=self.n_layers,
            d_model=self.d_model,
            n_neurons=self.n_neurons,
            n_vectors=3,
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            head_dim=self.d_model // self.n_heads,
            vocabulary=vocabulary,
        )

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> Alignment:
        """Read `as_json` back."""
        phases = {name: Fitting(**fields[name]) for name in ("base", "sft", "reward_model")}
        values: dict[str, Any] = {**fields, **phases, "ppo": Ppo(**fields["ppo"])}
        return cls(**values)
