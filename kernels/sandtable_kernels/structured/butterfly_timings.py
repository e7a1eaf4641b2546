"""Butterflies as ``calibrate --only vision`` measures them on a CPU: alone, and as layers of networks.

Each point is timed by a process of its own with ``n_cores`` threads, 0 for all; alone on rows and weights that come
again in every call. Sides lie between powers of two, which most layers have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.pytorch.vision_demand import Setting
from sandtable_kernels.pytorch.vision_operators import PASSES, VisionKernel, points
from sandtable_kernels.structured.butterfly import butterfly_reference, initial_weights
from sandtable_kernels.structured.butterfly_law import butterfly_op
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.support import Array, seeded


class TimedButterfly(VisionKernel):
    """Butterflies, called alone or as modules ``among`` other layers; they belong to no software.

    The base is written as a word: a larger one may take less, as sides need less padding.
    """

    name: ClassVar[str] = "timed_butterfly"
    software: ClassVar[str | None] = None
    case: ClassVar[str] = "butterfly"
    names: ClassVar[str] = "rows n_in n_out base among"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From one row to many, narrow and wide, every base, alone and in networks, and their gradients."""
        narrow, wide = (48, 192, 768, 3072), (96, 384, 1536)
        alone = [(rows, n, n, "4", False) for n in wide for rows in (8, 320)]
        alone += [] if quick else [(rows, n, n, "4", False) for n in narrow for rows in (1, 64, 1200)]
        alone += [] if quick else [(192, 2048, 2048, "4", False)]
        others = [(rows, n, n, base, False) for base in ("2", "8", "16") for n in (192, 1536) for rows in (8, 320)]
        others += [(2300, 20, 20, "4", False), (6000, 12, 12, "4", False), (2300, 60, 20, "4", False)]
        others += [(320, 768, 192, "4", False), (320, 192, 768, "4", False), (8, 192, 768, "4", False)]
        among = [(rows, n, n, "4", True) for n in (96, 384) for rows in (64, 784)]
        among += [(64, 960, 960, "4", True), (2300, 60, 20, "4", True), (2300, 20, 60, "4", True)]
        among += [(6000, 12, 12, "4", True)]
        trained = among if quick else [*among, (784, 384, 192, "4", True), (784, 192, 384, "4", True)]
        found = points(self.names, [*alone, *([] if quick else others), *among], PASSES[:1])
        halves = [{**dims, "dtype": "bfloat16"} for dims in points(self.names, alone[:6], PASSES[:1])]
        return found + points(self.names, trained, PASSES[2:]) + ([] if quick else halves)

    def layout(self, dims: Dims) -> ButterflyLayout:
        """Return the transform that is meant."""
        return ButterflyLayout(dims["n_in"], dims["n_out"], int(dims["base"]))

    def demand(self, dims: Dims, how: Setting) -> list[Op]:
        """See `butterfly_op`."""
        return [butterfly_op("butterfly", self.layout(dims), dims["rows"], how, among=dims["among"])]

    def example(self) -> Dims:
        """Odd sides."""
        row = dict(zip(self.names.split(), (5, 12, 20, "4", True), strict=True))
        return {**row, "dtype": "float32", "pass": "inference", "n_cores": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return rows and weights."""
        weights = initial_weights(self.layout(dims), np.random.default_rng(seed))
        return [seeded((dims["rows"], dims["n_in"]), seed), weights]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the transform as PyTorch calls it."""
        from sandtable_kernels.structured.torch_butterfly import butterfly

        x, weights = tensors
        return butterfly(x, weights, self.layout(dims))

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same, level by level in float64."""
        x, weights = self.inputs(dims, context.seed)
        return butterfly_reference(x, weights, self.layout(dims))
