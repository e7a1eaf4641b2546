"""The law of structured products in its limits, and what kernels state of themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from made_up_devices import TWO_CORES

from sandtable.demand.kernel import kernels
from sandtable.demand.operator import operator_named
from sandtable_kernels.pytorch.vision_demand import Setting
from sandtable_kernels.structured.baselines.structured_demand import structured_op
from sandtable_kernels.structured.baselines.structured_law import CODES, StructuredLaw, StructuredShape
from sandtable_kernels.structured.structures import STRUCTURES, structured

CONSTANTS = {
    "rate_frac": 0.5,
    "bandwidth_frac": 0.5,
    "edge_depth": 4.0,
    "launch_s": 1e-6,
    "call_s": 1e-6,
    "among_s": 1e-5,
    "cache_speedup": 4.0,
    "cache_bytes": 1e6,
}


def seconds(**columns: float) -> float:
    law = StructuredLaw()
    shape = law.columns(
        StructuredShape(**{"structure": 1, "n_flops": 0, "n_sums": 0, "n_bytes": 0, "n_calls": 1, **columns})
    )
    return float(law.seconds(TWO_CORES, CONSTANTS, shape, dtype="float32")[0])


def test_calls_arithmetic_and_traffic_follow_each_other():
    assert seconds() == pytest.approx(1e-6)
    assert seconds(n_calls=10) == pytest.approx(1e-5)
    # a layer between others meets cold code
    assert seconds(n_calls=10, among=1) == pytest.approx(2e-5)
    assert seconds(n_flops=1e9) == pytest.approx(1e-6 + 1e-2)
    assert seconds(n_bytes=1e8) == pytest.approx(1e-6 + 1e-2)
    assert seconds(n_flops=1e9, n_bytes=1.1e8) == pytest.approx(1e-6 + 2.1e-2)
    assert seconds(n_flops=1e9, n_cores=1) == pytest.approx(1e-6 + 2e-2)
    assert seconds(n_bytes=1e8, n_cores=4) == pytest.approx(1e-6 + 1e-2)
    # what fits into the caches of both cores streams from there, unless it was touched long ago
    assert seconds(n_bytes=1e6) == pytest.approx(1e-6 + 2.5e-5)
    assert seconds(n_bytes=1e6, kept=1) == pytest.approx(1e-6 + 1e-4)
    # sums of four products are worked on as if they were of eight
    assert seconds(n_flops=1e9, n_sums=1e9 / 8) == pytest.approx(1e-6 + 2e-2)


@pytest.mark.parametrize("name", ["low_rank", "circulant", "toeplitz", "monarch", "block_shuffle"])
def test_a_kernel_states_what_its_structure_costs(name):
    kernel: Any = kernels()[name]
    for dims in kernel.grid(quick=False):
        op, product = kernel.cost(dims), kernel.product(dims)
        assert op.bytes_read == 4 * (dims["rows"] * dims["n_in"] + product.parameters)
        assert op.bytes_written == 4 * dims["rows"] * dims["n_out"]
        assert op.flops == 2 * (dims["rows"] * product.multiplications + product.weights_multiplications)
        assert op.shape.n_calls >= 1
        assert op.shape.n_sums == dims["rows"] * product.sums
        assert operator_named(op.operator).variant(op.shape) == name
        # cheaper than the dense matrix that it stands for, where that is large
        if min(dims["n_in"], dims["n_out"]) >= 256:
            assert product.multiplications < dims["n_in"] * dims["n_out"] / 4


def executed_bytes(module, product, rows: int) -> int:
    """Return the bytes of what every kernel of PyTorch reads and writes, counted as it dispatches them."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Count(TorchDispatchMode):
        n_bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if not function.is_view and "view" not in str(function):
                parts = [part for part in (*tree_leaves(args), found) if isinstance(part, module.Tensor)]
                self.n_bytes += sum(part.numel() * part.element_size() for part in parts)
            return found

    weights = [module.from_numpy(weight) for weight in product.initial_weights(np.random.default_rng(0))]
    from sandtable_kernels.structured.torch_structures import multiply

    x = module.ones(rows, product.n_in)
    with module.no_grad(), Count() as count:
        multiply(product, x, weights)
    return count.n_bytes


@pytest.mark.parametrize(
    ("structure", "n_in", "n_out", "options"),
    [
        ("dense", 96, 64, {}),
        ("low_rank", 96, 64, {"rank": 8}),
        ("monarch", 256, 256, {"n_blocks": 16}),
        ("monarch", 256, 256, {"n_blocks": 4}),
        ("monarch", 250, 256, {"n_blocks": 16}),
        ("block_shuffle", 96, 64, {"n_groups": 8}),
        ("circulant", 128, 128, {}),
        ("toeplitz", 96, 64, {}),
    ],
)
def test_traffic_is_counted_as_pytorch_dispatches_it(structure, n_in, n_out, options):
    torch = pytest.importorskip("torch", reason="counts what PyTorch does")
    product, rows = structured(structure, n_in, n_out, **options), 500
    assert structured_op("", product, rows).bytes_read == pytest.approx(
        executed_bytes(torch, product, rows), rel=0.03
    )


def test_a_backward_pass_multiplies_twice():
    product = structured("monarch", 256, 256)
    forward, backward = (
        structured_op("", product, 100, Setting(training=True, backward=which, n_cores=1))
        for which in (False, True)
    )
    assert backward.flops == 2 * forward.flops
    assert backward.shape.n_calls == 2 * forward.shape.n_calls
    assert forward.shape.n_cores == forward.shape.kept == 1


def test_every_structure_has_a_code():
    assert set(CODES) <= set(STRUCTURES)
    assert len(set(CODES)) == len(CODES)


def test_calls_are_counted_as_they_are_made(monkeypatch):
    kernel: Any = kernels()["block_shuffle"]
    dims = {"rows": 300, "n_in": 1024, "n_out": 1024, "group": 128}
    product, products = kernel.product(dims), []
    matmul = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, **more: products.append(len(a)) or matmul(a, b, **more))
    x = np.ones((300, 1024), np.float32)
    product.forward(x, product.initial_weights(np.random.default_rng(0)))
    assert sum(products) == product.calls(300) == 8 * math.ceil(300 / 256)
