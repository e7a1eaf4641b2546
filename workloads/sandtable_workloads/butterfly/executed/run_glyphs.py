"""The study of structures on glyphs: ``python -m sandtable_workloads.butterfly.executed.run_glyphs``.

Given a folder it trains: runs that ended there are kept and skipped, and one that was killed resumes behind its last
whole epoch. Without one it shows the runs that ship. The table goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sandtable.errors import ConfigError, SandtableError
from sandtable.system import atomic_files
from sandtable_workloads.butterfly.executed import glyph_study

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or read the study, print its table, and return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        runs = _runs(given)
        if given.collect:
            atomic_files.write_atomically(given.collect, "".join(f"{run.as_line()}\n" for run in runs))
        sys.stdout.write(f"{glyph_study.as_text(glyph_study.table(runs))}\n")
    except SandtableError as error:
        _say(f"run_glyphs: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("run_glyphs: interrupted; runs that ended are kept, the last one resumes")
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run_glyphs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="train, and keep runs here; else show those that ship")
    parser.add_argument("--seeds", type=int, default=glyph_study.SEEDS, help="how many runs of each case")
    parser.add_argument("--budget", choices=list(glyph_study.BUDGETS), help="only cases of this budget")
    parser.add_argument("--case", action="append", help="only this case, like 'butterfly'; may be given again")
    parser.add_argument("--collect", type=Path, metavar="FILE", help="write the runs to this file, one a line")
    return parser


def _runs(given: argparse.Namespace) -> Sequence[glyph_study.Kept]:
    if given.seeds < 1:
        raise ConfigError(f"--seeds {given.seeds}: write 1 or more")
    known = list(dict.fromkeys(case.name for case in glyph_study.cases()))
    unknown = [name for name in given.case or () if name not in known]
    if unknown:
        raise ConfigError(f"no case is called {unknown[0]!r}: there are {', '.join(known)}")

    def wanted(name: str, budget: str) -> bool:
        return given.budget in (None, budget) and (not given.case or name in given.case)

    if given.folder is None:
        runs = [run for run in glyph_study.committed() if wanted(run.case, run.budget)]
        return [run for run in runs if run.outcome.settings.seed < given.seeds]
    chosen = [case for case in glyph_study.cases() if wanted(case.name, case.budget)]
    return glyph_study.study(given.folder, chosen, given.seeds, _say)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
