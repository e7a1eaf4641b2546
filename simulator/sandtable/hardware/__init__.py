"""What hardware is: frozen pydantic models of components, machines and clusters, with a source per number.

A YAML key is the field's name without its unit suffix, because the value carries the unit: ``capacity: 1 TB`` is
`StorageDatasheet.capacity_bytes`. Every number in ``datasheet``, ``fitted``, ``power`` and ``price`` needs an entry
in ``sources`` for itself or for something above it; ``guess`` is a legal source and is shown wherever it is used.
"""

from __future__ import annotations

from sandtable.hardware.accelerator import Accelerator, Accelerators, plain_name
from sandtable.hardware.component import (
    DTYPE_ARITHMETIC,
    DTYPE_BYTES,
    GUESS,
    Component,
    DType,
    Estimate,
    Evidence,
    Frozen,
    Number,
    OpFit,
    Power,
    Price,
    number_paths,
    numbers,
    source_of,
)
from sandtable.hardware.fits import (
    MOST_CONSTANTS,
    AttentionFit,
    CollectiveFit,
    GemmFit,
    MoeFit,
    OperatorFit,
    OperatorFits,
    StreamFit,
)
from sandtable.hardware.link import Link, LinkDatasheet, LinkFit, TransferFit
from sandtable.hardware.machine import Machine, PriceList, PriceRow
from sandtable.hardware.memory import Memory, MemoryDatasheet, MemoryFit
from sandtable.hardware.processor import Processor, ProcessorDatasheet, ProcessorFit
from sandtable.hardware.stack import OpEfficiency, Stack, StackDatasheet, StackFit
from sandtable.hardware.storage import Storage, StorageDatasheet, StorageFit, StoragePoint, StorageVariant

KINDS: dict[str, type[Component]] = {
    "storage": Storage,
    "memory": Memory,
    "processor": Processor,
    "accelerator": Accelerator,
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
    "link": "links",
    "stack": "stacks",
    "machine": "machines",
    "prices": "prices",
}

__all__ = [
    "DTYPE_ARITHMETIC",
    "DTYPE_BYTES",
    "FOLDERS",
    "GUESS",
    "KINDS",
    "MOST_CONSTANTS",
    "Accelerator",
    "Accelerators",
    "AttentionFit",
    "CollectiveFit",
    "Component",
    "DType",
    "Estimate",
    "Evidence",
    "Frozen",
    "GemmFit",
    "Link",
    "LinkDatasheet",
    "LinkFit",
    "Machine",
    "Memory",
    "MemoryDatasheet",
    "MemoryFit",
    "MoeFit",
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
    "Stack",
    "StackDatasheet",
    "StackFit",
    "Storage",
    "StorageDatasheet",
    "StorageFit",
    "StoragePoint",
    "StorageVariant",
    "StreamFit",
    "TransferFit",
    "number_paths",
    "numbers",
    "plain_name",
    "source_of",
]
