"""A soup as reference, or plain PPO? ``python -m sandtable_workloads.rlhf.soup_study.soup_study``.

Given a folder it aligns and judges: runs that ended there are kept, one that was killed resumes. Without one it shows
the runs that ship. Tables go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sandtable_workloads import seed_study
from sandtable_workloads.rlhf.soup_study import soup_runs, soup_tables
from sandtable_workloads.rlhf.soup_study.soup_runs import SEEDS, Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or read the study, print its tables, and return the exit code."""
    parser = seed_study.parser("soup_study", __doc__, seeds=max(SEEDS.values()), cases=list(SEEDS))
    given = parser.parse_args(arguments)
    return seed_study.main(given, parser.prog, lambda: _runs(given), soup_tables.as_text)


def _runs(given: argparse.Namespace) -> list[Run]:
    seeds = {case: min(n, given.seeds) for case, n in SEEDS.items() if case in (given.case or SEEDS)}
    if given.folder is None:
        return [run for run in soup_runs.committed() if run.seed < seeds.get(run.case, 0)]
    return [_run(given.folder, case, seed) for case, n in seeds.items() for seed in range(n)]


def _run(folder: Path, case: str, seed: int) -> Run:
    def say(line: str) -> None:
        seed_study.say(f"{case}, seed {seed}: {line}")

    return soup_runs.kept_or_run(case, seed, folder, say)


if __name__ == "__main__":
    sys.exit(main())
