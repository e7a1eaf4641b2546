"""The butterfly in Triton: passes on paper, kernels on Triton's interpreter, and compiled for GPUs that are not here.

Triton reads ``TRITON_INTERPRET`` when it is imported, so that what is interpreted runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from triton_compiler import KERNELS, SHARED_BYTES, compiled_for

from sandtable_kernels.cuda.butterfly_passes import (
    LEAST_TILE,
    MOST_APART,
    MOST_NEIGHBOURS,
    demand_of,
    passes_of,
    sides_of,
)
from sandtable_kernels.structured.butterfly import butterfly_dense, butterfly_reference, initial_weights
from sandtable_kernels.structured.butterfly_layout import BASES, ButterflyLayout

layouts = st.builds(ButterflyLayout, st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(BASES))

# --- passes ------------------------------------------------------------------------------------------------


@given(layout=layouts)
def test_passes_do_every_level_once_in_tiles_that_fit(layout: ButterflyLayout) -> None:
    passes = passes_of(layout)
    assert [one.first for one in passes] == [0, *(one.last for one in passes[:-1])]
    assert passes[-1].last == layout.n_levels
    for one in passes:
        assert layout.size % (one.size * one.stride) == 0
        assert one.tile >= max(one.size, LEAST_TILE)
        assert one.size <= (MOST_NEIGHBOURS if one.stride == 1 else MOST_APART)
    assert passes[-1].stride == 1


@pytest.mark.parametrize(
    ("n", "base", "n_passes"), [(64, 4, 1), (128, 2, 1), (256, 4, 2), (4096, 4, 2), (4096, 16, 3)]
)
def test_few_passes_do_many_levels(n: int, base: int, n_passes: int) -> None:
    assert len(passes_of(ButterflyLayout(n, n, base))) == n_passes


@pytest.mark.parametrize(("n", "base"), [(64, 4), (192, 4), (256, 2), (144, 16), (200, 8)])
def test_a_pass_is_one_small_matrix_for_each_group(n: int, base: int) -> None:
    layout = ButterflyLayout(n, n, base)
    weights = initial_weights(layout, np.random.default_rng(0)).astype(np.float64)
    product = np.eye(layout.size)
    for one in passes_of(layout):
        levels = slice(one.first, one.last)
        part = product_of_levels(layout, weights[0, levels], layout.strides[levels])
        position = np.arange(layout.size)
        group = position // (one.size * one.stride) * one.stride + position % one.stride
        assert not part[group[:, None] != group[None, :]].any()
        product = part @ product
    side = layout.side
    np.testing.assert_allclose(product[:side, :side], butterfly_dense(weights, layout, residual=False), atol=1e-12)


def product_of_levels(layout: ButterflyLayout, weights: Any, strides: tuple[int, ...]) -> Any:
    product = np.eye(layout.size)
    for level, stride in zip(weights, strides, strict=True):
        i = np.arange(layout.size)
        start = i // (layout.base * stride) * (layout.base * stride) + i % stride
        matrix = np.zeros((layout.size, layout.size))
        for j in range(layout.base):
            matrix[i, start + j * stride] = level[:, j]
        product = matrix @ product
    return product


def test_demands_count_every_pass() -> None:
    layout, rows = ButterflyLayout(4096, 4096, 4), 1000
    forward = demand_of(layout, rows, 2)
    # two passes of matrices of 64 numbers a side: the activations are read and written twice
    assert forward.flops == 2 * rows * 4096 * (64 + 64)
    assert forward.kernels == 4
    activations = 2 * 2 * 2 * rows * 4096
    assert activations < forward.n_bytes < activations + 2 * (2 * 2 * 4096 * 64 + layout.parameters) + 1
    backward = demand_of(layout, rows, 2, backward=True)
    assert backward.flops == 2 * forward.flops
    assert backward.n_bytes > 2 * activations
    wide = demand_of(ButterflyLayout(64, 256, 4), rows, 4)
    assert wide.flops == 2 * rows * 4 * 64 * 64
    assert sides_of(ButterflyLayout(64, 256, 4))[2].step == 64


# --- kernels, interpreted ----------------------------------------------------------------------------------

# square and not, padded, overlapping levels, two passes and three, groups apart that fill no piece of memory
CASES = [
    {"n_in": 16, "n_out": 16, "base": 4},
    {"n_in": 3, "n_out": 3, "base": 4},
    {"n_in": 24, "n_out": 58, "base": 4},
    {"n_in": 40, "n_out": 20, "base": 8, "residual": False},
    {"n_in": 58, "n_out": 24, "base": 2, "dtype": "bfloat16"},
    {"n_in": 48, "n_out": 48, "base": 16, "dtype": "bfloat16", "residual": False},
    {"n_in": 24, "n_out": 12, "base": 8, "most": 16, "rows": 70},
    {"n_in": 15, "n_out": 30, "base": 2, "most": 8, "rows": 3},
    {"n_in": 20, "n_out": 20, "base": 4, "most": 16, "dtype": "bfloat16"},
    {"n_in": 8, "n_out": 8, "base": 2, "most": 2},
    {"n_in": 16, "n_out": 16, "base": 2, "rows": 1030},
]
SCRIPT = """
import json, sys
import torch
from sandtable_kernels.cuda import butterfly_passes, triton_butterfly
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.structured.torch_butterfly import butterfly_levels
torch.manual_seed(0)
found = []
for case in json.loads(sys.stdin.read()):
    butterfly_passes.MOST_NEIGHBOURS = butterfly_passes.MOST_APART = case.get("most", 128)
    butterfly_passes.passes_of.cache_clear()
    layout = ButterflyLayout(case["n_in"], case["n_out"], case["base"])
    dtype, residual = getattr(torch, case.get("dtype", "float32")), case.get("residual", True)
    x = torch.randn(case.get("rows", 37), layout.n_in).to(dtype).requires_grad_()
    weights = (torch.rand(layout.weights_shape) * 1.2 - 0.6).to(dtype).requires_grad_()
    grad = torch.randn(len(x), layout.n_out).to(dtype)
    y = triton_butterfly.OnGpu.apply(x, weights, layout, residual)
    grads = torch.autograd.grad(y, (x, weights), grad)
    wide = [part.detach().float().requires_grad_() for part in (x, weights)]
    wanted = butterfly_levels(*wide, layout, residual=residual)
    wanted = (wanted, *torch.autograd.grad(wanted, wide, grad.float()))
    errors = [((a.float() - b).abs().max() / b.abs().max()).item() for a, b in zip((y, *grads), wanted)]
    found.append({"errors": errors, "n_passes": len(butterfly_passes.passes_of(layout)),
                  "dtypes": [str(part.dtype) for part in (y, *grads)]})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def interpreted() -> list[dict[str, Any]]:
    pytest.importorskip("torch", reason="the kernels are launched by PyTorch")
    pytest.importorskip("triton", reason="the kernels need Triton")
    paths = [path for path in sys.path if path]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(sorted(case.items())) for case in CASES])
