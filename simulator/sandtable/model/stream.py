"""Element-wise work, norms, embeddings, losses and optimisers: traffic over bandwidth, and launches."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sandtable.model.law import Columns, Constant, Constants, FloatArray, LinkSheet, OperatorLaw, Sheet
from sandtable.spec import OperatorFit, StreamFit


class StreamLaw(OperatorLaw):
    """``t = n_kernels * launch + bytes / bandwidth``."""

    kind: ClassVar[str] = "stream"
    fit: ClassVar[type[OperatorFit]] = StreamFit
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="bandwidth_frac", typical=0.75, low=0.05, high=1.0),
        Constant(name="launch_s", typical=4e-6, low=1e-7, high=1e-3),
    )

    def seconds(
        self, sheet: Sheet | LinkSheet, constants: Constants, columns: Columns, *, dtype: str, op: str
    ) -> FloatArray:
        """See `OperatorLaw.seconds`."""
        assert isinstance(sheet, Sheet)
        bandwidth = constants["bandwidth_frac"] * sheet.bandwidth_bytes_per_s
        return np.asarray(columns["n_kernels"] * constants["launch_s"] + columns["n_bytes"] / bandwidth)
