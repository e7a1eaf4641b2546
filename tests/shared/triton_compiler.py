"""Compiles the butterfly's kernels for GPUs that need not be here."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable_kernels.cuda.butterfly_passes import passes_of
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout

# that one program may have on a GPU of a compute capability (CUDA C++ programming guide, technical specifications)
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
KERNELS = ("compose", "decompose", "multiply", "outer")


def compiled_for(
    capability: int,
    name: str,
    layout: ButterflyLayout,
    index: int,
    dtype: str,
) -> Any:
    """Return a kernel of a pass, compiled to what a GPU of a compute capability executes."""
    torch = pytest.importorskip("torch", reason="the kernels are launched by PyTorch")
    triton = pytest.importorskip("triton", reason="the kernels need Triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sandtable_kernels.cuda import triton_butterfly, triton_passes

    kernel, one = getattr(triton_passes, name), passes_of(layout)[index]
    if name in ("compose", "decompose"):
        settings = triton_butterfly.of_levels(layout, one)
    else:
        settings = triton_butterfly.of_rows(layout, one, getattr(torch, dtype))
    options = {key: settings.pop(key) for key in ("num_warps", "num_stages", "enable_fp_fusion")}
    settings |= {"SUMMED": 1, "TRANSPOSED": True, "ADDED": True}
    narrow = {"float32": "*fp32", "bfloat16": "*bf16"}[dtype]
    types = dict.fromkeys(("x", "matrices", "added", "y", "grad", "weights", "grad_weights"), narrow)
    types |= {"sums": "*fp32", "grad_matrices": "*fp32"}
    signature = {key: "constexpr" if key in settings else types.get(key, "i32") for key in kernel.arg_names}
    constants = {(at,): settings[key] for at, key in enumerate(kernel.arg_names) if key in settings}
    aligned = {(at,): [["tt.divisibility", 16]] for at, key in enumerate(kernel.arg_names) if key not in settings}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
