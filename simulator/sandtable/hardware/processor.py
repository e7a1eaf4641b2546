"""Processors: CPUs, and what computes in an accelerator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sandtable.hardware.component import Component, DType, Estimate, Frozen
from sandtable.hardware.fits import Laws, OperatorFits, OpFit
from sandtable.units import Bytes, FlopsPerSecond, Fraction, Hertz, Seconds, Watts


class ProcessorDatasheet(Frozen):
    """Vendor figures of a CPU or an accelerator. Peak rates are dense.

    ``exponentials_per_clock`` is what one core (streaming multiprocessor, compute unit) finishes per clock.
    ``sustained_frac`` is the share of a short product's rate that is left when dense products go on for minutes and
    the power limit holds the clock down; all of it where nothing is known.
    """

    family: Literal["cpu", "gpu", "soc_gpu"]
    cores: int = Field(ge=1)
    clock_hz: Hertz | None = Field(default=None, gt=0)
    peak_flops_per_s: dict[DType, Annotated[FlopsPerSecond, Field(gt=0)]]
    exponentials_per_clock: float | None = Field(default=None, gt=0)
    sustained_frac: Fraction | None = Field(default=None, gt=0, le=1)
    last_level_cache_bytes: Bytes | None = None
    tdp_w: Watts | None = Field(default=None, gt=0)
    idle_w: Watts | None = Field(default=None, ge=0)


class ProcessorFit(Frozen):
    """Measured laws of compute operations: kind (gemv, gemm, sparse_ffn) and dtype -> law.

    ``operators`` are the constants of operators' own laws instead, by operator and software; see `OperatorFit`.
    """

    ops: dict[str, dict[DType, OpFit]] = Field(default_factory=dict)
    operators: OperatorFits = Field(default_factory=dict)
    call_overhead_s: Estimate[Seconds] | None = None


class Processor(Component):
    """A CPU without its memory; an accelerator, which has a memory and links too, is one as well."""

    kind: Literal["processor", "accelerator"]
    datasheet: ProcessorDatasheet
    fitted: ProcessorFit | None = None
    laws: Laws = Field(default_factory=dict)  # where it differs from its family
    like: Processor | None = None  # a sibling whose fitted constants of operators apply until it has its own

    @property
    def family(self) -> str:
        """The family whose file says what laws take as given on it."""
        return self.datasheet.family
