"""Money and energy of a piece of work on a machine."""

from __future__ import annotations

from sandtable import units
from sandtable.hardware import Machine
from sandtable.results import Cost, Metric

SECONDS_PER_HOUR = 3600.0


def cost_of(machine: Machine, *, seconds: float, busy_s: float, n_units: float) -> Cost:
    """Return what ``n_units`` of work cost that keep the machine for ``seconds``, ``busy_s`` of them computing.

    Power is idle power throughout, and the rest of the maximum in proportion to how busy the processor is.
    """
    usd_per_h = 0.0 if machine.price is None else machine.price.usd_per_h
    idle = peak = 0.0
    if machine.power is not None:
        idle, peak = machine.power.idle_w, machine.power.max_w
    idle_j, busy_j = idle * seconds, (peak - idle) * min(busy_s, seconds)
    usd = usd_per_h * seconds / SECONDS_PER_HOUR
    return Cost(
        usd_per_h=usd_per_h,
        usd=usd,
        energy_j=idle_j + busy_j,
        usd_per_unit=usd / n_units,
        breakdown={"machine_usd": usd, "idle_j": idle_j, "busy_j": busy_j},
    )


def metrics(
    machine: Machine, each: Metric, busy_s: float, priced_unit: tuple[str, float] | None
) -> dict[str, Metric]:
    """Return ``usd_per_h``, ``energy_j`` per unit of work and its price, where price and power are known.

    Args:
        machine: States price and power.
        each: For how long a unit of work keeps the machine.
        busy_s: Seconds of that in which the processor works.
        priced_unit: What the work is priced by, as `Workload.priced_unit` says.
    """
    ends = {}
    for end in ("value", "low", "high"):
        seconds = float(getattr(each, end))
        ends[end] = cost_of(machine, seconds=seconds, busy_s=busy_s * seconds / each.value, n_units=1)
    found: dict[str, Metric] = {}
    if machine.price is not None:
        price = machine.price.usd_per_h
        found["usd_per_h"] = Metric(value=price, low=price, high=price, unit="USD/h", derived=True)
        if priced_unit is not None:
            name, n_units = f"usd_per_{priced_unit[0]}", priced_unit[1]
            parts = {end: n_units * cost.usd_per_unit for end, cost in ends.items()}
            found[name] = Metric(unit=units.unit_of(name), derived=True, **parts)
    if machine.power is not None:
        parts = {end: cost.energy_j for end, cost in ends.items()}
        found["energy_j"] = Metric(unit="J", derived=True, **parts)
    return found
