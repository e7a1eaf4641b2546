"""Checkpoints that a killed run resumes from: written beside, then renamed once every rank's part is there.

A checkpoint is a folder ``checkpoint-N`` (N steps are done) with one file per rank, and its checksum: weights,
optimiser states, random generators. What data comes next follows from N. The one before stays, in case the newest is
damaged. Imported only where a run executes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sandtable_workloads.training.executed.job import check_part, checkpoints, part_path, seal_part

KEPT = 2  # the newest and the one before


def latest(folder: Path) -> int:
    """Return how many steps the newest whole checkpoint has behind it, 0 if there is none."""
    return max(checkpoints(folder), default=0)


def save(folder: Path, n_done: int, rank: int, state: dict[str, Any], barrier: Callable[[], None]) -> None:
    """Write one rank's part; rank 0 renames the folder when all are written, and removes older ones."""
    whole = part_path(folder, n_done, rank).parent
    unfinished = whole.with_name(f"{whole.name}.tmp")
    unfinished.mkdir(parents=True, exist_ok=True)
    part = unfinished / part_path(folder, n_done, rank).name
    torch.save(state, part)
    seal_part(part)
    barrier()
    if rank == 0:
        shutil.rmtree(whole, ignore_errors=True)
        unfinished.rename(whole)
        for old in checkpoints(folder)[KEPT:]:
            shutil.rmtree(part_path(folder, old, rank).parent, ignore_errors=True)
    barrier()


def load(folder: Path, n_done: int, rank: int) -> dict[str, Any]:
    """Read one rank's part of a checkpoint.

    Raises:
        ConfigError: it is damaged.
    """
    path = part_path(folder, n_done, rank)
    check_part(path)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


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
