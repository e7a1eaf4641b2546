"""A fit by several processes, of this machine or of many: the same result as by one, within the rounding of sums.

On one machine, ``HRPF(n_ranks=2).fit(events)`` is all there is to it. On several, `write_ranks` makes a folder on one,
every machine gets a copy and runs ::

    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 1 --master-addr HOST --master-port 29500 \
        -m sandtable_workloads.rpf.scaled.rank_workers FOLDER

and `take_ranks` reads the result where the first rank ran.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sandtable.errors import ConfigError, missing_extra
from sandtable.system import atomic_files, children, limits, process_ranks
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint, read_arrays
from sandtable_workloads.rpf.estimators.fit_loop import Iteration, restore_state
from sandtable_workloads.rpf.estimators.model_store import parameters_of
from sandtable_workloads.rpf.scaled.rank_job import PROGRESS, RESULT, RankJob, write_shards

if TYPE_CHECKING:
    from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator

WORKER = "sandtable_workloads.rpf.scaled.rank_workers"
DEATH_PATIENCE_S = 2.0


def improve(
    estimator: PoissonEstimator,
    most: int,
    validation: Any = None,
    checkpoint: FitCheckpoint | str | Path | None = None,
    progress: Callable[[Iteration], None] | None = None,
) -> None:
    """Do `PoissonEstimator._improve` with ``n_ranks`` processes of this machine.

    Raises:
        ConfigError: fewer users than ranks, validation that cannot be used, or a checkpoint of another fit.
        MeasureError: a rank died: which, how, and its last words.
        DoesNotFit: memory ran out.
    """
    keeper = FitCheckpoint.of(checkpoint)
    held = contextlib.nullcontext() if keeper is None else keeper.held()
    with held, atomic_files.temporary_folder(Path(tempfile.gettempdir()), "workers") as folder:
        job = write_ranks(estimator, folder, most=most, validation=validation, checkpoint=keeper)
        run_ranks(job, folder, progress)
        take_ranks(estimator, folder)


def write_ranks(
    estimator: PoissonEstimator,
    folder: Path,
    *,
    most: int | None = None,
    validation: Any = None,
    checkpoint: FitCheckpoint | None = None,
) -> RankJob:
    """Write the job of an estimator after `PoissonEstimator.begin`, for ``n_ranks`` ranks and ``most`` iterations.

    Raises:
        ConfigError: fewer users than ranks, validation that cannot be used, or a checkpoint of another fit.
    """
    pairs, n_ranks = estimator.observed_.pairs, estimator.n_ranks
    if n_ranks > pairs.n_users:
        raise ConfigError(f"{n_ranks} ranks share out {pairs.n_users} users: take no more ranks than users")
    later = None if validation is None else estimator._later(validation)
    identity = estimator.identity()
    history: dict[str, list[float]] = {"elbo": [], "held_out": []}
    if checkpoint is not None and (found := checkpoint.resume(identity)) is not None:
        history = found[0]
        restore_state(estimator.state_, found[1])
    bounds, edges = shards(pairs.chunks(n_ranks)), estimator.observed_.edges
    job = RankJob(
        module=type(estimator).__module__,
        model=type(estimator).__name__,
        parameters=parameters_of(estimator)[0] | {"n_ranks": 1, "warm_start": False},
        origin=None if estimator.origin_ is None else str(estimator.origin_),
        bounds=bounds.tolist(),
        edges=[] if edges is None else edges.start[bounds].tolist(),
        user_rows=estimator.state_["theta"].shape.shape[0] // pairs.n_users,
        end=estimator.observed_.end,
        most=estimator.max_iter if most is None else most,
        elbo=history["elbo"],
        held_out=history["held_out"],
        checkpoint=None if checkpoint is None else checkpoint.settings(),
        identity=identity.as_json(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    job.save(folder)
    write_shards(estimator, job, folder, later)
    return job


def shards(bounds: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return boundaries moved apart, so that no shard is without a user; there are at least as many users."""
    n, places = bounds[-1], np.arange(bounds.size)
    rising = np.maximum.accumulate(bounds - places) + places
    return np.asarray(np.minimum(rising, n - places[::-1]))


def run_ranks(job: RankJob, folder: Path, progress: Callable[[Iteration], None] | None = None) -> None:
    """Run all ranks of a job on this machine to the end.

    Raises:
        NoDevice: PyTorch is not installed.
        MeasureError: a rank died.
        DoesNotFit: memory ran out.
    """
    if importlib.util.find_spec("torch") is None:
        raise missing_extra("torch", "torch")
    n_killed, told = limits.n_oom_kills(), _told(folder / PROGRESS)
    left = "nothing is kept" if job.checkpoint is None else "the same fit goes on from its checkpoint"
    with ExitStack() as stack:
        ranks = [_start(job, folder, rank, stack) for rank in range(job.n_ranks)]

        def seen() -> None:
            for done in next(told):
                if progress is not None:
                    progress(done)

        try:
            process_ranks.watch(ranks, n_killed, left, seen)
        finally:
            process_ranks.stop(ranks, DEATH_PATIENCE_S)


def take_ranks(estimator: PoissonEstimator, folder: Path) -> None:
    """Take the parameters that ranks found into the estimator that the folder was written of.

    Raises:
        ConfigError: there is no result, or it is damaged.
    """
    header, arrays = read_arrays(folder / RESULT)
    restore_state(estimator.state_, arrays)
    estimator.elbo_, estimator.held_out_, estimator.converged_ = (
        header[name] for name in ("elbo", "held_out", "converged")
    )
    estimator.n_iter_ = len(estimator.elbo_)
    estimator._publish(estimator.state_)


def _start(job: RankJob, folder: Path, rank: int, stack: ExitStack) -> process_ranks.Rank:
    from sandtable_kernels.pytorch.torch_pool import environment

    path = folder / f"rank{rank}.stderr"
    process = subprocess.Popen(
        **children.started(WORKER, (folder, rank, job.n_ranks)),
        stdout=subprocess.DEVNULL,
        stderr=stack.enter_context(path.open("wb")),
        env=environment(job.threads(job.n_ranks)),
        start_new_session=True,
    )
    return process_ranks.Rank(number=rank, process=process, stderr=path, result=folder / RESULT)


def _told(path: Path) -> Iterator[list[Iteration]]:
    """Yield, at each look, what the first rank has told since the last one."""
    place = 0
    while True:
        data = path.read_bytes()[place:] if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        place += len(whole)
        yield [Iteration(*json.loads(line)) for line in whole.splitlines()]
