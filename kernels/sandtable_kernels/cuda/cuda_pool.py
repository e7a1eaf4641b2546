"""Processes that time PyTorch's operators on GPUs, started once and kept; no PyTorch and no CUDA in this one."""

from __future__ import annotations

import json
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from sandtable.demand.instruments import GpuTimer
from sandtable.demand.kernel import Kernel
from sandtable.errors import DoesNotFit, MeasureError, NoDevice, missing_extra
from sandtable.system import children
from sandtable.system.atomic_files import temporary_folder
from sandtable_kernels.pytorch.torch_pool import float_median

FRAMEWORK = "torch"
WORKER = "sandtable_kernels.cuda.cuda_worker"
GET_ONE = "install one with CUDA as pytorch.org/get-started says"
# starting PyTorch, and beyond a point's budget, until a worker that says nothing counts as stuck
START_S, PATIENCE_S = 180.0, 120.0
REFUSALS = {"memory": DoesNotFit, "unsupported": NoDevice}


class Workers:
    """``n`` processes, each with one GPU."""

    def __init__(self, n: int) -> None:
        self._stack = ExitStack()
        rendezvous = self._stack.enter_context(temporary_folder(Path(tempfile.gettempdir()), "workers")) / "meet"
        # in a session of their own: an interruption is this process's business
        self._processes = [
            subprocess.Popen(
                **children.started(WORKER, (rendezvous.as_uri(), rank, n)),
                env=children.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for rank in range(n)
        ]
        try:
            greetings = [self._read(process, START_S) for process in self._processes]
            check(greetings[0], n)
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any], budget_s: float = 0.0) -> list[Any]:
        """Return every worker's answer.

        Raises:
            DoesNotFit: a point that a GPU's memory is too small for.
            NoDevice: an operator that this GPU does not have.
            MeasureError: a worker died, or says nothing any more.
        """
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answers = [self._read(process, budget_s + PATIENCE_S) for process in self._processes]
        for answer in answers:
            if "refused" in answer:
                raise REFUSALS[answer["refused"]](answer["why"])
        return [answer["ok"] for answer in answers]

    def _read(self, process: subprocess.Popen[str], patience_s: float) -> Any:
        assert process.stdout is not None
        # one line for one request, so nothing waits in the buffer
        ready, _, _ = select.select([process.stdout], [], [], patience_s)
        line = process.stdout.readline() if ready else ""
        if not line:
            state = "died; what it said is above" if ready else f"did not answer within {patience_s:.0f} s"
            raise MeasureError(f"a process that times a GPU {state}")
        return json.loads(line)

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._stack.close()


def check(greeting: Mapping[str, Any], n: int) -> None:
    """Refuse to time GPUs that are not there.

    Raises:
        NoDevice: this PyTorch was built without CUDA, or sees too few GPUs.
    """
    if greeting["built"] is None:
        raise NoDevice(without_cuda(greeting["version"]))
    if greeting["gpus"] < n:
        seen = "no NVIDIA GPU" if greeting["gpus"] == 0 else f"{greeting['gpus']} NVIDIA GPUs, not {n}"
        raise NoDevice(
            f"PyTorch {greeting['version']} sees {seen} on this machine: 'nvidia-smi' shows whether the driver does"
        )


def without_cuda(version_: str) -> str:
    """Say that a PyTorch cannot use any GPU, and what to do."""
    return f"timing an NVIDIA GPU needs PyTorch with CUDA, and PyTorch {version_} was built without: {GET_ONE}"


class CudaTimer(GpuTimer):
    """Times kernels of `sandtable_kernels.cuda.cuda_operators` on this machine's GPUs.

    Raises:
        NoDevice: PyTorch is missing, was built without CUDA, or sees no GPU.
    """

    name: ClassVar[str] = "pytorch_cuda"

    def __init__(self) -> None:
        try:
            installed = version(FRAMEWORK)
        except PackageNotFoundError:
            raise missing_extra(FRAMEWORK, FRAMEWORK) from None
        if installed.endswith("+cpu"):
            raise NoDevice(without_cuda(installed))
        self._workers, self._n = Workers(1), 1

    def describe(self) -> dict[str, Any]:
        """Return ``gpus``, what PyTorch tells of each, and ``software``, versions by name."""
        found: dict[str, Any] = self._of(1).ask({"do": "properties"})[0]
        return found

    def time(self, kernel: Kernel, dims: Mapping[str, Any], *, repeats: int, budget_s: float) -> list[float]:
        """Return seconds per call, those of the slowest GPU; see `Workers.ask` for what it raises."""
        case = dims.get("case", getattr(kernel, "case", kernel.name))
        request = {"do": "time", "case": case, "dims": dict(dims), "repeats": repeats, "budget_s": budget_s}
        answers: Sequence[Sequence[float]] = self._of(dims.get("processes", 1)).ask(request, budget_s)
        return [float(value) for value in max(answers, key=float_median)]

    def close(self) -> None:
        """End the processes."""
        self._workers.close()

    def _of(self, n: int) -> Workers:
        """Return that many workers; those before end, so that they hold no memory."""
        if n != self._n:
            self._workers.close()
            self._workers, self._n = Workers(n), n
        return self._workers
