"""Links: between host and accelerators, among accelerators, and between machines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sandtable.hardware.component import Component, Estimate, Evidence, Frozen
from sandtable.hardware.fits import Laws, OperatorFits
from sandtable.units import BytesPerSecond, Seconds


class LinkDatasheet(Frozen):
    """Vendor figures of an interconnect, one way, per device.

    With ``per: machine`` the figures are those of one machine, whose devices share them.
    ``peer_bandwidth_bytes_per_s`` is what one pair of devices has at most, where all are joined to all without a
    switch. ``shared`` links meet in hubs of the host (PCIe), through which each of more than ``hub_devices`` gets
    ``hub_bandwidth_bytes_per_s`` each way when all exchange at once, and ``between_hubs_bytes_per_s`` all groups
    together that interleave over them. A switch that ``reduces`` adds up what passes through it (NVLink SHARP).
    ``latency_s`` is that of reading a word of a peer, there and back, within a machine, and one way between machines.
    """

    scope: Literal["host", "intra_node", "inter_node"]
    bandwidth_bytes_per_s: BytesPerSecond = Field(gt=0)
    latency_s: Seconds = Field(ge=0)
    peer_bandwidth_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
    hub_bandwidth_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
    hub_devices: int | None = Field(default=None, ge=1)
    between_hubs_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
    per: Literal["device", "machine"] = "device"
    shared: bool = False
    reduces: bool = False


class TransferFit(Frozen):
    """Measured law of plain copies over a link: ``t = latency + bytes / bandwidth``."""

    bandwidth_bytes_per_s: Estimate[BytesPerSecond]
    latency_s: Estimate[Seconds]
    evidence: Evidence


class LinkFit(Frozen):
    """What was measured of a link: copies, from pinned memory and from pageable one, and collectives by library."""

    transfer: TransferFit | None = None
    pageable: TransferFit | None = None
    operators: OperatorFits = Field(default_factory=dict)


class Link(Component):
    """An interconnect: PCIe, NVLink, InfiniBand, Ethernet, EFA."""

    kind: Literal["link"]
    datasheet: LinkDatasheet
    fitted: LinkFit | None = None
    laws: Laws = Field(default_factory=dict)  # where it differs from other links

    @property
    def family(self) -> str:
        """The family of all links."""
        return "link"
