"""Butterflies on the host, timed in bulk: called alone, or as modules of PyTorch.

Imported only where something is measured. The same rows and weights come again in every call, as those of a layer alone
do; a backward pass meets what a forward one left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sandtable_kernels.pytorch.torch_cases import DTYPES, Timed, copies, filled, timed, watch
from sandtable_kernels.structured import butterfly as host
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.structured.torch_butterfly import memory
from sandtable_kernels.structured.torch_layers import matrix

Dims = Mapping[str, Any]


def repeated(dims: Dims, call: Callable[[], object]) -> Timed:
    """Return a call that gives the mean seconds of as many calls as a sample takes."""
    number = dims.get("copies", 1)

    def work() -> None:
        with torch.inference_mode():
            for _ in range(number):
                call()

    return lambda: watch().span(work)[1] / number


def module_case(dims: Dims, layer: nn.Module) -> Timed:
    """Return the call that times a module in the pass that ``dims`` name."""
    rows, n_in, dtype = dims["rows"], dims["n_in"], dims["dtype"]
    layer = layer.to(DTYPES[dtype])
    if dims["pass"] == "inference":
        x = filled(rows, n_in, dtype=dtype)
        return repeated(dims, lambda: layer(x))
    number = copies(dims, 4 * rows * (n_in + dims["n_out"]))
    inputs = [filled(rows, n_in, dtype=dtype, grad=True) for _ in range(number)]

    def forward(x: Tensor) -> tuple[Tensor]:
        return (layer(x),)

    return timed(inputs, forward, backward=dims["pass"] == "backward")


def butterfly(dims: Dims) -> Timed:
    """A butterfly with its residual: the compiled loops alone, or ``wrapped`` by a module."""
    n_in, n_out, base = dims["n_in"], dims["n_out"], int(dims["base"])
    if dims["wrapped"]:
        return module_case(dims, matrix("butterfly", n_in, n_out, base=base))
    layout, dtype = ButterflyLayout(n_in, n_out, base), DTYPES[dims["dtype"]]
    start = torch.from_numpy(host.initial_weights(layout, np.random.default_rng(0)))
    x, weights = memory(filled(dims["rows"], n_in, dtype=dims["dtype"])), memory(start.to(dtype))
    out, n_threads = np.empty((len(x), n_out), x.dtype), torch.get_num_threads()
    return repeated(dims, lambda: host.butterfly(x, weights, layout, out=out, n_threads=n_threads))


BUTTERFLY_CASES: dict[str, Callable[[Dims], Timed]] = {"butterfly": butterfly}
