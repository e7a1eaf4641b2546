"""Accelerators: processor, memory and links of a card or chip together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sandtable.hardware.component import Component, Frozen
from sandtable.hardware.link import Link
from sandtable.hardware.memory import Memory
from sandtable.hardware.processor import Processor

_VENDORS = ("nvidia_", "amd_", "intel_")


class Accelerator(Processor):
    """A processor with a memory and links of its own: a card, a module, or the GPU of a system on a chip.

    ``memory`` stands in the accelerator's file; a GPU that shares the host's names that memory's file instead.
    ``link`` leads to the host, ``peer_link`` to its equals in the same machine, which otherwise meet over ``link``.
    ``published_as`` are the names that published files and drivers give it. ``variant_of`` names the accelerator of
    which this is one with another memory: what this file leaves out, constants too, is as in that one.
    """

    kind: Literal["accelerator"]  # pyright: ignore[reportIncompatibleVariableOverride]
    published_as: tuple[str, ...] = ()
    variant_of: str | None = None
    memory: Memory
    link: Link
    peer_link: Link | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_the_memory(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("memory"), Mapping):
            return data
        named = {
            "kind": "memory",
            "name": f"{data.get('name')}_memory",
            "title": f"{data.get('title')}, its memory",
        }
        return {**data, "memory": named | dict(data["memory"])}

    @property
    def shares_host_memory(self) -> bool:
        """Whether it has no memory but the host's."""
        return self.datasheet.family == "soc_gpu"

    def components(self) -> list[Component]:
        """Return its parts with numbers of their own: memory and links."""
        return [self.memory, self.link, *([] if self.peer_link is None else [self.peer_link])]


class Accelerators(Frozen):
    """The equal accelerators of one machine. A link that stands here replaces the one that the device's file names."""

    device: Accelerator
    n: int = Field(default=1, ge=1)
    own_link: Link | None = Field(default=None, alias="link")
    own_peer_link: Link | None = Field(default=None, alias="peer_link")

    @property
    def processor(self) -> Processor:
        """What computes in each."""
        return self.device

    @property
    def memory(self) -> Memory:
        """The memory of each."""
        return self.device.memory

    @property
    def link(self) -> Link:
        """The link between the host and each."""
        return self.own_link or self.device.link

    @property
    def peer_link(self) -> Link | None:
        """The link among them; None where they meet over `link`, and for one alone."""
        return self.own_peer_link or (self.device.peer_link if self.n > 1 else None)

    def components(self) -> list[Component]:
        """Return the parts of each."""
        return [self.device, self.memory, self.link, *([] if self.peer_link is None else [self.peer_link])]


def plain_name(text: str) -> str:
    """Return a published name in the form in which two are compared: without vendor, case and punctuation."""
    key = re.sub(r"[^a-z0-9]", "_", text.strip().lower())
    for vendor in _VENDORS:
        key = key.removeprefix(vendor)
    return key
