"""Butterflies on the host, timed in bulk: called alone, or as modules of PyTorch between other layers.

Imported only where something is measured. Alone, the same rows and weights come again in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sandtable_kernels.pytorch.torch_cases import DTYPES, Timed, filled
from sandtable_kernels.pytorch.vision_cases import among, modules, repeated, rows_image
from sandtable_kernels.structured import butterfly as host
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.structured.torch_butterfly import memory
from sandtable_kernels.structured.torch_layers import StructuredPointwise

Dims = Mapping[str, Any]


def butterfly(dims: Dims) -> Timed:
    """A butterfly with its residual: the compiled loops alone, or as a pointwise convolution between other layers."""
    n_in, n_out, base = dims["n_in"], dims["n_out"], int(dims["base"])
    if dims["among"]:

        def make() -> nn.Module:
            return StructuredPointwise(n_in, n_out, base=base, bias=False)

        return among(modules(dims, make), rows_image(dims["rows"], n_in), dims["pass"], dense=False)
    layout, dtype = ButterflyLayout(n_in, n_out, base), DTYPES[dims["dtype"]]
    start = torch.from_numpy(host.initial_weights(layout, np.random.default_rng(0)))
    x, weights = memory(filled(dims["rows"], n_in, dtype=dims["dtype"])), memory(start.to(dtype))
    out, n_threads = np.empty((len(x), n_out), x.dtype), torch.get_num_threads()
    return repeated(dims, lambda: host.butterfly(x, weights, layout, out=out, n_threads=n_threads))


BUTTERFLY_CASES: dict[str, Callable[[Dims], Timed]] = {"butterfly": butterfly}
