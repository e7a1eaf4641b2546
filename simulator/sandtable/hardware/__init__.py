"""What hardware is: frozen pydantic models of components, machines and clusters, with a source per number.

A YAML key is the field's name without its unit suffix, because the value carries the unit: ``capacity: 1 TB`` is
`StorageDatasheet.capacity_bytes`. Every number in ``datasheet``, ``fitted``, ``power`` and ``price`` needs an entry
in ``sources`` for itself or for something above it; ``guess`` is a legal source and is shown wherever it is used.
"""

from __future__ import annotations

from sandtable.hardware.accelerator import Accelerator, Accelerators, plain_name
from sandtable.hardware.component import (
    DTYPE_ARITHMETIC,
    DTYPE_BLOCKS,
    DTYPE_BYTES,
    GUESS,
    Component,
    DType,
    Estimate,
    Evidence,
    Frozen,
    Number,
    Power,
    Price,
    Title,
    number_paths,
    numbers,
    source_of,
)
from sandtable.hardware.fits import Family, Laws, LawSettings, OperatorFit, OperatorFits, OpFit
from sandtable.hardware.link import Link, LinkDatasheet, LinkFit, TransferFit
from sandtable.hardware.machine import Machine, PriceList, PriceRow
from sandtable.hardware.memory import Memory, MemoryDatasheet, MemoryFit
from sandtable.hardware.processor import Processor, ProcessorDatasheet, ProcessorFit
from sandtable.hardware.roofline import LinkSheet, Roofline, arithmetic_of
from sandtable.hardware.stack import OpEfficiency, Stack, StackDatasheet, StackFit
from sandtable.hardware.storage import Storage, StorageDatasheet, StorageFit, StoragePoint, StorageVariant

KINDS: dict[str, type[Component]] = {
    "storage": Storage,
    "memory": Memory,
    "processor": Processor,
    "accelerator": Accelerator,
    "family": Family,
    "link": Link,
    "stack": Stack,
    "machine": Machine,
    "prices": PriceList,
}
FOLDERS = {
    "storage": "storage",
    "memory": "memory",
    "processor": "processors",
    "accelerator": "accelerators",
    "family": "families",
    "link": "links",
    "stack": "stacks",
    "machine": "machines",
    "prices": "prices",
}

__all__ = [
    "DTYPE_ARITHMETIC",
    "DTYPE_BLOCKS",
    "DTYPE_BYTES",
    "FOLDERS",
    "GUESS",
    "KINDS",
    "Accelerator",
    "Accelerators",
    "Component",
    "DType",
    "Estimate",
    "Evidence",
    "Family",
    "Frozen",
    "LawSettings",
    "Laws",
    "Link",
    "LinkDatasheet",
    "LinkFit",
    "LinkSheet",
    "Machine",
    "Memory",
    "MemoryDatasheet",
    "MemoryFit",
    "Number",
    "OpEfficiency",
    "OpFit",
    "OperatorFit",
    "OperatorFits",
    "Power",
    "Price",
    "PriceList",
    "PriceRow",
    "Processor",
    "ProcessorDatasheet",
    "ProcessorFit",
    "Roofline",
    "Stack",
    "StackDatasheet",
    "StackFit",
    "Storage",
    "StorageDatasheet",
    "StorageFit",
    "StoragePoint",
    "StorageVariant",
    "Title",
    "TransferFit",
    "arithmetic_of",
    "number_paths",
    "numbers",
    "plain_name",
    "source_of",
]
