"""The device that a rank trains on: its clock, how to wait for it, peak memory.

A CPU's peak is the allocator's: `Device.peak_bytes` runs one step under PyTorch's memory profiler, as CUDA's
allocator counts all the time. Imported only where a run executes.
"""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sandtable.errors import NoDevice
from sandtable.system import limits


class Device(ABC):
    """What a training loop asks of its hardware."""

    backend: str

    def __init__(self, torch_device: torch.device) -> None:
        self.torch = torch_device

    def now(self) -> float:
        """Return the time in seconds once all work that was queued is done."""
        self.synchronize()
        return time.perf_counter()

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all work that was queued."""

    @abstractmethod
    def peak_bytes(self, held: float, step: Callable[[], object]) -> float:
        """Run ``step`` and return the most bytes of tensors at once; ``held`` are there before it."""

    def cache_bytes(self) -> float:
        """Return the bytes that the process holds beyond its tensors' peak, where the device can tell; else 0."""
        return 0.0


class CpuDevice(Device):
    """Host processor: work is done when the call returns; memory is read from the allocator's profile."""

    backend = "gloo"

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))

    def synchronize(self) -> None:
        """Nothing is queued."""

    def peak_bytes(self, held: float, step: Callable[[], object]) -> float:
        """Follow the allocator through one step: what it held before, and the highest sum of what came and went."""
        from torch.profiler import ProfilerActivity, profile

        with silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
            step()
        return held + highest_sum(allocations(watched))

    def cache_bytes(self) -> float:
        """Return the process's resident memory at its highest, in bytes (Linux)."""
        return resident_peak_bytes()


@contextmanager
def silent() -> Iterator[None]:
    """Keep to itself what PyTorch's profiler writes to stderr past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def allocations(watched: Any) -> list[tuple[int, int]]:
    """Return (time, bytes) of every allocation (positive) and release (negative) that a profile saw, in order."""
    events = watched.profiler.kineto_results.events()
    found = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return sorted(found, key=lambda item: item[0])


def highest_sum(changes: list[tuple[int, int]]) -> float:
    """Return the highest running sum of the changes, at least 0."""
    total = highest = 0
    for _, change in changes:
        total += change
        highest = max(highest, total)
    return float(highest)


def resident_peak_bytes() -> float:
    """Return the highest resident memory of this process so far, in bytes; 0 where the system does not tell."""
    return float(limits.status_bytes("VmHWM") or 0)


class CudaDevice(Device):
    """One NVIDIA GPU: work is queued; memory is the allocator's own count."""

    backend = "nccl"

    def __init__(self, index: int) -> None:
        super().__init__(torch.device("cuda", index))
        torch.cuda.set_device(self.torch)

    def synchronize(self) -> None:
        """Wait for the current stream's device."""
        torch.cuda.synchronize(self.torch)

    def peak_bytes(self, held: float, step: Callable[[], object]) -> float:
        """Return the allocator's highest count during the step."""
        torch.cuda.reset_peak_memory_stats(self.torch)
        step()
        return float(torch.cuda.max_memory_allocated(self.torch))

    def cache_bytes(self) -> float:
        """Return what the allocator reserved, in bytes."""
        return float(torch.cuda.max_memory_reserved(self.torch))


def device_of(kind: str, local_rank: int) -> Device:
    """Return the device of a rank.

    Raises:
        NoDevice: a GPU is wanted that PyTorch does not see.
    """
    if kind == "cpu":
        return CpuDevice()
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= n:
        raise NoDevice(f"rank {local_rank} needs a CUDA GPU of its own and PyTorch sees {n} on this machine")
    return CudaDevice(local_rank)
