"""The cheapest configuration under a deadline, or the fastest within a budget: a study of money and time.

A `Search` says which configurations of a workload do the same work, and how much of it there is. They are timed by the
workload's closed form. Dollars are those of the machines' prices. A machine is paid for whole, unless a part of it is
said to cost that part.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from sandtable import plugins, units
from sandtable.errors import CheckFailed, ConfigError, DoesNotFit
from sandtable.hardware import Frozen, Machine, library
from sandtable.studies.evaluate import estimated
from sandtable.studies.outcome import Outcome
from sandtable.studies.study import Study, at_spot
from sandtable.table import Table
from sandtable.workload import scenarios
from sandtable.workload.scenarios import Case

P = TypeVar("P", bound=Frozen)
N_ROWS = 12
HOUR_S = 3600.0
CHOSEN = "✔"
TIME, COST = "time_s", "cost_usd"
CHEAPEST, FASTEST = (f"min {COST}", f"min {TIME}"), (f"min {TIME}", f"min {COST}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the work must reach, in words and as an amount of a unit, such as tokens.

    ``gain`` is by how much one more of that unit changes what is wanted of the work, such as its loss.
    """

    words: str
    amount: float
    unit: str
    gain: Mapping[str, float] = field(default_factory=dict)


class Search(ABC, Generic[P]):
    """How the configurations of one workload are searched; found like the workload itself, by ``name``.

    ``settings`` are the parameters in which configurations differ, in the order in which they are shown.
    """

    name: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]

    @abstractmethod
    def goal(self, parameters: P, until: Mapping[str, float]) -> Goal:
        """Return the goal, from amounts in names that the workload knows; empty for what its parameters say.

        Raises:
            ConfigError: a goal that is unknown or out of reach.
        """

    @abstractmethod
    def cases(self, parameters: P, machine: Machine, most_devices: int) -> Iterable[dict[str, Any]]:
        """Yield the configurations that do the same work on one kind of machine, as cases of a study."""

    @abstractmethod
    def amount_per_step(self, parameters: P) -> float:
        """Return how much of the goal's unit one step does."""

    @abstractmethod
    def n_machines(self, parameters: P, machine: Machine) -> float:
        """Return how many machines a configuration takes, a part of one as that part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to: places of the best point, None if none meets the limits, and of the front."""

    outcome: Outcome
    goal: str
    settings: Sequence[str]
    best: int | None
    front: Sequence[int]

    @property
    def facts(self) -> list[str]:
        """Metrics worth showing beside time and money."""
        return [name for name in self.outcome.columns if "_per_" in name]


def search_of(workload: str) -> Search[Any]:
    """Return the search over a workload's configurations.

    Raises:
        ConfigError: it has none.
    """
    found = plugins.instances(Search)  # type: ignore[type-abstract]
    if workload not in found:
        raise ConfigError(f"{workload} has no search over its configurations: compare two with whatif")
    return found[workload]


def search(
    scenario: str,
    *,
    settings: Sequence[str] = (),
    machines: str | None = None,
    until: Sequence[str] = (),
    most_devices: int = 64,
    parts: bool = False,
    spot: bool = False,
    within: str | None = None,
    budget: str | None = None,
) -> Found:
    """Search the configurations of a scenario that reach a goal, on its machine or on those named with commas between.

    Args:
        scenario: Name or path.
        settings: ``PATH=VALUE``, as for every command.
        machines: Names or paths; a scenario's own software runs on each of them.
        until: ``NAME=NUMBER``, such as ``tokens=10B``, in names that the workload knows.
        most_devices: Bound of the search.
        parts: A part of a machine costs that part of its price; else machines are paid for whole.
        spot: Take spot prices, of the price lists; a machine without one has no price.
        within: A deadline with its unit, for the cheapest within it.
        budget: Dollars; alone for the fastest that they pay for, beside a deadline a limit too.

    Raises:
        ConfigError: anything that cannot be read, or a workload without a search.
        DoesNotFit: not one configuration can run at all; the reasons are counted.
    """
    case = scenarios.load(scenario, changes=scenarios.changes_of(settings))
    changed = {"stack": case.scenario.stack} if case.scenario.stack else {}
    named = [name.strip() for name in machines.split(",")] if machines else []
    loaded = [library.load_machine(name, changed) for name in named] or [case.machine]
    loaded = [scenarios.equipped(machine, case.workload) for machine in loaded]
    priced = [at_spot(machine) for machine in loaded] if spot else loaded
    limits = {TIME: (within, "s", "--within"), COST: (budget, "USD", "--budget")}
    constraints = {m: limit(text, unit, option) for m, (text, unit, option) in limits.items() if text is not None}
    objective = FASTEST if within is None and budget is not None else CHEAPEST
    return found_in(
        case,
        priced,
        amounts_of(until),
        most_devices=most_devices,
        parts=parts,
        constraints=constraints,
        objective=objective,
    )


