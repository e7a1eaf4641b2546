"""What can be rented: machines of the library with a price, and the offers of all price lists."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sandtable import yaml_files
from sandtable.errors import ConfigError
from sandtable.hardware import Accelerator, Machine, Price, library
from sandtable.hardware.component import as_date
from sandtable.hardware.lookup import offers
from sandtable.hardware.lookup.offers import Offer

# prices that are older than the latest by more than this say little of what has to be paid now
OLD = dt.timedelta(days=2 * 365)


@dataclass(slots=True, kw_only=True)
class Market:
    """Machines at their lowest price of one kind, and how many were left out for which reason.

    ``spot`` are the spot prices, by provider and instance, of what ``machines`` cost on demand.
    """

    machines: list[Machine] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    spot: Mapping[tuple[str | None, str | None], Price] = field(default_factory=dict)


def market(stack: str | None, *, spot: bool = False, owned: bool = False, since: dt.date | None = None) -> Market:
    """Return all that can be rented, with the software that a scenario names.

    Args:
        stack: Name or path of the software; none for each machine's own.
        spot: Take spot prices in place of those on demand.
        owned: Take machines as well whose price is what owning them comes to.
        since: Leave out older prices; without it those two years older than the latest.

    Raises:
        ConfigError: a device file or price list that cannot be read.
    """
    found = Market()
    lists = library.price_lists()
    listed = offers.offers_of(lists, "spot" if spot else "on_demand")
    by_instance = {(offer.row.provider, offer.row.instance): offer for offer in listed}
    since = since or offers.newest(listed) - OLD
    software = {} if stack is None else {"stack": stack}
    for machine in _of_the_library(found, software, owned=owned):
        price = _price(machine, by_instance.pop(_instance(machine), None), spot=spot)
        if price is None:
            found.left_out["without a spot price"] += 1
        elif price.as_of < since:
            found.left_out[f"priced before {since} (--since takes them)"] += 1
        else:
            found.machines.append(machine.model_copy(update={"price": price}))
    _add_offers(found, by_instance.values(), software, since)
    if not spot:
        found.spot = {(o.row.provider, o.row.instance): o.price for o in offers.offers_of(lists, "spot")}
    return found


def _of_the_library(found: Market, software: dict[str, Any], *, owned: bool) -> Iterator[Machine]:
    """Yield the machines with a price; what they cost stands at the top of their files, and is read first."""
    for name, path in sorted(library.device_files("machine").items()):
        price = yaml_files.read_key(path, "price")
        if price is None:
            found.left_out["without a price"] += 1
        elif price.get("kind") == "owned" and not owned:
            found.left_out["owned, not rented (--owned takes them)"] += 1
        else:
            yield library.load_machine(name if path.parent.name == "machines" else str(path), software)


def _instance(machine: Machine) -> tuple[str, str]:
    price = machine.price
    return ("", "") if price is None else (price.provider or "", price.instance or "")


def _price(machine: Machine, offer: Offer | None, *, spot: bool) -> Price | None:
    """Return what a machine costs: by the price list of its instance, or, on demand, as its file says."""
    if offer is not None:
        return offer.price
    return None if spot and (machine.price is None or machine.price.kind != "owned") else machine.price


def _add_offers(found: Market, listed: Any, software: dict[str, Any], since: dt.date) -> None:
    """Add the machines of offers that the library does not hold."""
    devices: dict[str, Accelerator] = {}
    template: Machine | None = None
    for offer in listed:
        if offer.row.accelerator is None:
            continue
        if offer.price.as_of < since:
            found.left_out[f"priced before {since} (--since takes them)"] += 1
        elif offer.device is None:
            found.left_out[f"with a {offer.row.accelerator}, which has no device file"] += 1
        else:
            if offer.device not in devices:
                devices[offer.device] = library.load_accelerator(offer.device)
            template = template or library.offered(offer, software)
            found.machines.append(offers.machine_like(template, offer, devices[offer.device]))


def day(text: str, option: str) -> dt.date:
    """Return a day from the command line.

    Raises:
        ConfigError: it is none.
    """
    try:
        return dt.date.fromisoformat(str(as_date(text)))
    except ValueError:
        raise ConfigError(f"{option} needs a day such as 2025-06-30, not {text!r}") from None
