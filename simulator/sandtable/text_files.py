"""Read what people wrote: regular files of bounded size, in any encoding that says what it is, and JSON.

Whatever is handed over instead (a pipe that never ends, a device, a folder, bytes that are no text, lists a million
deep) is answered by one sentence, here and nowhere else.
"""

from __future__ import annotations

import codecs
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sandtable.errors import ConfigError
from sandtable.units import format_bytes, in_range

# far more than any file that people write, far less than memory
MOST_BYTES: Final = 64 * 1024**2
_MARKS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most ``most_bytes``.

    Raises:
        ConfigError: no such file, a folder, a pipe or device, too large, or not to be read.
    """
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise ConfigError("this is a folder, but a file is needed", file=str(path))
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError("not a file: a pipe or device is not read", file=str(path))
        if about.st_size > most_bytes:
            sizes = f"{format_bytes(about.st_size)}, more than the {format_bytes(most_bytes)}"
            raise ConfigError(f"this file has {sizes} that are read", file=str(path))
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("no such file", file=str(path)) from None
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        raise ConfigError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=str(path)) from None


def exists(path: Path) -> bool:
    """Whether something has that name; nothing has one that no file system takes."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Read a text file: UTF-8, or what its byte-order mark says, with the mark taken off.

    Raises:
        ConfigError: see `read_bytes`; bytes that are no such text.
    """
    content = read_bytes(path, most_bytes)
    mark, encoding = next((known for known in _MARKS if content.startswith(known[0])), (b"", "utf-8"))
    try:
        # line ends as `open` reads them
        return content[len(mark) :].decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"this is no {encoding.upper()} text: save it as UTF-8", file=str(path), line=line
        ) from None


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Read a JSON file; see `parse_json`."""
    return parse_json(read_text(path, most_bytes), str(path))


def parse_json(text: str, file: str) -> Any:
    """Parse JSON text that came from ``file``, finite numbers only, each key once.

    Raises:
        ConfigError: anything else, with the line where it can be told.
    """
    if not text.strip():
        raise ConfigError("this file is empty: JSON is needed", file=file)
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_float, parse_int=_int, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}", file=file, line=error.lineno) from None
    except RecursionError:
        raise ConfigError("not valid JSON: lists or objects too deep within each other", file=file) from None
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {str(error).partition(';')[0]}", file=file) from None


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _float(text: str) -> float:
    return in_range(float(text), text)


def _int(text: str) -> int:
    return in_range(int(text), text)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice[:80]!r} stands twice: keep one of them")
    return found
