"""Every error a user can meet, and the exit code that it leaves with.

::

    SandtableError                 1
    ├── ConfigError                2   bad usage or configuration: file, line, what to write instead
    │   ├── UnknownName            2   no device, workload or scenario of that name, with suggestions
    │   ├── StoreError             2   a weight store that is truncated, altered or of another geometry
    │   └── InUse                  2   another process works on the same thing: which, and since when
    ├── PlanError                  2   a plan that cannot be: a cycle, an op no device here can serve
    ├── CheckFailed                3   a prediction or a threshold missed
    ├── NoDevice                   4   hardware, driver or optional package missing
    ├── DoesNotFit                 5   memory or disk too small: needs, has, and what would fit
    ├── MeasureError               1   a run on real hardware broke
    └── CalibrationError           1   the measurements do not support a fit
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import ClassVar

# suggestions of a message, names that it lists in full, and letters that are enough to look for a name that holds them
N_NEAR, N_LISTED, SHORTEST_WORD = 3, 40, 3


class SandtableError(Exception):
    """Root of all errors raised on purpose; `exit_code` is what the command line leaves with."""

    exit_code: ClassVar[int] = 1


class ConfigError(SandtableError):
    """Input that cannot be used. `file` and `line` (1-based), where known, lead the message.

    `path` is the dotted path of the value at fault within what was read, where it is known.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None, path: str | None = None
    ) -> None:
        where = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        message = one_sentence(message)
        super().__init__(where + message)
        self.message = message
        self.file = file
        self.line = line
        self.path = path


class UnknownName(ConfigError):
    """A name that is not in the library; the nearest known names are suggested.

    ``listed`` is what ``sandtable list`` shows all of them under, for when nothing is near.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], listed: str | None = None) -> None:
        command = None if listed is None else f"sandtable list {listed}"
        super().__init__(f"no {kind} named {name!r}{did_you_mean(name, known, command)}")


class StoreError(ConfigError):
    """A weight store on disk that is truncated, altered or of another geometry."""


class InUse(ConfigError):
    """Another process works on what two would spoil together."""


class PlanError(SandtableError):
    """A plan that cannot be executed."""

    exit_code: ClassVar[int] = 2


class CheckFailed(SandtableError):
    """A prediction missed its measurement, or a threshold was crossed."""

    exit_code: ClassVar[int] = 3


class NoDevice(SandtableError):
    """Hardware, a driver or an optional package that this machine lacks."""

    exit_code: ClassVar[int] = 4


class DoesNotFit(SandtableError):
    """More memory or disk is needed than there is. ``answer`` is what that says to the question that was asked."""

    exit_code: ClassVar[int] = 5
    answer: object | None = None


class MeasureError(SandtableError):
    """A run on real hardware broke off."""


class CalibrationError(SandtableError):
    """The measurements are too few or too inconsistent to fit."""


def one_sentence(text: str, most: int = 700) -> str:
    """Return a message on one line that can be read: no control characters, cut in the middle where it is long."""
    text = " ".join(text.split()) if any(c in text for c in "\n\r\t") else text
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def printable(text: str) -> str:
    """Return text with a space for every control character, so that a title can do nothing to a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def did_you_mean(name: str, known: Iterable[str], command: str | None = None) -> str:
    """Suggest up to three near names, or list known ones, as the tail of a sentence.

    Names that hold all words of ``name`` come first. Where none is near and there are many, a few are named, and
    ``command`` as what shows all.
    """
    names = sorted(set(known))
    near = _holding(name, names) or difflib.get_close_matches(name, names, n=N_NEAR, cutoff=0.5)
    if near:
        return f" (did you mean {', '.join(repr(n) for n in near)}?)"
    if len(names) > N_LISTED and command is not None:
        return f" (known: {', '.join(names[:N_NEAR])} and {len(names) - N_NEAR} more: '{command}' shows all)"
    return f" (known: {', '.join(names)})" if names else ""


def _holding(name: str, names: Iterable[str]) -> list[str]:
    """Return the shortest names that hold every word of ``name``, whatever its case and punctuation."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    if not words or len("".join(words)) < SHORTEST_WORD:
        return []
    plain = {each: re.sub(r"[^a-z0-9]", "", each.lower()) for each in names}
    found = [each for each, text in plain.items() if all(word in text for word in words)]
    return sorted(found, key=lambda each: (len(each), each))[:N_NEAR]


def missing_extra(package: str, extra: str) -> NoDevice:
    """Build the error for an optional package that is not installed, with the command that adds it."""
    return NoDevice(f"this needs the package {package!r}: {install_extra(extra)}")


def install_extra(extra: str) -> str:
    """Return the command that adds an extra to this package: from its folder, as it is in no index."""
    return f"pip install -e '.[{extra}]' in the folder of Sandtable"
