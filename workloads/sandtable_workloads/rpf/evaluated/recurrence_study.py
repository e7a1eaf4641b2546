"""Do recurrence, followed users and the clock help? ``python -m sandtable_workloads.rpf.evaluated.recurrence_study``.

Given a folder it draws events, fits and evaluates: runs that ended there are kept and skipped. Without one it shows the
runs that ship. Tables go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sandtable.errors import ConfigError, SandtableError
from sandtable.system import atomic_files
from sandtable_workloads.rpf.evaluated import study_tables
from sandtable_workloads.rpf.evaluated.study_tables import CASES, SEEDS, Run

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or read the study, print its tables, and return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        runs = _runs(given)
        if given.collect:
            atomic_files.write_atomically(given.collect, "".join(f"{run.as_line()}\n" for run in runs))
        sys.stdout.write(f"{study_tables.as_text(runs)}\n")
    except SandtableError as error:
        _say(f"recurrence_study: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("recurrence_study: interrupted; runs that ended are kept")
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recurrence_study", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="run, and keep runs here; else show those that ship")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many runs of each case")
    parser.add_argument("--case", action="append", help="only this case, like 'events recur'; may be given again")
    parser.add_argument("--collect", type=Path, metavar="FILE", help="write the runs to this file, one a line")
    return parser


def _runs(given: argparse.Namespace) -> list[Run]:
    if given.seeds < 1:
        raise ConfigError(f"--seeds {given.seeds}: write 1 or more")
    unknown = [name for name in given.case or () if name not in CASES]
    if unknown:
        raise ConfigError(f"no case is called {unknown[0]!r}: there are {', '.join(CASES)}")
    chosen = given.case or CASES
    if given.folder is None:
        return [run for run in study_tables.committed() if run.case in chosen and run.seed < given.seeds]
    return [_run(given.folder, case, seed) for case in chosen for seed in range(given.seeds)]


def _run(folder: Path, case: str, seed: int) -> Run:
    from sandtable_workloads.rpf.evaluated.study_cases import runs_of_cases

    run, ran = study_tables.kept_or(folder, case, seed, lambda: runs_of_cases()[case](seed))
    if ran:
        _say(f"{case}, seed {seed}: {run.n_events:,} events")
    return run


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
