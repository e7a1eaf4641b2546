"""Studies over seeds as commands: runs that ended in a folder are kept and skipped, or those that ship are shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sandtable.errors import ConfigError, SandtableError
from sandtable.system import atomic_files

INTERRUPTED = 130


def parser(name: str, doc: str | None, *, seeds: int, cases: Sequence[str]) -> argparse.ArgumentParser:
    """Return what the command ``name`` takes, of a study with so many seeds and these cases."""
    found = argparse.ArgumentParser(prog=name, description=(doc or "").splitlines()[0])
    found.add_argument("folder", nargs="?", type=Path, help="run, and keep runs here; else show those that ship")
    found.add_argument("--seeds", type=int, default=seeds, help="how many runs of each case")
    found.add_argument("--case", action="append", help=f"only this case, like {cases[0]!r}; may be given again")
    found.add_argument("--collect", type=Path, metavar="FILE", help="write the runs to this file, one a line")
    found.set_defaults(cases=cases)
    return found


def main(
    given: argparse.Namespace, name: str, runs_of: Callable[[], Sequence[Any]], text_of: Callable[[Any], str]
) -> int:
    """Run or read a study, print the table that ``text_of`` makes of its runs, and return the exit code."""
    try:
        if given.seeds < 1:
            raise ConfigError(f"--seeds {given.seeds}: write 1 or more")
        unknown = [case for case in given.case or () if case not in given.cases]
        if unknown:
            raise ConfigError(f"no case is called {unknown[0]!r}: there are {', '.join(given.cases)}")
        runs = runs_of()
        if given.collect:
            atomic_files.write_atomically(given.collect, "".join(f"{run.as_line()}\n" for run in runs))
        sys.stdout.write(f"{text_of(runs)}\n")
    except SandtableError as error:
        say(f"{name}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say(f"{name}: interrupted; runs that ended are kept: give the folder again to go on")
        return INTERRUPTED
    return 0


def say(line: str) -> None:
    """Tell what goes on, on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return cells as a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ("---",) * len(heads), *rows))
