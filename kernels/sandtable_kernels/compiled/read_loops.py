"""The loops of the read engines, compiled. Importing this module needs numba.

The sources are `submit_and_reap` and `read_until_taken` in `sandtable_kernels.files.aio`; this module tells numba
how to
compile the four primitives that they call, and compiles them. The C library is called directly: its symbols are in
the process already. ``syscall`` is variadic in C, but on Linux x86_64 and aarch64 integer arguments travel as in a
plain call.
"""

from __future__ import annotations

import errno
import sys
from typing import Any, Final

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from sandtable_kernels.files import aio

_INTERRUPTED: Final = errno.EINTR

_libc_syscall: Any = types.ExternalFunction("syscall", types.int64(*[types.int64] * 6))
_libc_pread: Any = types.ExternalFunction("pread", types.int64(types.int32, types.int64, types.int64, types.int64))
_errno_address: Any = types.ExternalFunction(
    "__error" if sys.platform == "darwin" else "__errno_location", types.int64()
)


def _emit_load(typing_context: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(32).as_pointer())
        return builder.sext(builder.load(pointer), ir.IntType(64))

    return types.int64(types.int64), emit


def _emit_fetch_add(typing_context: Any, address: Any, amount: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


_load_int32: Any = intrinsic(_emit_load)
_fetch_add: Any = intrinsic(_emit_fetch_add)


@overload(aio.syscall)
def _compile_syscall(number: Any, *args: Any) -> Any:
    def call(number: Any, *args: Any) -> Any:
        return _libc_syscall(number, args[0], args[1], args[2], args[3], args[4])

    return call


@overload(aio.last_errno)
def _compile_last_errno() -> Any:
    def call() -> Any:
        return _load_int32(_errno_address())

    return call


@overload(aio.fetch_add)
def _compile_fetch_add(counter: Any) -> Any:
    def call(counter: Any) -> Any:
        return _fetch_add(counter.ctypes.data, 1)

    return call


@overload(aio.pread)
def _compile_pread(fd: Any, address: Any, size: Any, offset: Any) -> Any:
    def call(fd: Any, address: Any, size: Any, offset: Any) -> Any:
        while True:
            result = _libc_pread(fd, address, size, offset)
            if result >= 0:
                return result
            code = _load_int32(_errno_address())
            if code != _INTERRUPTED:
                return -code

    return call


submit_and_reap: Any = njit(nogil=True, cache=True)(aio.submit_and_reap)
read_until_taken: Any = njit(nogil=True, cache=True)(aio.read_until_taken)
