"""Checksums inside what is kept: one changed bit is a file that is refused by name, never another number.

A digest is 128 bits of BLAKE2b over all else in the file. JSON carries it as its first key, YAML as a comment in its
first line. Files without one, written by hand or by an older version, are taken as they are.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

from sandtable.errors import ConfigError

N_BYTES = 16
_JSON = re.compile(rb'\{\n "digest": "([0-9a-f]{32})",')
_YAML = "# digest: {} (of all lines below; delete this one if you change them)\n"
# the first line of a sealed file, even where the words at one of its ends are what was damaged
_SEALED_LINE = re.compile(r"# digest: |.*delete this one if you change them\)$")
WRONG = "does not match its digest: it was damaged, or changed by hand"


def digest(data: bytes) -> str:
    """Return the checksum of ``data``, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=N_BYTES).hexdigest()


def file_digest(path: Path) -> str:
    """Return the checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=N_BYTES)).hexdigest()


def sealed_json(text: str) -> str:
    """Return the text of a JSON object with its digest as the first key."""
    rest = text.encode()
    return f'{{\n "digest": "{digest(rest)}",{text[1:]}'


def checked_json(data: bytes, file: str, *, required: bool = False) -> bytes:
    """Return what `sealed_json` was given, if the digest holds; JSON without one unchanged.

    Raises:
        ConfigError: the digest does not hold, or there is none and it is ``required``.
    """
    found = _JSON.match(data)
    if found is None:
        if required:
            raise ConfigError(f"has no digest: {WRONG}", file=file)
        return data
    rest = b"{" + data[found.end() :]
    if digest(rest) != found[1].decode():
        raise ConfigError(f'{WRONG}; if the change is meant, delete its line "digest"', file=file)
    return rest


def sealed_line(text: str) -> str:
    """Return a line to append to a file of lines: its CRC-32 before it. One write, so that it is whole or cut off."""
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def sealed_lines(data: bytes) -> list[str]:
    """Return the texts of `sealed_line` in a file, up to the first line that is damaged or was cut off."""
    found = []
    for line in data.splitlines(keepends=True):
        text = line[9:].rstrip(b"\n")
        if line != f"{zlib.crc32(text):08x} ".encode() + text + b"\n":
            break
        found.append(text.decode())
    return found


def sealed_yaml(text: str) -> str:
    """Return YAML text with its digest in a comment before it."""
    return _YAML.format(digest(text.encode())) + text


def is_sealed_yaml(text: str) -> bool:
    """Whether YAML text carries a digest, damaged or not."""
    return _SEALED_LINE.match(text.partition("\n")[0]) is not None


def check_yaml(text: str, file: str) -> None:
    """Refuse YAML text whose digest does not hold; without one all is well.

    Raises:
        ConfigError: it was changed.
    """
    first, newline, rest = text.partition("\n")
    if "\0" in text:
        raise ConfigError("holds bytes that are zero: it was damaged", file=file)
    if is_sealed_yaml(text) and first + newline != _YAML.format(digest(rest.encode())):
        raise ConfigError(f"{WRONG}; if the change is meant, delete its first line", file=file, line=1)
