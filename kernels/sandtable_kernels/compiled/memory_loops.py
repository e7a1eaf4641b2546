"""Compiled loops that move or read memory. Importing this module needs numba.

Each splits its work into one contiguous share per thread. Rows are copied with the C library's memcpy, which on
16 KiB rows reaches nine tenths of the bandwidth of one long copy where a plain loop reaches seven.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sandtable.system import children

# After a parallel loop the GNU OpenMP threads spin for milliseconds by default. A BLAS call or a reader thread that
# comes next on a machine with few cores then waits for them: 6 ms instead of 90 us, measured on two cores. A short
# spin keeps back-to-back loops as fast (12 us a call). It is read when the library loads, so it is set before that.
# PyTorch's operators, one after the other with Python in between, want the long one: a training step of 175 thousand
# parameters took 10 ms with it and 18 ms with the short one, so processes that run them must not inherit it.
if "OMP_WAIT_POLICY" not in os.environ:
    children.set_for_this_process("GOMP_SPINCOUNT", "1000")

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

# reassociation lets sums vectorise; NaN and infinity keep their meaning
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
serial = njit(cache=True, nogil=True, fastmath=FASTMATH)
parallel = njit(cache=True, nogil=True, fastmath=FASTMATH, parallel=True)
# part of whoever calls it, and of that one's flags
inlined = njit(inline="always")
_UNCOUNTED: dict[str, Any] = {"_nrt": False}
Loop = TypeVar("Loop", bound=Callable[..., Any])


def lean(loop: Loop) -> Loop:
    """Compile a loop over arrays that it neither makes nor keeps: references to them are not counted.

    Counting would cost atomic additions for each call of something inlined. Division by zero is infinity, as in NumPy:
    a check of each would keep its loop from vectors.
    """
    compiled: Any = njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy", **_UNCOUNTED)
    return cast("Loop", compiled(loop))


_MOST_THREADS = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
# What this thread set last: setting it again costs 3 us, and 50 us after a large stream has emptied the caches. The
# loops split their work by themselves, so that a setting changed elsewhere costs time but no correctness.
_calling = threading.local()


def use_threads(n_threads: int | None) -> int:
    """Let the calling thread's compiled loops use ``n_threads`` (None: all there are); return the number used."""
    used = _MOST_THREADS if n_threads is None else max(1, min(n_threads, _MOST_THREADS))
    if getattr(_calling, "n_threads", 0) != used:
        _set_threads(used)
        _calling.n_threads = used
    return used


def _set_threads(n: int) -> None:
    """Set numba's threads and leave PyTorch's: when numba's OpenMP starts, it sets all of OpenMP to all cores."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    numba.set_num_threads(n)
    if torch is not None and torch.get_num_threads() != before:
        torch.set_num_threads(before)


def _memory_copy(typing_context: Any, target: Any, source: Any) -> Any:
    """Copy all bytes of C-contiguous ``source`` to the start of ``target``, which must not overlap it."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, from_ = (context.make_array(t)(context, builder, a) for t, a in zip(signature.args, args, strict=True))
        pointer, size = ir.IntType(8).as_pointer(), ir.IntType(64)
        copy = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, size])
        n_bytes = builder.mul(from_.nitems, from_.itemsize)
        data = [builder.bitcast(array.data, pointer) for array in (to, from_)]
        builder.call(copy, [*data, n_bytes, ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(target, source), emit


memory_copy: Any = intrinsic(_memory_copy)


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]`` (1-D), to be read soon, in the second-level cache."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        where = builder.bitcast(builder.gep(data, [args[1]]), pointer)
        builder.call(fetch, [where, *(ir.Constant(number, value) for value in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


prefetch: Any = intrinsic(_prefetch)


@serial
def _sum_four_streams(values: Any) -> Any:
    # four streams a quarter apart keep more cache lines in flight than one: 32 against 27 GB/s on one core
    n = values.shape[0] // 4
    a, b, c, d = values[:n], values[n : 2 * n], values[2 * n : 3 * n], values[3 * n : 4 * n]
    s, t, u, v = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for i in range(n):
        s += a[i]
        t += b[i]
        u += c[i]
        v += d[i]
    for i in range(4 * n, values.shape[0]):
        s += values[i]
    return s + t + u + v


@parallel
def read_sum(values: Any, n_threads: Any) -> Any:
    """Sum int64 ``values`` [n], wrapping on overflow: one pass over the memory."""
    n = values.shape[0]
    parts = np.empty(n_threads, np.int64)
    for t in prange(n_threads):
        parts[t] = _sum_four_streams(values[t * n // n_threads : (t + 1) * n // n_threads])
    total = np.int64(0)
    for t in range(n_threads):
        total += parts[t]
    return total


@parallel
def copy(target: Any, source: Any, n_threads: Any) -> None:
    """Copy ``source`` [n] to ``target`` [n], same element type."""
    n = source.shape[0]
    for t in prange(n_threads):
        low, high = t * n // n_threads, (t + 1) * n // n_threads
        memory_copy(target[low:high], source[low:high])


@parallel
def gather_rows(target: Any, source: Any, rows: Any, n_threads: Any) -> None:
    """Copy ``source[rows[i]]`` to ``target[i]``; both [rows, row elements]."""
    n = rows.shape[0]
    for t in prange(n_threads):
        for i in range(t * n // n_threads, (t + 1) * n // n_threads):
            memory_copy(target[i], source[rows[i]])


@parallel
def scatter_rows(target: Any, rows: Any, source: Any, start: Any, n_threads: Any) -> None:
    """Copy ``source[i]`` into ``target[rows[i], start:]``; source rows may be shorter than target rows."""
    n = rows.shape[0]
    for t in prange(n_threads):
        for i in range(t * n // n_threads, (t + 1) * n // n_threads):
            memory_copy(target[rows[i], start:], source[i])


@parallel
def move_rows(matrix: Any, bias: Any, sources: Any, targets: Any, n_threads: Any) -> None:
    """Copy rows within ``matrix``, and their ``bias``; no row may be both a source and a target."""
    n = sources.shape[0]
    for t in prange(n_threads):
        for i in range(t * n // n_threads, (t + 1) * n // n_threads):
            memory_copy(matrix[targets[i]], matrix[sources[i]])
            bias[targets[i]] = bias[sources[i]]
