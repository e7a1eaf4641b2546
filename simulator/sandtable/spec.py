"""What hardware is: frozen pydantic models of components, machines and clusters, with a source per number.

A YAML key is the field's name without its unit suffix, because the value carries the unit: ``capacity: 1 TB`` is
`StorageDatasheet.capacity_bytes`. Every number in ``datasheet``, ``fitted``, ``power`` and ``price`` needs an entry
in ``sources`` for itself or for something above it; ``guess`` is a legal source and is shown wherever it is used.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sandtable import units
from sandtable.units import (
    Bytes,
    BytesPerSecond,
    Flops,
    FlopsPerSecond,
    Fraction,
    Hertz,
    PerSecond,
    Seconds,
    UsdPerHour,
    Watts,
)

GUESS = "guess"
DType = Literal["float32", "tf32", "bfloat16", "float16", "fp8", "int8", "fp4"]
DTYPE_BYTES: dict[str, float] = {
    "float32": 4,
    "tf32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "int8": 1,
    "fp4": 0.5,
}


class Frozen(BaseModel):
    """Base of everything read from or written to files: immutable, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, alias_generator=units.strip_suffix
    )


T = TypeVar("T")


class Estimate(Frozen, Generic[T]):
    """A value with a 90 % interval. In YAML ``{value: 118 us, low: 110 us, high: 126 us}`` or just ``118 us``."""

    value: T
    low: T
    high: T

    @model_validator(mode="before")
    @classmethod
    def _from_scalar(cls, data: Any) -> Any:
        if isinstance(data, str | int | float):
            return {"value": data, "low": data, "high": data}
        if isinstance(data, dict) and "value" in data:
            return {"low": data["value"], "high": data["value"], **data}
        return data

    @model_validator(mode="after")
    def _ordered(self) -> Estimate[T]:
        if not self.low <= self.value <= self.high:  # type: ignore[operator]
            raise ValueError(f"an interval needs low <= value <= high, not {self.low}, {self.value}, {self.high}")
        return self


class Evidence(Frozen):
    """How well a fit is supported: what was measured, when, and how far off the fit was."""

    date: dt.date
    n_points: int = Field(ge=1)
    n_samples: int = Field(ge=1)
    method: str
    median_abs_error_frac: Fraction
    p90_abs_error_frac: Fraction
    held_out_median_abs_error_frac: Fraction | None = None
    # predicted / measured at the 5th and 95th percentile of held-out points and of repeats: the 90 % interval
    residual_low_frac: Fraction = Field(gt=0, le=1)
    residual_high_frac: Fraction = Field(ge=1)
    repeat_spread_frac: Fraction | None = None


def _as_date(value: Any) -> Any:
    return value.isoformat() if isinstance(value, dt.datetime) else value


class Price(Frozen):
    """What an hour costs. ``kind`` is how it was bought; ``as_of`` when the price was seen."""

    usd_per_h: Annotated[UsdPerHour, Field(ge=0, alias="hour")]
    kind: Literal["on_demand", "spot", "reserved", "owned"] = "on_demand"
    as_of: Annotated[dt.date, BeforeValidator(_as_date)]
    provider: str | None = None


class Power(Frozen):
    """Electrical power: ``idle`` always, and up to ``max`` in proportion to how busy the binding resource is."""

    idle_w: Watts = Field(ge=0)
    max_w: Watts = Field(gt=0)


