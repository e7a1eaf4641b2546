"""The answer that a result begins with: at most eight lines, whatever is said in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.results import Answer, Metric
from sandtable.runs.answers.answer_card import amount_text

TEXT = st.text(max_size=400)


@given(
    answer=st.builds(
        Answer,
        question=TEXT,
        subject=TEXT,
        verdict=TEXT,
        headlines=st.lists(TEXT).map(tuple),
        bound=TEXT,
        caveat=TEXT,
    ),
    width=st.integers(20, 200),
)
def test_an_answer_has_at_most_eight_lines_of_any_width(answer: Answer, width: int) -> None:
    lines = answer.lines(width)
    assert len(lines) <= 8
    assert all(len(line) <= width for line in lines)
    assert all(character.isprintable() for line in lines for character in line)


def test_a_long_answer_keeps_what_was_asked_of_what_and_says_where_it_was_cut() -> None:
    subject = (
        "a_model, 6.74B parameters, float16; " + "A machine with a long title and much in it; " * 3 + "its software"
    )
    answer = Answer(
        question="Does it run? " * 9,
        subject=subject,
        headlines=("5 tokens/s",) * 30,
        bound="Bound.",
        caveat="Why " * 60,
    )
    lines = answer.lines()
    assert len(lines) == 8
    assert " ".join(line.strip() for line in lines).count(subject) == 1
    assert sum(line.endswith(" ...") for line in lines) == 2


def test_a_short_answer_loses_nothing() -> None:
    answer = Answer(
        question="Does it run?", subject="this", verdict="Yes.", headlines=("5 tokens/s",), caveat="so far"
    )
    assert answer.lines() == ["Does it run?", "  this", "Yes. 5 tokens/s", "  ! so far"]


@pytest.mark.parametrize(
    ("name", "amounts", "unit", "words"),
    [
        ("tokens_per_s", (5.1834, 3.44, 6.99), "tokens/s", "5.18 tokens/s (3.44 to 6.99)"),
        ("tokens_per_s", (211_927, 185_040, 237_527), "tokens/s", "212 000 tokens/s (185 000 to 238 000)"),
        ("step_s.mean", (1.0, 0.95, 1.5), "s", "step 1 s (950 ms to 1.5 s)"),
        ("usd_per_mtok", (2.0, 1.5, 3.0), "USD/Mtok", "2 USD per million tokens (1.5 to 3)"),
        ("usd_per_h", (2.0, 2.0, 2.0), "USD/h", "2 USD/h"),
    ],
)
def test_amounts_read_well(name: str, amounts: tuple[float, float, float], unit: str, words: str) -> None:
    value, low, high = amounts
    assert amount_text(name, Metric(value=value, low=low, high=high, unit=unit)) == words
