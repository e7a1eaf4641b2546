"""From the names that published files give to accelerators to the library's device files, which hold those names."""

from __future__ import annotations

from functools import lru_cache

from sandtable.calibration.timing import Timing
from sandtable.errors import ConfigError
from sandtable.hardware import Accelerator, Component, Link, LinkSheet, Processor, Roofline, Stack, library
from sandtable.published.adapter import Skipped

NO_DEVICE = Skipped("no device file")
AnySheet = Roofline | LinkSheet


def find(text: str) -> Accelerator | Skipped:
    """Return the accelerator that a published file calls ``text``, or why there is none."""
    return named(text) or NO_DEVICE


@lru_cache(maxsize=512)
def named(text: str) -> Accelerator | None:
    """Return the accelerator that a published file calls ``text``, None if no device file has that name."""
    return library.accelerator_called(text)


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
    """Return the accelerator or link of that name.

    Raises:
        ConfigError: the library has no such accelerator or link.
    """
    for kind in ("accelerator", "link"):
        found = component(kind, name)
        if isinstance(found, Processor | Link):
            return found
    raise ConfigError(f"no accelerator and no link named {name!r}")


def sheet_of(timing: Timing) -> AnySheet:
    """Return the data sheet that a timing's law reads.

    Raises:
        ConfigError: the library lacks the device.
    """
    return _sheet(timing.device, timing.beside)


@lru_cache(maxsize=512)
def _sheet(name: str, beside: str) -> AnySheet:
    device = device_named(name)
    if isinstance(device, Link):
        other = component("link", beside) if beside else None
        if isinstance(other, Link) and device.datasheet.scope == "inter_node":
            return LinkSheet.of(other, device)
        return LinkSheet.of(device, paired=other is not None)
    assert isinstance(device, Accelerator)
    return Roofline.of(device, device.memory)


def forget() -> None:
    """Read device files afresh from now on, after they were written."""
    named.cache_clear()
    component.cache_clear()
    _sheet.cache_clear()
