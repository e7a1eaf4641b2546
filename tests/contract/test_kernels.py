"""Every kernel keeps the shipped contract; kernels are found in all installed packages, so a new one needs no test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sandtable import contracts
from sandtable.demand.kernel import Dims, Kernel, KernelContext, kernels
from sandtable.demand.op import Op
from sandtable.errors import NoDevice

KERNELS = kernels()
CHECKS = {check.__name__: check for check in contracts.KERNEL_CHECKS}


def small(folder: Path) -> KernelContext:
    return KernelContext(folder=folder, seed=1, n_threads=2, file_bytes=8 << 20)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_the_contract(name: str, check: str, tmp_path: Path) -> None:
    try:
        CHECKS[check](KERNELS[name], small(tmp_path))
    except NoDevice as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("part", sorted({str(kernel.calibrates) for kernel in KERNELS.values()}))
def test_the_whole_check_passes_for_a_kernel_of_each_part(part: str, tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="the fast paths need numba")
    kernel = next(kernel for kernel in KERNELS.values() if str(kernel.calibrates) == part)
    left_out = contracts.check_kernel(kernel, small(tmp_path))
    assert all(sentence and "\n" not in sentence for sentence in left_out)


# --- the contract itself must be able to fail --------------------------------------------------------------


def changed(kernel: Kernel, **methods: Any) -> Kernel:
    """Return the kernel with methods or attributes replaced."""
    kind = type("Changed", (type(kernel),), {"__module__": __name__, **methods})
    return kind()  # type: ignore[no-any-return]


def costing(**changes: Any) -> Any:
    def cost(self: Any, dims: Dims) -> Op:
        return dataclasses.replace(super(type(self), self).cost(dims), **changes)

    return cost


def twice(self: Any, *, quick: bool) -> list[Dims]:
    return [self.example(), self.example()]


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "no grid": ("check_kernel_grid", {"grid": lambda self, *, quick: []}, "no grid"),
    "a point twice": ("check_kernel_grid", {"grid": twice}, "twice"),
    "other dims": ("check_kernel_grid", {"grid": lambda self, *, quick: [{"other": 1}]}, "other dims"),
    "unknown part": ("check_kernel_grid", {"calibrates": "good luck"}, "one word"),
    "no bytes": ("check_kernel_cost", {"cost": costing(bytes_read=0, bytes_written=0)}, "no bytes"),
    "not on the GPU": ("check_kernel_cost", {"calibrates": "gpu"}, "runs on the host"),
    "no shape": ("check_kernel_cost", {"calibrates": "luck", "cost": costing(operator="gemm")}, "no shape"),
    "other resource": ("check_kernel_cost", {"calibrates": "storage"}, "but costs"),
    "no seconds": ("check_kernel_timings", {"timings": lambda self, dims, context, **_: []}, "no seconds"),
    "negative": ("check_kernel_timings", {"timings": lambda self, dims, context, **_: [-1.0]}, "as seconds"),
    "wrong result": ("check_kernel_result", {"reference": lambda self, *a: -1 - self.run(*a)}, "differs"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_kernel_is_found(case: str, tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="the fast paths need numba")
    check, methods, sentence = BROKEN[case]
    kernel = next(kernel for kernel in KERNELS.values() if kernel.calibrates == "memory")
    with pytest.raises(AssertionError, match=sentence):
        CHECKS[check](changed(kernel, **methods), small(tmp_path))
