"""What ranks of a fit are told, and what they leave: plain files, one folder for all or a copy for each machine.

Users are shared out as contiguous shards of about equally many pairs and events; items are everybody's. No PyTorch in
here: the process that starts ranks does not need it.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable.system import atomic_files
from sandtable_kernels.poisson.event_triggers import OverEdges
from sandtable_workloads.rpf.estimators.event_intensity import LaterEvents
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint, read_arrays, write_arrays
from sandtable_workloads.rpf.estimators.fit_loop import state_arrays
from sandtable_workloads.rpf.estimators.model_store import parameters_of
from sandtable_workloads.rpf.estimators.observed_events import ObservedEvents
from sandtable_workloads.rpf.scaled import event_shards
from sandtable_workloads.rpf.scaled.event_shards import Arrays

if TYPE_CHECKING:
    from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator

# rows of these belong to users, rows of all others to items or clusters of them
OF_USERS = ("theta", "tau", "phi")
JOB, RESULT, PROGRESS = "job.json", "result.npz", "progress.jsonl"
# bytes that a rank holds, by kind
HELD = "held{rank}.json"


def is_sum(name: str) -> bool:
    """Whether an entry of a state, such as ``theta.terms``, is a number that adds up over the ranks."""
    return name.split(".", 1)[0] in OF_USERS and name.endswith(".terms")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one rank begins with.

    Attributes:
        estimator: Not fitted; it knows the ids of nobody.
        observed: Events of the rank's users.
        later: Those of `observed` and later ones, of which the likelihood says when to stop; None without.
        state: Arrays of the rank's rows, as `state_arrays` names them.
        groups: Groups of rows, by name of rows, where a row is no group of its own.
        group_shapes: [G] of `GammaRows.group_shape`, of groups that ranks share.
    """

    estimator: PoissonEstimator
    observed: ObservedEvents
    later: LaterEvents | None
    state: Arrays
    groups: Arrays
    group_shapes: Arrays


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """One fit by several ranks.

    Attributes:
        module: Where the class of the estimator is.
        model: Its name.
        parameters: Hyperparameters that are no arrays.
        origin: Date of hour 0; None where times are hours.
        bounds: Users at which shards begin, and U: one more than there are ranks.
        edges: Edges at which those to the users of a shard begin, likewise; none without a graph.
        user_rows: Rows of theta of a user.
        end: The hour until which users were observed.
        most: Iterations at most.
        elbo: ELBOs of the iterations that were done before.
        held_out: Held-out likelihoods that were computed before.
        checkpoint: Path, iterations and seconds of a `FitCheckpoint`, for the first rank; None without.
        identity: What the checkpoint is of, as JSON.
    """

    module: str
    model: str
    parameters: dict[str, Any]
    origin: str | None
    bounds: list[int]
    edges: list[int]
    user_rows: int
    end: float
    most: int
    elbo: list[float]
    held_out: list[float]
    checkpoint: dict[str, Any] | None
    identity: dict[str, Any]

    @property
    def n_ranks(self) -> int:
        """Ranks."""
        return len(self.bounds) - 1

    def threads(self, n_here: int) -> int:
        """Return the threads of each of ``n_here`` ranks of a machine: its share of the cores where none are given."""
        return int(self.parameters["n_threads"] or max(1, (os.cpu_count() or 1) // n_here))

    def users(self, rank: int) -> slice:
        """Return a rank's users among all."""
        return slice(*self.bounds[rank : rank + 2])

    def edges_to(self, rank: int) -> slice | None:
        """Return the edges to a rank's users among all, None without a graph."""
        return slice(*self.edges[rank : rank + 2]) if self.edges else None

    def rows(self, name: str, rank: int) -> NDArray[np.int64] | None:
        """Return the places of a rank's rows in an array of the whole state; None where it has all of it.

        Rows of tau are users' own and then edges'; rates of its priors belong to sources, which all ranks share.
        """
        kind, part = name.split(".", 1)
        edges = self.edges_to(rank) if kind == "tau" else None
        if kind not in OF_USERS or part == "terms" or (part == "group_rate" and edges is not None):
            return None
        per_user = self.user_rows if kind == "theta" and part != "group_rate" else 1
        mine = np.arange(self.users(rank).start * per_user, self.users(rank).stop * per_user)
        return mine if edges is None else np.append(mine, self.bounds[-1] + np.arange(edges.start, edges.stop))

    def whole_state(self, parts: Sequence[Arrays]) -> Arrays:
        """Return the state of all users from those of the ranks, in order."""
        found = dict(parts[0])
        for name, array in parts[0].items():
            rows = [self.rows(name, rank) for rank in range(self.n_ranks)]
            if is_sum(name):
                found[name] = np.sum([part[name] for part in parts], 0)
            elif rows[0] is not None:
                n = sum(each.size for each in rows if each is not None)
                found[name] = np.empty((n, *array.shape[1:]), array.dtype)
                for part, mine in zip(parts, rows, strict=True):
                    found[name][mine] = part[name]
        return found

    def save(self, folder: Path) -> Path:
        """Write it into a folder, and return the file."""
        atomic_files.write_atomically(folder / JOB, json.dumps(asdict(self)))
        return folder / JOB

    @classmethod
    def load(cls, folder: Path) -> RankJob:
        """Read it back.

        Raises:
            ConfigError: there is none.
        """
        try:
            return cls(**json.loads((folder / JOB).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"no job for ranks: {error}", file=str(folder / JOB)) from None

    def keeper(self) -> FitCheckpoint | None:
        """Return the checkpoint, None without."""
        return None if self.checkpoint is None else FitCheckpoint(**self.checkpoint)

    def shard(self, folder: Path, rank: int) -> Shard:
        """Return what a rank begins with.

        Raises:
            ConfigError: its file is missing or damaged.
        """
        arrays = read_arrays(shard_path(folder, rank))[1]
        made: PoissonEstimator = getattr(importlib.import_module(self.module), self.model)(
            **self.parameters, **event_shards.below(arrays, "parameter.")
        )
        made.origin_ = None if self.origin is None else np.datetime64(self.origin)
        for name, array in event_shards.below(arrays, "kept.").items():
            setattr(made, name, array)
        seen, later = (event_shards.below(arrays, f"{name}.") for name in ("observed", "later"))
        pairs, over = event_shards.events_of(seen)
        return Shard(
            estimator=made,
            observed=ObservedEvents(pairs, seen["start"], self.end, over_edges=over),
            later=event_shards.later_of(later) if later else None,
            state=event_shards.below(arrays, "state."),
            groups=event_shards.below(arrays, "group."),
            group_shapes=event_shards.below(arrays, "group_shape."),
        )


def shard_path(folder: Path, rank: int) -> Path:
    """Return the file of a rank's events and state."""
    return folder / f"rank{rank}.npz"


def write_shards(estimator: PoissonEstimator, job: RankJob, folder: Path, later: LaterEvents | None) -> None:
    """Write what each rank begins with: its users' events and rows, and all rows of items."""
    shared = {f"parameter.{name}": array for name, array in parameters_of(estimator)[1].items()}
    shared |= {f"kept.{name}": getattr(estimator, name) for name in estimator.also_kept}
    for rank in range(job.n_ranks):
        parts = {"observed": _observed(estimator, job, rank), "state": _state(estimator, job, rank)}
        if later is not None:
            users = job.users(rank)
            if rank == job.n_ranks - 1:  # who was not fitted comes last
                users = slice(users.start, later.everyone.size)
            parts["later"] = event_shards.later_arrays(event_shards.later_between(later, users, job.edges_to(rank)))
        named = {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        write_arrays(shard_path(folder, rank), {}, shared | named | _groups(estimator, job, rank))


def _observed(estimator: Any, job: RankJob, rank: int) -> Arrays:
    """Return the events of a rank's users, and what excites them as `PoissonEstimator.begin` found it."""
    observed, users, edges, over = estimator.observed_, job.users(rank), job.edges_to(rank), None
    if edges is not None:
        of_all = OverEdges(estimator._pass.triggers, estimator._released[observed.pairs.n_users :])
        over = event_shards.over_edges_between(of_all, observed.pairs, users, edges)
    pairs = event_shards.users_between(observed.pairs, users.start, users.stop)
    return event_shards.event_arrays(pairs, over) | {"start": observed.start[users]}


def _state(estimator: PoissonEstimator, job: RankJob, rank: int) -> Arrays:
    """Return a rank's rows; numbers that add up over ranks are the first one's."""
    found = {}
    for name, array in state_arrays(estimator.state_).items():
        rows = job.rows(name, rank)
        found[name] = array[rows] if rows is not None else array * (rank == 0) if is_sum(name) else array
    return found


def _groups(estimator: PoissonEstimator, job: RankJob, rank: int) -> Arrays:
    """Return the groups of a rank's rows, and the shapes of those that ranks share, as `Shard` has them."""
    found: Arrays = {}
    for name, rows in estimator.state_.items():
        if rows.group is None:
            continue
        mine, groups = (job.rows(f"{name}.{part}", rank) for part in ("mean", "group_rate"))
        group = rows.group if mine is None else rows.group[mine]
        found[f"group.{name}"] = group if groups is None else group - groups[0]
        if mine is not None and groups is None:
            found[f"group_shape.{name}"] = rows.group_shape
    return found
