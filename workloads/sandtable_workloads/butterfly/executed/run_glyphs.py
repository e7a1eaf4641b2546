"""The study of structures on glyphs: ``python -m sandtable_workloads.butterfly.executed.run_glyphs``.

Given a folder it trains: runs that ended there are kept and skipped, and one that was killed resumes behind its last
whole epoch. Without one it shows the runs that ship. The table goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sandtable_workloads import seed_study
from sandtable_workloads.butterfly.executed import glyph_study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or read the study, print its table, and return the exit code."""
    cases = list(dict.fromkeys(case.name for case in glyph_study.cases()))
    parser = seed_study.parser("run_glyphs", __doc__, seeds=glyph_study.SEEDS, cases=cases)
    parser.add_argument("--budget", choices=list(glyph_study.BUDGETS), help="only cases of this budget")
    given = parser.parse_args(arguments)
    return seed_study.main(
        given, parser.prog, lambda: _runs(given), lambda runs: glyph_study.as_text(glyph_study.table(runs))
    )


def _runs(given: argparse.Namespace) -> Sequence[glyph_study.Kept]:
    def wanted(name: str, budget: str) -> bool:
        return given.budget in (None, budget) and (not given.case or name in given.case)

    if given.folder is None:
        runs = [run for run in glyph_study.committed() if wanted(run.case, run.budget)]
        return [run for run in runs if run.outcome.settings.seed < given.seeds]
    chosen = [case for case in glyph_study.cases() if wanted(case.name, case.budget)]
    return glyph_study.study(given.folder, chosen, given.seeds, seed_study.say)


if __name__ == "__main__":
    sys.exit(main())
