"""An operation cannot move less than each of its operands once, counted here from its dims alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sandtable.demand.kernel import Dims, kernels
from sandtable_kernels.files.dtypes import itemsize, row_bytes

COMPULSORY: dict[str, Callable[[Dims], float]] = {
    "gemv": lambda d: d["m"] * row_bytes(d["dtype"], d["k"]) + 4 * (d["m"] + d["k"]),
    "gemm": lambda d: d["m"] * row_bytes(d["dtype"], d["k"]) + 4 * d["n"] * (d["m"] + d["k"]),
    "sparse_ffn": lambda d: d["n_rows"] * d["n_vectors"] * d["d_model"] * itemsize(d["dtype"]),
    "attend": lambda d: 2 * d["n_ctx"] * d["n_kv_heads"] * d["head_dim"] * itemsize(d["dtype"]),
    "memory_read": lambda d: d["n_bytes"],
    "copy": lambda d: 2 * d["n_bytes"],
    "gather": lambda d: 2 * d["n_rows"] * d["row_bytes"],
    "insert": lambda d: 2 * d["n_rows"] * d["row_bytes"],
    "cache_update": lambda d: 2 * d["n_new"] * d["row_bytes"],
}


@pytest.mark.parametrize("name", COMPULSORY)
def test_the_cost_counts_at_least_the_compulsory_bytes(name: str) -> None:
    kernel = kernels()[name]
    for dims in (kernel.example(), *kernel.grid(quick=True), *kernel.grid(quick=False)):
        assert kernel.cost(dims).bytes_moved >= COMPULSORY[name](dims)
