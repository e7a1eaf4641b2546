"""What laws read of a device: the rates, sizes and latencies of its data sheet, and nothing that was fitted.

A `Roofline` is a processor with the memory that it works from, a `LinkSheet` the links between the ranks of a group.
Both are there for a device that nobody measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sandtable.errors import PlanError
from sandtable.hardware.component import DTYPE_ARITHMETIC, DTYPE_BYTES, DTYPE_STAND_INS
from sandtable.hardware.fits import Laws
from sandtable.hardware.link import Link
from sandtable.hardware.memory import Memory
from sandtable.hardware.processor import Processor

# devices that need no hub to reach each other, where a link says nothing of hubs
PAIR = 2


@dataclass(frozen=True, slots=True)
class Roofline:
    """The data sheet of one processor and its memory.

    ``n_units`` are the processors that tiles are spread over (streaming multiprocessors, compute units, cores);
    ``exponentials_per_clock`` is what one of them finishes, None where the device file does not say; ``power_w`` what
    the power limit leaves to work beyond idling, None where no limit is stated.
    """

    name: str
    n_units: int
    peak_flops_per_s: Mapping[str, float]
    bandwidth_bytes_per_s: float
    cache_bytes: float
    clock_hz: float | None = None
    family: str = "gpu"
    exponentials_per_clock: float | None = None
    power_w: float | None = None
    laws: Laws = field(default_factory=dict)

    def given(self, law: str) -> Mapping[str, float]:
        """Return what an operator's law takes as given: this device's own numbers, and those of its family."""
        return _given(self.family, self.laws, law)

    @classmethod
    def of(cls, processor: Processor, memory: Memory) -> Roofline:
        """Read it off a processor and the memory that it works from."""
        datasheet = processor.datasheet
        return cls(
            name=processor.name,
            n_units=datasheet.cores,
            peak_flops_per_s={str(key): value for key, value in datasheet.peak_flops_per_s.items()},
            bandwidth_bytes_per_s=memory.datasheet.bandwidth_bytes_per_s,
            cache_bytes=datasheet.last_level_cache_bytes or 0.0,
            clock_hz=datasheet.clock_hz,
            family=datasheet.family,
            exponentials_per_clock=datasheet.exponentials_per_clock,
            power_w=None if datasheet.tdp_w is None else datasheet.tdp_w - (datasheet.idle_w or 0.0),
            laws=processor.laws,
        )

    def share(self, n: int) -> Roofline:
        """Return what each of ``n`` equal processes has of the device when all of them work at the same time."""
        if n == 1:
            return self
        return replace(
            self,
            n_units=max(1, self.n_units // n),
            peak_flops_per_s={dtype: rate / n for dtype, rate in self.peak_flops_per_s.items()},
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s / n,
            cache_bytes=self.cache_bytes / n,
            power_w=None if self.power_w is None else self.power_w / n,
        )

    def peak(self, dtype: str) -> float:
        """Return the dense rate for ``dtype`` in FLOP/s: that of `arithmetic`.

        Raises:
            PlanError: the device has no arithmetic that holds the type.
        """
        return self.peak_flops_per_s[self.arithmetic(dtype)]

    def arithmetic(self, dtype: str) -> str:
        """Return the element type that a product of ``dtype`` multiplies in on this device; see `arithmetic_of`."""
        return arithmetic_of(self.peak_flops_per_s, dtype, self.name)


@dataclass(frozen=True, slots=True)
class LinkSheet:
    """The data sheets of the links between the ranks of a group: within a machine, and between machines.

    Bandwidths are per device and one way; ``between_bytes_per_s`` is infinite where a group stays in one machine.
    ``peer_bytes_per_s`` bounds what one pair has, ``hub_bytes_per_s`` what each of many has,
    ``between_hubs_bytes_per_s`` what groups that interleave share.
    See `sandtable.hardware.LinkDatasheet` for these, latencies, ``shared`` and ``reduces``.
    """

    within_bytes_per_s: float
    within_latency_s: float
    between_bytes_per_s: float = float("inf")
    between_latency_s: float = 0.0
    peer_bytes_per_s: float = float("inf")
    hub_bytes_per_s: float = float("inf")
    hub_devices: int = PAIR
    between_hubs_bytes_per_s: float = float("inf")
    shared: bool = False
    reduces: bool = False
    laws: Laws = field(default_factory=dict)

    def given(self, law: str) -> Mapping[str, float]:
        """See `Roofline.given`."""
        return _given("link", self.laws, law)

    @classmethod
    def of(
        cls, within: Link, between: Link | None = None, n_devices: float = 1.0, *, paired: bool = False
    ) -> LinkSheet:
        """Read the sheet off the links. ``n_devices`` of a machine share a link that is rated per machine.

        Of ``paired`` devices each has a bridge to one peer, and uses ``within`` one way only in a ring of more.
        """
        inside, ways = within.datasheet, 2 if paired else 1
        hub = inside.hub_bandwidth_bytes_per_s or float("inf")
        sheet = cls(
            within_bytes_per_s=inside.bandwidth_bytes_per_s,
            within_latency_s=inside.latency_s,
            peer_bytes_per_s=inside.peer_bandwidth_bytes_per_s or float("inf"),
            hub_bytes_per_s=ways * hub,
            hub_devices=inside.hub_devices or PAIR,
            between_hubs_bytes_per_s=ways * (inside.between_hubs_bytes_per_s or hub),
            shared=inside.shared,
            reduces=inside.reduces,
            laws={**within.laws, **(between.laws if between else {})},
        )
        if between is None:
            return sheet
        outside = between.datasheet
        shares = n_devices if outside.per == "machine" else 1.0
        return replace(
            sheet,
            between_bytes_per_s=outside.bandwidth_bytes_per_s / shares,
            between_latency_s=outside.latency_s,
        )


def _given(family: str, own: Laws, law: str) -> Mapping[str, float]:
    """Return the settings of a law in the file of a family, with a device's own put over them."""
    # read where it is needed, once; the library builds what is described here
    from sandtable.hardware import library

    shared = library.family(family).laws.get(law)
    return (shared.settings if shared else {}) | (own[law].settings if law in own else {})


def arithmetic_of(peaks: Mapping[str, float], dtype: str, name: str) -> str:
    """Return the element type that a product of ``dtype`` multiplies in on the device ``name`` with these ``peaks``.

    Without units for it, values are widened into the narrowest type that holds all of them, the faster of two: bfloat16
    into float32 on a V100 or T4, never into float16, whose exponents do not reach (PyTorch pull request 148322).

    Raises:
        PlanError: the device has no such type.
    """
    wanted = DTYPE_ARITHMETIC.get(dtype, dtype)
    if wanted in peaks:
        return wanted
    holding = [other for other in DTYPE_STAND_INS.get(dtype, DTYPE_STAND_INS.get(wanted, ())) if other in peaks]
    if not holding:
        raise PlanError(f"{name!r} states no arithmetic rate for {dtype}")
    return min(holding, key=lambda other: (DTYPE_BYTES[other], -peaks[other]))
