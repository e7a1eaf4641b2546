"""Attention over a cache or over itself: scores on chip (flash) or through memory (vanilla)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sandtable.model.law import Columns, Constant, Constants, FloatArray, LinkSheet, OperatorLaw, Sheet
from sandtable.spec import DTYPE_BYTES, AttentionFit, OperatorFit

# passes over the scores that vanilla attention makes through memory: write, mask, softmax read and write, read
VANILLA_SCORE_PASSES = 5.0


class AttentionLaw(OperatorLaw):
    """Roofline of two products per head, keys and values read once; vanilla adds the scores' traffic."""

    kind: ClassVar[str] = "attention"
    fit: ClassVar[type[OperatorFit]] = AttentionFit
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="rate_frac", typical=0.5, low=0.02, high=1.0),
        Constant(name="bandwidth_frac", typical=0.6, low=0.02, high=1.0),
        Constant(name="launch_s", typical=8e-6, low=1e-7, high=1e-3),
    )

    def seconds(
        self, sheet: Sheet | LinkSheet, constants: Constants, columns: Columns, *, dtype: str, op: str
    ) -> FloatArray:
        """See `OperatorLaw.seconds`."""
        assert isinstance(sheet, Sheet)
        c = columns
        scores = c["batch"] * c["n_heads"] * c["query_tokens"] * c["kv_tokens"] * (1 - 0.5 * c["causal"])
        flops = 2 * scores * (c["head_dim"] + c["value_dim"])
        queries = (
            c["batch"] * c["n_heads"] * c["query_tokens"] * (c["head_dim"] + c["value_dim"]) * DTYPE_BYTES[dtype]
        )
        keys = c["batch"] * c["n_kv_heads"] * c["kv_tokens"] * (c["head_dim"] + c["value_dim"]) * c["kv_item_bytes"]
        spilled = (1 - c["flash"]) * VANILLA_SCORE_PASSES * scores * DTYPE_BYTES[dtype]
        computing = flops / (constants["rate_frac"] * sheet.peak(dtype))
        streaming = (queries + keys + spilled) / (constants["bandwidth_frac"] * sheet.bandwidth_bytes_per_s)
        return np.asarray(constants["launch_s"] + c["passes"] * np.maximum(computing, streaming))
