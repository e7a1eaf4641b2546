"""Read and write YAML files: errors carry the file and the line.

YAML is read as version 1.2 by ruamel: duplicate keys are refused, ``989e12`` is a number, ``no`` is text.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.reader import ReaderError

from sandtable import units
from sandtable.errors import ConfigError, did_you_mean
from sandtable.system import checksums
from sandtable.text_files import read_text

M = TypeVar("M", bound=BaseModel)
# bounds on a file that people write, a hundred times what the largest shipped or calibrated one takes
MOST_BYTES = 8 * 1024**2
MOST_PARTS = 500_000
MOST_DEEP = 50
# what ruamel lets through, beside its own errors, on tags, numbers, dates and nesting that it does not foresee
_FAULTS = (
    YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
    RecursionError,
)


def read_yaml(path: Path) -> CommentedMap:
    """Read one YAML mapping, keeping line numbers.

    Raises:
        ConfigError: not readable, not YAML, a duplicate key, not a mapping, or not what its digest says.
    """
    text = read_text(path, MOST_BYTES)
    checksums.check_yaml(text, str(path))
    return parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> CommentedMap:
    """Parse YAML text that came from ``file``; see `read_yaml`."""
    if not text.strip():
        raise ConfigError("this file is empty", file=file)
    try:
        data = pickle.loads(_pickled(text))
    except _FAULTS as error:
        raise _not_yaml(error, file) from None
    if not isinstance(data, CommentedMap):
        raise ConfigError("a mapping of keys to values is needed", file=file, line=1)
    return data


def parse_value(text: str) -> Any:
    """Parse YAML text of one value, such as stands behind ``--set PATH=``.

    Raises:
        ConfigError: it is no value.
    """
    try:
        _check_depth(text)
        value = YAML(typ="safe", pure=True).load(text)
        _count_parts(value, MOST_PARTS)
    except _FAULTS as error:
        raise _not_yaml(error, None) from None
    return value


@lru_cache(maxsize=1024)
def _pickled(text: str) -> bytes:
    """Parse a text once: to load what was pickled takes a fiftieth of the time, and whoever reads may change it."""
    _check_depth(text)
    data = YAML(typ="rt").load(text)
    _count_parts(data, MOST_PARTS)
    return pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)


def _check_depth(text: str) -> None:
    """Refuse brackets far within each other before the parser, which takes seconds to find that they are too deep."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MOST_DEEP * 2:
            raise ValueError("lists or sections too deep within each other")


def _count_parts(data: Any, left: int, depth: int = 0) -> int:
    """Return how many of ``left`` parts are left after ``data``: aliases make a few lines a billion, or a circle."""
    if left < 0 or depth > MOST_DEEP:
        raise ValueError("lists or sections too deep within each other, or too many of them")
    left -= 1
    if isinstance(data, int | float):
        units.in_range(data)
    if isinstance(data, Mapping):
        data = data.values()
    elif not isinstance(data, list | tuple | set):
        return left
    for item in data:
        left = _count_parts(item, left, depth + 1)
    return left


def _not_yaml(error: Exception, file: str | None) -> ConfigError:
    """Return what is wrong with a text as one sentence, with its line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = None if mark is None else mark.line + 1
    problem = str(getattr(error, "problem", None) or getattr(error, "context", None) or error)
    if isinstance(error, DuplicateKeyError):
        key = problem.split('"')[1] if '"' in problem else "a key"
        return ConfigError(f"duplicate key {key!r}: keep one of them", file=file, line=line)
    if isinstance(error, ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character[:1] or "?")
        problem = f"character U+{code:04X} is not allowed"
    elif not isinstance(error, YAMLError | ValueError):
        problem = "lists too deep" if isinstance(error, RecursionError) else "a value that cannot be read"
    return ConfigError(f"not valid YAML: {' '.join(problem.split())[:200]}", file=file, line=line)


def read_key(path: Path, key: str) -> Any:
    """Read the value of one key at the top of a file without parsing the rest; None if the key is not there."""
    text = read_text(path, MOST_BYTES)
    found = re.search(rf"^{re.escape(key)}:.*\n(?:[ \-\]].*\n|\n)*", text, re.MULTILINE)
    return None if found is None else parse_yaml(found[0], str(path))[key]


def line_of(data: Any, location: Iterable[str | int]) -> int | None:
    """Return the 1-based line of the deepest part of ``location`` that stands in ``data``."""
    line: int | None = None
    node = data
    for key in location:
        if isinstance(node, CommentedMap) and key in node:
            if key not in (node.lc.data or {}):  # put in while loading, so it stands on no line
                break
            line = node.lc.key(key)[0] + 1
        elif isinstance(node, CommentedSeq) and isinstance(key, int) and key < len(node):
            line = node.lc.item(key)[0] + 1
        else:
            break
        node = node[key]
    return line


def validate(model: type[M], data: Any, file: str) -> M:
    """Validate ``data``, read from ``file``, as ``model``; the first fault becomes a `ConfigError`."""
    try:
        return model.model_validate(plain(data), context=units.AT_EDGE)
    except ValidationError as error:
        raise config_error(error, data, file, model) from None


def plain(data: Any) -> Any:
    """Strip ruamel's wrappers, so that pydantic sees dicts, lists and scalars."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list):
        return [plain(item) for item in data]
    if isinstance(data, bool) or data is None:
        return data
    for scalar in (int, float, str):
        if isinstance(data, scalar):
            return scalar(data)
    return data


