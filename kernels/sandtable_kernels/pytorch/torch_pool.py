"""Processes that time PyTorch's operators side by side, started once and kept; no PyTorch in this one.

glibc's allocator hands large tensors back to the system as soon as they are free, and pays a page fault for every
4 KiB of the next one. `KEEP_MEMORY` tells it not to; training runs use the same setting, and `keep_memory` makes it
that of a process that runs already.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sandtable.errors import MeasureError
from sandtable.system import children
from sandtable.system.atomic_files import temporary_folder

WORKER = "sandtable_kernels.pytorch.torch_worker"
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


# the same by number, of malloc.h
_MALLOPT = {-4: 0, -1: (1 << 31) - 1, -2: 64 << 20}


def keep_memory() -> None:
    """Let this process's allocator keep what is freed from now on; without effect where it is not glibc's."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in _MALLOPT.items():
            library.mallopt(parameter, value)


def environment(n_threads: int) -> dict[str, str]:
    """Return the environment of a process that runs PyTorch with so many threads, and talks over loopback only."""
    threads = {name: str(n_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if Path("/sys/class/net/lo").exists() else {}
    return {**children.environment(), **threads, **KEEP_MEMORY, **loopback}


def float_median(values: Sequence[float]) -> float:
    """Return the median as a float."""
    return float(np.median(values))


class Pool:
    """``n`` workers that time the same case at the same time, each with its share of the threads."""

    def __init__(self, n: int, n_threads: int) -> None:
        self._stack = ExitStack()
        rendezvous = self._stack.enter_context(temporary_folder(Path(tempfile.gettempdir()), "workers")) / "meet"
        self._workers = [
            subprocess.Popen(
                **children.started(WORKER, (rendezvous.as_uri(), rank, n, n_threads)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(n_threads),
                text=True,
            )
            for rank in range(n)
        ]

    def time(self, case: str, dims: Mapping[str, Any], *, repeats: int, budget_s: float) -> list[float]:
        """Return seconds per call, those of the slowest worker.

        Raises:
            MeasureError: a worker died.
        """
        answers = self._asked(case, dims, repeats, budget_s)
        # workers drop samples of their own: only the middle of each counts
        slowest = max(answers, key=float_median)
        return [float(value) for value in slowest]

    def time_parts(
        self, case: str, dims: Mapping[str, Any], *, repeats: int, budget_s: float
    ) -> dict[str, list[float]]:
        """Return seconds per call of each part of a case that has several, by name: of each the slowest worker's.

        Raises:
            MeasureError: a worker died.
        """
        answers = self._asked(case, dims, repeats, budget_s)
        return {part: max((answer[part] for answer in answers), key=float_median) for part in answers[0]}

    def _asked(self, case: str, dims: Mapping[str, Any], repeats: int, budget_s: float) -> list[Any]:
        request = json.dumps({"case": case, "dims": dict(dims), "repeats": repeats, "budget_s": budget_s})
        answers = []
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(request + "\n")
            worker.stdin.flush()
        for worker in self._workers:
            assert worker.stdout is not None
            answer = worker.stdout.readline()
            if not answer:
                raise MeasureError(f"a process that times {case} {dict(dims)} died; what it said is above")
            answers.append(json.loads(answer))
        return answers

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    pipe.close()
        self._stack.close()


@lru_cache(maxsize=8)
def pool(n: int, n_threads: int) -> Pool:
    """Return the workers for that many processes, started at the first call and ended with this process."""
    made = Pool(n, n_threads)
    atexit.register(made.close)
    return made
