"""What can be chosen: parameters of scenarios and workloads with type, default and meaning; models that they name."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from sandtable import units, yaml_files
from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import Frozen, library
from sandtable.table import Table
from sandtable.workload import scenarios
from sandtable.workload.seam import Workload, workload_named, workloads

# facts of a model that are told as counts: 6.74B
COUNTS = ("parameters", "active")
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def show(name: str) -> Table | None:
    """Return what a scenario or a workload can be told, or the sizes of a model; None for any other name."""
    if name in workloads():
        return workload_table(workload_named(name))
    if name in scenarios.files() or (name.endswith((".yaml", ".yml")) and _reads(Path(name), "workload")):
        return scenario_table(name)
    return None if name.endswith((".yaml", ".yml")) else model_table(name)


def named() -> list[str]:
    """Return every name that `show` knows."""
    return [*workloads(), *scenarios.files(), *models()]


def text_of(table: Table, width: int) -> str:
    """Return a table of parameters as people read it: name, value and type in a line, and below it what it means."""
    lines = textwrap.wrap(table.title, width, subsequent_indent="  ")
    for row in table.records():
        here, default = row.get("here", ""), row["default"]
        value = here or ("" if default == "-" else default)
        kind = f"{row['type']}; default {default}" if here and here != default else row["type"]
        head = f"{row['parameter']}{f' = {value}' if value else ''}  ({kind})"
        lines += textwrap.wrap(head, width, initial_indent="  ", subsequent_indent="      ")
        lines += textwrap.wrap(row["meaning"], width, initial_indent="      ", subsequent_indent="      ")
    for note in table.notes:
        lines += textwrap.wrap(note, width, subsequent_indent="  ")
    return "\n".join(lines)


# --- parameters ----------------------------------------------------------------------------------------------


def workload_table(workload: Workload[Any]) -> Table:
    """Return a workload's parameters: default, type, meaning."""
    rows = [
        [key, default_text(name, field), type_text(name, field), meaning(workload.parameters, name, key)]
        for name, key, field in _fields(workload.parameters)
    ]
    first = (type(workload).__doc__ or "").splitlines()[0]
    ready = sorted(name for name, path in scenarios.files().items() if _reads(path, "workload") == workload.name)
    return Table(
        columns=("parameter", "default", "type", "meaning"),
        rows=rows,
        title=f"{workload.name}: {first}",
        notes=[f"ready-made scenarios: {', '.join(ready)}"] if ready else [],
    )


def scenario_table(name: str) -> Table:
    """Return a scenario's parameters, those that it states first; and machine and software in the notes."""
    scenario = scenarios.read(name)
    workload, here = workload_named(scenario.workload), scenario.parameters
    rows = []
    for field_name, key, field in _fields(workload.parameters):
        stated = key if key in here else field_name if field_name in here else None
        value = "" if stated is None else str(here[stated])
        texts = (default_text(field_name, field), type_text(field_name, field))
        rows.append([key, value, *texts, meaning(workload.parameters, field_name, key)])
    rows.sort(key=lambda row: row[1] == "")
    notes = [
        f"workload  {scenario.workload}",
        f"machine   {_machine_text(scenario.machine)}",
        f"software  {scenario.stack or 'that of the machine, or what is usual for the workload'}",
        "change one with --set parameters.NAME=VALUE, the machine with --machine NAME",
    ]
    columns = ("parameter", "here", "default", "type", "meaning")
    return Table(columns=columns, rows=rows, title=f"{name}: {scenario.title}", notes=notes)


def _machine_text(name: str) -> str:
    try:
        return f"{name} ({library.load_machine(name).title})"
    except ConfigError:
        return f"{name} (not here yet: 'sandtable calibrate --quick' makes it)"


def _reads(path: Path, key: str) -> Any:
    try:
        return yaml_files.read_key(path, key)
    except ConfigError:
        return None


def _fields(model: type[Frozen]) -> list[tuple[str, str, Any]]:
    return [(name, field.alias or name, field) for name, field in model.model_fields.items()]


def default_text(name: str, field: Any) -> str:
    """Return a field's default as it would stand in a file; a dash where nothing is."""
    if field.is_required():
        return "needed"
    value, quantity = field.get_default(call_default_factory=True), units.quantity_of(name)
    if value is None:
        return "-"
    if quantity is not None and isinstance(value, float):
        return units.write(value, quantity)
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def type_text(name: str, field: Any) -> str:
    """Return what a field takes: words to choose from, or a kind of value with its bounds."""
    quantity = units.quantity_of(name)
    kind = (
        _kind(field.annotation) if quantity is None else f"{units.name_of(quantity)}, {units.example_of(quantity)}"
    )
    bounds = [
        f"{sign} {value if isinstance(value := getattr(part, attribute), int) else format(value, 'g')}"
        for part in field.metadata
        for attribute, sign in _BOUNDS.items()
        if quantity is None and isinstance(getattr(part, attribute, None), int | float)
    ]
    return f"{kind} {', '.join(bounds)}" if bounds else kind


def _kind(annotation: Any) -> str:
    annotation = (
        getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
    )
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    inner = [part for part in get_args(annotation) if part not in (NoneType, ...)]
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, inner))
    kinds = dict.fromkeys(_kind(part) for part in inner)
    return f"list of {', '.join(kinds)}" if get_origin(annotation) in (tuple, list) else ", ".join(kinds)


def meaning(model: type[Frozen], name: str, key: str) -> str:
    """Return what a field means: its own description, or what the model's docstring says of it under "Attributes"."""
    field = model.model_fields[name]
    described = _attributes(model)
    return field.description or described.get(name) or described.get(key) or ""


def _attributes(model: type[Frozen]) -> Mapping[str, str]:
    """Return the entries of the section "Attributes" of a docstring, by name."""
    section = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.split(r"^    (?=\w[\w, ]*: )", section, flags=re.MULTILINE)
    found: dict[str, str] = {}
    for entry in filter(None, entries):
        names, _, text = entry.partition(": ")
        for name in names.split(","):
            found[name.strip()] = " ".join(text.replace("``", "").replace("`", "").split())
    return found


# --- models --------------------------------------------------------------------------------------------------


def models() -> list[str]:
    """Return the models that some workload knows by name."""
    return sorted({name for workload in workloads().values() for name in workload.models()})


def models_table() -> Table:
    """Return the models with their counts of parameters, smallest first."""
    facts = {name: workload.model_facts(name) for workload in workloads().values() for name in workload.models()}
    keys = list(dict.fromkeys(key for each in facts.values() for key in each))
    ordered = sorted(facts.items(), key=lambda item: (float(item[1].get("parameters", 0)), item[0]))
    rows = [[name, *(_fact(key, each.get(key)) for key in keys)] for name, each in ordered]
    return Table(columns=("model", *keys), rows=rows)


def model_table(name: str) -> Table | None:
    """Return the sizes of a model that a workload knows, by any name that it takes; None where none does."""
    for workload in workloads().values():
        try:
            facts = workload.model_facts(name)
        except UnknownName:
            continue
        if facts:
            users = [each.name for each in workloads().values() if list(each.models())]
            rows = [[key, _fact(key, value)] for key, value in facts.items()]
            notes = [f"taken by parameters.model of {', '.join(users)}"]
            return Table(columns=("of the model", "is"), rows=rows, title=name, notes=notes)
    return None


def _fact(key: str, value: Any) -> Any:
    return units.format_count(float(value)) if key in COUNTS and value else value
