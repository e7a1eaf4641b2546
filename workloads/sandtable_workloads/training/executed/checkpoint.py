"""Checkpoints that a killed run resumes from: written beside, then renamed once every rank's part is there.

A checkpoint is a folder ``checkpoint-N`` (N steps are done) with one file per rank: weights, optimiser states, random
generators. What data comes next follows from N. Imported only where a run executes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

PREFIX = "checkpoint-"


def latest(folder: Path) -> int:
    """Return how many steps the newest whole checkpoint has behind it, 0 if there is none."""
    found = [re.fullmatch(rf"{PREFIX}(\d+)", path.name) for path in folder.glob(f"{PREFIX}*")]
    return max((int(match[1]) for match in found if match), default=0)


def save(folder: Path, n_done: int, rank: int, state: dict[str, Any], barrier: Callable[[], None]) -> None:
    """Write one rank's part; rank 0 renames the folder when all are written, and removes older ones."""
    unfinished = folder / f"{PREFIX}{n_done}.tmp"
    unfinished.mkdir(parents=True, exist_ok=True)
    torch.save(state, unfinished / f"rank{rank}.pt")
    barrier()
    if rank == 0:
        whole = folder / f"{PREFIX}{n_done}"
        shutil.rmtree(whole, ignore_errors=True)
        unfinished.rename(whole)
        for old in folder.glob(f"{PREFIX}*"):
            if old != whole:
                shutil.rmtree(old, ignore_errors=True)
    barrier()


def load(folder: Path, n_done: int, rank: int) -> dict[str, Any]:
    """Read one rank's part of a checkpoint."""
    path = folder / f"{PREFIX}{n_done}" / f"rank{rank}.pt"
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def clear(folder: Path) -> None:
    """Remove every checkpoint: the run is complete."""
    for path in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def local(value: Any) -> Any:
    """Return a tensor's part on this rank: sharded parameters wrap theirs."""
    return value.to_local() if hasattr(value, "to_local") else value


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return everything that a step changes, on this rank."""
    optimizer_states = [
        {key: local(value).cpu() if torch.is_tensor(value) else value for key, value in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    return {
        "weights": [local(parameter.detach()).cpu() for parameter in model.parameters()],
        "optimizer": optimizer_states,
        "random": torch.get_rng_state(),
    }


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put `state_of` back into a model and an optimiser that were made the same way."""
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), state["weights"], strict=True):
            local(parameter.detach()).copy_(value)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, stored in zip(parameters, state["optimizer"], strict=True):
        for key, value in stored.items():
            optimizer.state[parameter][key] = _like(parameter, value)
    torch.set_rng_state(state["random"])


def _like(parameter: Any, value: Any) -> Any:
    """Return a stored value as the optimiser keeps it: sharded like its parameter, scalars as they are."""
    if not torch.is_tensor(value) or value.dim() == 0:
        return value
    if not hasattr(parameter, "to_local"):
        return value.to(parameter.device)
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
