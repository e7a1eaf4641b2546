"""Start the ranks of a job as processes, watch them, and end all of them when one dies.

Ranks meet through a file in the job's folder and talk over the loopback interface, so nothing has to be configured,
and nothing in the environment that is meant for other launchers matters. They end when this process does.
Their memory allocator is told to keep what it has, see `sandtable_kernels.pytorch.torch_pool`.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sandtable.errors import ConfigError, DoesNotFit, MeasureError, NoDevice, SandtableError
from sandtable.system import children, limits
from sandtable_kernels.pytorch.torch_pool import environment
from sandtable_workloads.training.executed.job import RENDEZVOUS, Job, drop_unusable, result_path

POLL_S = 0.05
# from being told to stop until being ended: the longest step that may still finish
PATIENCE_S = 30.0
DEATH_PATIENCE_S = 2.0
WORKER = "sandtable_workloads.training.executed.worker"
# what a rank says when it is another one that died
_ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket", "peer", "timed out")


@dataclass(slots=True, kw_only=True)
class Rank:
    """One running rank, where its words go, and the file that it writes when all steps are done."""

    number: int
    process: subprocess.Popen[Any]
    stderr: Path
    result: Path

    def code(self) -> int | None:
        """Return its exit code, None while it runs; 0 if it ended with its result written.

        With that, only leaving the group is left, where gloo aborts a rank now and then as another one hangs up.
        """
        code = self.process.poll()
        return 0 if code is not None and self.result.is_file() else code

    def last_words(self) -> str:
        """Return the last line that it wrote to stderr."""
        lines = [line.strip() for line in self.stderr.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def end(self) -> str:
        """Say how it ended: by which signal, or with which exit code."""
        code = self.process.returncode
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"left with exit code {code}"


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
            _watch(ranks, job, n_killed)
        except KeyboardInterrupt as ended:
            _stop(ranks, PATIENCE_S)
            ended.add_note(f"the training's last checkpoint is in {job.folder}, and the same command resumes there")
            raise
        finally:
            _stop(ranks, DEATH_PATIENCE_S)
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


def _watch(ranks: Sequence[Rank], job: Job, n_killed: int) -> None:
    while True:
        codes = [rank.code() for rank in ranks]
        if any(code not in (None, 0) for code in codes):
            time.sleep(2 * POLL_S)  # the others notice within moments; who was first is easier to tell then
            raise _failure(ranks, job, limits.n_oom_kills() > n_killed)
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_S)


def _stop(ranks: Sequence[Rank], patience_s: float) -> None:
    """Ask every rank that still runs to stop; end those that have not after ``patience_s``."""
    running = [rank.process for rank in ranks if rank.process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + patience_s
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(ranks: Sequence[Rank], job: Job, ran_out: bool) -> SandtableError:
    dead = [rank for rank in ranks if rank.code() not in (None, 0)]
    first = min(dead, key=_suspicion)
    words = first.last_words()
    for kind in (ConfigError, NoDevice, DoesNotFit):
        if first.process.returncode == kind.exit_code:
            return kind(words)
    if ran_out and first.process.returncode == -signal.SIGKILL:
        return DoesNotFit(limits.out_of_memory(f"the system ended rank {first.number}"))
    said = f": {words}" if words and (first.process.returncode or 0) > 0 else ""
    return MeasureError(
        f"rank {first.number} of {len(ranks)} {first.end()}{said}; what was done up to the last checkpoint is kept in "
        f"{job.folder}, and the same command resumes there"
    )


def _suspicion(rank: Rank) -> tuple[bool, bool, int]:
    """Order the dead by how likely each died of itself: by a signal, then with words of its own."""
    words = rank.last_words()
    return (rank.process.returncode or 0) >= 0, any(echo in words for echo in _ECHOES), rank.number
