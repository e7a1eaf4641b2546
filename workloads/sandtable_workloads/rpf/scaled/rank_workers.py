"""One rank of a fit: ``python -m sandtable_workloads.rpf.scaled.rank_workers FOLDER RANK RANKS``, or under
``torchrun`` on every machine, each with a copy of the folder; `sandtable_workloads.rpf.scaled.rank_fit` writes it.

Ranks do the same iterations on their own users and add up items' counts once in each, over gloo, in float64. All hold
the same items then, and the same ELBO and held-out likelihood, so that all stop after the same one. Imported only
where a fit executes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from sandtable.errors import DoesNotFit, SandtableError
from sandtable.system import limits
from sandtable_kernels.poisson.event_pairs import Floats
from sandtable_kernels.poisson.gamma_rows import GammaRows
from sandtable_workloads.rpf.estimators.fit_checkpoint import write_arrays
from sandtable_workloads.rpf.estimators.fit_loop import FitLoop, Iteration, State, restore_state, state_arrays
from sandtable_workloads.rpf.rpf_run import held_by
from sandtable_workloads.rpf.scaled.event_shards import Arrays
from sandtable_workloads.rpf.scaled.rank_job import HELD, PROGRESS, RESULT, RankJob, Shard, is_sum

RENDEZVOUS = "rendezvous"


class RankSum:
    """Adds up arrays over all ranks, as one vector of float64 in one all-reduce."""

    def __init__(self) -> None:
        self._waited_s = 0.0

    def __call__(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the sums, of the same shapes, in float64."""
        vector = np.concatenate([np.ravel(array).astype(np.float64) for array in arrays.values()])
        self.add_up(vector)
        found, place = {}, 0
        for name, array in arrays.items():
            size = np.size(array)
            found[name] = vector[place : place + size].reshape(np.shape(array))
            place += size
        return found

    def add_up(self, vector: Floats) -> None:
        """Add up one array in place."""
        begin = time.perf_counter()
        dist.all_reduce(torch.from_numpy(vector))
        self._waited_s += time.perf_counter() - begin

    def waited_s(self) -> float:
        """Return the seconds in all-reduces since the last time that this was asked."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited


def _alone(vector: Floats) -> None:
    """Leave sums as they are."""


@dataclass
class SharedRows(GammaRows):
    """Rows whose groups have rows on other ranks too: sums over groups are over all ranks, in one more all-reduce.

    Attributes:
        add_up: Adds up an array over the ranks, in place.
        counts_groups: Whether the bound of groups is in this rank's `terms`: it is in one rank's.
    """

    add_up: Callable[[Floats], None] = _alone
    counts_groups: bool = True

    def _by_group(self, totals: Floats) -> Floats:
        found = super()._by_group(totals)
        if self.prior.rate is None:
            self.add_up(found)
        return found

    def _follow(self, totals: Floats) -> None:
        super()._follow(totals)
        if self.prior.rate is None and not self.counts_groups:
            self.terms = self._entropies


def begun(shard: Shard, sums: RankSum, rank: int) -> State:
    """Return the state at which a rank's iterations begin."""
    state: State = {}
    for name in dict.fromkeys(entry.split(".", 1)[0] for entry in shard.state):
        mean, n_groups = shard.state[f"{name}.mean"], shard.state[f"{name}.group_rate"].size
        kind = SharedRows if name in shard.group_shapes else GammaRows
        of_groups: dict[str, Any] = {"group": shard.groups.get(name), "n_groups": n_groups}
        rows = kind.start(shard.estimator.prior(name), mean, dtype=mean.dtype, **of_groups)
        if isinstance(rows, SharedRows):
            rows.group_shape = shard.group_shapes[name]
            rows.add_up, rows.counts_groups = sums.add_up, rank == 0
        state[name] = rows
    restore_state(state, shard.state)
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


class RankFit:
    """The fit of one rank of a job, one of ``n_here`` on its machine: what it begins with, iterates and leaves."""

    def __init__(self, folder: Path, rank: int, n_here: int = 1) -> None:
        self.job, self._folder, self._rank = RankJob.load(folder), folder, rank
        self._sums, self._keeper = RankSum(), self.job.keeper()
        shard = self.job.shard(folder, rank)
        self._estimator = estimator = shard.estimator
        estimator.n_threads = self.job.threads(n_here)
        setattr(estimator, "all_reduce", self._sums)  # noqa: B010 - a method of this one object
        estimator.observed_, estimator.state_ = shard.observed, begun(shard, self._sums, rank)
        estimator._prepare(shard.observed)
        held_out = None
        if shard.later is not None:
            held_out = partial(estimator._score_now, estimator._likelihood(shard.later))
        self.loop = FitLoop(
            lambda: estimator._iterate(estimator.observed_, estimator.state_),
            most=self.job.most,
            tol=estimator.tol,
            held_out=held_out,
            progress=self._tell if rank == 0 else None,
            after=self._keep_if_due if self._keeper is not None else None,
            elbo=list(self.job.elbo),
            held_out_scores=list(self.job.held_out),
        )

    def run(self) -> None:
        """Iterate to the end; the first rank writes the result."""
        converged = self.loop.run()
        held = self._folder / HELD.format(rank=self._rank)
        held.write_text(json.dumps(held_by(self._estimator)))
        whole = gathered(self._estimator.state_, self.job, self._rank)
        self._keep(whole)
        if whole is not None:
            write_arrays(self._folder / RESULT, self._history() | {"converged": converged}, whole)
        dist.barrier()

    def _history(self) -> dict[str, Any]:
        return {"elbo": self.loop.elbo, "held_out": self.loop.held_out_scores}

    def _keep_if_due(self, elbo: list[float]) -> None:
        """Write a checkpoint if the first rank, whose clock counts, says so to all."""
        assert self._keeper is not None
        due = torch.tensor([float(self._keeper.due(len(elbo)))])
        dist.broadcast(due, 0)
        if due.item():
            self._keep(gathered(self._estimator.state_, self.job, self._rank))

    def _keep(self, whole: Arrays | None) -> None:
        """Write a checkpoint, on the first rank."""
        if self._keeper is not None and whole is not None:
            self._keeper.keep(self.job.identity, self._history(), whole)

    def _tell(self, done: Iteration) -> None:
        with (self._folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(done._replace(waited_s=self._sums.waited_s())) + "\n")


def main(arguments: list[str]) -> int:
    """Take the rank's place from the arguments, or from torchrun's environment; return the exit code."""
    folder = Path(arguments[0]).absolute()
    try:
        if len(arguments) > 1:
            rank, n_here = int(arguments[1]), int(arguments[2])
            meet = (folder / RENDEZVOUS).as_uri()
            dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=n_here)
        else:
            rank, n_here = int(os.environ["RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            dist.init_process_group("gloo")
        try:
            RankFit(folder, rank, n_here).run()
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
