"""What a training on glyphs is told, and what it leaves. No PyTorch in here: reading results needs none."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sandtable_workloads.butterfly.executed.glyph_network import glyph_network
from sandtable_workloads.butterfly.networks.layers import Network

WARMUP = 0.05  # share of the steps in which the learning rate rises


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training.

    Attributes:
        width, structure, base, residual: Of `glyph_network`.
        learning_rate: The highest; it rises first, and falls to zero as a cosine.
        decay: Weight decay of convolutions and of dense products. Norms and biases have none.
        structured_decay: Of the weights of matrices with another structure.
        epochs, batch: Passes over the images, and images of a step.
        images, held_out: Images to learn from, drawn by the seed, and images that accuracy is told on.
        seed: Of the weights, the images and their order.
    """

    width: float
    structure: str = "dense"
    base: int = 4
    residual: bool = True
    learning_rate: float = 0.8
    decay: float = 1e-4
    structured_decay: float = 0.0
    epochs: int = 10
    batch: int = 128
    images: int = 7680
    held_out: int = 4720
    seed: int = 0

    @property
    def network(self) -> Network:
        """The layers."""
        return glyph_network(self.width, structure=self.structure, base=self.base, residual=self.residual)

    @property
    def steps_of_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.images // self.batch

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 over all epochs."""
        n_steps = self.epochs * self.steps_of_epoch
        rising = max(1, round(WARMUP * n_steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, n_steps - rising)))


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Mean loss of an epoch's steps, share of validation images that were read right after it, seconds of a step."""

    loss: float
    accuracy: float
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training came to.

    Attributes:
        settings: As it ran.
        multiply_accumulates: Of one image's forward pass.
        parameters: Trained numbers.
        epochs: One after another.
        accuracy: Share of test images that are read right at the end.
        step_s: Median processor time of a training step.
    """

    settings: Settings
    multiply_accumulates: int
    parameters: int
    epochs: tuple[Epoch, ...]
    accuracy: float
    step_s: float

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> Outcome:
        """Read `as_json` back."""
        epochs = tuple(Epoch(**each) for each in fields["epochs"])
        return cls(**fields | {"settings": Settings(**fields["settings"]), "epochs": epochs})
