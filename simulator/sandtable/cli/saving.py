"""What commands leave on disk, and the thresholds of a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sandtable.cli.terminal import say
from sandtable.errors import CheckFailed

if TYPE_CHECKING:
    from sandtable.api import RealRun, Simulation
    from sandtable.results import TraceRow


def save_run(found: Simulation | RealRun, *, hint: bool = False) -> Path:
    """Keep a result in a run folder of its own, unless it is in one, and return the folder.

    ``hint`` says how to see all of it.
    """
    from sandtable.runs import run_folder

    path = getattr(found, "folder", None)
    if path is None:
        folder = run_folder.RunFolder.create(found.case.scenario.name)
        folder.save(found.result)
        folder.save_inputs(found.case.scenario, found.case.machine)
        path = folder.path
    say(f"  saved {path}" + (": all numbers with --full, or 'sandtable show latest'" if hint else ""))
    return path


def save_timeline(output: Path | None, predicted: Sequence[TraceRow], measured: Sequence[TraceRow]) -> None:
    """Write timelines where they are wanted."""
    if output is None:
        return
    from sandtable.report.timeline import write_trace

    write_trace(output, predicted, measured)
    say(f"  timeline: {output} (open it at ui.perfetto.dev)")


def save_report(runs: Sequence[Path], output: Path | None) -> None:
    """Write a report of runs where it is wanted."""
    if output is None:
        return
    from sandtable.report.run_report import write_report

    write_report(runs, output)
    say(f"  report: {output}")


def check_thresholds(checks: list[tuple[str, bool, float]]) -> None:
    """Say which thresholds hold.

    Raises:
        CheckFailed: one does not.
    """
    for sentence, held, value in checks:
        say(f"  {'✓' if held else '✗'} {sentence}   {value:.4g}")
    missed = [sentence for sentence, held, _ in checks if not held]
    if missed:
        raise CheckFailed(f"does not hold: {'; '.join(missed)}")
