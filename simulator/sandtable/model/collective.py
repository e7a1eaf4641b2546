"""Collectives over a group of devices: rings within a machine and between machines."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sandtable.model.law import Columns, Constant, Constants, FloatArray, LinkSheet, OperatorLaw, Sheet
from sandtable.spec import CollectiveFit, OperatorFit

# how often a ring moves each byte of the payload, in units of (n - 1) / n
_TURNS = {"all_reduce": 2.0, "reduce_scatter": 1.0, "all_gather": 1.0, "all_to_all": 1.0}


class CollectiveLaw(OperatorLaw):
    """Ring: ``t = launch + steps * (hop + latency) + bytes on the slowest link / bandwidth``."""

    kind: ClassVar[str] = "collective"
    fit: ClassVar[type[OperatorFit]] = CollectiveFit
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="bandwidth_frac", typical=0.75, low=0.02, high=1.0),
        Constant(name="launch_s", typical=8e-6, low=1e-7, high=1e-2),
        Constant(name="hop_s", typical=1e-6, low=1e-8, high=1e-2),
    )

    def seconds(
        self, sheet: Sheet | LinkSheet, constants: Constants, columns: Columns, *, dtype: str, op: str
    ) -> FloatArray:
        """See `OperatorLaw.seconds`."""
        assert isinstance(sheet, LinkSheet)
        n, n_bytes, per_machine = columns["n_ranks"], columns["n_bytes"], columns["ranks_per_machine"]
        crosses = n > per_machine
        bandwidth = np.where(
            crosses, min(sheet.within_bytes_per_s, sheet.between_bytes_per_s), sheet.within_bytes_per_s
        )
        latency = np.where(crosses, sheet.between_latency_s, sheet.within_latency_s) + constants["hop_s"]
        turns = _TURNS.get(op)
        steps = np.ones_like(n) if turns is None else turns * (n - 1)
        moved = n_bytes if turns is None else turns * n_bytes * (n - 1) / n
        busy = constants["launch_s"] + steps * latency + moved / (constants["bandwidth_frac"] * bandwidth)
        return np.asarray(np.where(n > 1, busy, 0.0))
