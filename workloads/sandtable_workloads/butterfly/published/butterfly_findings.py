"""The findings of the butterfly paper (arXiv 1906.02256), with multiply-adds, time, energy and money side by side.

The paper compares networks at equal multiply-adds. Whether a finding holds is decided by predictions from device
files, of kernels that make one pass over the activations in place of one per level; of accuracy, by networks that were
trained here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sandtable.studies.finding import Finding, Findings
from sandtable_workloads.butterfly.published import crossover, glyph_accuracy, networks_compared, shares_and_bases


class ButterflyFindings(Findings):
    """Where multiply-adds mislead: layers on every device, the paper's networks on three machines."""

    name: ClassVar[str] = "butterfly_vision"

    def findings(self) -> Sequence[Finding]:
        """Return the paper's findings with the data of their figures, and whether the prediction has them too."""
        return (
            *crossover.findings(),
            *networks_compared.findings(),
            glyph_accuracy.finding(),
            *shares_and_bases.findings(),
        )
