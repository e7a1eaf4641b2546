"""What is printed: characters that a terminal shows as they are, and progress with k of n and the time left."""

from __future__ import annotations

import pytest

from sandtable.cli import terminal
from sandtable.cli.terminal import Progress, readable
from sandtable.workload.progress import Step


def test_control_characters_are_not_passed_on() -> None:
    assert readable("a title\x1b[31m red\x07\r\nnext", "utf-8") == "a title [31m red  \nnext"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("1.5 ± 0.1 → 3 × x", "1.5 +/- 0.1 -> 3 x x"), ("✓ ok …", "+ ok ..."), ("日", "?"), ("plain", "plain")],
)
def test_a_terminal_without_unicode_gets_what_it_can_write(text: str, shown: str) -> None:
    assert readable(text, "ascii") == shown
    assert readable(text, "utf-8") == text


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_says_which_of_how_many_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = Progress(clock)
    for done in range(4):
        shown(Step(f"point {done}", done, 4))
        clock.now += 30
    lines = capsys.readouterr().err.splitlines()
    # nothing in the first ten seconds; then from what is done, how long the rest takes
    assert lines == [
        "  30 s: 2 of 4, 90 s left: point 1",
        "  60 s: 3 of 4, 60 s left: point 2",
        "  90 s: 4 of 4, 30 s left: point 3",
    ]


def test_progress_starts_anew_with_another_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    shown = Progress(clock)
    shown(Step("resumed", 6, 8))
    clock.now += 20
    shown(Step("next", 7, 8))
    clock.now += 20
    shown(Step("another", 0, 3))
    clock.now += 20
    shown("plain words")
    assert capsys.readouterr().err.splitlines() == [
        "  20 s: 8 of 8, 20 s left: next",
        "  40 s: 1 of 3: another",
        "  60 s: plain words",
    ]


def test_lines_come_no_more_often_than_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = Progress(clock)
    for done in range(100):
        shown(Step("point", done, 100))
        clock.now += 1
    assert len(capsys.readouterr().err.splitlines()) == 9
    assert terminal.PROGRESS_EVERY_S == 10
