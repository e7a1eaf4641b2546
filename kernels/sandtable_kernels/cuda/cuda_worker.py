"""A process that times operators on one GPU: one JSON request a line on stdin, one answer a line on stdout.

Several of them, each with a GPU of its own, do collectives over NCCL in lockstep; what they agree on goes over gloo.
An answer is ``{"ok": …}``, or ``{"refused": …, "why": …}`` for a point that this GPU cannot do: too little memory
("memory"), or an operator that it does not have ("unsupported"). Imported only where a GPU is timed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist

from sandtable_kernels.cuda import cuda_cases
from sandtable_kernels.pytorch import torch_cases
from sandtable_kernels.pytorch.torch_cases import LEAST_COPIES, Timed, enough_copies

# before a sample that lasts microseconds, so many are thrown away: clocks rise within milliseconds of work
WARM_UP = 3


def join(rendezvous: str, rank: int, n: int) -> None:
    """Join the other workers."""
    torch.cuda.set_device(rank)
    torch.set_default_device(f"cuda:{rank}")
    if n > 1:
        if Path("/sys/class/net/lo").exists():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("cpu:gloo,cuda:nccl", init_method=rendezvous, rank=rank, world_size=n)


def together(value: float) -> float:
    """Return rank 0's value on every worker, once all are here."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64, device="cpu")
    dist.broadcast(shared, 0)
    return float(shared.item())


def prepared(case: str, dims: dict[str, Any]) -> Timed:
    """Build a case with as many copies as make a sample long enough, and warm it up."""
    build = cuda_cases.CASES[case]
    call = build(dims)
    call()
    number = int(together(enough_copies(max(1e-7, call()))))
    if number > LEAST_COPIES and case in cuda_cases.REPEATED:
        del call
        call = build(dims | {"copies": number})
    for _ in range(WARM_UP):
        call()
    return call


def samples(case: str, dims: dict[str, Any], repeats: int, budget_s: float) -> list[float]:
    """Time one case up to ``repeats`` times within ``budget_s``, at least once, the same number on all workers."""
    begin = time.perf_counter()
    torch_cases.use(cuda_cases.CudaStopwatch(cold=case in cuda_cases.COLD))
    call = prepared(case, dims)
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    left = budget_s - (time.perf_counter() - begin)
    found = []
    for _ in range(int(together(max(1, min(repeats, left / once))))):
        together(0.0)
        found.append(call())
    return found


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks."""
    if request["do"] == "properties":
        return {"ok": {"gpus": cuda_cases.properties(), "software": cuda_cases.software()}}
    try:
        return {"ok": samples(request["case"], request["dims"], request["repeats"], request["budget_s"])}
    except torch.cuda.OutOfMemoryError:
        return {"refused": "memory", "why": "does not fit into the memory that is free"}
    except (cuda_cases.Unsupported, NotImplementedError) as error:
        return {"refused": "unsupported", "why": str(error)}
    except RuntimeError as error:
        # a fused operator without a kernel for this type on this GPU
        if "No available kernel" in str(error) or "not supported" in str(error):
            return {"refused": "unsupported", "why": str(error).splitlines()[0]}
        raise
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def main(rendezvous: str, rank: int, n: int) -> None:
    """Say whether there is a GPU, then answer requests until stdin ends."""
    answers = answers_alone()
    found = {"version": torch.__version__, "built": torch.version.cuda, "gpus": 0}
    if torch.cuda.is_available():
        found["gpus"] = torch.cuda.device_count()
    reply(answers, found)
    if not found["gpus"]:
        return
    join(rendezvous, rank, n)
    for line in sys.stdin:
        reply(answers, answer(json.loads(line)))


def answers_alone() -> TextIO:
    """Return stdout for answers alone: what libraries print there, as NCCL may, goes to stderr from now on."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


def reply(answers: TextIO, found: dict[str, Any]) -> None:
    """Write one answer."""
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
