"""The cheapest configuration under a deadline, or the fastest within a budget: choose among what a workload offers.

The workload enumerates and times configurations (`Workload.choices`); here they are compared, whatever they are of.
Dollars are those of the machines' prices. A machine is paid for whole, unless a part of it is said to cost that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sandtable import units
from sandtable.errors import CheckFailed, ConfigError, DoesNotFit
from sandtable.hardware import Machine, library
from sandtable.table import Table
from sandtable.workload import scenarios
from sandtable.workload.seam import Choice, Choices, Goal

N_ROWS = 12
HOUR_S = 3600.0
CHOSEN = "✔"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to: the best choice, None if none meets the limits, and the Pareto front, cheapest first."""

    best: Choice | None
    front: tuple[Choice, ...]
    n_within: int


def search(
    scenario: str,
    *,
    settings: Sequence[str] = (),
    machines: str | None = None,
    until: Sequence[str] = (),
    most_devices: int = 64,
    parts: bool = False,
    spot: bool = False,
) -> Choices:
    """Return the configurations of a scenario that reach a goal, on its machine or on those named with commas between.

    Args:
        scenario: Name or path.
        settings: ``PATH=VALUE``, as for every command.
        machines: Names or paths; a scenario's own software runs on each of them.
        until: ``NAME=NUMBER``, such as ``tokens=10B``, in names that the workload knows.
        most_devices: Bound of the search.
        parts: A part of a machine costs that part of its price; else machines are paid for whole.
        spot: Take spot prices, of the price lists; a machine without one has no price.

    Raises:
        ConfigError: anything that cannot be read, or a workload without a search.
    """
    case = scenarios.load(scenario, settings=settings)
    changed = {"stack": case.scenario.stack} if case.scenario.stack else {}
    named = [name.strip() for name in machines.split(",")] if machines else []
    loaded = [library.load_machine(name, changed) for name in named] or [case.machine]
    priced = [_at_spot(machine) for machine in loaded] if spot else loaded
    goal = Goal(until=_amounts_of(until), most_devices=most_devices, parts=parts)
    return case.workload.choices(case.parameters, priced, goal)


def _at_spot(machine: Machine) -> Machine:
    """Return the machine at the lowest spot price of its instance over regions; without a price if there is none."""
    price = machine.price
    rows = [] if price is None or price.provider is None else library.price_rows(price.provider, price.instance)
    offers = [(row.spot_usd_per_h, row.as_of) for row in rows if row.spot_usd_per_h is not None]
    if price is None or not offers:
        return machine.model_copy(update={"price": None})
    usd_per_h, as_of = min(offers)
    update = {"usd_per_h": usd_per_h, "as_of": as_of, "kind": "spot"}
    return machine.model_copy(update={"price": price.model_copy(update=update)})


