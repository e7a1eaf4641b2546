"""From the names that published files give to machines to the library's device files.

One short table for all adapters. Which memory and which link to its equals an accelerator has is not said by the
files, and follows from the product's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sandtable.calibration.fit.operator_fit import OperatorPoint
from sandtable.errors import ConfigError
from sandtable.hardware import Component, Link, Memory, Processor, Stack, library
from sandtable.model.law import LinkSheet, Sheet
from sandtable.published.adapter import Skipped

NO_DEVICE = Skipped("no device file")
AnySheet = Sheet | LinkSheet


@dataclass(frozen=True, slots=True)
class System:
    """Names of files: an accelerator, its memory, and the link between accelerators of one machine."""

    processor: str
    memory: str
    link: str = ""


# keys are lower case, with "_" for whatever is not a letter or a digit, and without the vendor's name
SYSTEMS: dict[str, System] = {
    "a100_sxm": System("nvidia_a100_sxm", "hbm2e_a100_80gib", "nvlink3"),
    "a100_pcie": System("nvidia_a100_pcie", "hbm2e_a100_pcie_80gib", "pcie4_x16"),
    "h100_sxm": System("nvidia_h100_sxm", "hbm3_h100_80gib", "nvlink4"),
    "h100_pcie": System("nvidia_h100_pcie", "hbm2e_h100_pcie_80gib", "pcie5_x16"),
    "h200_sxm": System("nvidia_h200_sxm", "hbm3e_h200_141gib", "nvlink4"),
    "h800": System("nvidia_h800", "hbm3_h100_80gib", "nvlink4_h800"),
    "h20": System("nvidia_h20", "hbm3_h20_96gib", "nvlink4"),
    "gh200": System("nvidia_gh200", "hbm3_gh200_96gb", "nvlink4"),
    "b200_sxm": System("nvidia_b200_sxm", "hbm3e_b200_180gib", "nvlink5"),
    "b300_sxm": System("nvidia_b300_sxm", "hbm3e_b300_288gb", "nvlink5"),
    "gb200": System("nvidia_gb200", "hbm3e_gb200_186gib", "nvlink5_nvl72"),
    "gb300": System("nvidia_gb300", "hbm3e_gb300_298gb", "nvlink5_nvl72"),
    "a40": System("nvidia_a40", "gddr6_a40_48gib", "pcie4_x16"),
    "l4": System("nvidia_l4", "gddr6_l4_24gib", "pcie4_x16"),
    "l40s": System("nvidia_l40s", "gddr6_l40s_48gb", "pcie4_x16"),
    "rtx_4090": System("nvidia_rtx_4090", "gddr6x_rtx_4090_24gib", "pcie4_x16"),
    "rtx_5090": System("nvidia_rtx_5090", "gddr7_rtx_5090_32gib", "pcie5_x16"),
    "rtx_pro_6000": System("nvidia_rtx_pro_6000", "gddr7_rtx_pro_6000_96gib", "pcie5_x16"),
    "b60": System("intel_arc_pro_b60", "gddr6_arc_pro_b60_24gib", "pcie5_x8"),
    "mi300x": System("amd_mi300x", "hbm3_mi300x_192gib", "infinity_fabric_mi300x"),
    "mi325x": System("amd_mi325x", "hbm3e_mi325x_256gib", "infinity_fabric_mi300x"),
    "mi355x": System("amd_mi355x", "hbm3e_mi355x_288gib", "infinity_fabric_mi355x"),
    "gaudi_3": System("intel_gaudi3", "hbm2e_gaudi3_128gib"),
}
_ALIASES: dict[str, str] = {
    "a100": "a100_sxm",
    "h100": "h100_sxm",
    "a100_dgx": "a100_sxm",
    "h100_dgx": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "b300": "b300_sxm",
    "rtx_pro_6000_server": "rtx_pro_6000",
    "rtxpro6000": "rtx_pro_6000",
    "rtx4090": "rtx_4090",
    "rtx5090": "rtx_5090",
    "gaudi3": "gaudi_3",
}
_VENDORS = ("nvidia_", "amd_", "intel_")


def find(text: str) -> System | Skipped:
    """Return the system that a published file calls ``text``, or why there is none."""
    system = named(text)
    if system is None or component("processor", system.processor) is None:
        return NO_DEVICE
    if component("memory", system.memory) is None:
        return NO_DEVICE
    return system


def named(text: str) -> System | None:
    """Return the system that a published file calls ``text``, whether or not there are device files of it."""
    key = "".join(letter if letter.isalnum() else "_" for letter in text.strip().lower())
    for vendor in _VENDORS:
        key = key.removeprefix(vendor)
    return SYSTEMS.get(_ALIASES.get(key, key))


@lru_cache(maxsize=512)
def component(kind: str, name: str) -> Component | None:
    """Return the library's device of that kind and name, None if there is no such file."""
    path = library.device_files(kind).get(name)
    return None if path is None else library.load_file(path, kind)


def stack_of(software: str) -> Stack | None:
    """Return the stack file that holds the constants pooled for ``software``, None if there is none."""
    found = component("stack", software)
    return found if isinstance(found, Stack) else None


def device_named(name: str) -> Processor | Link:
    """Return the processor or link of that name.

    Raises:
        ConfigError: the library has no such processor or link.
    """
    for kind in ("processor", "link"):
        found = component(kind, name)
        if isinstance(found, Processor | Link):
            return found
    raise ConfigError(f"no processor and no link named {name!r}")


def sheet_of(point: OperatorPoint) -> AnySheet:
    """Return the data sheet that a point's law reads.

    Raises:
        ConfigError: the library lacks the device, or the memory or link beside it.
    """
    return _sheet(point.device, point.beside)


@lru_cache(maxsize=512)
def _sheet(name: str, beside: str) -> AnySheet:
    device = device_named(name)
    if isinstance(device, Link):
        within = component("link", beside) if beside else None
        return LinkSheet.of(within, device) if isinstance(within, Link) else LinkSheet.of(device)
    beside = beside or next((system.memory for system in SYSTEMS.values() if system.processor == name), "")
    memory = component("memory", beside)
    if not isinstance(memory, Memory):
        raise ConfigError(f"no memory named {beside!r}, which {name!r} works from")
    return Sheet.of(device, memory)


def forget() -> None:
    """Read device files afresh from now on, after they were written."""
    component.cache_clear()
    _sheet.cache_clear()
