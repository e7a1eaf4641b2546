"""What every kernel must keep to. Kernels are found by walking the package, so a new file is tested by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sandtable.demand.kernel import Dims, Kernel, KernelContext, kernels
from sandtable.demand.op import RESOURCE_OF_KIND
from sandtable_kernels.files.dtypes import itemsize

PARTS = (None, "storage", "memory", "compute", "training", "link", "gpu")
# what is timed on a GPU is of every resource, and runs there or is a call that the host makes
RESOURCES_OF_A_GPU = ("compute", "memory", "link", "network")
RESOURCE_OF_PART = {"training": "compute", "link": "network"}
# what an operation cannot do without touching, from its dims alone: each operand once
COMPULSORY: dict[str, Callable[[Dims], float]] = {
    "gemv": lambda d: d["m"] * d["k"] * itemsize(d["dtype"]) + 4 * (d["m"] + d["k"]),
    "gemm": lambda d: d["m"] * d["k"] * itemsize(d["dtype"]) + 4 * d["n"] * (d["m"] + d["k"]),
    "sparse_ffn": lambda d: d["n_rows"] * d["n_vectors"] * d["d_model"] * itemsize(d["dtype"]),
    "attend": lambda d: 2 * d["n_ctx"] * d["n_kv_heads"] * d["head_dim"] * itemsize(d["dtype"]),
    "memory_read": lambda d: d["n_bytes"],
    "copy": lambda d: 2 * d["n_bytes"],
    "gather": lambda d: 2 * d["n_rows"] * d["row_bytes"],
    "insert": lambda d: 2 * d["n_rows"] * d["row_bytes"],
    "cache_update": lambda d: 2 * d["n_new"] * d["row_bytes"],
}


def found_kernels() -> list[Kernel]:
    return list(kernels().values())


KERNELS = found_kernels()
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


@pytest.fixture
def context(tmp_path: Path, kernel: Kernel) -> KernelContext:
    pytest.importorskip("numba", reason="the fast paths need numba")
    if kernel.name.startswith("torch"):
        pytest.importorskip("torch", reason="PyTorch's operators need PyTorch")
    return KernelContext(folder=tmp_path, seed=1, n_threads=2, file_bytes=8 << 20)


def all_points(kernel: Kernel) -> list[Dims]:
    return [kernel.example(), *kernel.grid(quick=True), *kernel.grid(quick=False)]


def test_names_are_unique():
    names = [kernel.name for kernel in KERNELS]
    assert len(names) == len(set(names)) >= 9
    assert set(COMPULSORY) <= set(names)


@every_kernel
def test_the_fast_path_equals_the_reference(kernel: Kernel, context: KernelContext):
    result, wanted = kernel.run(kernel.example(), context), kernel.reference(kernel.example(), context)
    assert result.shape == wanted.shape
    assert result.size > 0
    if result.dtype.kind in "iub":
        assert np.array_equal(result, wanted)
    else:  # weights are widened exactly in both, so only the order of float32 sums differs
        assert np.isfinite(result).all()
        assert np.abs(result - wanted).max() <= 1e-5 * np.abs(wanted).max()


@every_kernel
def test_the_same_seed_gives_the_same_result(kernel: Kernel, context: KernelContext):
    dims = kernel.example()
    assert np.array_equal(kernel.run(dims, context), kernel.run(dims, context))


@every_kernel
def test_the_timed_call_can_be_repeated(kernel: Kernel, context: KernelContext):
    with kernel.prepare(kernel.example(), context) as call:
        for _ in range(3):
            assert call() is None


@every_kernel
def test_the_cost_names_a_known_resource(kernel: Kernel):
    assert kernel.calibrates in PARTS
    for dims in all_points(kernel):
        op = kernel.cost(dims)
        assert op.kind in RESOURCE_OF_KIND
        assert op.account in ("io", "memory", "compute", "communication")
        if kernel.calibrates == "gpu":
            assert op.resource in RESOURCES_OF_A_GPU
            assert op.on == "accelerator" or op.kind == "host"
        elif kernel.calibrates is not None:
            assert op.resource == RESOURCE_OF_PART.get(kernel.calibrates, kernel.calibrates)
        if "dtype" in dims:
            assert op.dtype == dims["dtype"]


@every_kernel
def test_the_cost_counts_at_least_the_compulsory_bytes(kernel: Kernel):
    for dims in all_points(kernel):
        op = kernel.cost(dims)
        assert op.bytes_moved > 0
        assert op.bytes_moved > (op.n_chunks - 1) * op.chunk_bytes  # the last chunk may be shorter
        if kernel.name in COMPULSORY:
            assert op.bytes_moved >= COMPULSORY[kernel.name](dims)


@every_kernel
def test_a_larger_problem_never_costs_less(kernel: Kernel):
    for dims in all_points(kernel):
        small = kernel.cost(dims)
        for key, value in dims.items():
            if isinstance(value, int) and not isinstance(value, bool):
                large = kernel.cost({**dims, key: 2 * value})
                assert large.bytes_moved >= small.bytes_moved, key
                assert large.flops >= small.flops, key


@every_kernel
@pytest.mark.parametrize("quick", [True, False])
def test_the_grid_is_not_empty(kernel: Kernel, quick: bool):
    points = [tuple(sorted(dims.items())) for dims in kernel.grid(quick=quick)]
    assert points
    assert len(points) == len(set(points))
    assert {key for key, _ in points[0]} == set(kernel.example())