class Component(Frozen):
    """What every device file has: a name, a title for people, and a source for every number."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*(@[a-z0-9_.-]+)?$")
    title: str
    notes: str | None = None
    sources: dict[str, str]

    @model_validator(mode="after")
    def _every_number_has_a_source(self) -> Component:
        for path in number_paths(self):
            if source_of(self, path) is None:
                raise ValueError(
                    f"{path} has no source: add 'sources: {{{path}: <where the number is from>}}', or '{GUESS}'"
                )
        return self

    def guesses(self) -> list[str]:
        """Return the dotted paths of the numbers whose source is a guess."""
        return [path for path in number_paths(self) if str(source_of(self, path)).startswith(GUESS)]


def number_paths(component: Component) -> Iterator[str]:
    """Yield the dotted YAML path of every number in the datasheet, fitted, power and price sections."""
    for section in ("datasheet", "fitted", "variants", "power", "price"):
        value = getattr(component, section, None)
        if value is not None:
            yield from _walk(value, section)


def _walk(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Evidence | Estimate):
        yield path
    elif isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from _walk(getattr(value, name), f"{path}.{field.alias or name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{path}.{key}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}.{index}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def source_of(component: Component, path: str) -> str | None:
    """Return the source of the number at ``path``: its own entry, or the nearest one above it."""
    while path:
        if path in component.sources:
            return component.sources[path]
        path = path.rpartition(".")[0]
    return None


# --- storage -----------------------------------------------------------------------------------------------


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
    # what a provider lets a part of this drive do, scaled up to a whole one, where that is above the drive's own rate
    slice_read_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
    slice_random_read_per_s: PerSecond | None = Field(default=None, gt=0)


class StorageFit(Frozen):
    """Parameters of `sandtable.model.storage.StorageLaw`, fitted on a request-size by concurrency curve."""

    first_byte_s: Estimate[Seconds]
    lane_bytes_per_s: Estimate[BytesPerSecond]
    requests_per_s: Estimate[PerSecond]
    bandwidth_bytes_per_s: Estimate[BytesPerSecond]
    sequential_bytes_per_s: Estimate[BytesPerSecond]
    knee: Estimate[float]
    blend: Estimate[float]
    drain: Estimate[float] = Estimate[float](value=0.0, low=0.0, high=0.0)
    cold_factor: Estimate[float] = Estimate[float](value=1.0, low=1.0, high=1.0)
    random_evidence: Evidence
    sequential_evidence: Evidence | None = None


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

    def select(self, variant: str) -> Storage:
        """Return the device as the offer ``variant`` has it: rates scaled by share of a drive and drives.

        A slice gets its share of what the provider allows per drive, never more than one drive does.

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
        return self.model_copy(
            update={"name": f"{self.name}@{variant}", "datasheet": datasheet, "variants": {}, "fitted": None}
        )


