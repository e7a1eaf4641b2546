"""Load scenarios and suites, with changes from the command line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sandtable import units, yaml_files
from sandtable.errors import ConfigError
from sandtable.hardware import Frozen, Machine, library
from sandtable.workload.seam import Scenario, Workload, workload_named

SUITES = "suites"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A scenario with everything it names loaded."""

    scenario: Scenario
    workload: Workload[Any]
    parameters: Frozen
    machine: Machine


class Suite(Frozen):
    """Many scenarios that differ in a few parameters.

    Each entry of ``cases`` changes ``parameters``; a list in it stands for one scenario per entry (all combinations).
    """

    schema_version: int = Field(default=1, alias="schema", ge=1, le=1)
    name: str
    title: str
    workload: str
    machine: str = library.THIS_MACHINE
    repeats: int = Field(default=3, ge=1)
    seed: int = Field(default=1, ge=0)
    parameters: dict[str, Any] = Field(default_factory=dict)
    cases: tuple[dict[str, Any], ...] = Field(min_length=1)
    first_is_baseline: bool = False  # show how much faster the others are than the first

    def scenarios(self) -> list[Scenario]:
        """Return every scenario of the suite, named after what sets it apart."""
        found: dict[str, Scenario] = {}
        for case in self.cases:
            keys = list(case)
            for values in itertools.product(*(v if isinstance(v, list) else [v] for v in case.values())):
                changes = dict(zip(keys, values, strict=True))
                name = "-".join(_label(key, value) for key, value in changes.items())
                found[name] = Scenario(
                    name=name,
                    title=f"{self.title}: {name}",
                    workload=self.workload,
                    machine=self.machine,
                    repeats=self.repeats,
                    seed=self.seed,
                    parameters=self.parameters | changes,
                )
        return list(found.values())


def _label(key: str, value: Any) -> str:
    text = str(value).lower().replace(" ", "").replace("%", "pct").replace("/", "_")
    return text if isinstance(value, str) and not text[0].isdigit() else f"{units.strip_suffix(key)}_{text}"


def files() -> dict[str, Path]:
    """Return name -> path of the ready-made scenarios, suites left out."""
    return {name: path for name, path in library.scenario_files().items() if path.parent.name != SUITES}


def suite_files() -> dict[str, Path]:
    """Return name -> path of the suites."""
    return {name: path for name, path in library.scenario_files().items() if path.parent.name == SUITES}


def load(name: str, *, settings: Sequence[str] = (), machine: str | None = None) -> Case:
    """Load the scenario ``name`` (a library name or a path), changed by ``PATH=VALUE`` settings.

    Paths lead into the scenario (``parameters.window=5``, ``seed=2``) or, from ``machine.`` on, into its machine
    (``machine.storage=samsung_990_pro``).

    Raises:
        ConfigError: with file and line, or with the setting that is at fault.
    """
    path = library.find_file("scenario", name, files())
    data = yaml_files.read_yaml(path)
    overrides: dict[str, Any] = {}
    for setting in settings:
        dotted, value = parse_setting(setting)
        if dotted.startswith("machine."):
            overrides[dotted.removeprefix("machine.")] = value
        elif dotted.startswith("thresholds."):  # the name of a metric holds a dot of its own
            yaml_files.set_path(data, "thresholds", data.get("thresholds") or {})
            data["thresholds"][dotted.removeprefix("thresholds.")] = value
        else:
            yaml_files.set_path(data, dotted, value)
    if machine is not None:
        data["machine"] = machine
    scenario = yaml_files.validate(Scenario, data, str(path))
    return case_of(scenario, overrides=overrides, data=data, file=str(path))


def case_of(
    scenario: Scenario,
    *,
    overrides: Mapping[str, Any] | None = None,
    data: Any = None,
    file: str = "",
    machine: Machine | None = None,
) -> Case:
    """Load what a scenario names and validate its parameters; ``data`` and ``file`` are where it was read from."""
    workload = workload_named(scenario.workload)
    try:
        parameters = workload.parameters.model_validate(
            yaml_files.plain(scenario.parameters), context=units.AT_EDGE
        )
    except ValidationError as error:
        section = {} if data is None else data.get("parameters", {})
        fault = yaml_files.config_error(error, section, file or scenario.name, workload.parameters)
        raise ConfigError(f"parameters.{fault.message}", file=file or scenario.name, line=fault.line) from None
    if machine is None:
        stack = {} if scenario.stack is None else {"stack": scenario.stack}
        machine = library.load_machine(scenario.machine, stack | dict(overrides or {}))
    return Case(scenario=scenario, workload=workload, parameters=parameters, machine=machine)


def load_suite(name: str) -> Suite:
    """Load a suite by name or path."""
    path = library.find_file("suite", name, suite_files())
    return yaml_files.validate(Suite, yaml_files.read_yaml(path), str(path))


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split ``PATH=VALUE``; the value is read as YAML, so that numbers are numbers and ``[1, 2]`` is a list."""
    dotted, equals, text = setting.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set needs PATH=VALUE, such as parameters.window=5, not {setting!r}")
    try:
        return dotted.strip(), YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise ConfigError(f"--set {dotted}: {text!r} cannot be read as a value") from None