def found_in(
    case: Case,
    machines: Sequence[Machine],
    until: Mapping[str, float],
    *,
    most_devices: int = 64,
    parts: bool = False,
    constraints: Mapping[str, str] | None = None,
    objective: tuple[str, ...] = CHEAPEST,
) -> Found:
    """Search the configurations of a case on loaded machines; see `search`."""
    searched = search_of(case.workload.name)
    goal = searched.goal(case.parameters, until)
    study = Study(
        name=case.scenario.name,
        workload=case.workload.name,
        parameters=case.scenario.parameters,
        cases=tuple(
            {"machine": machine} | changes
            for machine in machines
            for changes in searched.cases(case.parameters, machine, most_devices)
        ),
        constraints=dict(constraints or {}),
        objective=objective,
    )
    timed = estimated(study, refused=lambda m: "" if m.price else f"no price for {m.name}")
    outcome = timed.also(_amounts(timed, searched, goal, parts=parts)) if timed.runs.any() else timed
    return choose(outcome, goal.words, searched.settings)


def _amounts(timed: Outcome, searched: Search[Any], goal: Goal, *, parts: bool) -> dict[str, Any]:
    """Return time until the goal with its ends, dollars, and facts of each point."""
    step, used, usd_per_h = (np.full(len(timed.points), math.nan) for _ in range(3))
    for place in map(int, np.flatnonzero(timed.runs)):
        parameters, machine = timed.parameters[place], timed.machines[place]
        step[place] = searched.amount_per_step(parameters)
        used[place] = searched.n_machines(parameters, machine)
        usd_per_h[place] = machine.price.usd_per_h if machine.price else math.nan
    steps = goal.amount / step
    seconds = timed.column("step_s") * steps
    usd = usd_per_h * (used if parts else np.ceil(used)) * seconds / HOUR_S
    bought = np.divide(goal.amount, usd, out=np.full_like(usd, math.nan), where=usd > 0)
    ends = {"low_s": timed.column("low_s") * steps, "high_s": timed.column("high_s") * steps}
    facts = {f"{goal.unit}_per_s": step / timed.column("step_s")}
    # of a machine that costs nothing a further dollar buys nothing
    gains = {f"{name}_per_usd": gain * bought for name, gain in goal.gain.items()}
    return {TIME: seconds, COST: usd} | ends | facts | gains


def choose(outcome: Outcome, goal: str, settings: Sequence[str]) -> Found:
    """Choose among points with time and cost: the best by the study's objective, and the Pareto front.

    Raises:
        DoesNotFit: not one of them can run at all; the reasons are counted.
    """
    if not outcome.runs.any():
        raise DoesNotFit(
            f"none of {len(outcome.points)} configurations can run ({_counted(outcome)}): take other machines"
            + (f"; nearest: {outcome.nearest}" if outcome.nearest else "")
        )
    front = outcome.front(*CHEAPEST)
    return Found(outcome=outcome, goal=goal, settings=settings, best=outcome.best(), front=front)


def amounts_of(texts: Sequence[str]) -> dict[str, float]:
    """Return the amounts of ``NAME=NUMBER`` texts by name.

    Raises:
        ConfigError: a name twice, or no number.
    """
    amounts: dict[str, float] = {}
    for text in texts:
        name, _, number = (part.strip() for part in text.partition("="))
        if name in amounts:
            raise ConfigError(f"--until names {name} twice")
        try:
            amounts[name] = units.parse_count(number)
        except ValueError:
            raise ConfigError(f"--until needs NAME=NUMBER, such as tokens=10B, not {text!r}") from None
    return amounts


