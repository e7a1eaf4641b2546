"""Processes that work on one thing together: watched, and all ended when one dies, told with its last words."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandtable.errors import ConfigError, DoesNotFit, MeasureError, NoDevice, SandtableError
from sandtable.system import limits

POLL_S = 0.05
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


def watch(ranks: Sequence[Rank], n_killed: int, kept: str, seen: Callable[[], None] = lambda: None) -> None:
    """Wait until all ranks are done.

    Args:
        ranks: As they were started.
        n_killed: `limits.n_oom_kills` before they were.
        kept: What is left when one dies: the end of a sentence.
        seen: Called between two looks.

    Raises:
        DoesNotFit: memory ran out.
        ConfigError: what the rank that ended first said, as are `NoDevice` and `DoesNotFit`.
        MeasureError: a rank died: which, how, and its last words.
    """
    while True:
        codes = [rank.code() for rank in ranks]
        seen()
        if any(code not in (None, 0) for code in codes):
            time.sleep(2 * POLL_S)  # the others notice within moments; who was first is easier to tell then
            raise _failure(ranks, kept, limits.n_oom_kills() > n_killed)
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_S)


def stop(ranks: Sequence[Rank], patience_s: float) -> None:
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


def _failure(ranks: Sequence[Rank], kept: str, ran_out: bool) -> SandtableError:
    dead = [rank for rank in ranks if rank.code() not in (None, 0)]
    first = min(dead, key=_suspicion)
    words = first.last_words()
    for kind in (ConfigError, NoDevice, DoesNotFit):
        if first.process.returncode == kind.exit_code:
            return kind(words)
    if ran_out and first.process.returncode == -signal.SIGKILL:
        return DoesNotFit(limits.out_of_memory(f"the system ended rank {first.number}"))
    said = f": {words}" if words and (first.process.returncode or 0) > 0 else ""
    return MeasureError(f"rank {first.number} of {len(ranks)} {first.end()}{said}; {kept}")


def _suspicion(rank: Rank) -> tuple[bool, bool, int]:
    """Order the dead by how likely each died of itself: by a signal, then with words of its own."""
    words = rank.last_words()
    return (rank.process.returncode or 0) >= 0, any(echo in words for echo in _ECHOES), rank.number
