"""A process that times operators: one JSON request a line on stdin, one answer a line on stdout.

Several of them work in lockstep, each on its share of the cores, as the ranks of a training run do. Imported only
where something is measured.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sandtable_kernels.pytorch.steps.step_points import STEP
from sandtable_kernels.pytorch.steps.torch_step import request_parts
from sandtable_kernels.pytorch.torch_cases import CASES, LEAST_COPIES, enough_copies
from sandtable_kernels.pytorch.vision_cases import VISION_CASES
from sandtable_kernels.structured.butterfly_cases import BUTTERFLY_CASES

KNOWN = CASES | VISION_CASES | BUTTERFLY_CASES


def join(rendezvous: str, rank: int, n: int) -> None:
    """Join the other workers, over the loopback interface."""
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=n)


def together(value: float) -> float:
    """Return rank 0's value on every worker, once all are here."""
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared.item())


def samples(request: dict[str, Any]) -> list[float]:
    """Time one case up to ``repeats`` times within ``budget_s``, at least once, the same number on all workers."""
    begin = time.perf_counter()
    build, dims = KNOWN[request["case"]], request["dims"]
    call = build(dims)
    call()
    number = int(together(enough_copies(call())))
    if number > LEAST_COPIES:
        call = build(dims | {"copies": number})
        call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    left = request["budget_s"] - (time.perf_counter() - begin)
    number = int(together(max(1, min(request["repeats"], left / once))))
    found = []
    for _ in range(number):
        together(0.0)
        before = preemptions()
        seconds = call()
        found.append((preemptions() - before, seconds))
    return undisturbed(found)


def preemptions() -> int:
    """Return how often the system took a core away from this process while it had work to do."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def undisturbed(samples_: list[tuple[int, float]]) -> list[float]:
    """Return the seconds of the samples that were preempted least: on a quiet machine all of them, or nearly all.

    One preemption of a thread that others wait for takes milliseconds, and says nothing about the operator.
    """
    counts = sorted(count for count, _ in samples_)
    most = counts[(len(counts) - 1) // 3]
    return [seconds for count, seconds in samples_ if count <= most]


def main(rendezvous: str, rank: int, n: int, n_threads: int) -> None:
    """Answer requests until stdin ends."""
    torch.set_num_threads(n_threads)
    torch.manual_seed(rank)
    join(rendezvous, rank, n)
    for line in sys.stdin:
        request = json.loads(line)
        found = request_parts(request, together) if request["case"] == STEP else samples(request)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
