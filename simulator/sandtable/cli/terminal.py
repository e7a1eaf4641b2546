"""What the command line prints: results on stdout, progress and warnings on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandtable.results import Comparison, Result

PROGRESS_EVERY_S = 10.0


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Progress on stderr: one changing line on a terminal, a line every ten seconds otherwise."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.begin = self.last = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self.terminal:
            print(f"\r\x1b[2K  {text[:110]}", end="", file=sys.stderr, flush=True)
        elif now - self.last >= PROGRESS_EVERY_S:
            self.last = now
            say(f"  {now - self.begin:.0f} s: {text}")

    def done(self) -> None:
        """Clear the line."""
        if self.terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Show progress while inside."""
    shown = Progress()
    try:
        yield shown
    finally:
        shown.done()


def emit(table: Any, format_: Format) -> None:
    """Print a table on stdout in the wanted format."""
    from sandtable.report import rendering

    print(rendering.render(table, format_.value))


def emit_result(result: Result, format_: Format) -> None:
    """Print a prediction or a measurement."""
    from sandtable.report import rendering
    from sandtable.results import metric_table

    if format_ is Format.json:
        record = {
            "schema": result.schema_version,
            "scenario": result.scenario,
            "machine": result.machine,
            "metrics": metric_table(result.metrics),
            "breakdown": result.breakdown,
            "memory": result.memory,
            "warnings": list(result.warnings),
            "answer": None if result.answer is None else result.answer.model_dump(),
        }
        print(json.dumps(record, indent=1))
        return
    if format_ is Format.table and result.answer is not None:
        print(result.answer)
    print(rendering.render(rendering.metrics_table(result), format_.value))
    if format_ is Format.table:
        for line in rendering.result_notes(result):
            print(line)
    for warning in result.warnings:
        say(f"  ! {warning}")


def emit_comparison(comparison: Comparison, format_: Format) -> None:
    """Print a comparison with its summary and verdict."""
    from sandtable.report import rendering

    if format_ is Format.json:
        print(comparison.model_dump_json(by_alias=True, indent=1))
        return
    shown = comparison if format_ is Format.csv else rendering.headlines(comparison)
    print(rendering.render(rendering.comparison_table(shown), format_.value))
    if format_ is Format.table:
        for line in rendering.comparison_notes(comparison):
            print(line)