def limit(text: str, quantity: str, option: str) -> str:
    """Return a limit from the command line as a constraint.

    Raises:
        ConfigError: not a quantity of that kind, or none above zero.
    """
    try:
        value = units.parse(text, quantity)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
    if value <= 0:
        raise ConfigError(f"{option} must be above zero, not {text!r}")
    return f"<= {text}"


# --- showing -----------------------------------------------------------------------------------------------------


def table(found: Found) -> Table:
    """Return the front as a table, the best marked, times with their 90 % interval, dollars also over the best's."""
    columns, shown = found.outcome.columns, _evenly_spaced(found)
    names = [name for name in found.settings if len({_setting(found, place, name) for place in shown}) > 1]
    facts = [fact for fact in found.facts if not np.isnan(columns[fact][shown]).all()]
    base = float(columns[COST][shown[0] if found.best is None else found.best])
    rows: list[list[Any]] = []
    for place in shown:
        usd = float(columns[COST][place])
        hours = [float(columns[name][place]) / HOUR_S for name in (TIME, "low_s", "high_s")]
        known = [None if math.isnan(columns[fact][place]) else float(columns[fact][place]) for fact in facts]
        machine = found.outcome.machines[place].name
        settings = [_setting(found, place, name) for name in names]
        mark = CHOSEN if place == found.best else ""
        rows.append([mark, machine, *settings, *hours, usd, usd / base if base else None, *known])
    headings = ("chosen", "machine", *names, "time", "low", "high", "cost", "factor", *facts)
    unit = ("", "", *("" for _ in names), "h", "h", "h", "USD", "", *(units.unit_of(fact) for fact in facts))
    return Table(columns=headings, units=unit, rows=rows, title=found.goal, notes=notes(found))


def _setting(found: Found, place: int, name: str) -> Any:
    return found.outcome.points[place].changes.get(name)


def _evenly_spaced(found: Found) -> list[int]:
    """Return at most `N_ROWS` of the front, evenly spaced, with its ends and the best, cheapest first."""
    front, outcome = found.front, found.outcome
    step = max(1.0, (len(front) - 1) / (N_ROWS - 1))
    kept = {front[min(round(index * step), len(front) - 1)] for index in range(N_ROWS)}
    kept |= set() if found.best is None else {found.best}
    return sorted(kept, key=lambda place: (outcome.columns[COST][place], outcome.columns[TIME][place]))


def notes(found: Found) -> tuple[str, ...]:
    """Return how many configurations were considered, dropped and within the limits, and how to run the best."""
    outcome = found.outcome
    counts = (len(outcome.points), int(outcome.runs.sum()), int(outcome.within().sum()))
    first = "{} considered, {} can run, {} within the limits".format(*counts)
    dropped = [f"dropped: {_counted(outcome)}"] if outcome.dropped() else []
    return (first, *dropped, *([] if found.best is None else [f"the chosen one: {options(found, found.best)}"]))


def options(found: Found, place: int) -> str:
    """Return a configuration as options of the other commands, such as ``simulate``."""
    settings = (f"--set parameters.{name}={_setting(found, place, name)}" for name in found.settings)
    return " ".join((f"--machine {found.outcome.machines[place].name}", *settings))


def check(found: Found) -> None:
    """Refuse a search that found nothing within its limits, with the nearest that there is.

    Raises:
        CheckFailed: no choice is within the limits.
    """
    if found.best is not None:
        return
    limits = [text.removeprefix("<= ") for text in found.outcome.study.constraints.values()]
    raise CheckFailed(
        f"no configuration ends within {' and '.join(limits)}: the cheapest takes {_spent(found, found.front[0])}, "
        f"the fastest {_spent(found, found.front[-1])}"
    )


def _spent(found: Found, place: int) -> str:
    seconds, usd = (float(found.outcome.columns[name][place]) for name in (TIME, COST))
    return f"{units.format_seconds(seconds)} and {usd:.4g} USD on {found.outcome.machines[place].name}"


def _counted(outcome: Outcome) -> str:
    ordered = sorted(outcome.dropped().items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} {reason}" for reason, count in ordered)
