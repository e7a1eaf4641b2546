"""A study: a base scenario and what is changed in it: axes that multiply, cases, constraints, an objective.

A suite, a comparison of two settings, a search and the grid of a paper's figure are studies. A study expands into named
points, each of which differs from the base by a few changes, and never asks what a point means before it is needed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

from pydantic import Field

from sandtable import units, yaml_files
from sandtable.errors import ConfigError, NoDevice, UnknownName
from sandtable.hardware import Frozen, Machine, Title, library
from sandtable.workload import scenarios
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import Scenario

# prices of a machine by name; any other is an amount, such as '2 USD/h'
ON_DEMAND, SPOT = "on_demand", library.SPOT


# a value of an axis: its label, and the changes that it stands for
Choice = tuple[Any, Mapping[str, Any]]


class Part(Enum):
    """What a change is made to."""

    parameters = "parameters"
    machine = "machine"
    scenario = "scenario"


_UNNAMEABLE = re.compile(r"[^a-z0-9_.-]+")
# where a path's first word leads, if not to a parameter of the workload
_PARTS = {
    "parameters": Part.parameters,
    "machine": Part.machine,
    "stack": Part.machine,
    "price": Part.machine,
    "seed": Part.scenario,
    "repeats": Part.scenario,
    "thresholds": Part.scenario,
    "title": Part.scenario,
    "workload": Part.scenario,
}


@lru_cache(maxsize=4096)
def part_of(path: str) -> tuple[Part, str]:
    """Return what a path of a change leads into, and the path within that; a bare name is a workload's parameter."""
    first, _, rest = path.partition(".")
    return _PARTS.get(first, Part.parameters), rest if first == "parameters" and rest else path


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a study: labels by axis, which name it, and the changes that they stand for, by path."""

    labels: dict[str, Any]
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        """What sets it apart from the other points."""
        return "-".join(_worded(axis, label) for axis, label in self.labels.items()) or "base"

    def of(self, part: Part) -> dict[str, Any]:
        """Return the changes of one part, by the path within it."""
        found = {}
        for path, value in self.changes.items():
            where, within = part_of(path)
            if where is part:
                found[within] = value
        return found


def _worded(axis: str, label: Any) -> str:
    text = _UNNAMEABLE.sub("_", str(label).lower().replace(" ", "").replace("%", "pct")).strip("_.-")
    named = isinstance(label, str) and not text[:1].isdigit()
    return text if named and text else f"{units.strip_suffix(axis.lower().rpartition('.')[2])}_{text}"


class Study(Frozen):
    """Many scenarios that differ in a few changes.

    The base is a scenario of the library or a file, changed by the fields that are given here, or these fields alone.

    Attributes:
        base: Name or path of a scenario.
        workload, machine, stack, parameters, seed, repeats, thresholds: As in a scenario.
        changes: What all points have in common beyond the base, by path.
        axes: Values by path; every combination is a point. A path leads to a parameter (``window``,
            ``parameters.window``), to the scenario (``seed``), its machine (``machine``, ``machine.storage``), its
            software (``stack``) or its price (``price``: ``on_demand``, ``spot`` or an amount). Values may be given
            labels; one that is a mapping makes several changes at once: ``{fsdp: {sharding: fsdp_full, devices: 8}}``.
        cases: Combinations of their own, as changes; a list in one multiplies like an axis. All axes apply to each.
        constraints: Conditions on metrics that a point must meet to be chosen, such as ``{latency_s.p95: < 500 ms}``.
        needs_accelerator: Whether its machines must have one.
        fits: Whether points that cannot be laid out, or need more memory than there is, are dropped.
        objective: What is best, such as ``min usd_per_mtok``; several decide one after the other.
        baseline: Name of the point that others are compared with.
    """

    schema_version: int = Field(default=1, alias="schema", ge=1, le=1)
    name: str
    title: Title = ""
    base: str | None = None
    workload: str | None = None
    machine: str | None = None
    stack: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    repeats: int | None = None
    thresholds: dict[str, str] = Field(default_factory=dict)
    changes: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict)
    cases: tuple[dict[str, Any], ...] = ()
    constraints: dict[str, str] = Field(default_factory=dict)
    needs_accelerator: bool = False
    fits: bool = True
    objective: tuple[str, ...] | str = ()
    baseline: str | None = None

    def points(self) -> Iterator[Point]:
        """Yield the points in order, cases first and the last axis fastest; what comes twice once."""
        seen: set[tuple[tuple[str, ...], tuple[Any, ...]]] = set()
        for case in self.cases or ({},):
            axes = {axis: _choices(axis, values) for axis, values in {**case, **self._axes_beside(case)}.items()}
            for point in self._product(axes):
                key = (tuple(point.labels), tuple(point.labels.values()))
                if key not in seen:
                    seen.add(key)
                    yield point

    def _product(self, axes: Mapping[str, Sequence[Choice]]) -> Iterator[Point]:
        # what does not vary is put together once
        first = {axis: choices[0][0] for axis, choices in axes.items() if choices}
        fixed = dict(self.changes)
        for choices in axes.values():
            fixed |= choices[0][1] if len(choices) == 1 else {}
        varied = {axis: choices for axis, choices in axes.items() if len(choices) != 1}
        for chosen in itertools.product(*varied.values()):
            point = Point(first.copy(), fixed.copy())
            for axis, (label, change) in zip(varied, chosen, strict=True):
                point.labels[axis] = label
                point.changes.update(change)
            yield point

    def _axes_beside(self, case: Mapping[str, Any]) -> dict[str, Any]:
        return {axis: values for axis, values in self.axes.items() if axis not in case}

    def changed(self, changes: Mapping[str, Any]) -> Study:
        """Return the study with further changes that all points have in common, by path."""
        return self.model_copy(update={"changes": self.changes | dict(changes)})

    def scenario(self) -> Scenario:
        """Return the base.

        Raises:
            ConfigError: it names a scenario that is not there, or no workload.
        """
        own = self.model_dump(exclude_unset=True, include=_FIELDS_OF_A_SCENARIO)
        if self.base is None:
            return yaml_files.validate(Scenario, own | {"title": self.title, "name": "base"}, f"study {self.name}")
        data = scenarios.read(self.base).model_dump(by_alias=True)
        for section in ("parameters", "thresholds"):
            own[section] = data[section] | own.get(section, {})
        return yaml_files.validate(Scenario, data | own, f"study {self.name}")

    def resolved(self) -> Iterator[Case]:
        """Yield each point as a case with everything loaded, machines once.

        Raises:
            ConfigError: a point that is none, or two of one name.
            NoDevice: a machine without an accelerator, where the study needs one.
        """
        base, machines, names = self.scenario(), Machines(), set()
        for point in self.points():
            if point.name in names:
                raise ConfigError(f"two points are named {point.name!r}: give their values labels", file=self.name)
            names.add(point.name)
            scenario, machine = self.scenario_of(point, base), machines.of(base, point.of(Part.machine))
            if self.needs_accelerator and machine.accelerator is None:
                raise NoDevice(
                    f"{self.name} is for machines with an accelerator and {machine.name} has none: "
                    "'sandtable calibrate --only gpu' adds this machine's, or take another with --machine"
                )
            yield scenarios.case_of(scenario, machine=machine, file=f"{self.base or self.name}: {point.name}")

    def scenario_of(self, point: Point, base: Scenario) -> Scenario:
        """Return a point of the study as a scenario of its own."""
        data = base.model_dump(by_alias=True) | {
            "name": point.name,
            "title": f"{self.title or base.title}: {point.name}",
        }
        for path, value in point.of(Part.parameters).items():
            yaml_files.set_path(data["parameters"], path, value)
        for path, value in point.of(Part.scenario).items():
            scenarios.set_in(data, path, value)
        on = point.of(Part.machine)
        machine = on.get("machine", base.machine)
        data |= {"machine": machine.name if isinstance(machine, Machine) else machine}
        data |= {"stack": on["stack"]} if "stack" in on else {}
        return yaml_files.validate(Scenario, data, f"study {self.name}")


_FIELDS_OF_A_SCENARIO = {"workload", "machine", "stack", "parameters", "seed", "repeats", "thresholds"}


def _choices(axis: str, values: Any) -> list[Choice]:
    """Return the label and the changes of each value of an axis."""
    if isinstance(values, Mapping):
        return [(label, value if isinstance(value, Mapping) else {axis: value}) for label, value in values.items()]
    listed = values if isinstance(values, list | tuple) else [values]
    return [(_label(value), {axis: value}) for value in listed]


def _label(value: Any) -> Any:
    if isinstance(value, Machine):
        return value.name
    return value if isinstance(value, str | int | float | None) else str(value)


def pair(scenario: str, changes: Mapping[str, Any], machine: str | None = None) -> Study:
    """Return the study of two points, ``before`` and ``after`` changes of a scenario."""
    common = {} if machine is None else {"machine": machine}
    both = {"before": {}, "after": dict(changes)}
    return Study(name="whatif", base=scenario, changes=common, axes={"change": both}, baseline="before")


def load(name: str) -> Study:
    """Load a study by name, one of the suites, or by path."""
    path = library.find_file("suite", name, scenarios.suite_files())
    study = yaml_files.validate(Study, yaml_files.read_yaml(path), str(path))
    names = [] if study.baseline is None else [point.name for point in study.points()]
    if names and study.baseline not in names:
        raise UnknownName("point to compare others with", str(study.baseline), names)
    return study


# --- machines ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Machines:
    """Loads the machines of a study, each once."""

    _loaded: dict[Any, Machine] = field(default_factory=dict)

    def of(self, base: Scenario, changes: Mapping[str, Any]) -> Machine:
        """Return the machine of a point, from the base scenario and the point's changes of it.

        Raises:
            ConfigError: it cannot be loaded.
        """
        key = tuple((path, id(v) if isinstance(v, Machine) else str(v)) for path, v in changes.items())
        if key not in self._loaded:
            self._loaded[key] = _machine(base, dict(changes))
        return self._loaded[key]


def _machine(base: Scenario, changes: dict[str, Any]) -> Machine:
    machine, price = changes.pop("machine", base.machine), changes.pop("price", ON_DEMAND)
    stack = changes.pop("stack", base.stack)
    overrides = {path.removeprefix("machine."): value for path, value in changes.items()}
    overrides |= {} if stack is None else {"stack": stack}
    if price not in (ON_DEMAND, SPOT):
        overrides["price.hour"] = price
    if isinstance(machine, Machine):
        if overrides:
            raise ConfigError(f"{machine.name} is loaded already: {', '.join(overrides)} cannot be changed")
    else:
        machine = library.load_machine(machine, overrides)
    return library.at_spot(machine) if price == SPOT else machine
