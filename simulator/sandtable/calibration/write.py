"""The one place that changes the ``fitted`` section of a device file: all else in the file stays, comments too."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from sandtable import yaml_files
from sandtable.hardware import Frozen, library
from sandtable.system import atomic_files, checksums

SECTION = "fitted"


def put_fit(path: Path, dotted: str, fit: Frozen, source: str) -> None:
    """Replace one fit and its source in a device file.

    Args:
        path: The file.
        dotted: ``fitted``, or the path of a part of it.
        fit: What is written there.
        source: What it was fitted to, kept under ``sources`` at the same path.

    Raises:
        ConfigError: the file would not load any more; it is left as it was.
    """
    with _locked(path.parent):
        before = path.read_text(encoding="utf-8")
        checksums.check_yaml(before, str(path))
        data = _yaml().load(before)
        if not isinstance(data.get(SECTION), CommentedMap):
            data.pop(SECTION, None)
            data.insert(list(data).index("sources"), SECTION, CommentedMap())
        yaml_files.set_path(data, dotted, _block(library.to_yaml_data(fit)))
        data["sources"][dotted] = source
        text = _text(data)
        library.load_data(yaml_files.parse_yaml(text, str(path)), path)
        if checksums.is_sealed_yaml(before):
            text = checksums.sealed_yaml(text.partition("\n")[2])
        atomic_files.write_atomically(path, text)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing files of a folder meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _block(data: Mapping[str, Any]) -> CommentedMap:
    """Return a fit as YAML with each estimate on one line."""
    block = CommentedMap()
    for key, value in data.items():
        inner = _block(value) if isinstance(value, Mapping) else value
        if isinstance(inner, CommentedMap) and set(inner) <= {"value", "low", "high"}:
            inner.fa.set_flow_style()
        block[key] = inner
    return block


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.width = 118
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.preserve_quotes = True
    return yaml


def _text(data: CommentedMap) -> str:
    stream = io.StringIO()
    _yaml().dump(data, stream)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
