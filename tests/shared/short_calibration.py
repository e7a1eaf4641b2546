"""Calibrations of seconds, whose way and not whose figures is the test: small points, small buffers, few draws."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable.calibration import session
from sandtable.calibration.fit import least_squares
from sandtable.demand.kernel import Dims, Kernel, kernels
from sandtable_kernels import support

N_POINTS = 6


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Make calibrations of this process short."""
    patch.setattr(support, "last_level_cache_bytes", lambda: 1 << 20)
    patch.setattr(session, "QUICK_BUDGET_S", 4.0)
    patch.setattr(session, "QUICK_FILE_BYTES", 256 << 20)
    patch.setattr(least_squares, "N_BOOTSTRAP", 8)
    for kind in {type(kernel) for kernel in kernels().values() if kernel.calibrates in ("memory", "compute")}:
        patch.setattr(kind, "grid", _small(kind.grid))


def _small(grid: Any) -> Any:
    def small(self: Kernel, *, quick: bool) -> list[Dims]:
        """Return the smallest points of each operator and type, enough to fit their law."""
        groups: dict[tuple[str, str], list[tuple[float, int, Dims]]] = {}
        for index, dims in enumerate(grid(self, quick=True)):
            op = self.cost(dims)
            groups.setdefault((op.operator, op.dtype), []).append((op.bytes_moved + op.flops, index, dims))
        return [dims for group in groups.values() for _, _, dims in sorted(group)[:N_POINTS]]

    return small
