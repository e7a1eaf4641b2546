"""Mixture of experts: grouped products over the experts that a batch of tokens touches."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sandtable.model.law import Columns, Constant, Constants, FloatArray, LinkSheet, OperatorLaw, Sheet
from sandtable.spec import DTYPE_BYTES, MoeFit, OperatorFit


class MoeLaw(OperatorLaw):
    """Roofline over the experts touched; gated experts of three matrices."""

    kind: ClassVar[str] = "moe"
    fit: ClassVar[type[OperatorFit]] = MoeFit
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="rate_frac", typical=0.5, low=0.02, high=1.0),
        Constant(name="bandwidth_frac", typical=0.6, low=0.02, high=1.0),
        Constant(name="launch_s", typical=2e-5, low=1e-7, high=1e-3),
    )

    def seconds(
        self, sheet: Sheet | LinkSheet, constants: Constants, columns: Columns, *, dtype: str, op: str
    ) -> FloatArray:
        """See `OperatorLaw.seconds`."""
        assert isinstance(sheet, Sheet)
        c = columns
        experts = c["n_experts"] / c["expert_parallel"]
        routed = c["n_tokens"] * c["top_k"] / c["expert_parallel"]
        touched = experts * -np.expm1(routed * np.log1p(-1 / np.maximum(experts, 1 + 1e-9)))
        weights = 3 * c["d_model"] * c["n_neurons"] / c["tensor_parallel"]
        computing = 2 * routed * weights / (constants["rate_frac"] * sheet.peak(dtype))
        moved = touched * weights * DTYPE_BYTES[dtype] + 4 * routed * c["d_model"] * 2
        streaming = moved / (constants["bandwidth_frac"] * sheet.bandwidth_bytes_per_s)
        return np.asarray(constants["launch_s"] + np.maximum(computing, streaming))
