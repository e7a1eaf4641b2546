"""Do recurrence, followed users and the clock help? ``python -m sandtable_workloads.rpf.evaluated.recurrence_study``.

Given a folder it draws events, fits and evaluates: runs that ended there are kept and skipped. Without one it shows the
runs that ship. Tables go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sandtable_workloads import seed_study
from sandtable_workloads.rpf.evaluated import study_tables
from sandtable_workloads.rpf.evaluated.study_tables import CASES, SEEDS, Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or read the study, print its tables, and return the exit code."""
    parser = seed_study.parser("recurrence_study", __doc__, seeds=SEEDS, cases=list(CASES))
    given = parser.parse_args(arguments)
    return seed_study.main(given, parser.prog, lambda: _runs(given), study_tables.as_text)


def _runs(given: argparse.Namespace) -> list[Run]:
    chosen = given.case or CASES
    if given.folder is None:
        return [run for run in study_tables.committed() if run.case in chosen and run.seed < given.seeds]
    return [_run(given.folder, case, seed) for case in chosen for seed in range(given.seeds)]


def _run(folder: Path, case: str, seed: int) -> Run:
    from sandtable_workloads.rpf.evaluated.study_cases import runs_of_cases

    run, ran = study_tables.kept_or(folder, case, seed, lambda: runs_of_cases()[case](seed))
    if ran:
        seed_study.say(f"{case}, seed {seed}: {run.n_events:,} events")
    return run


if __name__ == "__main__":
    sys.exit(main())
