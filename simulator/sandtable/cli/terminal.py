"""What the command line prints: results on stdout, progress and warnings on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sandtable import units
from sandtable.errors import DoesNotFit, printable
from sandtable.workload.progress import Step

if TYPE_CHECKING:
    from sandtable.results import Answer, Comparison, Result

PROGRESS_EVERY_S = 10.0


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


# what terminals without these characters get instead
SPELLED = str.maketrans(
    {
        "✓": "+",
        "✗": "-",
        "±": "+/-",
        "×": "x",
        "→": "->",
        "–": "-",
        "−": "-",
        "…": "...",
        "▇": "#",
        "µ": "u",
        "─": "-",
    }
)


def readable(text: str, encoding: str | None) -> str:
    """Return text as a terminal of this encoding shows it: no control characters, and nothing that it cannot write."""
    plain = "\n".join(map(printable, text.split("\n")))
    try:
        plain.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return plain.translate(SPELLED).encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")
    return plain


def put(text: object) -> None:
    """Print a result, on stdout."""
    print(readable(str(text), sys.stdout.encoding))


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    print(readable(text, sys.stderr.encoding), file=sys.stderr, flush=True)


class Progress:
    """Progress on stderr: one changing line on a terminal, a line every ten seconds otherwise.

    Of steps that are counted it says which of how many goes on, and from those done so far how long the others take.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.terminal = sys.stderr.isatty()
        self.clock = clock
        self.begin = self.last = clock()
        # the number of steps that are being counted, how many of them were done at first, and when that was
        self.series = (0, 0, self.begin)

    def __call__(self, text: str) -> None:
        now = self.clock()
        shown = f"{self._place(text, now)}: {text}" if isinstance(text, Step) else text
        if self.terminal:
            print(f"\r\x1b[2K  {readable(shown, sys.stderr.encoding)[:110]}", end="", file=sys.stderr, flush=True)
        elif now - self.last >= PROGRESS_EVERY_S:
            self.last = now
            say(f"  {now - self.begin:.0f} s: {shown}")

    def _place(self, step: Step, now: float) -> str:
        total, first, begin = self.series
        if total != step.total or step.done < first:
            self.series = total, first, begin = step.total, step.done, now
        done = step.done - first
        left = (now - begin) / done * (step.total - step.done) if done else None
        place = f"{step.done + 1} of {step.total}"
        return place if left is None else f"{place}, {units.format_seconds(float(f'{left:.2g}'))} left"

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


@contextlib.contextmanager
def refusing(format_: Format) -> Iterator[None]:
    """Print the answer of what does not fit, for people; the error goes on to its exit code."""
    try:
        yield
    except DoesNotFit as error:
        if error.answer is not None and format_ is Format.table:
            put(error.answer)
        raise


def emit(table: Any, format_: Format, *, answer: Answer | None = None, full: bool = True) -> None:
    """Print a table on stdout; for people after its answer, and only where ``full`` asks for it if there is one."""
    from sandtable.report import rendering

    rendered = rendering.render(table, format_.value)
    if answer is None:
        put(rendered)
    elif format_ is Format.json:
        put(json.dumps(json.loads(rendered) | {"answer": answer.model_dump()}, indent=1, ensure_ascii=False))
    elif format_ is Format.table:
        put(f"{answer}\n{rendered}" if full else answer)
    else:
        put(rendered)


def emit_result(result: Result, format_: Format, *, full: bool = True) -> None:
    """Print a prediction or a measurement: for people its answer, and all numbers where ``full`` asks for them."""
    from sandtable.report import rendering
    from sandtable.results import metric_table
    from sandtable.runs.predict import GUESSED

    answer = result.answer
    if format_ is Format.json:
        record = {
            "schema": result.schema_version,
            "scenario": result.scenario,
            "machine": result.machine,
            "metrics": metric_table(result.metrics),
            "breakdown": result.breakdown,
            "memory": result.memory,
            "warnings": list(result.warnings),
            "answer": None if answer is None else answer.model_dump(),
        }
        put(json.dumps(record, indent=1))
        return
    if format_ is Format.table and answer is not None:
        put(answer)
    if full or answer is None or format_ is not Format.table:
        put(rendering.render(rendering.metrics_table(result), format_.value))
        for line in rendering.result_notes(result) if format_ is Format.table else ():
            put(line)
    for warning in result.warnings:
        # the answer has what matters most, and how many guesses there are
        told = answer is not None and (warning == answer.caveat or GUESSED in warning)
        if full or format_ is not Format.table or not told:
            say(f"  ! {warning}")


def emit_comparison(comparison: Comparison, format_: Format, *, full: bool = True) -> None:
    """Print a comparison: for people its answer first, and the table with its summary where ``full`` asks for it."""
    from sandtable.report import rendering

    answer = comparison.answer
    if format_ is Format.json:
        put(comparison.model_dump_json(by_alias=True, indent=1))
        return
    if format_ is Format.table and answer is not None:
        put(answer)
        if not full:
            return
    shown = comparison if format_ is Format.csv else rendering.headlines(comparison)
    put(rendering.render(rendering.comparison_table(shown), format_.value))
    by_metric = rendering.metric_errors_table(comparison)
    if by_metric.rows and format_ is not Format.csv:
        put(rendering.render(by_metric, format_.value))
    for line in rendering.comparison_notes(comparison) if format_ is Format.table else ():
        put(line)
