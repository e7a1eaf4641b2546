"""Software stacks: engines and frameworks, what they reach of a data sheet and what they add."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sandtable.hardware.component import Component, Frozen
from sandtable.hardware.fits import OperatorFits
from sandtable.units import Bytes, BytesPerSecond, Fraction, Seconds


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
    per_special_s: Seconds = Field(default=0.0, ge=0)
    traffic: float = Field(default=1.0, gt=0)
    calls: int = Field(default=1, ge=0)
    calls_per_layer: int = Field(default=0, ge=0)
    special: float = Field(default=0.0, ge=0)
    on: Literal["host", "accelerator"] | None = None  # where the software runs it, if not where the plan says


class StackDatasheet(Frozen):
    """Software as part of the device: what each kind of operation reaches, and what the host adds per call."""

    version: str
    efficiency: dict[str, OpEfficiency]  # by operator, or operator.dtype; "default" for the rest
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

    operators: OperatorFits = Field(default_factory=dict)


class Stack(Component):
    """An engine or framework version with its overheads and efficiencies.

    ``software`` names, by operator, whose fitted constants apply, and where a variant or one element type has others,
    by that too: ``{gemm: vllm, gemm.fp8_block: vllm_fp8_block}``; one by role, ``memory_bound.forward.norm``,
    comes first where it was measured. If it says nothing, those under the stack's own name apply, or ``own`` ones, of
    kernels that belong to no software. ``best_case`` says that it stands for the least that
    software has to do (no temporaries, no waiting for the host), which none in use reaches.
    """

    kind: Literal["stack"]
    datasheet: StackDatasheet
    software: dict[str, str] = Field(default_factory=dict)
    best_case: bool = False
    fitted: StackFit | None = None
