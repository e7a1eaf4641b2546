"""The demands that layers consist of, and where they run; what each costs is said once, by the kernel that does it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from sandtable.demand.op import Op, Where, sequential_read
from sandtable.hardware import Machine
from sandtable_kernels.operations.attention import Attend
from sandtable_kernels.operations.elementwise import AddNorm
from sandtable_kernels.operations.gemm import Gemm
from sandtable_kernels.operations.gemv import Gemv
from sandtable_workloads.flash.flash_parameters import FlashInference

GEMV, GEMM, ATTEND, ADD_NORM = Gemv(), Gemm(), Attend(), AddNorm()


@dataclass(frozen=True)
class Placement:
    """Which processor computes, and whether read weights cross a link to reach it.

    Where host and accelerator share one memory, nothing is transferred.
    """

    on: Where
    transfers: bool

    @classmethod
    def of(cls, machine: Machine) -> Placement:
        """Compute on the accelerator if there is one."""
        if machine.accelerator is None:
            return cls("host", False)
        return cls("accelerator", machine.accelerator.memory.name != machine.memory.name)


# frozen, and the same for many layers and tokens
@lru_cache(maxsize=1024)
def gemv_op(name: str, rows: int, columns: int, dtype: str, on: Where) -> Op:
    """Return the product of a matrix with one token."""
    return replace(GEMV.cost({"m": rows, "k": columns, "dtype": dtype}), name=name, on=on)


@lru_cache(maxsize=1024)
def gemm_op(name: str, rows: int, columns: int, n: int, dtype: str, on: Where) -> Op:
    """Return the product of a matrix with ``n`` tokens."""
    return replace(GEMM.cost({"n": n, "m": rows, "k": columns, "dtype": dtype}), name=name, on=on)


@lru_cache(maxsize=1024)
def attend_op(heads: tuple[int, int, int], dtype: str, on: Where, context: int) -> Op:
    """Return the attention of one token; ``heads`` are query heads, key-value heads and their width."""
    dims = dict(zip(("n_heads", "n_kv_heads", "head_dim"), heads, strict=True))
    return replace(ATTEND.cost({**dims, "n_ctx": context, "dtype": dtype}), name="attention", on=on)


@lru_cache(maxsize=1024)
def add_norm_op(d_model: int, on: Where, n: int = 1) -> Op:
    """Return the end of a block: residual and norm of ``n`` tokens."""
    return replace(ADD_NORM.cost({"n": n, "d_model": d_model}), on=on)


def stream_op(parameters: FlashInference, name: str, n_bytes: float) -> Op:
    """Return reading ``n_bytes`` in order from storage."""
    return sequential_read(
        name,
        n_bytes=n_bytes,
        chunk_bytes=parameters.stream_chunk_bytes,
        concurrency=parameters.stream_concurrency,
    )
