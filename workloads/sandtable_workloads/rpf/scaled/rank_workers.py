"""One rank of a fit: ``python -m sandtable_workloads.rpf.scaled.rank_workers FOLDER RANK RANKS``, or under
``torchrun`` on every machine, each with a copy of the folder; `sandtable_workloads.rpf.scaled.rank_fit` writes it.

Ranks do the same iterations on their own users and add up items' counts once in each, over gloo, in float64. All hold
the same items then, and the same ELBO, so that all stop after the same one. Imported only where a fit executes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from sandtable.errors import DoesNotFit, SandtableError
from sandtable.system import limits
from sandtable_workloads.rpf.estimators.fit_checkpoint import write_arrays
from sandtable_workloads.rpf.estimators.fit_loop import FitLoop, Iteration, State, restore_state, state_arrays
from sandtable_workloads.rpf.rpf_run import held_by
from sandtable_workloads.rpf.scaled.rank_job import (
    HELD,
    PROGRESS,
    RESULT,
    Arrays,
    RankJob,
    is_sum,
    of_users,
    whole_state,
)

RENDEZVOUS = "rendezvous"


class RankSum:
    """Adds up arrays over all ranks, as one vector of float64 in one all-reduce.

    A flag goes along: whether the first rank, whose clock counts, wants a checkpoint after this iteration.
    """

    def __init__(self, job: RankJob, rank: int, loop: FitLoop) -> None:
        self._keeper, self._loop, self._first = job.keeper(), loop, rank == 0
        self.due, self._waited_s = False, 0.0

    def waited_s(self) -> float:
        """Return the seconds in all-reduces since the last time that this was asked."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited

    def __call__(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the sums, of the same shapes, in float64."""
        due = self._first and self._keeper is not None and self._keeper.due(len(self._loop.elbo) + 1)
        vector = np.concatenate([*(np.ravel(array).astype(np.float64) for array in arrays.values()), [float(due)]])
        begin = time.perf_counter()
        dist.all_reduce(torch.from_numpy(vector))
        self._waited_s += time.perf_counter() - begin
        self.due = bool(vector[-1])
        found, place = {}, 0
        for name, array in arrays.items():
            size = np.size(array)
            found[name] = vector[place : place + size].reshape(np.shape(array))
            place += size
        return found

    def keep(self, job: RankJob, arrays: Arrays) -> None:
        """Write a checkpoint, on the first rank."""
        if self._keeper is not None:
            history = {"elbo": self._loop.elbo, "held_out": []}
            self._keeper.keep(job.identity, history, arrays)


def gathered(arrays: Arrays, rank: int, bounds: list[int]) -> Arrays | None:
    """Return the state of all users on the first rank, None on the others."""
    mine = [name for name in sorted(arrays) if of_users(name) or is_sum(name)]
    if rank:
        for name in mine:
            dist.send(torch.from_numpy(np.ascontiguousarray(np.atleast_1d(arrays[name]))), 0)
        return None
    parts = {0: arrays}
    for other in range(1, len(bounds) - 1):
        n_users = bounds[other + 1] - bounds[other]
        parts[other] = {}
        for name in mine:
            shape = arrays[name].shape
            part = np.empty((n_users, *shape[1:]) if of_users(name) else (1,), arrays[name].dtype)
            dist.recv(torch.from_numpy(part), other)
            parts[other][name] = part.reshape(shape) if is_sum(name) else part
    return whole_state(parts)


def fit(folder: Path, rank: int) -> None:
    """Run one rank to the end; the first one writes the result."""
    job = RankJob.load(folder)
    estimator = job.estimator()
    observed, arrays = job.shard(folder, rank)
    estimator.observed_ = observed
    estimator._prepare(observed)
    state: State = estimator._begin(observed, np.random.default_rng(0))
    restore_state(state, arrays)
    del arrays
    loop = FitLoop(
        lambda: estimator._iterate(observed, state), most=job.most, tol=estimator.tol, elbo=list(job.elbo)
    )
    reduce = RankSum(job, rank, loop)
    setattr(estimator, "all_reduce", reduce)  # noqa: B010 - a method of this one object
    loop.after = lambda _: _keep(job, reduce, state, rank) if reduce.due else None
    if rank == 0:
        loop.progress = lambda done: _tell(folder, done._replace(waited_s=reduce.waited_s()))
    converged = loop.run()
    estimator.state_ = state
    (folder / HELD.format(rank=rank)).write_text(json.dumps(held_by(estimator)))
    whole = gathered(state_arrays(state), rank, job.bounds)
    if whole is not None:
        reduce.keep(job, whole)
        write_arrays(folder / RESULT, {"elbo": loop.elbo, "converged": converged}, whole)
    dist.barrier()


def _keep(job: RankJob, reduce: RankSum, state: State, rank: int) -> None:
    whole = gathered(state_arrays(state), rank, job.bounds)
    if whole is not None:
        reduce.keep(job, whole)


def _tell(folder: Path, done: Iteration) -> None:
    with (folder / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(done) + "\n")


def main(arguments: list[str]) -> int:
    """Take the rank's place from the arguments, or from torchrun's environment; return the exit code."""
    folder = Path(arguments[0]).absolute()
    try:
        if len(arguments) > 1:
            rank, meet = int(arguments[1]), {"init_method": (folder / RENDEZVOUS).as_uri()}
            dist.init_process_group("gloo", rank=rank, world_size=int(arguments[2]), **meet)
        else:
            rank = int(os.environ["RANK"])
            dist.init_process_group("gloo")
        try:
            fit(folder, rank)
        finally:
            dist.destroy_process_group()
    except SandtableError as error:
        sys.stderr.write(f"{error}\n")  # the parent reads the last line
        return error.exit_code
    except MemoryError as error:
        sys.stderr.write(f"{limits.out_of_memory(error)}\n")
        return DoesNotFit.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