def config_error(error: ValidationError, data: Any, file: str, model: type[BaseModel]) -> ConfigError:
    """Turn pydantic's faults into one sentence about the most telling of them: unknown fields first.

    A model may say in ``also_called`` under which names people look for its fields.
    """
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    location = fault["loc"]
    path = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        message = f"unknown field{_suggestion(str(location[-1]), _model_at(model, location[:-1]))}"
    elif fault["type"] == "missing":
        message = "this field is missing"
    else:
        message = fault["msg"].removeprefix("Value error, ")
        message += f", not {str(fault['input'])[:40]!r}" if str(fault["type"]).endswith("_parsing") else ""
    line = line_of(data, location)
    return ConfigError(f"{path}: {message}" if path else message, file=file, line=line, path=path)


def _suggestion(name: str, model: type[BaseModel] | None) -> str:
    """Return what an unknown field of a model may mean, as the tail of a sentence."""
    if model is None:
        return ""
    also: Mapping[str, str] = getattr(model, "also_called", {})
    if meant := also.get(name.lower().replace("-", "_")):
        return f" (did you mean {meant!r}?)"
    return did_you_mean(name, keys_of(model))


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return the names that the fields of a model have in a file."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel], location: Sequence[Any]) -> type[BaseModel] | None:
    """Return the model at ``location`` below ``model``, if one stands there."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None:
            return None
        field = next((f for name, f in current.model_fields.items() if part in (name, f.alias)), None)
        current = None if field is None else nested_model(field.annotation)
    return current


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """Return the first model in an annotation, such as that of ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        nested = nested_model(argument)
        if nested is not None:
            return nested
    return None


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Write plain data as YAML text, keys in the given order."""
    writer = YAML()
    writer.width = 110
    writer.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    writer.dump(dict(data), stream)
    return stream.getvalue()


def set_path(data: Any, dotted: str, value: Any) -> None:
    """Put ``value`` at a dotted path of nested mappings, making those that are missing; a number leads into a list.

    Raises:
        ConfigError: the path leads through something that is neither a mapping nor a list with that entry.
    """
    *parents, key = dotted.split(".")
    node = data
    for depth, parent in enumerate(parents):
        place = _place(node, parent, dotted)
        if isinstance(node, MutableMapping) and node.get(place) is None:
            node[place] = {}
        node = node[place]
        if not isinstance(node, MutableMapping | list):
            raise ConfigError(
                f"--set {dotted}: {'.'.join(parents[: depth + 1])} is not a section with keys of its own"
            )
    node[_place(node, key, dotted)] = value


def _place(node: Any, key: str, dotted: str) -> Any:
    """Return a part of a dotted path as a key of a mapping or a place in a list."""
    if not isinstance(node, list):
        return key
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"--set {dotted}: {key!r} is no place in a list of {len(node)}, the first of which is 0")
    return int(key)


def blame(error: ConfigError, settings: Mapping[str, str]) -> ConfigError:
    """Return an error about a value that a user set as one about the setting, by its full path; others as they are."""
    path = error.path or ""
    for full, dotted in settings.items():
        if path == full or path.startswith(f"{full}."):
            message = error.message.removeprefix(f"{path}: ")
            rest = path.removeprefix(full)
            return ConfigError(f"--set {dotted}{rest}: {message}", path=path)
        if path and full.startswith(f"{path}."):
            return ConfigError(f"--set {dotted}: {error.message}", path=path)
    return error
