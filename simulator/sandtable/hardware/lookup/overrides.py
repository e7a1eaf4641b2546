"""Values that a user puts at dotted paths of a device, also into the devices that its file names.

A path may leave out ``datasheet``, and ``device`` of an accelerator: ``memory.capacity`` of a machine is
``memory.datasheet.capacity`` of the file that the machine names as its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from sandtable import yaml_files
from sandtable.errors import ConfigError
from sandtable.hardware import KINDS, Accelerators

BY_USER = "set by the user"
# from a kind of device and a name or path to what that file holds, which may be changed
Read = Callable[[str, str], MutableMapping[str, Any]]
Parts = Mapping[str, Mapping[str, str]]


def put(data: MutableMapping[str, Any], kind: str, dotted: str, value: Any, parts: Parts, read: Read) -> str:
    """Put ``value`` at a path of a device's data, and return the path in full.

    ``parts`` says where a device may name others, by its kind: dotted path -> kind of the other. A name that the path
    leads through is replaced by what ``read`` finds in its file.

    Raises:
        ConfigError: the path leads nowhere.
    """
    whole: list[str] = []
    within: list[str] = []
    node: Any = data
    device: MutableMapping[str, Any] = data
    *parents, last = keys = dotted.split(".")
    for place, key in enumerate(keys):
        for step in (*_left_out(kind, within, key), key):
            final = place == len(parents) and step == last
            whole.append(step)
            within.append(step)
            if final:
                break
            part = parts.get(kind, {}).get(".".join(within))
            if part is not None:
                _open(node, step, part, whole, read)
                kind, within, device = part, [], node[step]
            node = _below(node, step)
    path = ".".join(whole)
    yaml_files.set_path(data, path, value)
    if device.get("sources") is None:
        device["sources"] = {}
    # what else stands there is refused by the device's fields
    if isinstance(device["sources"], MutableMapping):
        device["sources"][".".join(within)] = BY_USER
    return path


def _left_out(kind: str, within: list[str], key: str) -> tuple[str, ...]:
    """Return the section between a device and one of its own keys, where the path goes without it."""
    if (kind, within) == ("machine", ["accelerator"]):
        return () if key in yaml_files.keys_of(Accelerators) else ("device", *_left_out("accelerator", [], key))
    field = KINDS[kind].model_fields.get("datasheet")
    if within or field is None or key in yaml_files.keys_of(KINDS[kind]):
        return ()
    sheet = yaml_files.nested_model(field.annotation)
    return ("datasheet",) if sheet is not None and key in yaml_files.keys_of(sheet) else ()


def _open(node: Any, step: str, kind: str, whole: list[str], read: Read) -> None:
    """Replace the name of a device by what its file holds."""
    named = node.get(step) if isinstance(node, MutableMapping) else None
    if named is None:
        path = ".".join(whole)
        raise ConfigError(f"--set machine.{path}: there is no {whole[0]} here: name one, as in machine.{path}=NAME")
    if isinstance(named, str):
        node[step] = read(kind, str(named))


def _below(node: Any, step: str) -> Any:
    """Return what stands at a step of a path, nothing where `yaml_files.set_path` will make it or refuse it."""
    if isinstance(node, Mapping):
        return node.get(step)
    return node[int(step)] if isinstance(node, list) and step.isdecimal() and int(step) < len(node) else None
