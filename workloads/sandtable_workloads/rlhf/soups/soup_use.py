"""What ``sandtable soup`` says of a soup, and how it asks a command for scores."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.results import Answer
from sandtable.system import limits
from sandtable.table import Quantity, Table
from sandtable_workloads.rlhf.soups import soup_arithmetic
from sandtable_workloads.rlhf.soups.soup_making import MEMORY_BYTES, Soup


def room(memory: str) -> float:
    """Return the bytes that buffers may take if the whole process is to take ``memory``.

    Raises:
        ConfigError: no size, or less than the program itself takes.
    """
    try:
        wanted = units.parse(memory, "bytes")
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from error
    soup_arithmetic.warm_up("F16", "F16")
    own = limits.status_bytes("VmRSS") or 0
    if wanted <= own:
        raise ConfigError(f"--memory {memory}: the program alone takes {units.format_bytes(own)}")
    return min(wanted - own, MEMORY_BYTES)


def scored_by(command: str, path: Path) -> float:
    """Run a command on a checkpoint and return the last word that it prints as a number.

    ``{}`` in it stands for the path, which goes to the end where there is none.

    Raises:
        ConfigError: it cannot be run, fails, or prints no number.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--score {command!r}: {error}") from error
    named = [word.replace("{}", str(path)) for word in words]
    arguments = named if named != words else [*words, str(path)]
    try:
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"--score {command!r} cannot be run: {error.strerror}") from error
    try:
        done.check_returncode()
        return float(done.stdout.split()[-1])
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        told = f"exit code {done.returncode}" if done.returncode else f"printed {units.shown(done.stdout.strip())}"
        raise ConfigError(f"--score {command!r} gave no number for {path}: {told}") from error


def answer(found: Soup) -> Answer:
    """Return what was averaged, what came of it and what that took."""
    resident = f", {units.format_bytes(found.resident_bytes)} of memory" if found.resident_bytes else ""
    kept = "" if found.scores is None else f"{len(found.weights)} of {len(found.scores)} models stayed. "
    return Answer(
        question=f"What is the {'greedy soup' if found.scores else 'average'} of these checkpoints?",
        subject=f"{_models(found)}, {units.format_count(found.n_params)} parameters in {' and '.join(found.dtypes)}",
        verdict=f"{kept}{found.path}, {units.format_bytes(found.bytes_written)}.",
        headlines=(
            f"{units.format_bytes(found.bytes_read)} read in {units.format_seconds(found.seconds)}, "
            f"{units.format_si(found.read_bytes_per_s, 'B/s')}{resident}",
            *(() if found.score is None else (f"score {found.score:.6g}",)),
        ),
        caveat=found.notes[0] if found.notes else "",
    )


def _models(found: Soup) -> str:
    return " + ".join(f"{weight:.4g} {path}" for path, weight in found.weights.items()).replace("+ -", "- ")


def table(found: Soup) -> Table:
    """Return all figures."""
    rows: list[Sequence[object]] = [(f"weight of {path}", weight) for path, weight in found.weights.items()]
    rows += [(f"score of {path}", value) for path, value in (found.scores or {}).items()]
    rows += [] if found.score is None else [("score", found.score)]
    rows += [
        ("parameters", found.n_params),
        ("type", " and ".join(found.dtypes)),
        ("read", Quantity(found.bytes_read, "B")),
        ("written", Quantity(found.bytes_written, "B")),
        ("time", Quantity(found.seconds, "s")),
        ("read rate", Quantity(found.read_bytes_per_s, "B/s")),
        ("buffers", Quantity(found.buffer_bytes, "B")),
        *([] if found.resident_bytes is None else [("memory of the process", Quantity(found.resident_bytes, "B"))]),
        ("output", str(found.path)),
    ]
    return Table(columns=("what", "value"), rows=rows, title="Soup", notes=found.notes)
