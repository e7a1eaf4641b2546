"""Load scenarios, with changes from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

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


def files() -> dict[str, Path]:
    """Return name -> path of the ready-made scenarios, suites left out."""
    return {name: path for name, path in library.scenario_files().items() if path.parent.name != SUITES}


def suite_files() -> dict[str, Path]:
    """Return name -> path of the suites."""
    return {name: path for name, path in library.scenario_files().items() if path.parent.name == SUITES}


def read(name: str) -> Scenario:
    """Read a scenario by name or path, without loading what it names."""
    path = library.find_file("scenario", name, files())
    return yaml_files.validate(Scenario, yaml_files.read_yaml(path), str(path))


def set_in(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value into a scenario's data at a dotted path; the name of a metric holds a dot of its own."""
    section, dot, metric = dotted.partition(".")
    if section == "thresholds" and dot:
        data[section] = (data.get(section) or {}) | {metric: value}
    else:
        yaml_files.set_path(data, dotted, value)


def load(
    name: str,
    *,
    changes: Mapping[str, Any] | None = None,
    machine: str | None = None,
) -> Case:
    """Load the scenario ``name`` (a library name or a path), changed by values by path.

    Paths lead into the scenario (``parameters.window``, ``seed``) or, from ``machine.`` on, into its machine
    (``machine.storage``).

    Raises:
        ConfigError: with file and line, or with the setting that is at fault.
    """
    path = library.find_file("scenario", name, files())
    data = yaml_files.read_yaml(path)
    overrides: dict[str, Any] = {}
    for dotted, value in (changes or {}).items():
        if dotted.startswith("machine."):
            overrides[dotted.removeprefix("machine.")] = value
        else:
            set_in(data, dotted, value)
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


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split ``PATH=VALUE``; the value is read as YAML, so that numbers are numbers and ``[1, 2]`` is a list."""
    dotted, equals, text = setting.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set needs PATH=VALUE, such as parameters.window=5, not {setting!r}")
    try:
        return dotted.strip(), yaml_files.parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"--set {dotted}: {text[:80]!r} cannot be read as a value: {error}") from None


def changes_of(settings: Sequence[str] | None) -> dict[str, Any]:
    """Return ``PATH=VALUE`` settings as values by path."""
    return dict(parse_setting(setting) for setting in settings or ())
