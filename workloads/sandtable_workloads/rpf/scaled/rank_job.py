"""What ranks of a fit are told, and what they leave: plain files, one folder for all or a copy for each machine.

Users are shared out as contiguous shards of about equally many pairs and events; items are everybody's. No PyTorch in
here: the process that starts ranks does not need it.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable.system import atomic_files
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint, read_arrays, write_arrays
from sandtable_workloads.rpf.estimators.fit_loop import state_arrays
from sandtable_workloads.rpf.estimators.observed_events import ObservedEvents

if TYPE_CHECKING:
    from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator

Arrays = dict[str, NDArray[Any]]

# rows of these belong to users, rows of all others to items
OF_USERS = ("theta", "tau")
SHARDED = ("PF", "HPF", "HRPF", "SRPF")
JOB, RESULT, PROGRESS = "job.json", "result.npz", "progress.jsonl"
# bytes that a rank holds, by kind
HELD = "held{rank}.json"


def is_sum(name: str) -> bool:
    """Whether an entry of a state, such as ``theta.terms``, is a number that adds up over the ranks."""
    return name.split(".", 1)[0] in OF_USERS and name.endswith(".terms")


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """One fit by several ranks.

    Attributes:
        module: Where the class of the estimator is.
        model: Its name.
        parameters: Hyperparameters.
        n_items: P.
        bounds: Users at which shards begin, and U: one more than there are ranks.
        edges: Edges at which those to the users of a shard begin, likewise; none without a graph.
        end: The hour until which users were observed.
        most: Iterations at most.
        elbo: ELBOs of the iterations that were done before.
        checkpoint: Path, iterations and seconds of a `FitCheckpoint`, for the first rank; None without.
        identity: What the checkpoint is of, as JSON.
    """

    module: str
    model: str
    parameters: dict[str, Any]
    n_items: int
    bounds: list[int]
    edges: list[int]
    end: float
    most: int
    elbo: list[float]
    checkpoint: dict[str, Any] | None
    identity: dict[str, Any]

    @property
    def n_ranks(self) -> int:
        """Ranks."""
        return len(self.bounds) - 1

    def rows(self, name: str, rank: int) -> NDArray[np.int64] | None:
        """Return the places of a rank's rows in an array of the whole state; None where it has all of it.

        Rows of tau are users' own and then edges'; rates of its priors belong to sources, which all ranks share.
        """
        kind, part = name.split(".", 1)
        if kind not in OF_USERS or part == "terms" or (kind == "tau" and part == "group_rate" and self.edges):
            return None
        users = np.arange(self.bounds[rank], self.bounds[rank + 1])
        if kind != "tau" or not self.edges:
            return users
        return np.append(users, self.bounds[-1] + np.arange(self.edges[rank], self.edges[rank + 1]))

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

    def estimator(self) -> PoissonEstimator:
        """Return the estimator, not fitted."""
        made: PoissonEstimator = getattr(importlib.import_module(self.module), self.model)(**self.parameters)
        return made

    def shard(self, folder: Path, rank: int) -> tuple[ObservedEvents, Arrays, Arrays]:
        """Return the events of a rank's users, the state of all rows that it needs, and what excites over edges."""
        arrays = read_arrays(shard_path(folder, rank))[1]
        kinds: dict[str, Arrays] = {"events": {}, "edges": {}}
        for kind, found in kinds.items():
            for name in [name for name in arrays if name.startswith(f"{kind}.")]:
                found[name.removeprefix(f"{kind}.")] = arrays.pop(name)
        start = kinds["events"].pop("start")
        return ObservedEvents(EventPairs(**kinds["events"]), start, self.end), arrays, kinds["edges"]


def shard_path(folder: Path, rank: int) -> Path:
    """Return the file of a rank's events and state."""
    return folder / f"rank{rank}.npz"


def write_shards(estimator: PoissonEstimator, job: RankJob, folder: Path) -> None:
    """Write what each rank begins with: its users' events and rows, and all rows of items."""
    state = state_arrays(estimator.state_)
    observed = estimator.observed_
    for rank, (first, last) in enumerate(itertools.pairwise(job.bounds)):
        pairs = users_between(observed.pairs, first, last)
        arrays = {f"events.{name}": getattr(pairs, name) for name in pairs.__dataclass_fields__}
        arrays["events.start"] = observed.start[first:last]
        if job.edges:
            arrays |= {f"edges.{name}": array for name, array in _over_edges(estimator, job, rank).items()}
        for name, array in state.items():
            rows = job.rows(name, rank)
            # numbers that add up over ranks are the first one's
            arrays[name] = array[rows] if rows is not None else array * (rank == 0) if is_sum(name) else array
        write_arrays(shard_path(folder, rank), {}, arrays)


def _over_edges(estimator: Any, job: RankJob, rank: int) -> Arrays:
    """Return what excites a rank's events over edges to its users, as `PoissonEstimator.begin` found it."""
    pairs, triggers, rows = estimator.observed_.pairs, estimator._pass.triggers, job.rows("tau.mean", rank)
    begin, end = (int(pairs.event_start[pairs.user_start[u]]) for u in job.bounds[rank : rank + 2])
    first, last = (int(triggers.start[n]) for n in (begin, end))
    n_mine = job.bounds[rank + 1] - job.bounds[rank]
    moved = job.bounds[-1] + job.edges[rank] - n_mine  # of the places of edges in tau, there and here
    return {
        "start": triggers.start[begin : end + 1] - first,
        "edge": (triggers.edge[first:last] - moved).astype(np.int32),
        "value": triggers.value[first:last],
        "released": estimator._released[rows],
        "group": estimator.state_["tau"].group[rows],
        "group_shape": estimator.state_["tau"].group_shape,
    }


def users_between(pairs: EventPairs, first: int, last: int) -> EventPairs:
    """Return the events of users ``first`` to ``last - 1`` of all, with users counted from ``first``."""
    from sandtable_kernels.compiled.events import event_loops

    a, b = (int(pairs.user_start[u]) for u in (first, last))
    begin, end = (int(pairs.event_start[p]) for p in (a, b))
    item = pairs.item[a:b]
    starts = np.concatenate(([0], np.cumsum(np.bincount(item, minlength=pairs.n_items))))
    return EventPairs(
        user_start=pairs.user_start[first : last + 1] - a,
        item=item,
        pair_user=(pairs.pair_user[a:b] - first).astype(np.int32),
        event_start=pairs.event_start[a : b + 1] - begin,
        time=pairs.time[begin:end],
        order=pairs.order[begin:end],
        item_start=starts.astype(np.int64),
        by_item=event_loops.stable_order(item, pairs.n_items, np.arange(item.size)),
    )
