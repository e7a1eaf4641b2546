"""Training that resumes: one network learns glyphs, on one thread, with a checkpoint behind every epoch.

The same settings give the same losses on the same machine and libraries, bit by bit, whether or not the run was killed
in between; those of butterflies within a rounding of float32, as their compiled loops may sum in another order in
another process. Times are of the processor, not of the clock, to mean something on a machine that is shared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from sandtable.errors import ConfigError
from sandtable_kernels.structured.torch_layers import StructuredPointwise
from sandtable_workloads.butterfly.executed.glyph_records import Epoch, Outcome, Settings
from sandtable_workloads.butterfly.executed.glyphs import Glyphs, Part, glyphs
from sandtable_workloads.butterfly.networks.torch_network import build
from sandtable_workloads.training.executed import checkpoint
from sandtable_workloads.training.executed.job import checkpoints

MOMENTUM = 0.9
MEAN, SPREAD = 0.5, 0.25  # of the images' greys, about
HELD_OUT_SEED = 1_000_000  # of the images that accuracy is told on: the same for every run


def train(settings: Settings, folder: Path, progress: Callable[[str], None] | None = None) -> Outcome:
    """Train, from the newest whole checkpoint in ``folder`` on if there is one.

    Args:
        settings: What to train.
        folder: Of this run's checkpoints, and of no other's.
        progress: Is told each epoch's loss and accuracy.

    Raises:
        NoDevice: matplotlib, whose fonts are drawn, is not installed.
        ConfigError: settings that leave no step, or that no network can be built of.
    """
    if settings.steps_of_epoch < 1:
        raise ConfigError(f"{settings.images} images are no batch of {settings.batch}: write more images")
    with _one_thread():
        run = _Run(settings, folder)
        while len(run.epochs) < settings.epochs:
            epoch = run.one_epoch()
            if progress:
                progress(f"epoch {len(run.epochs)}: loss {epoch.loss:.3f}, {epoch.accuracy:.1%} of validation")
        return Outcome(
            settings=settings,
            multiply_accumulates=settings.network.multiply_accumulates(),
            parameters=settings.network.parameters,
            epochs=tuple(run.epochs),
            accuracy=run.accuracy("test"),
            step_s=statistics.median(epoch.step_s for epoch in run.epochs),
        )


class _Run:
    """A training under way: what its checkpoint holds, and the images."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.model = build(settings.network, seed=settings.seed)
        self.optimizer = torch.optim.SGD(
            _groups(self.model, settings), settings.learning_rate, MOMENTUM, nesterov=True
        )
        self.images, self.labels = _tensors(glyphs("training", settings.images, settings.seed))
        self.held_out: dict[Part, tuple[Tensor, Tensor]] = {}
        self.epochs: list[Epoch] = []
        self._resume()

    def one_epoch(self) -> Epoch:
        """Learn from each image once, and save."""
        self.model.train()
        order = np.random.default_rng((self.settings.seed, len(self.epochs))).permutation(self.settings.images)
        first = len(self.epochs) * self.settings.steps_of_epoch
        batches = torch.from_numpy(order).split(self.settings.batch)[: self.settings.steps_of_epoch]
        losses, times = [], []
        for step, batch in enumerate(batches, first):
            began = time.process_time()
            losses.append(self._step(batch, self.settings.rate_at(step)))
            times.append(time.process_time() - began)
        mean = float(torch.stack(losses).double().mean())
        self.epochs.append(Epoch(loss=mean, accuracy=self.accuracy("validation"), step_s=statistics.median(times)))
        self._save()
        return self.epochs[-1]

    def _step(self, batch: Tensor, rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = fn.cross_entropy(self.model(_normed(self.images[batch])), self.labels[batch])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def accuracy(self, part: Part) -> float:
        """Return the share of a part's images that are read right."""
        if part not in self.held_out:
            self.held_out[part] = _tensors(glyphs(part, self.settings.held_out, HELD_OUT_SEED))
        self.model.eval()
        images, labels = self.held_out[part]
        with torch.inference_mode():
            read = torch.cat([self.model(_normed(some)).argmax(1) for some in images.split(256)])
        return float((read == labels).double().mean())

    def _save(self) -> None:
        state = checkpoint.state_of(self.model, self.optimizer)
        state |= {"buffers": list(self.model.buffers()), "epochs": [asdict(epoch) for epoch in self.epochs]}
        checkpoint.save(self.folder, len(self.epochs), 0, state, lambda: None)

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is whole; without one, begin."""
        for n_done in checkpoints(self.folder):
            try:
                state = checkpoint.load(self.folder, n_done, 0)
            except ConfigError:
                continue  # it was damaged: the one before is gone on from
            checkpoint.restore(self.model, self.optimizer, state)
            for buffer, value in zip(self.model.buffers(), state["buffers"], strict=True):
                buffer.copy_(value)
            self.epochs = [Epoch(**each) for each in state["epochs"]]
            return


def _groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Return the parameters in groups by weight decay: the structures', norms and biases, all others."""
    structured = {
        id(weight)
        for module in model.modules()
        if isinstance(module, StructuredPointwise)
        for weight in module.parameters()
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for weight in model.parameters():
        plain = settings.decay if weight.dim() > 1 else 0.0
        groups.setdefault(settings.structured_decay if id(weight) in structured else plain, []).append(weight)
    return [{"params": weights, "weight_decay": decay} for decay, weights in groups.items()]


def _tensors(some: Glyphs) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(some.images), torch.from_numpy(some.labels)


def _normed(images: Tensor) -> Tensor:
    """Return images [n, y, x] of uint8 as [n, 1, y, x] with mean 0 and variance 1, about."""
    return ((images.float() / 255 - MEAN) / SPREAD).unsqueeze(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, and then on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