def test_interpreted_kernels_equal_ordinary_operations(index: int, interpreted: list[dict[str, Any]]) -> None:
    case, found = CASES[index], interpreted[index]
    dtype = case.get("dtype", "float32")
    assert found["dtypes"] == [f"torch.{dtype}"] * 3
    # bfloat16 is also rounded in the matrices and between passes
    most = 1e-6 if dtype == "float32" else 0.01 * found["n_passes"]
    assert max(found["errors"]) < most


def test_cases_take_one_pass_and_several(interpreted: list[dict[str, Any]]) -> None:
    assert {found["n_passes"] for found in interpreted} >= {1, 2, 3}


# --- kernels, compiled for GPUs ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_a_gpu(name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compiled_for(90, name, ButterflyLayout(256, 256, 4), 0, dtype)
    assert compiled.metadata.shared <= SHARED_BYTES[90]
    products = compiled.asm["ptx"].count("mma.sync") + compiled.asm["ptx"].count("wgmma.mma_async")
    assert products > 0


def test_what_is_checked_against_is_the_reference() -> None:
    torch_butterfly = pytest.importorskip("sandtable_kernels.structured.torch_butterfly")
    torch = pytest.importorskip("torch")
    layout = ButterflyLayout(150, 300, 2)
    x, weights = np.ones((2, 150), np.float32), initial_weights(layout, np.random.default_rng(0))
    found = torch_butterfly.butterfly_levels(torch.from_numpy(x), torch.from_numpy(weights), layout)
    np.testing.assert_allclose(found.numpy(), butterfly_reference(x, weights, layout), rtol=1e-4, atol=1e-5)
