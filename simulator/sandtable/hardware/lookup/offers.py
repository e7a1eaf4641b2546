"""Machines that can be rented: rows of the price lists, and a machine for each whose accelerator has a device file.

Where the library holds the instance as a machine of its own, that is the machine. Of any other, the price list says
which accelerators it has, how many, and how much memory; the parts of its host, which hardly matter to work on
accelerators, are those of an ordinary server.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sandtable import units
from sandtable.hardware import GUESS, Accelerator, Accelerators, Machine, Power, Price, PriceList, PriceRow

# an ordinary server with accelerators, for what providers do not state
HOST = {"processor": "amd_epyc_7542_2s", "memory": "ddr4_3200_16ch_1024gib", "storage": "samsung_pm9a3_1920gb"}
# of such a host for each accelerator, and of losses over what the accelerators may take
HOST_IDLE_W, HOST_MAX_W, LOSSES = 40.0, 100.0, 1.1
Kind = Literal["on_demand", "spot"]
KINDS: tuple[Kind, ...] = ("on_demand", "spot")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one machine costs an hour: a price of a row, and the accelerator's device file, if there is one."""

    row: PriceRow
    price: Price
    device: str | None
    source: str

    @property
    def machine(self) -> str:
        """A name for the machine: of provider and instance."""
        return name_of(self.row)


def name_of(row: PriceRow) -> str:
    """Return the name of a row's machine: ``hyperstack_a100_80g_pcie_x8``."""
    return re.sub(r"[^a-z0-9]+", "_", f"{row.provider} {row.instance}".lower()).strip("_")


def offers_of(lists: Iterable[PriceList], kind: Kind) -> list[Offer]:
    """Return the offers of one kind: of each instance the latest price, the lowest over regions."""
    found: dict[str, Offer] = {}
    for offer in _all(lists, kind):
        best = found.get(offer.machine)
        if best is None or _rank(offer) < _rank(best):
            found[offer.machine] = offer
    return list(found.values())


def _rank(offer: Offer) -> tuple[int, float]:
    return -offer.price.as_of.toordinal(), offer.price.usd_per_h


def _all(lists: Iterable[PriceList], kind: Kind) -> Iterator[Offer]:
    for prices in lists:
        for row in prices.price:
            usd_per_h = row.spot_usd_per_h if kind == "spot" else row.on_demand_usd_per_h
            if usd_per_h is None:
                continue
            price = Price(
                usd_per_h=usd_per_h,
                kind=kind,
                as_of=row.as_of,
                provider=row.provider,
                instance=row.instance,
                region=row.region,
            )
            device = None if row.accelerator is None else prices.devices.get(row.accelerator)
            yield Offer(row=row, price=price, device=device, source=prices.sources["price"])


def newest(offers: Iterable[Offer]) -> dt.date:
    """Return the day of the latest price."""
    return max((offer.price.as_of for offer in offers), default=dt.date.min)


def machine_data(offer: Offer, device: Accelerator) -> dict[str, Any]:
    """Return an offer's machine as its file would hold it."""
    row, n = offer.row, offer.row.n_accelerators
    idle = n * ((device.datasheet.idle_w or 0.0) + HOST_IDLE_W)
    most = n * ((device.datasheet.tdp_w or 0.0) + HOST_MAX_W) * LOSSES
    return {
        "schema": 1,
        "kind": "machine",
        "name": offer.machine,
        "title": f"{row.provider} {row.instance} ({n} × {device.title})",
        "notes": "The provider does not state the host's parts; those of an ordinary server stand in.",
        **HOST,
        "accelerator": {"device": offer.device, "n": n},
        "power": {"idle": units.write(idle, "W"), "max": units.write(most, "W")},
        "price": price_data(offer.price),
        "sources": {"power": f"{GUESS}: the accelerators' with a share of a host", "price": offer.source},
    }


def price_data(price: Price) -> dict[str, Any]:
    """Return a price as a file holds it."""
    data: Mapping[str, Any] = price.model_dump(exclude={"usd_per_h"}, exclude_none=True, mode="json")
    return {"hour": units.write(price.usd_per_h, "USD/h"), **data}


def machine_like(template: Machine, offer: Offer, device: Accelerator) -> Machine:
    """Return an offer's machine from that of another offer, without reading any file again."""
    data = machine_data(offer, device)
    memory, size = template.memory, offer.row.memory_bytes
    if size is not None and size != memory.datasheet.capacity_bytes:
        sheet = memory.datasheet.model_copy(update={"capacity_bytes": size})
        memory = memory.model_copy(update={"datasheet": sheet})
    changed = {
        "name": offer.machine,
        "title": data["title"],
        "memory": memory,
        "accelerator": Accelerators(device=device, n=offer.row.n_accelerators),
        "power": Power.model_validate(data["power"]),
        "price": offer.price,
        "sources": data["sources"],
    }
    return template.model_copy(update=changed)
