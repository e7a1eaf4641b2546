"""The cheapest configuration under a deadline, or the fastest within a budget: a study of money and time.

A `Search` says which configurations of a workload do the same work, and how much of it there is. They are timed by the
workload's closed form. Dollars are those of the machines' prices. A machine is paid for whole, unless a part of it is
said to cost that part.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from sandtable import plugins, units
from sandtable.errors import ConfigError, DoesNotFit
from sandtable.hardware import Frozen, Machine, library
from sandtable.studies.evaluate import estimated
from sandtable.studies.market import Market, day, market
from sandtable.studies.outcome import Outcome
from sandtable.studies.study import Study
from sandtable.workload import scenarios
from sandtable.workload.scenarios import Case

P = TypeVar("P", bound=Frozen)
HOUR_S = 3600.0
MOST_REASONS = 6
TIME, COST, MACHINES = "time_s", "cost_usd", "machines"
CHEAPEST, FASTEST = (f"min {COST}", f"min {TIME}"), (f"min {TIME}", f"min {COST}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the work must reach, in words and as an amount of a unit, such as tokens.

    ``gain`` is by how much one more of that unit changes what is wanted of the work, such as its loss, and
    ``goodput_frac`` the share of its time in which steps are done that count.
    """

    words: str
    amount: float
    unit: str
    gain: Mapping[str, float] = field(default_factory=dict)
    goodput_frac: float = 1.0


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
    """What a search came to: places of the best point, None if none meets the limits, and of the front.

    ``subject`` is what is done, in words; ``searched`` the machines that were looked at, where nobody named them.
    """

    outcome: Outcome
    goal: str
    settings: Sequence[str]
    best: int | None
    front: Sequence[int]
    subject: str = ""
    searched: Market | None = None

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
    owned: bool = False,
    since: str | None = None,
    within: str | None = None,
    budget: str | None = None,
) -> Found:
    """Search the configurations of a scenario that reach a goal, on everything with a price, or on machines named.

    Args:
        scenario: Name or path.
        settings: ``PATH=VALUE``, as for every command; one that changes the machine leaves that one alone to search.
        machines: Names or paths with commas between; a scenario's own software runs on each of them.
        until: ``NAME=NUMBER``, such as ``tokens=10B``, in names that the workload knows.
        most_devices: Bound of the search.
        parts: A part of a machine costs that part of its price; else machines are paid for whole.
        spot: Take spot prices, of the price lists; a machine without one has no price.
        owned: Take machines as well that one has to own, at what owning them comes to an hour.
        since: A day; older prices are left out. Without it, those two years older than the latest.
        within: A deadline with its unit, for the cheapest within it.
        budget: Dollars; alone for the fastest that they pay for, beside a deadline a limit too.

    Raises:
        ConfigError: anything that cannot be read, or a workload without a search.
        DoesNotFit: not one configuration can run at all; the reasons are counted.
    """
    changes = scenarios.changes_of(settings)
    case = scenarios.load(scenario, changes=changes)
    search_of(case.workload.name)
    limits = {TIME: (within, "s", "--within"), COST: (budget, "USD", "--budget")}
    constraints = {m: limit(text, unit, option) for m, (text, unit, option) in limits.items() if text is not None}
    amounts = amounts_of(until)
    searched = None
    if machines is not None:
        software = {"stack": case.scenario.stack} if case.scenario.stack else {}
        named = [library.load_machine(name.strip(), software) for name in machines.split(",")]
        looked_at = [library.at_spot(machine) for machine in named] if spot else named
    elif any(path.partition(".")[0] == "machine" for path in changes):
        looked_at = [library.at_spot(case.machine) if spot else case.machine]
    else:
        from_day = None if since is None else day(since, "--since")
        searched = market(case.scenario.stack, spot=spot, owned=owned, since=from_day)
        looked_at = searched.machines
    found = found_in(
        case,
        [m if case.scenario.stack else scenarios.equipped(m, case.workload) for m in looked_at],
        amounts,
        most_devices=most_devices,
        parts=parts,
        constraints=constraints,
        objective=FASTEST if within is None and budget is not None else CHEAPEST,
    )
    return replace(found, searched=searched)


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
    found = choose(outcome, goal.words, searched.settings)
    place = found.front[0] if found.best is None else found.best
    return replace(found, subject=case.workload.subject(outcome.parameters[place], outcome.machines[place]))


def _amounts(timed: Outcome, searched: Search[Any], goal: Goal, *, parts: bool) -> dict[str, Any]:
    """Return time until the goal with its ends, dollars, and facts of each point."""
    step, used, usd_per_h = (np.full(len(timed.points), math.nan) for _ in range(3))
    for place in map(int, np.flatnonzero(timed.runs)):
        parameters, machine = timed.parameters[place], timed.machines[place]
        step[place] = searched.amount_per_step(parameters)
        used[place] = searched.n_machines(parameters, machine)
        usd_per_h[place] = machine.price.usd_per_h if machine.price else math.nan
    # time in which no step is done counts as steps
    steps = goal.amount / step / goal.goodput_frac
    seconds = timed.column("step_s") * steps
    paid = used if parts else np.ceil(used)
    usd = usd_per_h * paid * seconds / HOUR_S
    bought = np.divide(goal.amount, usd, out=np.full_like(usd, math.nan), where=usd > 0)
    ends = {"low_s": timed.column("low_s") * steps, "high_s": timed.column("high_s") * steps}
    # dollars are as uncertain as the time that is paid for
    ends |= {f"{end}_usd": usd_per_h * paid * ends[f"{end}_s"] / HOUR_S for end in ("low", "high")}
    facts = {f"{goal.unit}_per_s": step / timed.column("step_s")}
    # of a machine that costs nothing a further dollar buys nothing
    gains = {f"{name}_per_usd": gain * bought for name, gain in goal.gain.items()}
    return {TIME: seconds, COST: usd, MACHINES: np.ceil(used)} | ends | facts | gains


def choose(outcome: Outcome, goal: str, settings: Sequence[str]) -> Found:
    """Choose among points with time and cost: the best by the study's objective, and the Pareto front.

    Raises:
        DoesNotFit: not one of them can run at all; the reasons are counted.
    """
    if not outcome.runs.any():
        raise DoesNotFit(
            f"none of {len(outcome.points)} configurations can run ({counted(outcome.dropped())}): take other machines"
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
        # a bare number of dollars is what people write
        value = units.parse(f"{text} USD" if quantity == "USD" and _is_number(text) else text, quantity)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
    if value <= 0:
        raise ConfigError(f"{option} must be above zero, not {text!r}")
    return f"<= {units.write(value, quantity)}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def counted(reasons: Mapping[str, int], most: int = MOST_REASONS) -> str:
    """Return counts of reasons as a list, the commonest first; of many, how many more there are."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {reason}" for reason, count in ordered[:most]]
    rest = sum(count for _, count in ordered[most:])
    return "; ".join([*shown, *([f"{rest} for {len(ordered) - most} other reasons"] if rest else [])])
