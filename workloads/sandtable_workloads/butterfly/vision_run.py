"""A vision network, or one layer of it, run for real: checked, warmed up, timed step by step, memory counted.

A network is eager PyTorch in channels_last, norms not folded, dense and structured alike. A layer alone is called
without a module: butterflies by their compiled kernel, dense ones by PyTorch's product, both into memory that is there
already. Its weights and rows stay in cache from one call to the next where they fit, which those of a network do not.
Imported only where a run executes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from sandtable.engine.recorder import Recorder
from sandtable.errors import ConfigError, NoDevice
from sandtable.hardware import Machine
from sandtable.system import limits
from sandtable.workload.seam import Execution, ExecutionContext
from sandtable_kernels.pytorch.torch_pool import keep_memory
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.vision_memory import memory_of
from sandtable_workloads.butterfly.vision_plan import MAIN, STEP
from sandtable_workloads.butterfly.vision_work import Work, work_of
from sandtable_workloads.training.executed.device import Device, device_of

# structures whose layers are executed in bfloat16
NARROW = ("dense", "butterfly")
# kinds of memory that are told apart by looking at them; the others share the rest of the peak as the plan does
COUNTED = ("weights", "optimizer")


def prepare(p: ButterflyVision, machine: Machine, seed: int, context: ExecutionContext) -> None:
    """Check that this machine can do it, and take one step, which compiles kernels.

    What is freed stays with the process, as in runs of training: else large maps are given back and cleared again.

    Raises:
        ConfigError: more threads than this process may use, or a type that is planned only.
        NoDevice: PyTorch sees no GPU where the machine has one.
    """
    narrow = p.precision == "bfloat16"
    if narrow and not (p.is_layer and p.structure in NARROW):
        what = f"{' and '.join(NARROW)} layers" if p.is_layer else "a layer alone (network: layer)"
        raise ConfigError(f"parameters.precision: bfloat16 is executed of {what}; simulate it, or write float32")
    if p.threads is not None and p.threads > context.n_threads:
        raise ConfigError(
            f"parameters.threads: {p.threads} and this process may use {context.n_threads}: write that or less"
        )
    keep_memory()
    with _ready(p, machine, seed, context) as (work, _):
        work.step()


def run_vision(p: ButterflyVision, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
    """Warm up, time every step, and count memory in one step more, which is not timed.

    How far the process grows is looked at before that: the profiler holds far more than a small network.
    """
    recorder, before = Recorder(), limits.status_bytes("VmRSS")
    with _ready(p, machine, seed, context) as (work, device):
        for _ in range(p.warmup_steps):
            work.step()
        begin = time.perf_counter()
        for _ in range(p.steps):
            recorder.record(MAIN, work.step(), name=STEP)
        main_s = begin, time.perf_counter()
        most, held = limits.status_bytes("VmHWM"), work.held()
        peak = device.peak_bytes(sum(held.values()), work.step)
    return Execution(
        recorder=recorder,
        memory_bytes=shared(held, peak, memory_of(p, machine)),
        main_s=main_s,
        process_bytes=None if before is None or most is None else float(max(0, most - before)),
    )


@contextmanager
def _ready(
    p: ButterflyVision, machine: Machine, seed: int, context: ExecutionContext
) -> Iterator[tuple[Work, Device]]:
    """Give the work on its device, with as many threads as asked for; the process has its own again afterwards."""
    if machine.accelerator is not None and not torch.cuda.is_available():
        raise NoDevice(
            f"{machine.name} computes on {machine.accelerator.processor.title} and PyTorch sees no CUDA GPU here: "
            "simulate it, or run with --machine this_machine"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(p.threads or context.n_threads)
    try:
        device = device_of("cpu" if machine.accelerator is None else "cuda", 0)
        yield work_of(p, device, seed), device
    finally:
        torch.set_num_threads(before)


def shared(held: Mapping[str, float], peak: float, planned: Mapping[str, float]) -> dict[str, float]:
    """Return the bytes at the peak by the kinds of the plan.

    Weights and momentum are counted where they lie. What else there is at the peak cannot be told apart by looking at
    it: the other kinds share it as the plan does, and only their sum is measured.
    """
    counted = {kind: held[kind] for kind in COUNTED if kind in planned}
    rest = max(0.0, peak - sum(counted.values()))
    others = {kind: size for kind, size in planned.items() if kind not in counted}
    whole = sum(others.values())
    return counted | {kind: rest * size / whole for kind, size in others.items()}
