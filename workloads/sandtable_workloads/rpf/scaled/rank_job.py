"""What ranks of a fit are told, and what they leave: plain files, one folder for all or a copy for each machine.

Users are shared out as contiguous shards of about equally many pairs and events; items are everybody's. No PyTorch in
here: the process that starts ranks does not need it.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Mapping
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
SHARDED = ("PF", "HPF", "HRPF")
JOB, RESULT, PROGRESS = "job.json", "result.npz", "progress.jsonl"
# bytes that a rank holds, by kind
HELD = "held{rank}.json"


def of_users(name: str) -> bool:
    """Whether an array of a state, such as ``theta.shape``, has a row for each user."""
    return name.split(".", 1)[0] in OF_USERS and not is_sum(name)


def is_sum(name: str) -> bool:
    """Whether it is a number that adds up over the ranks."""
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
    end: float
    most: int
    elbo: list[float]
    checkpoint: dict[str, Any] | None
    identity: dict[str, Any]

    @property
    def n_ranks(self) -> int:
        """Ranks."""
        return len(self.bounds) - 1

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

    def shard(self, folder: Path, rank: int) -> tuple[ObservedEvents, Arrays]:
        """Return the events of a rank's users, and the state of all rows that it needs."""
        _, arrays = read_arrays(shard_path(folder, rank))
        start = arrays.pop("events.start")
        names = [name for name in arrays if name.startswith("events.")]
        events = {name.removeprefix("events."): arrays.pop(name) for name in names}
        return ObservedEvents(EventPairs(**events), start, self.end), arrays


def shard_path(folder: Path, rank: int) -> Path:
    """Return the file of a rank's events and state."""
    return folder / f"rank{rank}.npz"


def write_shards(estimator: PoissonEstimator, folder: Path, bounds: NDArray[np.int64]) -> None:
    """Write what each rank begins with: its users' events and rows, and all rows of items."""
    state = state_arrays(estimator.state_)
    observed = estimator.observed_
    for rank, (first, last) in enumerate(itertools.pairwise(bounds)):
        pairs = users_between(observed.pairs, int(first), int(last))
        arrays = {f"events.{name}": getattr(pairs, name) for name in pairs.__dataclass_fields__}
        arrays["events.start"] = observed.start[first:last]
        for name, array in state.items():
            # numbers that add up over ranks are the first one's
            mine = array[first:last] if of_users(name) else array * (rank == 0) if is_sum(name) else array
            arrays[name] = mine
        write_arrays(shard_path(folder, rank), {}, arrays)


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


def whole_state(parts: Mapping[int, Arrays]) -> Arrays:
    """Return the state of all users from those of the ranks, by rank."""
    first, in_order = parts[0], [parts[rank] for rank in sorted(parts)]
    found = {}
    for name, array in first.items():
        if of_users(name):
            found[name] = np.concatenate([part[name] for part in in_order])
        else:
            found[name] = np.sum([part[name] for part in in_order], 0) if is_sum(name) else array
    return found
