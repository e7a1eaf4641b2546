"""Memories, processors, links and software stacks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sandtable.hardware.component import Component, DType, Estimate, Evidence, Frozen
from sandtable.hardware.fits import OperatorFits
from sandtable.units import Bytes, BytesPerSecond, FlopsPerSecond, Fraction, Hertz, Seconds, Watts


class OpFit(Frozen):
    """Law of one kind of operation: ``t = overhead + items * per_item + max(bytes / bandwidth, flops / rate)``.

    With ``serial`` the two are added instead: the operation first moves its data, then computes.
    """

    overhead_s: Estimate[Seconds]
    per_item_s: Estimate[Seconds] = Estimate[float](value=0.0, low=0.0, high=0.0)
    bandwidth_bytes_per_s: Estimate[BytesPerSecond] | None = None
    rate_flops_per_s: Estimate[FlopsPerSecond] | None = None
    serial: bool = False
    evidence: Evidence

    @model_validator(mode="after")
    def _bound(self) -> OpFit:
        if self.bandwidth_bytes_per_s is None and self.rate_flops_per_s is None:
            raise ValueError("an operation's fit needs 'bandwidth', 'rate', or both")
        return self


class OpEfficiency(Frozen):
    """What software reaches on one kind of operation: a share of the data sheet, or a rate of its own.

    ``traffic`` is how many times the software moves each byte of the demand (temporaries, staging copies);
    ``calls`` how many framework calls one operation takes on the host, ``calls_per_layer`` how many more for each layer
    of a model, where one operation is for all of them. ``special`` counts, per element of the demand,
    what takes a core longer than moving it: exponentials, logarithms, complex products.
    """

    bandwidth_frac: Annotated[Fraction | None, Field(default=None, gt=0, le=1, alias="bandwidth_frac")] = None
    bandwidth_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
    rate_frac: Annotated[Fraction | None, Field(default=None, gt=0, le=1, alias="rate_frac")] = None
    overhead_s: Seconds = Field(default=0.0, ge=0)
    per_item_s: Seconds = Field(default=0.0, ge=0)
    traffic: float = Field(default=1.0, gt=0)
    calls: int = Field(default=1, ge=0)
    calls_per_layer: int = Field(default=0, ge=0)
    special: float = Field(default=0.0, ge=0)
    on: Literal["host", "accelerator"] | None = None  # where the software runs it, if not where the plan says


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


class ProcessorDatasheet(Frozen):
    """Vendor figures of a CPU or an accelerator. Peak rates are dense.

    ``exponentials_per_clock`` is what one core (streaming multiprocessor, compute unit) finishes per clock.
    ``sustained_frac`` is the share of a short product's rate that is left when dense products go on for minutes and
    the power limit holds the clock down; all of it where nothing is known.
    """

    family: Literal["cpu", "gpu", "soc_gpu"]
    cores: int = Field(ge=1)
    clock_hz: Hertz | None = Field(default=None, gt=0)
    peak_flops_per_s: dict[DType, FlopsPerSecond]
    exponentials_per_clock: float | None = Field(default=None, gt=0)
    sustained_frac: Fraction | None = Field(default=None, gt=0, le=1)
    last_level_cache_bytes: Bytes | None = None
    tdp_w: Watts | None = Field(default=None, gt=0)
    idle_w: Watts | None = Field(default=None, ge=0)


class ProcessorFit(Frozen):
    """Measured laws of compute operations: kind (gemv, gemm, sparse_ffn) and dtype -> law.

    ``operators`` are the constants of shape-aware laws instead, by kind and software; see `OperatorFits`.
    """

    ops: dict[str, dict[DType, OpFit]] = Field(default_factory=dict)
    operators: OperatorFits = OperatorFits()
    call_overhead_s: Estimate[Seconds] | None = None


class Processor(Component):
    """A CPU or an accelerator without its memory."""

    kind: Literal["processor"]
    datasheet: ProcessorDatasheet
    fitted: ProcessorFit | None = None
    like: Processor | None = None  # a sibling whose fitted constants of operators apply until it has its own


# --- links -------------------------------------------------------------------------------------------------


class LinkDatasheet(Frozen):
    """Vendor figures of an interconnect, one way, per device.

    With ``per: machine`` the figures are those of one machine, whose devices share them. ``peer_bandwidth_bytes_per_s``
    is what one pair of devices has at most, where all are joined to all without a switch. ``shared`` links meet in hubs
    of the host (PCIe); a switch that ``reduces`` adds up what passes through it (NVLink SHARP).
    """

    scope: Literal["host", "intra_node", "inter_node"]
    bandwidth_bytes_per_s: BytesPerSecond = Field(gt=0)
    latency_s: Seconds = Field(ge=0)
    peer_bandwidth_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
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
    operators: OperatorFits = OperatorFits()


class Link(Component):
    """An interconnect: PCIe, NVLink, InfiniBand, Ethernet, EFA."""

    kind: Literal["link"]
    datasheet: LinkDatasheet
    fitted: LinkFit | None = None


# --- software ----------------------------------------------------------------------------------------------


class StackDatasheet(Frozen):
    """Software as part of the device: what each kind of operation reaches, and what the host adds per call."""

    version: str
    efficiency: dict[str, OpEfficiency]  # by op kind, or kind.dtype; "default" for the rest
    host_call_s: Seconds = Field(default=0.0, ge=0)  # host time of one framework call
    overlaps_host: bool = False  # the host queues ahead, so a step costs max(host, device)
    dynamic_shape_s: Seconds = Field(default=0.0, ge=0)  # extra per op whose shape changes from step to step
    # once per run: loading kernels and growing buffers in the first step, and several ranks finding each other, for
    # each doubling of the ranks of one machine
    first_step_s: Seconds = Field(default=0.0, ge=0)
    connect_s: Seconds = Field(default=0.0, ge=0)
    # what the software keeps of each element for the backward pass, by composite, where it is not the least possible
    saved_bytes: dict[str, Bytes] = Field(default_factory=dict)
    # memory that the software takes for itself on each accelerator: its context, and what its allocator cannot use
    reserved_bytes: Bytes = Field(default=0.0, ge=0)
    # share of the memory that its allocator takes but cannot give out, the gaps between tensors of different sizes
    fragmented_frac: Fraction = Field(default=0.0, ge=0, lt=1)
    # predicted / measured at the ends of the 90 % interval, for devices that were not calibrated
    residual_low_frac: Annotated[Fraction, Field(gt=0, le=1, alias="residual_low")]
    residual_high_frac: Annotated[Fraction, Field(ge=1, alias="residual_high")]


class StackFit(Frozen):
    """Constants pooled from the devices that this software was measured on, for a device that was not."""

    operators: OperatorFits = OperatorFits()


class Stack(Component):
    """An engine or framework version with its overheads and efficiencies.

    ``software`` names, by kind of operator, whose fitted constants apply, and where one element type has others, by
    that too: ``{gemm: vllm, gemm.fp8_block: vllm_fp8_block}``; the stack's own name if it says nothing.
    """

    kind: Literal["stack"]
    datasheet: StackDatasheet
    software: dict[str, str] = Field(default_factory=dict)
    fitted: StackFit | None = None
