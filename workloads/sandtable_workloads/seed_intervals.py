"""Means over seeds with intervals, without scipy: reading a study's results needs no optional package."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 95th percentile of Student's t for 2 to 10 runs, and of the normal distribution
_T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
_Z_95 = 1.644854


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of independent values and half of its 90 % interval by Student's t; infinite for one value."""
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return mean, float("inf")
    return mean, _student_95(n - 1) * statistics.stdev(values) / n**0.5


def _student_95(degrees: int) -> float:
    """Return the 95th percentile of Student's t: from the table, or by Fisher's expansion, within a thousandth."""
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    z = _Z_95
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


@dataclass(frozen=True)
class Gain:
    """The mean over seeds of a difference on the same events, and its 90 % interval by Student's t."""

    n: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Gain:
        """Return that of one value a seed."""
        mean, half = interval(values)
        return cls(len(values), mean, mean - half, mean + half)

    @property
    def above(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0

    def shown(self, form: str) -> str:
        """Return it in a form such as ``+.3f``; one run has no interval."""
        within = f" ({self.low:{form}} to {self.high:{form}})" if math.isfinite(self.low) else ""
        return f"{self.mean:{form}}{within}"
