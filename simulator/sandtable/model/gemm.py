"""Matrix products on a device that spreads tiles over many units."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sandtable.model.law import Columns, Constant, Constants, FloatArray, LinkSheet, OperatorLaw, Sheet
from sandtable.spec import DTYPE_BYTES, GemmFit, OperatorFit


class GemmLaw(OperatorLaw):
    """Roofline with a launch floor: ``t = launch + max(flops / rate, bytes / bandwidth)``."""

    kind: ClassVar[str] = "gemm"
    fit: ClassVar[type[OperatorFit]] = GemmFit
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="rate_frac", typical=0.7, low=0.05, high=1.0),
        Constant(name="bandwidth_frac", typical=0.75, low=0.05, high=1.0),
        Constant(name="launch_s", typical=5e-6, low=1e-7, high=1e-3),
    )

    def seconds(
        self, sheet: Sheet | LinkSheet, constants: Constants, columns: Columns, *, dtype: str, op: str
    ) -> FloatArray:
        """See `OperatorLaw.seconds`."""
        assert isinstance(sheet, Sheet)
        m, n, k, batch = (columns[name] for name in ("m", "n", "k", "batch"))
        item = DTYPE_BYTES[dtype]
        computing = 2 * batch * m * n * k / (constants["rate_frac"] * sheet.peak(dtype))
        moved = batch * item * (m * k + k * n + m * n)
        streaming = moved / (constants["bandwidth_frac"] * sheet.bandwidth_bytes_per_s)
        return np.asarray(constants["launch_s"] + np.maximum(computing, streaming))
