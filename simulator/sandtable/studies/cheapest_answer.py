"""What a search of the cheapest says: an answer, a table that fits 80 columns, and one with everything."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from sandtable import units
from sandtable.errors import CheckFailed
from sandtable.hardware import Price
from sandtable.results import Answer
from sandtable.studies.cheapest import COST, FASTEST, HOUR_S, MACHINES, TIME, Found, counted
from sandtable.table import Table

CHOSEN = "✔"
# rows of the front, and machines beside it, that are shown
N_ROWS, N_FRONT, N_MACHINES = 12, 6, 4
N_NEXT = 1


def answer(found: Found) -> Answer:
    """Return what to rent: where, for how much, how long it takes, and what comes next."""
    if found.best is None:
        return Answer(question=_question(found), subject=found.subject, verdict=f"No: {missed(found)}.")
    stack = found.outcome.machines[found.best].stack
    return Answer(
        question=_question(found),
        subject=found.subject if stack is None else f"{found.subject}; {stack.title}",
        verdict=_verdict(found, found.best),
        headlines=(f"{_usd(found, found.best)}, {_hours(found, found.best)} (90 % each)",),
        bound="; ".join(_others(found, found.best)),
        caveat=_caveat(found, found.best),
    )


def _question(found: Found) -> str:
    limits = _limits(found)
    what = "Fastest" if tuple(found.outcome.study.objective) == FASTEST else "Cheapest"
    goal = re.split("[,;]", found.goal)[0]
    return f"{what} way{f' within {limits}' if limits else ''} to {goal}"


def _limits(found: Found) -> str:
    """Return deadline and budget in words, as ``4 h and 500 USD``."""
    given = (text.removeprefix("<= ").split() for text in found.outcome.study.constraints.values())
    return " and ".join(units.format_quantity(float(number), unit) for number, unit in given)


def _verdict(found: Found, place: int) -> str:
    price = found.outcome.machines[place].price
    verb = "Use" if price is None or price.kind == "owned" else "Rent"
    return f"{verb} {_named(found, place)}, {_price(price)}."


def _named(found: Found, place: int) -> str:
    """Return how many of which machine."""
    n = found.outcome.columns[MACHINES][place]
    return f"{n:.0f} × {found.outcome.machines[place].name}" if n > 1 else found.outcome.machines[place].name


def _price(price: Price | None) -> str:
    if price is None:
        return "without a price"
    where = f" in {price.region}" if price.region else ""
    kind = {"spot": "spot price", "on_demand": "on demand"}.get(price.kind, price.kind)
    return f"{price.usd_per_h:.4g} USD/h {kind}{where}, seen {price.as_of:%Y-%m-%d}"


def _usd(found: Found, place: int) -> str:
    value, low, high = (float(found.outcome.columns[name][place]) for name in (COST, "low_usd", "high_usd"))
    return f"{_three(value)} USD ({_three(low)} to {_three(high)})"


def _hours(found: Found, place: int) -> str:
    ends = [float(found.outcome.columns[name][place]) for name in (TIME, "low_s", "high_s")]
    value, low, high = map(units.format_seconds, ends)
    unit = value.split()[-1]
    short = [text.removesuffix(f" {unit}") for text in (low, high)]
    return f"{value} ({short[0]} to {short[1]})"


def _three(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"


def _others(found: Found, best: int) -> Iterator[str]:
    """Yield what comes next: other machines, the other end of the front, and the cheapest at spot prices."""
    others = [
        place for place in _by_machine(found) if found.outcome.machines[place] is not found.outcome.machines[best]
    ]
    texts = [_short(found, place) for place in others[:N_NEXT]]
    if texts:
        yield f"Next: {'; '.join(texts)}"
    by_time = tuple(found.outcome.study.objective) == FASTEST
    end = found.front[0 if by_time else -1]
    if end != best and end not in others[:N_NEXT]:
        yield f"{'cheapest' if by_time else 'fastest'}: {_short(found, end)}"
    spot = _at_spot(found)
    if spot is not None:
        place, usd = spot
        yield f"at spot price: {_named(found, place)}, {_three(usd)} USD, if it is not taken away"


def _short(found: Found, place: int) -> str:
    seconds, usd = (float(found.outcome.columns[name][place]) for name in (TIME, COST))
    return f"{_named(found, place)}, {_three(usd)} USD in {units.format_seconds(seconds)}"


def _at_spot(found: Found) -> tuple[int, float] | None:
    """Return the point that spot prices make cheapest, and its dollars, where prices on demand were searched."""
    best: tuple[int, float] | None = None
    prices = {} if found.searched is None else found.searched.spot
    for place in _by_machine(found) if prices else ():
        price = found.outcome.machines[place].price
        spot = None if price is None else prices.get((price.provider, price.instance))
        if spot is not None and price is not None and price.usd_per_h and price.kind == "on_demand":
            usd = float(found.outcome.columns[COST][place]) * spot.usd_per_h / price.usd_per_h
            best = (place, usd) if best is None or usd < best[1] else best
    return best


def _caveat(found: Found, place: int) -> str:
    price = found.outcome.machines[place].price
    parts = ["restarts, storage and transfer are not in the price"]
    if price is not None and price.kind == "spot":
        parts.insert(0, "a machine at spot price can be taken away at any time")
    if price is not None and price.as_of < dt.date.today() - dt.timedelta(days=365):
        parts.insert(0, f"the price is of {price.as_of:%Y-%m-%d}")
    return "; ".join(parts)


# --- tables ------------------------------------------------------------------------------------------------------


def summary(found: Found) -> Table:
    """Return what people choose among: the front, and the cheapest of other machines, in 80 columns."""
    columns = found.outcome.columns
    # how much of a machine is taken, by whatever name the search has for it
    taken = "devices" if "devices" in found.settings else (*found.settings, "devices")[0]
    rows: list[list[Any]] = []
    for place in _shown(found):
        machine = found.outcome.machines[place]
        values = [float(columns[name][place]) for name in (COST, "low_usd", "high_usd")]
        hours = float(columns[TIME][place]) / HOUR_S
        usd_per_h = None if machine.price is None else f"{machine.price.usd_per_h:.3g}"
        mark = CHOSEN if place == found.best else ""
        n = _setting(found, place, taken)
        rows.append([mark, machine.name, n, f"{hours:.3g}", *map(_three, values), usd_per_h])
    headings = ("", "machine", taken, "time", "cost", "low", "high", "price")
    unit = ("", "", "", "h", "USD", "USD", "USD", "USD/h")
    return Table(columns=headings, units=unit, rows=rows, notes=notes(found))


def table(found: Found) -> Table:
    """Return the same points with everything, for programs: settings that differ, intervals, where prices are from."""
    columns, shown = found.outcome.columns, _shown(found)
    names = [name for name in found.settings if len({_setting(found, place, name) for place in shown}) > 1]
    facts = [fact for fact in found.facts if not np.isnan(columns[fact][shown]).all()]
    base = float(columns[COST][shown[0] if found.best is None else found.best])
    rows: list[list[Any]] = []
    for place in shown:
        usd = float(columns[COST][place])
        hours = [float(columns[name][place]) / HOUR_S for name in (TIME, "low_s", "high_s")]
        ends = [float(columns[name][place]) for name in ("low_usd", "high_usd")]
        known = [None if math.isnan(columns[fact][place]) else float(columns[fact][place]) for fact in facts]
        machine = found.outcome.machines[place]
        settings = [_setting(found, place, name) for name in names]
        mark = CHOSEN if place == found.best else ""
        factor = usd / base if base else None
        rows.append([mark, machine.name, *settings, *hours, usd, *ends, factor, *known, *_offer(machine.price)])
    headings = (
        "chosen",
        "machine",
        *names,
        "time",
        "low",
        "high",
        "cost",
        "cost low",
        "cost high",
        "factor",
        *facts,
    )
    unit = ("", "", *("" for _ in names), "h", "h", "h", "USD", "USD", "USD", "", *map(units.unit_of, facts))
    return Table(
        columns=(*headings, "price", "kind", "region", "as of"),
        units=(*unit, "USD/h", "", "", ""),
        rows=rows,
        title=found.goal,
        notes=notes(found),
    )


def _offer(price: Price | None) -> tuple[float | None, str, str, str]:
    if price is None:
        return None, "", "", ""
    return price.usd_per_h, price.kind, price.region or "", price.as_of.isoformat()


def _setting(found: Found, place: int, name: str) -> Any:
    return found.outcome.points[place].changes.get(name)


def _by_machine(found: Found) -> list[int]:
    """Return the best point within the limits of each machine, by the objective, the best first."""
    outcome = found.outcome
    columns = [
        outcome.columns[name] for name in ((TIME, COST) if outcome.study.objective == FASTEST else (COST, TIME))
    ]
    best: dict[str, int] = {}
    possible = np.flatnonzero(outcome.runs & outcome.within())
    for place in map(int, possible[np.lexsort((columns[1][possible], columns[0][possible]))]):
        best.setdefault(outcome.machines[place].name, place)
    return list(best.values())


def _shown(found: Found) -> list[int]:
    """Return what is shown, cheapest first: the front evenly spaced, with its ends and the best, and other machines."""
    front, outcome = found.front, found.outcome
    most = N_ROWS if len({machine.name for machine in outcome.machines}) == 1 else N_FRONT
    step = max(1.0, (len(front) - 1) / (most - 1))
    kept = {front[min(round(index * step), len(front) - 1)] for index in range(most)}
    kept |= set() if found.best is None else {found.best}
    names = {outcome.machines[place].name for place in kept}
    kept |= set([place for place in _by_machine(found) if outcome.machines[place].name not in names][:N_MACHINES])
    return sorted(kept, key=lambda place: (outcome.columns[COST][place], outcome.columns[TIME][place]))


def notes(found: Found) -> tuple[str, ...]:
    """Return how many configurations were considered, dropped and within the limits, and how to run the best."""
    outcome, searched = found.outcome, found.searched
    machines = len({machine.name for machine in outcome.machines})
    counts = (len(outcome.points), int(outcome.runs.sum()), int(outcome.within().sum()))
    first = "{} considered, {} can run, {} within the limits".format(*counts)
    lines = [first if machines == 1 else f"{first}; {machines} machines"]
    if searched is not None and searched.left_out:
        lines.append(f"machines left out: {counted(searched.left_out)}")
    if outcome.dropped():
        lines.append(f"dropped: {counted(outcome.dropped())}")
    if found.best is not None:
        lines.append(f"the chosen one: {options(found, found.best)}")
    return tuple(lines)


def options(found: Found, place: int) -> str:
    """Return a configuration as options of the other commands, such as ``simulate``."""
    settings = (f"--set parameters.{name}={_setting(found, place, name)}" for name in found.settings)
    machine = found.outcome.machines[place]
    spot = machine.price is not None and machine.price.kind == "spot" and "@" not in machine.name
    return " ".join((f"--machine {machine.name}{'@spot' if spot else ''}", *settings))


def check(found: Found) -> None:
    """Refuse a search that found nothing within its limits, with the nearest that there is.

    Raises:
        CheckFailed: no choice is within the limits.
    """
    if found.best is None:
        raise CheckFailed(missed(found))


def missed(found: Found) -> str:
    """Say that nothing is within the limits, and what comes nearest."""
    return (
        f"no configuration ends within {_limits(found)}: the cheapest takes {_spent(found, found.front[0])}, "
        f"the fastest {_spent(found, found.front[-1])}"
    )


def _spent(found: Found, place: int) -> str:
    seconds, usd = (float(found.outcome.columns[name][place]) for name in (TIME, COST))
    return f"{units.format_seconds(seconds)} and {usd:.4g} USD on {found.outcome.machines[place].name}"
