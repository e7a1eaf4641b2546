"""Machines made of components, and price lists."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from sandtable.hardware.accelerator import Accelerators
from sandtable.hardware.component import Component, Frozen, Power, Price, as_date
from sandtable.hardware.link import Link
from sandtable.hardware.memory import Memory
from sandtable.hardware.processor import Processor
from sandtable.hardware.stack import Stack
from sandtable.hardware.storage import Storage
from sandtable.units import Bytes, Seconds, UsdPerHour

if TYPE_CHECKING:
    import pandas as pd


class Machine(Component):
    """Components wired together, with a price and a power model.

    ``probe_s`` is what short probes took while the machine was calibrated, by part and kernel: what they take
    later tells how fast it is then.
    """

    kind: Literal["machine"]
    processor: Processor
    memory: Memory
    storage: Storage
    accelerator: Accelerators | None = None
    process_link: Link | None = None  # between processes on the host, as collectives of CPU ranks use it
    network: Link | None = None  # joins equal machines, where work takes more than one
    stack: Stack | None = None
    power: Power | None = None
    price: Price | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    probe_s: dict[str, Seconds] = Field(default_factory=dict)

    @property
    def group_link(self) -> Link | None:
        """The link between the devices of one machine, or the processes of its host, that work together."""
        if self.accelerator is None:
            return self.process_link
        return self.accelerator.peer_link or self.accelerator.link

    def components(self) -> list[Component]:
        """Return the parts, host first."""
        parts: list[Component] = [self.processor, self.memory, self.storage]
        parts += [] if self.accelerator is None else self.accelerator.components()
        parts += [link for link in (self.process_link, self.network) if link is not None]
        return parts if self.stack is None else [*parts, self.stack]

    def wired(self) -> Machine:
        """Return the machine with an accelerator that shares the host's memory working in this one's, of any size."""
        accelerator = self.accelerator
        if accelerator is None or not accelerator.device.shares_host_memory:
            return self
        device = accelerator.device.model_copy(update={"memory": self.memory})
        return self.model_copy(update={"accelerator": accelerator.model_copy(update={"device": device})})

    def all_guesses(self) -> list[str]:
        """Return ``part: path`` of every guessed number in the machine and its parts."""
        return [f"{part.name}: {path}" for part in (self, *self.components()) for path in part.guesses()]


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
    as_of: Annotated[dt.date, BeforeValidator(as_date)]


class PriceList(Component):
    """Prices of one provider; ``devices`` are the accelerators' device files by the names that its rows use."""

    kind: Literal["prices"]
    devices: dict[str, str] = Field(default_factory=dict)
    price: tuple[PriceRow, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return the list as a pandas frame: a row per instance, dollars and bytes as numbers, days as dates."""
        import pandas as pd

        rows = [{name: getattr(row, name) for name in PriceRow.model_fields} for row in self.price]
        frame = pd.DataFrame(rows, columns=list(PriceRow.model_fields))
        numbers = ("vcpus", "memory_bytes", "on_demand_usd_per_h", "spot_usd_per_h")
        return frame.astype(dict.fromkeys(numbers, "float64") | {"as_of": "datetime64[s]"})
