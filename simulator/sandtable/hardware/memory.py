"""Memories: DRAM, high-bandwidth and unified memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sandtable.hardware.component import Component, Frozen
from sandtable.hardware.fits import OpFit
from sandtable.units import Bytes, BytesPerSecond


class MemoryDatasheet(Frozen):
    """Vendor figures of a memory: all channels or stacks together."""

    technology: str
    capacity_bytes: Bytes = Field(gt=0)
    bandwidth_bytes_per_s: BytesPerSecond = Field(gt=0)


class MemoryFit(Frozen):
    """Measured laws of memory operations, by kind of operation: read, copy, gather, insert."""

    ops: dict[str, OpFit]


class Memory(Component):
    """DRAM, high-bandwidth or unified memory."""

    kind: Literal["memory"]
    datasheet: MemoryDatasheet
    fitted: MemoryFit | None = None
