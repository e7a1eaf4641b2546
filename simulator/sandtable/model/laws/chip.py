"""What kernels of any operator meet on a chip: its clock, its power limit, and its last-level cache."""

from __future__ import annotations

import numpy as np

from sandtable.demand.operator import Constants, FloatArray
from sandtable.hardware import Roofline

# elements as wide as this take the whole `flop_energy`
WHOLE_BYTES = 2.0
# what `waits_in_clocks` and `powered_share` read of a law's settings, and what `cached` does
CLOCK = ("reference_clock_hz", "flop_energy_j", "energy_of_width", "power_of_clock")
CACHE = ("cache_speedup", "cache_whole", "cache_reach")


def waits_in_clocks(device: Roofline, constants: Constants, names: tuple[str, ...], given: Constants) -> Constants:
    """Return constants, of which those named are times at the reference clock, at the clock of this device.

    Launching, filling a pipeline and draining it are counts of clocks: an A100 takes longer than an H100 for them.
    """
    if not given["reference_clock_hz"] or device.clock_hz is None:
        return constants
    slower = given["reference_clock_hz"] / device.clock_hz
    return {name: slower * value if name in names else value for name, value in constants.items()}


def powered_share(device: Roofline, dtype: str, item_bytes: float, given: Constants) -> float:
    """Return the share of the peak at which dense products of ``dtype`` draw no more than the power limit.

    A product of 16-bit elements takes ``flop_energy`` per FLOP at the reference clock, and a narrower one less, by the
    power ``energy_of_width``: the rate doubles with each halving, the energy does not halve. Power grows as the clock
    to ``power_of_clock``, since voltage follows it; so the clock falls by less than what power is missing.
    """
    if not given["flop_energy_j"] or device.power_w is None or device.clock_hz is None:
        return 1.0
    width = min(1.0, item_bytes / WHOLE_BYTES) ** given["energy_of_width"]
    voltage = (device.clock_hz / given["reference_clock_hz"]) ** (given["power_of_clock"] - 1)
    wanted_w = given["flop_energy_j"] * width * voltage * device.peak(dtype)
    return float(min(1.0, (device.power_w / wanted_w) ** (1 / given["power_of_clock"])))


def cached(
    n_bytes: FloatArray, device: Roofline, given: Constants, n_kept: FloatArray | float | None = None
) -> FloatArray:
    """Return the bytes that would take as long from memory alone, when what fits in the last-level cache is there.

    All of it is up to ``cache_whole`` of the cache's size, less and less beyond, and nothing from ``cache_reach``.
    ``n_kept`` bytes are gone through between one use and the next; as many as are read if not given.
    """
    if not device.cache_bytes:
        return n_bytes
    kept = n_bytes if n_kept is None else n_kept
    whole, reach = given["cache_whole"], given["cache_reach"]
    hits = np.clip((reach - kept / device.cache_bytes) / (reach - whole), 0.0, 1.0)
    return np.asarray(n_bytes * (1 - hits * (1 - 1 / given["cache_speedup"])))
