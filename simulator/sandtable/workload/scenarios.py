"""Load scenarios, with changes from the command line."""

from __future__ import annotations

import os
import re
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
# endings of files that a parameter may name
_NAMED_FILES = (".json", ".yaml", ".yml", ".npz", ".csv", ".bin", ".txt")


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
        known = data.get(section) or {}
        if not isinstance(known, Mapping):
            raise ConfigError(f"--set {dotted}: thresholds is not a section with keys of its own")
        data[section] = dict(known) | {metric: value}
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
    _find_beside(data.get("parameters"), path)
    overrides: dict[str, Any] = {}
    for dotted, value in (changes or {}).items():
        if dotted.startswith("machine."):
            overrides[dotted.removeprefix("machine.")] = value
        else:
            set_in(data, dotted, value)
    beside = path if machine is None and "machine" not in (changes or {}) else None
    if machine is not None:
        data["machine"] = machine
    own = {dotted: dotted for dotted in changes or {} if not dotted.startswith("machine.")}
    try:
        scenario = yaml_files.validate(Scenario, data, str(path))
        return case_of(scenario, overrides=overrides, data=data, file=str(path), beside=beside)
    except ConfigError as error:
        raise _blamed(error, own) from None


def _find_beside(parameters: Any, path: Path) -> None:
    """Lead files that parameters name, and that lie beside the scenario's own, from the current folder."""
    if not isinstance(parameters, dict):
        return
    for key, value in parameters.items():
        if not isinstance(value, str) or not value:
            continue
        found = path.parent / value
        # a folder without a separator in its name is meant where it describes itself: others are named by chance
        by_name = os.sep in value or value.endswith(_NAMED_FILES) or (found / "config.json").is_file()
        if by_name and found.exists():
            parameters[key] = str(found)


def _blamed(error: ConfigError, settings: Mapping[str, str]) -> ConfigError:
    """Return an error about a setting, or about parameters together of which some were set, as one about settings."""
    changed = [dotted for dotted in settings if dotted.startswith("parameters.")]
    if error.path == "parameters" and changed and "parameters" not in settings:
        return ConfigError(f"--set {', '.join(changed)}: {error.message.removeprefix('parameters').lstrip('.: ')}")
    return yaml_files.blame(error, settings)


def case_of(
    scenario: Scenario,
    *,
    overrides: Mapping[str, Any] | None = None,
    data: Any = None,
    file: str = "",
    machine: Machine | None = None,
    beside: Path | None = None,
) -> Case:
    """Load what a scenario names and validate its parameters; ``data`` and ``file`` are where it was read from.

    ``beside`` is the file that names the machine, where that is a path.
    """
    workload = workload_named(scenario.workload).serving(scenario.parameters)
    scenario = scenario.model_copy(update={"workload": workload.name})
    try:
        parameters = workload.parameters.model_validate(
            yaml_files.plain(scenario.parameters), context=units.AT_EDGE
        )
    except ValidationError as error:
        section = {} if data is None else data.get("parameters", {})
        fault = yaml_files.config_error(error, section, file or scenario.name, workload.parameters)
        unknown = any(each["type"] == "extra_forbidden" for each in error.errors())
        rest = f"; 'sandtable show {workload.name}' lists all" if unknown else ""
        # what several fields have wrong together is shown at the one it begins with, or the most precise name
        words = re.findall(r"\w+", fault.message)
        given = [word for word in words if word in section]
        named = words[0] if words[0] in given else max(given, key=len, default="")
        joined = "." if fault.path or words[0] in workload.parameters.model_fields else ": "
        raise ConfigError(
            f"parameters{joined}{fault.message}{rest}",
            file=file or scenario.name,
            line=fault.line or yaml_files.line_of(section, (named,)),
            path=f"parameters.{fault.path}" if fault.path else "parameters",
        ) from None
    if machine is None:
        stack = {} if scenario.stack is None else {"stack": scenario.stack}
        machine = library.load_machine(scenario.machine, stack | dict(overrides or {}), beside)
    named = scenario.stack is not None or any(path.partition(".")[0] == "stack" for path in overrides or {})
    machine = machine if named else equipped(machine, workload)
    return Case(scenario=scenario, workload=workload, parameters=parameters, machine=machine)


def equipped(machine: Machine, workload: Workload[Any]) -> Machine:
    """Return a machine that names no software with what is usual for the workload; others as they are."""
    usual, stack = workload.usual_stack(machine), machine.stack
    if usual is None or stack is None or stack.name != library.GENERIC_STACK:
        return machine
    return machine.model_copy(update={"stack": library.load_stack(usual)})


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
