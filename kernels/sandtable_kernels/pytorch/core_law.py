"""What laws of operators on a CPU's cores have in common: a part of the cores, and caches that belong to each of them.

A core has its share of the arithmetic and of the bandwidth of the whole processor, and a cache of its own. Work whose
bytes, all together, fit into the caches of the cores that do it streams from there; beyond that little is found again,
since a cache that is swept through in order drops what will be needed next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sandtable.demand.operator import Constant, Constants, FloatArray
from sandtable.hardware import Roofline

# what is found in a cache falls from all to nothing between half of this over its size and as much below it
HALF_FOUND = 1.5
SPEEDUP = Constant(name="cache_speedup", typical=3.0, low=1.0, high=20.0)
CACHE = Constant(name="cache_bytes", typical=1 << 20, low=1 << 17, high=1 << 24)


@dataclass(frozen=True, slots=True)
class Cores:
    """Part of a processor's cores, for each of many demands.

    ``share`` is their part of all; ``near_bytes`` what their own caches hold; ``far_bytes_per_s`` what they move to and
    from everything beyond, and ``speedup`` how much quicker their caches are.
    """

    n_cores: FloatArray
    share: FloatArray
    near_bytes: FloatArray
    far_bytes_per_s: FloatArray
    speedup: float

    @classmethod
    def of(cls, device: Roofline, constants: Constants, n_cores: FloatArray) -> Cores:
        """Return ``n_cores`` of a device, all where that is zero or more than there are."""
        used = np.where(n_cores > 0, np.minimum(n_cores, device.n_units), device.n_units)
        share = used / device.n_units
        return cls(
            n_cores=used,
            share=share,
            near_bytes=used * constants["cache_bytes"],
            far_bytes_per_s=constants["bandwidth_frac"] * device.bandwidth_bytes_per_s * share,
            speedup=constants["cache_speedup"],
        )

    def moving_s(self, n_bytes: FloatArray, working_bytes: FloatArray) -> FloatArray:
        """Return the time to move ``n_bytes``, if ``working_bytes`` are gone through from one use to the next."""
        found = np.clip(HALF_FOUND - working_bytes / self.near_bytes, 0.0, 1.0)
        return np.asarray(n_bytes / self.far_bytes_per_s * (1 - found * (1 - 1 / self.speedup)))


def joined(one: FloatArray, other: FloatArray, power: float = 1.5) -> FloatArray:
    """Return the p-norm of two times: more than the longer, less than their sum; no overflow."""
    longer, shorter = np.maximum(one, other), np.minimum(one, other)
    return np.asarray(longer * (1 + (shorter / np.maximum(longer, 1e-300)) ** power) ** (1 / power))
