"""Steps that a killed process takes up again where the newest whole checkpoint stands, with identical results.

What a step does must follow from the models, the optimiser and the step's number alone: chance is drawn anew for each
step from a seed and that number. Imported only where a run executes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sandtable.errors import ConfigError, MeasureError
from sandtable.system import atomic_files
from sandtable_workloads.training.executed import checkpoint
from sandtable_workloads.training.executed.job import checkpoints

Figures = dict[str, float]
SETTINGS = "settings.json"
WARMUP = 0.05  # share of the steps in which a learning rate rises


class Stepping(Protocol):
    """A phase under way, and its step."""

    @property
    def model(self) -> nn.Module:
        """The models that it changes."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Theirs."""
        ...

    @property
    def carried(self) -> Figures:
        """Other numbers that it changes."""
        ...

    def step(self, number: int) -> Figures:
        """Take a step, and return figures of it; one that is no number stops the phase."""
        ...


def claim(folder: Path | None, settings: Mapping[str, Any]) -> None:
    """Keep what a folder's checkpoints follow from beside them.

    Raises:
        ConfigError: they follow from something else.
    """
    if folder is None:
        return
    path = folder / SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_files.write_atomically(path, text)
    elif (kept := path.read_text(encoding="utf-8")) != text:
        theirs, ours = (set(each.splitlines()) for each in (kept, text))
        changed = sorted(line.strip(" ,") for line in ours - theirs)
        raise ConfigError(
            f"checkpoints here are of other settings ({'; '.join(changed)} is new): take another folder, or remove it",
            file=str(path),
        )


def run_steps(
    phase: Stepping,
    n_steps: int,
    folder: Path | None,
    *,
    name: str,
    every: int,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Figures]:
    """Take the steps that are left, and return the figures of all.

    Args:
        phase: As it begins; it is set back to the newest whole checkpoint if there is one.
        n_steps: Steps in all.
        folder: Of this phase's checkpoints and of no other's; None keeps none.
        name: What progress and errors call it.
        every: Steps between checkpoints; there is one at the end as well.
        progress: Told of each checkpoint's figures.

    Raises:
        MeasureError: a loss or a gradient is no number any more; the last good checkpoint stays.
    """
    figures = _resumed(phase, folder)
    while len(figures) < n_steps:
        n_done = len(figures)
        found = phase.step(n_done)
        broken = [key for key, value in found.items() if not math.isfinite(value)]
        if broken:
            raise _diverged(name, broken[0], n_done, folder)
        figures.append(found)
        if len(figures) % every == 0 or len(figures) == n_steps:
            _save(phase, figures, folder)
            progress(f"{name} {len(figures)} of {n_steps}: {_said(found)}")
    return figures


def _diverged(name: str, figure: str, n_done: int, folder: Path | None) -> MeasureError:
    kept = None if folder is None else next(iter(checkpoints(folder)), None)
    where = (
        "there is no checkpoint of it"
        if kept is None
        else f"its last good checkpoint, {kept} steps, is in {folder}"
    )
    return MeasureError(
        f"{name} diverged: {figure} is no finite number in step {n_done + 1}; {where}. Take a smaller learning rate, "
        "or a larger penalty of the distance to the reference"
    )


def _said(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items())


def _save(phase: Stepping, figures: list[Figures], folder: Path | None) -> None:
    if folder is not None:
        state = checkpoint.state_of(phase.model, phase.optimizer)
        state |= {"carried": dict(phase.carried), "figures": figures}
        checkpoint.save(folder, len(figures), 0, state, lambda: None)


def _resumed(phase: Stepping, folder: Path | None) -> list[Figures]:
    """Set a phase back to the newest checkpoint that is whole, and return the figures of its steps."""
    if folder is None:
        return []
    for n_done in checkpoints(folder):
        try:
            state = checkpoint.load(folder, n_done, 0)
        except ConfigError:
            continue  # it was damaged: the one before is gone on from
        checkpoint.restore(phase.model, phase.optimizer, state)
        for parameter, kept in phase.optimizer.state.items():
            kept["step"] = kept["step"].to(parameter.device)  # the fused AdamW counts beside the weights
        phase.carried.update(state["carried"])
        return list(state["figures"])
    return []


def linear_rate(step: int, n_steps: int, highest: float) -> float:
    """Return the learning rate of a step, counted from 0: it rises first, then falls linearly, never to zero."""
    rising = max(1, round(WARMUP * n_steps))
    return highest * min((step + 1) / rising, (n_steps - step) / max(1, n_steps - rising))


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set each group's learning rate to a share of its ``highest``."""
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * share


def optimizer_of(*groups: tuple[nn.Module, float], weight_decay: float = 0.0) -> Any:
    """Return AdamW over modules with a highest learning rate each."""
    parameters = [{"params": list(module.parameters()), "lr": rate, "highest": rate} for module, rate in groups]
    return torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)


def take_step(
    losses: Iterable[torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> float:
    """Go backward from each loss once it is made, clip, step; return the gradients' norm before it was clipped.

    Of the optimiser's parameters only those of ``model`` change, and no gradients stay.
    """
    for loss in losses:
        loss.backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    optimizer.step()
    optimizer.zero_grad()
    return norm
