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
from sandtable_kernels.poisson.event_pairs import Floats
from sandtable_kernels.poisson.event_pass import EventPass
from sandtable_kernels.poisson.event_triggers import EventTriggers
from sandtable_kernels.poisson.gamma_rows import GammaRows
from sandtable_workloads.rpf.estimators.fit_checkpoint import write_arrays
from sandtable_workloads.rpf.estimators.fit_loop import FitLoop, Iteration, State, restore_state, state_arrays
from sandtable_workloads.rpf.estimators.observed_events import ObservedEvents
from sandtable_workloads.rpf.rpf_run import held_by
from sandtable_workloads.rpf.scaled.rank_job import (
    HELD,
    PROGRESS,
    RESULT,
    Arrays,
    RankJob,
    is_sum,
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


class SharedRows(GammaRows):
    """Rows whose groups have rows on other ranks too: sums over groups are over all ranks, in one more all-reduce."""

    def _by_group(self, totals: Floats) -> Floats:
        found = super()._by_group(totals)
        if self.prior.rate is None:
            dist.all_reduce(torch.from_numpy(found))
        return found

    def _follow(self, totals: Floats) -> None:
        super()._follow(totals)
        if self.prior.rate is None and dist.get_rank():  # what belongs to groups counts once
            self.terms = self._entropies


def begun(estimator: Any, observed: ObservedEvents, arrays: Arrays, over_edges: Arrays) -> State:
    """Set what an estimator's iterations need, and return the state at which they begin."""
    state: State = {}
    for name in sorted({name.split(".", 1)[0] for name in arrays}, key=["theta", "beta", "tau"].index):
        shared: dict[str, Any] = {}
        if name == "tau" and over_edges:
            shared = {"group": over_edges["group"], "n_groups": over_edges["group_shape"].size}
        kind = SharedRows if shared else GammaRows
        state[name] = kind.start(estimator.prior(name), arrays[f"{name}.mean"], dtype=estimator.dtype, **shared)
        if shared:
            state[name].group_shape = over_edges["group_shape"]
    restore_state(state, arrays)
    if not over_edges:
        estimator._prepare(observed)
        return state
    triggers = EventTriggers(*(over_edges[name] for name in ("start", "edge", "value")))
    own = observed.pairs.own_excitation(estimator.decay, estimator.dtype)
    estimator._pass = EventPass(observed.pairs, estimator.dtype, own, triggers, estimator.n_threads)
    estimator._released = over_edges["released"]
    return state


def gathered(state: State, job: RankJob, rank: int) -> Arrays | None:
    """Return the state of all users on the first rank, None on the others."""
    arrays = state_arrays(state)
    mine = [name for name in sorted(arrays) if job.rows(name, rank) is not None or is_sum(name)]
    if rank:
        for name in mine:
            dist.send(torch.from_numpy(np.ascontiguousarray(np.atleast_1d(arrays[name]))), 0)
        return None
    parts = [arrays]
    for other in range(1, job.n_ranks):
        part = {}
        for name in mine:
            rows, shape = job.rows(name, other), arrays[name].shape
            part[name] = np.empty((1,) if rows is None else (rows.size, *shape[1:]), arrays[name].dtype)
            dist.recv(torch.from_numpy(part[name]), other)
            if rows is None:
                part[name] = part[name].reshape(shape)
        parts.append(part)
    return job.whole_state(parts)


def fit(folder: Path, rank: int) -> None:
    """Run one rank to the end; the first one writes the result."""
    job = RankJob.load(folder)
    estimator = job.estimator()
    observed, arrays, over_edges = job.shard(folder, rank)
    state = begun(estimator, observed, arrays, over_edges)
    del arrays, over_edges
    loop = FitLoop(
        lambda: estimator._iterate(observed, state), most=job.most, tol=estimator.tol, elbo=list(job.elbo)
    )
    reduce = RankSum(job, rank, loop)
    setattr(estimator, "all_reduce", reduce)  # noqa: B010 - a method of this one object
    loop.after = lambda _: keep(reduce, gathered(state, job, rank)) if reduce.due else None
    if rank == 0:
        loop.progress = lambda done: _tell(folder, done._replace(waited_s=reduce.waited_s()))

    def keep(reduce: RankSum, whole: Arrays | None) -> None:
        if whole is not None:
            reduce.keep(job, whole)

    converged = loop.run()
    estimator.state_, estimator.observed_ = state, observed
    (folder / HELD.format(rank=rank)).write_text(json.dumps(held_by(estimator)))
    whole = gathered(state, job, rank)
    keep(reduce, whole)
    if whole is not None:
        write_arrays(folder / RESULT, {"elbo": loop.elbo, "converged": converged}, whole)
    dist.barrier()


def _tell(folder: Path, done: Iteration) -> None:
    with (folder / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(done) + "\n")


def main(arguments: list[str]) -> int:
    """Take the rank's place from the arguments, or from torchrun's environment; return the exit code."""
    folder = Path(arguments[0]).absolute()
    try:
        if len(arguments) > 1:
            rank, n_ranks = int(arguments[1]), int(arguments[2])
            meet = (folder / RENDEZVOUS).as_uri()
            dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=n_ranks)
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
