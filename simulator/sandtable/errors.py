"""Every error a user can meet, and the exit code that it leaves with.

::

    SandtableError                 1
    ├── ConfigError                2   bad usage or configuration: file, line, what to write instead
    │   ├── UnknownName            2   no device, workload or scenario of that name, with suggestions
    │   └── StoreError             2   a weight store that is truncated, altered or of another geometry
    ├── PlanError                  2   a plan that cannot be: a cycle, an op no device here can serve
    ├── CheckFailed                3   a prediction or a threshold missed
    ├── NoDevice                   4   hardware, driver or optional package missing
    ├── DoesNotFit                 5   memory or disk too small: needs, has, and what would fit
    ├── MeasureError               1   a run on real hardware broke
    └── CalibrationError           1   the measurements do not support a fit
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class SandtableError(Exception):
    """Root of all errors raised on purpose; `exit_code` is what the command line leaves with."""

    exit_code: ClassVar[int] = 1


class ConfigError(SandtableError):
    """Input that cannot be used. `file` and `line` (1-based), where known, lead the message."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        where = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        super().__init__(where + message)
        self.message = message
        self.file = file
        self.line = line


class UnknownName(ConfigError):
    """A name that is not in the library; the nearest known names are suggested."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no {kind} named {name!r}{did_you_mean(name, known)}")


class StoreError(ConfigError):
    """A weight store on disk that is truncated, altered or of another geometry."""


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
    """More memory or disk is needed than there is."""

    exit_code: ClassVar[int] = 5


class MeasureError(SandtableError):
    """A run on real hardware broke off."""


class CalibrationError(SandtableError):
    """The measurements are too few or too inconsistent to fit."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest up to three near names, or list a few known ones, as the tail of a sentence."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f" (did you mean {', '.join(repr(n) for n in near)}?)"
    if names:
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        return f" (known: {shown})"
    return ""


def missing_extra(package: str, extra: str) -> NoDevice:
    """Build the error for an optional package that is not installed, with the command that adds it."""
    return NoDevice(f"this needs the package {package!r}: pip install 'sandtable[{extra}]'")