# --- memory, processors ------------------------------------------------------------------------------------


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
    ``calls`` how many framework calls one operation takes on the host.
    """

    bandwidth_frac: Annotated[Fraction | None, Field(default=None, gt=0, le=1, alias="bandwidth_frac")] = None
    bandwidth_bytes_per_s: BytesPerSecond | None = Field(default=None, gt=0)
    rate_frac: Annotated[Fraction | None, Field(default=None, gt=0, le=1, alias="rate_frac")] = None
    overhead_s: Seconds = Field(default=0.0, ge=0)
    per_item_s: Seconds = Field(default=0.0, ge=0)
    traffic: float = Field(default=1.0, gt=0)
    calls: int = Field(default=1, ge=0)
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
    """Vendor figures of a CPU or an accelerator. Peak rates are dense."""

    family: Literal["cpu", "gpu", "soc_gpu"]
    cores: int = Field(ge=1)
    clock_hz: Hertz | None = Field(default=None, gt=0)
    peak_flops_per_s: dict[DType, FlopsPerSecond]
    last_level_cache_bytes: Bytes | None = None
    tdp_w: Watts | None = Field(default=None, gt=0)
    idle_w: Watts | None = Field(default=None, ge=0)


class ProcessorFit(Frozen):
    """Measured laws of compute operations: kind (gemv, gemm, sparse_ffn) and dtype -> law."""

    ops: dict[str, dict[DType, OpFit]]
    call_overhead_s: Estimate[Seconds] | None = None


class Processor(Component):
    """A CPU or an accelerator without its memory."""

    kind: Literal["processor"]
    datasheet: ProcessorDatasheet
    fitted: ProcessorFit | None = None


# --- links -------------------------------------------------------------------------------------------------


class LinkDatasheet(Frozen):
    """Vendor figures of an interconnect, one way, per device."""

    scope: Literal["host", "intra_node", "inter_node"]
    bandwidth_bytes_per_s: BytesPerSecond = Field(gt=0)
    latency_s: Seconds = Field(ge=0)


class LinkFit(Frozen):
    """Measured transfer law."""

    bandwidth_bytes_per_s: Estimate[BytesPerSecond]
    latency_s: Estimate[Seconds]
    evidence: Evidence


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
    # predicted / measured at the ends of the 90 % interval, for devices that were not calibrated
    residual_low_frac: Annotated[Fraction, Field(gt=0, le=1, alias="residual_low")]
    residual_high_frac: Annotated[Fraction, Field(ge=1, alias="residual_high")]


class Stack(Component):
    """An engine or framework version with its overheads and efficiencies."""

    kind: Literal["stack"]
    datasheet: StackDatasheet


# --- machines ----------------------------------------------------------------------------------------------


class Accelerator(Frozen):
    """One or more equal accelerators, each with its own memory, behind a host link."""

    processor: Processor
    memory: Memory
    link: Link
    n: int = Field(default=1, ge=1)
    peer_link: Link | None = None


class Machine(Component):
    """Components wired together, with a price and a power model."""

    kind: Literal["machine"]
    processor: Processor
    memory: Memory
    storage: Storage
    accelerator: Accelerator | None = None
    stack: Stack | None = None
    power: Power | None = None
    price: Price | None = None
    environment: dict[str, str] = Field(default_factory=dict)

    def components(self) -> list[Component]:
        """Return the parts, host first."""
        parts: list[Component] = [self.processor, self.memory, self.storage]
        if self.accelerator is not None:
            parts += [self.accelerator.processor, self.accelerator.memory, self.accelerator.link]
            if self.accelerator.peer_link is not None:
                parts.append(self.accelerator.peer_link)
        return parts if self.stack is None else [*parts, self.stack]

    def all_guesses(self) -> list[str]:
        """Return ``part: path`` of every guessed number in the machine and its parts."""
        return [f"{part.name}: {path}" for part in (self, *self.components()) for path in part.guesses()]


class Cluster(Component):
    """Equal machines on one network."""

    kind: Literal["cluster"]
    machine: Machine
    n_machines: int = Field(ge=1)
    network: Link


class PriceRow(Frozen):
    """One line of a price list."""

    provider: str
    instance: str
    accelerator: str | None = None
    n_accelerators: Annotated[int, Field(default=0, ge=0, alias="accelerators")] = 0
    vcpus: int | None = None
    memory_bytes: Bytes | None = None
    region: str | None = None
    on_demand_usd_per_h: UsdPerHour | None = None
    spot_usd_per_h: UsdPerHour | None = None
    as_of: Annotated[dt.date, BeforeValidator(_as_date)]


class PriceList(Component):
    """Prices of one provider."""

    kind: Literal["prices"]
    price: tuple[PriceRow, ...]


AnyComponent = Annotated[
    Storage | Memory | Processor | Link | Stack | Machine | Cluster | PriceList, Field(discriminator="kind")
]
KINDS: dict[str, type[Component]] = {
    "storage": Storage,
    "memory": Memory,
    "processor": Processor,
    "link": Link,
    "stack": Stack,
    "machine": Machine,
    "cluster": Cluster,
    "prices": PriceList,
}
FOLDERS = {
    "storage": "storage",
    "memory": "memory",
    "processor": "processors",
    "link": "links",
    "stack": "stacks",
    "machine": "machines",
    "cluster": "machines",
    "prices": "prices",
}

__all__ = [
    "DTYPE_BYTES",
    "FOLDERS",
    "GUESS",
    "KINDS",
    "Accelerator",
    "AnyComponent",
    "Cluster",
    "Component",
    "DType",
    "Estimate",
    "Evidence",
    "Flops",
    "Frozen",
    "Link",
    "LinkDatasheet",
    "LinkFit",
    "Machine",
    "Memory",
    "MemoryDatasheet",
    "MemoryFit",
    "OpEfficiency",
    "OpFit",
    "Power",
    "Price",
    "PriceList",
    "PriceRow",
    "Processor",
    "ProcessorDatasheet",
    "ProcessorFit",
    "Stack",
    "StackDatasheet",
    "Storage",
    "StorageDatasheet",
    "StorageFit",
    "StoragePoint",
    "StorageVariant",
]
