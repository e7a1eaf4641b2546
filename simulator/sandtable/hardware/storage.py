"""Storage devices: flash, disk, network volumes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sandtable.hardware.component import Component, Estimate, Evidence, Frozen, Power, Price
from sandtable.units import Bytes, BytesPerSecond, PerSecond, Seconds


class StorageDatasheet(Frozen):
    """Vendor or provider figures of a storage device, for the whole device."""

    interface: str
    capacity_bytes: Bytes = Field(gt=0)
    sequential_read_bytes_per_s: BytesPerSecond = Field(gt=0)
    sequential_write_bytes_per_s: BytesPerSecond | None = None
    random_read_per_s: PerSecond | None = Field(default=None, gt=0)  # 4 KiB, saturated
    read_latency_s: Seconds | None = Field(default=None, gt=0)  # 4 KiB, one request in flight
    queue_depth: int | None = Field(default=None, ge=1)  # requests the device serves at once
    alignment_bytes: Bytes = 4096.0
    new_file_s: Estimate[Seconds] | None = None  # a small file made, synced and named, its folder synced
    # what a provider lets a part of this drive do, scaled up to a whole one, where that is above the drive's own rate
    slice_read_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
    slice_random_read_per_s: PerSecond | None = Field(default=None, gt=0)


class StorageFit(Frozen):
    """Parameters of `sandtable.model.laws.storage_law.StorageLaw`, fitted on a request-size by concurrency curve."""

    first_byte_s: Estimate[Seconds]
    lane_bytes_per_s: Estimate[BytesPerSecond]
    requests_per_s: Estimate[PerSecond]
    bandwidth_bytes_per_s: Estimate[BytesPerSecond]
    sequential_bytes_per_s: Estimate[BytesPerSecond]
    knee: Estimate[float]
    blend: Estimate[float]
    drain: Estimate[float] = Estimate[float](value=0.0, low=0.0, high=0.0)
    cold_factor: Estimate[float] = Estimate[float](value=1.0, low=1.0, high=1.0)
    new_file_s: Estimate[Seconds] | None = None
    random_evidence: Evidence
    sequential_evidence: Evidence | None = None

    def scaled(self, fitted_to: StorageDatasheet, other: StorageDatasheet) -> StorageFit:
        """Return the fit of another size of the device ``fitted_to``: rates in proportion, times as they are.

        A lone request goes as fast as before, unless the whole offer is slower.
        """
        of_bytes = other.sequential_read_bytes_per_s / fitted_to.sequential_read_bytes_per_s
        of_requests = (
            of_bytes
            if other.random_read_per_s is None or fitted_to.random_read_per_s is None
            else other.random_read_per_s / fitted_to.random_read_per_s
        )
        slowed = min(1.0, of_bytes * self.bandwidth_bytes_per_s.value / self.lane_bytes_per_s.value)
        return self.model_copy(
            update={
                "lane_bytes_per_s": _times(self.lane_bytes_per_s, slowed),
                "requests_per_s": _times(self.requests_per_s, of_requests),
                "bandwidth_bytes_per_s": _times(self.bandwidth_bytes_per_s, of_bytes),
                "sequential_bytes_per_s": _times(self.sequential_bytes_per_s, of_bytes),
            }
        )


def _times(estimate: Estimate[float], factor: float) -> Estimate[float]:
    return Estimate[float](value=factor * estimate.value, low=factor * estimate.low, high=factor * estimate.high)


class StoragePoint(Frozen):
    """One measured point of a storage curve, kept beside the fit that it supports."""

    access: Literal["random", "sequential"]
    chunk_bytes: Bytes
    concurrency: int = Field(ge=1)
    read_bytes_per_s: BytesPerSecond = Field(gt=0)


class StorageVariant(Frozen):
    """How much of the device one offer holds: ``capacity`` of each of ``drives`` drives.

    A provider that sells part of a drive caps its rates in proportion; `Storage.select` applies that. Where the
    provider publishes the rates of the whole offer instead, they stand here and replace the proportion.
    """

    capacity_bytes: Bytes = Field(gt=0)
    n_drives: Annotated[int, Field(default=1, ge=1, alias="drives")] = 1
    sequential_read_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
    sequential_write_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
    random_read_per_s: PerSecond | None = Field(default=None, gt=0)


class Storage(Component):
    """A storage device: flash, disk, or a network volume. Its datasheet and fit describe one whole drive."""

    kind: Literal["storage"]
    datasheet: StorageDatasheet
    fitted: StorageFit | None = None
    measurements: tuple[StoragePoint, ...] = ()
    variants: dict[str, StorageVariant] = Field(default_factory=dict)
    like: Storage | None = None  # a fitted device whose shape fills what the data sheet leaves open
    power: Power | None = None
    price: Price | None = None

    @property
    def new_file(self) -> Estimate[Seconds]:
        """What making a small file takes: as measured, as the data sheet has it, or as on a generic drive."""
        if self.fitted is not None and self.fitted.new_file_s is not None:
            return self.fitted.new_file_s
        # read where it is needed; the library builds what is described here
        from sandtable.hardware import library

        stated = self.datasheet.new_file_s or library.generic_storage().datasheet.new_file_s
        assert stated is not None
        return stated

    def select(self, variant: str) -> Storage:
        """Return the device as the offer ``variant`` has it: rates scaled by share of a drive and drives.

        A slice gets its share of what the provider allows per drive, never more than one drive does. What was fitted to
        the whole drive holds for the offer in the same proportion.

        Raises:
            KeyError: no such variant.
        """
        offer = self.variants[variant]
        whole = self.datasheet
        share = min(1.0, offer.capacity_bytes / whole.capacity_bytes)

        def rate(drive: float | None, allowed: float | None = None) -> float | None:
            return None if drive is None else offer.n_drives * min(drive, share * (allowed or drive))

        datasheet = whole.model_copy(
            update={
                "capacity_bytes": offer.capacity_bytes * offer.n_drives,
                "sequential_read_bytes_per_s": offer.sequential_read_bytes_per_s
                or rate(whole.sequential_read_bytes_per_s, whole.slice_read_bytes_per_s),
                "sequential_write_bytes_per_s": offer.sequential_write_bytes_per_s
                or rate(whole.sequential_write_bytes_per_s),
                "random_read_per_s": offer.random_read_per_s
                or rate(whole.random_read_per_s, whole.slice_random_read_per_s),
                "slice_read_bytes_per_s": None,
                "slice_random_read_per_s": None,
            }
        )
        changes = {"name": f"{self.name}@{variant}", "datasheet": datasheet, "variants": {}}
        if self.fitted is None:
            return self.model_copy(update=changes)
        sources = self.sources | {
            "fitted": "derived: the fit of the whole drive, its rates as the data sheets' rates"
        }
        return self.model_copy(
            update=changes | {"fitted": self.fitted.scaled(whole, datasheet), "sources": sources}
        )
