"""Element-wise work, norms, embeddings, losses and optimisers: traffic over bandwidth, round trips, and launches."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource, Scatter
from sandtable.demand.operator_shapes import MemoryBoundShape, Number
from sandtable.hardware import Roofline

# threads of one block
BLOCK_THREADS = 1024


class MemoryBound(Operator[Roofline]):
    """``t = n_kernels * launch + (streaming^p + waiting^p)^(1/p) + n_special * special / units``.

    A simple kernel gives each row of its input to one block of threads, which goes through the row in steps of its
    threads and waits for memory in each. Few rows, or more rows than the device holds at a time, are bound by that
    and not by the bandwidth: ``n_rows`` blocks with ``row_waits`` round trips each. Kernels that keep enough requests
    in flight state neither. Exponentials and the like are evaluated by all units side by side.

    ``special_s`` is the time that one unit (core, multiprocessor) takes for one exponential or the like,
    ``wait_clocks`` how many of its clocks a block of threads waits for one round trip to memory.
    """

    name: ClassVar[str] = "memory_bound"
    called: ClassVar[str] = "memory-bound kernels"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[MemoryBoundShape]] = MemoryBoundShape
    given: ClassVar[tuple[str, ...]] = (
        "resident_blocks",
        "overlap",
        "cache_speedup",
        "usual_clock_hz",
    )
    # of published timings left out, see `Scatter`
    scatter: ClassVar[Scatter] = Scatter(own=0.15, siblings=0.2)
    loss: ClassVar[str] = "cauchy"
    constants: ClassVar[tuple[Constant, ...]] = (
        # above 1 where caches serve what memory would
        Constant(name="bandwidth_frac", typical=0.85, low=0.05, high=4.0),
        Constant(name="launch_s", typical=2e-6, low=1e-7, high=1e-3),
        # four units for special functions per quarter of a multiprocessor, at some 1.5 GHz; a core takes far longer
        Constant(name="special_s", typical=4e-11, low=1e-12, high=1e-6),
        Constant(name="wait_clocks", typical=1000.0, low=1.0, high=1e5),
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        given = device.given(self.name)
        bandwidth = constants["bandwidth_frac"] * device.bandwidth_bytes_per_s
        streaming = _memory_bytes(device, columns.n_bytes, given["cache_speedup"]) / bandwidth
        waves = np.maximum(1.0, columns.n_rows / (device.n_units * given["resident_blocks"]))
        waiting = (
            waves * columns.row_waits * constants["wait_clocks"] / (device.clock_hz or given["usual_clock_hz"])
        )
        working = (streaming ** given["overlap"] + waiting ** given["overlap"]) ** (1 / given["overlap"])
        evaluating = columns.n_special * constants["special_s"] / device.n_units
        return np.asarray(columns.n_kernels * constants["launch_s"] + working + evaluating)

    def is_empty(self, shape: MemoryBoundShape) -> Any:
        """See `Operator.is_empty`."""
        return np.asarray(shape.n_bytes) <= 0

    def calls(self, stated: float, *, shape: MemoryBoundShape | None = None, n_items: float = 1) -> Number:
        """Every kernel is a call."""
        return stated if shape is None else shape.n_kernels


def _memory_bytes(device: Roofline, n_bytes: FloatArray, cache_speedup: float) -> FloatArray:
    """Return the traffic as if all of it went to memory.

    An accelerator's cache is shared by all units: up to half of it is found there, and little of what is far larger,
    since a cache that is swept through in order drops what will be needed next.
    """
    if device.family == "cpu" or not device.cache_bytes:
        return n_bytes
    found = np.clip(1.5 - n_bytes / device.cache_bytes, 0.0, 1.0)
    return np.asarray(n_bytes * (1 - found * (1 - 1 / cache_speedup)))
