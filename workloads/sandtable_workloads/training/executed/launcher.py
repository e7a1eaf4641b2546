"""Start the ranks of a job as processes, watch them, and end all of them when one dies.

Ranks meet through a file in the job's folder and talk over the loopback interface, so nothing has to be configured,
and nothing in the environment that is meant for other launchers matters. They end when this process does.
Their memory allocator is told to keep what it has, see `sandtable_kernels.pytorch.torch_pool`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from sandtable.system import children, limits, process_ranks
from sandtable.system.process_ranks import Rank
from sandtable_kernels.pytorch.torch_pool import environment
from sandtable_workloads.training.executed.job import RENDEZVOUS, Job, drop_unusable, result_path

# from being told to stop until being ended: the longest step that may still finish
PATIENCE_S = 30.0
DEATH_PATIENCE_S = 2.0
WORKER = "sandtable_workloads.training.executed.worker"


def run(job: Job, progress: Callable[[str], None] = lambda _: None, held: Sequence[int] = ()) -> Sequence[str]:
    """Run all ranks of ``job`` to the end; returns what was found damaged of an earlier run, and not gone on from.

    Args:
        job: What to train.
        progress: Told what goes on.
        held: Descriptors of locks, which stay taken as long as a rank runs.

    Raises:
        DoesNotFit: memory ran out.
        MeasureError: a rank died: which, how, and its last words. A later run resumes.
        KeyboardInterrupt: passed on once the ranks have written a checkpoint.
    """
    n_ranks = job.parameters.devices
    (job.folder / RENDEZVOUS).unlink(missing_ok=True)
    for number in range(n_ranks):
        result_path(job.folder, number).unlink(missing_ok=True)
    file, notes, n_killed = job.save(), drop_unusable(job.folder, n_ranks), limits.n_oom_kills()
    with ExitStack() as stack:
        ranks = [_start(job, file, number, held, stack) for number in range(n_ranks)]
        try:
            process_ranks.watch(
                ranks,
                n_killed,
                f"what was done up to the last checkpoint is kept in {job.folder}, and the same command resumes there",
            )
        except KeyboardInterrupt as ended:
            process_ranks.stop(ranks, PATIENCE_S)
            ended.add_note(f"the training's last checkpoint is in {job.folder}, and the same command resumes there")
            raise
        finally:
            process_ranks.stop(ranks, DEATH_PATIENCE_S)
    return notes


def _start(job: Job, file: Path, number: int, held: Sequence[int], stack: ExitStack) -> Rank:
    path = job.folder / f"rank{number}.stderr"
    stderr: IO[bytes] = stack.enter_context(path.open("wb"))
    # a session of its own: Ctrl-C reaches this process alone, which then asks the ranks to stop
    process = subprocess.Popen(
        **children.started(WORKER, (file, number, job.parameters.devices), inherit=held),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=environment(job.n_threads),
        start_new_session=True,
    )
    return Rank(number=number, process=process, stderr=path, result=result_path(job.folder, number))