def _amounts_of(texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = (part.strip() for part in text.partition("="))
        if name in found:
            raise ConfigError(f"--until names {name} twice")
        try:
            found[name] = units.parse_count(number)
        except ValueError:
            raise ConfigError(f"--until needs NAME=NUMBER, such as tokens=10B, not {text!r}") from None
    return found


def limit(text: str | None, quantity: str, option: str) -> float | None:
    """Return a limit from the command line, None if it is not given.

    Raises:
        ConfigError: not a quantity of that kind, or none above zero.
    """
    if text is None:
        return None
    try:
        value = units.parse(text, quantity)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
    if value <= 0:
        raise ConfigError(f"{option} must be above zero, not {text!r}")
    return value


def find(choices: Choices, *, within_s: float | None = None, budget_usd: float | None = None) -> Found:
    """Return the cheapest choice within a time; with a budget only, the fastest that it pays for.

    Raises:
        DoesNotFit: not one configuration can run at all; the reasons are counted.
    """
    if not choices.choices:
        raise DoesNotFit(
            f"none of {choices.considered} configurations can run ({_counted(choices)}): take other machines"
            + (f"; nearest: {choices.nearest}" if choices.nearest else "")
        )
    kept = [
        choice
        for choice in choices.choices
        if (within_s is None or choice.seconds <= within_s) and (budget_usd is None or choice.usd <= budget_usd)
    ]
    fastest = within_s is None and budget_usd is not None
    best = min(kept, key=lambda c: (c.seconds, c.usd) if fastest else (c.usd, c.seconds), default=None)
    return Found(best=best, front=pareto(choices.choices), n_within=len(kept))


def pareto(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return the choices that no other beats in both time and dollars, cheapest first."""
    front: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.usd, c.seconds)):
        if not front or choice.seconds < front[-1].seconds:
            front.append(choice)
    return tuple(front)


def table(choices: Choices, found: Found) -> Table:
    """Return the front as a table, the best marked, times with their 90 % interval, dollars also over the best's."""
    front = _thinned(found.front, found.best)
    names = _telling(front)
    facts = list(dict.fromkeys(fact for c in front for fact in c.facts))
    base = found.best or front[0]
    rows: list[list[Any]] = []
    for c in front:
        mark = CHOSEN if c is found.best else ""
        factor = c.usd / base.usd if base.usd else None  # of what costs nothing
        numbers = [c.seconds / HOUR_S, c.low_s / HOUR_S, c.high_s / HOUR_S, c.usd, factor]
        known = [c.facts.get(fact) for fact in facts]
        rows.append([mark, c.machine, *(c.settings[name] for name in names), *numbers, *known])
    columns = ("chosen", "machine", *names, "time", "low", "high", "cost", "factor", *facts)
    unit = ("", "", *("" for _ in names), "h", "h", "h", "USD", "", *(units.unit_of(fact) for fact in facts))
    return Table(columns=columns, units=unit, rows=rows, title=choices.goal, notes=notes(choices, found))


def notes(choices: Choices, found: Found) -> tuple[str, ...]:
    """Return how many configurations were considered, dropped and within the limits, and how to run the best."""
    first = f"{choices.considered} considered, {len(choices.choices)} can run, {found.n_within} within the limits"
    dropped = [f"dropped: {_counted(choices)}"] if choices.dropped else []
    return (first, *dropped, *([f"the chosen one: {options(found.best)}"] if found.best else []))


def options(choice: Choice) -> str:
    """Return a choice as options of the other commands, such as ``simulate``."""
    return " ".join(
        (f"--machine {choice.machine}", *(f"--set parameters.{n}={v}" for n, v in choice.settings.items()))
    )


def check(found: Found, *, within_s: float | None = None, budget_usd: float | None = None) -> None:
    """Refuse a search that found nothing within its limits, with the nearest that there is.

    Raises:
        CheckFailed: no choice is within the limits.
    """
    if found.best is not None:
        return
    limits = [units.format_seconds(within_s)] if within_s is not None else []
    limits += [f"{budget_usd:.4g} USD"] if budget_usd is not None else []
    cheapest, fastest = found.front[0], found.front[-1]
    raise CheckFailed(
        f"no configuration ends within {' and '.join(limits)}: the cheapest takes {_amounts(cheapest)}, "
        f"the fastest {_amounts(fastest)}"
    )


def _amounts(choice: Choice) -> str:
    return f"{units.format_seconds(choice.seconds)} and {choice.usd:.4g} USD on {choice.machine}"


def _counted(choices: Choices) -> str:
    ordered = sorted(choices.dropped.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} {reason}" for reason, count in ordered)


def _thinned(front: Sequence[Choice], best: Choice | None) -> list[Choice]:
    """Return at most `N_ROWS` of the front, evenly, with its ends and the best, cheapest first."""
    step = max(1.0, (len(front) - 1) / (N_ROWS - 1))
    places = {round(index * step) for index in range(N_ROWS)}
    kept = [c for place, c in enumerate(front) if place in places or place == len(front) - 1 or c is best]
    if best is not None and all(c is not best for c in kept):
        kept.append(best)
    return sorted(kept, key=lambda c: (c.usd, c.seconds))


def _telling(choices: Sequence[Choice]) -> list[str]:
    """Return the settings that differ among choices."""
    return [name for name in choices[0].settings if len({c.settings[name] for c in choices}) > 1]
