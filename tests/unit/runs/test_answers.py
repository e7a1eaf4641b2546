"""The answer that a result begins with: at most eight lines, whatever is said in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.results import Answer, Measurement, Metric, Prediction, Summary, point
from sandtable.runs import compare
from sandtable.runs.answers.answer_card import amount_text
from sandtable.runs.answers.check_card import Pair, check_answer, repeatability
from sandtable.workload import scenarios

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


# --- checks ------------------------------------------------------------------------------------------------------


def a_pair(
    predicted: float, measured: float, *, spread: float = 0.02, drift: float = 1.0, lost: float | None = None
) -> Pair:
    case = scenarios.load("flash_laptop")
    metrics = [
        {
            "latency_s.mean": point(1 / rate, "s"),
            "tokens_per_s": point(rate, "tokens/s").model_copy(update={"derived": True}),
        }
        for rate in (predicted, measured)
    ]
    record = {"scenario": case.scenario.model_dump(by_alias=True), "machine": case.machine.name}
    return Pair(
        case,
        Prediction(**record, metrics=metrics[0]),
        Measurement(
            **record, metrics=metrics[1], repeat_spread_frac=spread, drift={"compute.gemv": drift}, lost_frac=lost
        ),
    )


def answer_to(*pairs: Pair) -> Answer:
    rows = [row for pair in pairs if pair.measurement for row in compare.compare(pair.prediction, pair.measurement)]
    repeats = [repeatability(pair.measurement) for pair in pairs if pair.measurement]
    return check_answer(compare.judge(rows, repeats_frac=repeats), pairs)


def test_a_check_says_how_far_off_it_is_and_how_well_the_machine_repeats_itself() -> None:
    answer = answer_to(a_pair(5.18, 5.40, spread=0.06))
    assert answer.verdict == (
        "Yes, the prediction holds: predicted 5.18, measured 5.4 tokens/s, 4.1 % too low; "
        "this machine repeats itself within 6 %."
    )
    assert answer.bound.startswith("Furthest off: latency_s.mean, 4.2 % too high (193 ms predicted")
    assert answer.caveat == ""


@pytest.mark.parametrize(
    ("spread", "lost", "verdict"),
    [
        (0.02, None, "No, the prediction is off"),
        (0.02, 0.1, "No, the prediction is off"),
        (0.5, 0.0, "Undecided"),
        (0.0, 1 / 3, "Undecided"),  # a third lost: it may have taken half as long again
    ],
)
def test_a_miss_within_what_the_machine_repeats_is_undecided(
    spread: float, lost: float | None, verdict: str
) -> None:
    answer = answer_to(a_pair(5.0, 7.0, spread=spread, lost=lost))
    assert answer.verdict.startswith(f"{verdict}: predicted 5, measured 7 tokens/s, 29 % too low")
    assert answer.caveat.startswith("median of the absolute error is 40.0 %, above 10 %")
    assert ("repeats itself within 50 % only" in answer.caveat) == (verdict == "Undecided")


def test_noise_does_not_excuse_a_crossed_threshold() -> None:
    _, predicted, measured = a_pair(5.0, 7.0)
    assert measured is not None
    rows = compare.compare(predicted, measured)
    assert compare.judge(rows, extra=["x does not hold"], repeats_frac=[9.0]).verdict == "fail"
    assert compare.judge(rows, repeats_frac=[9.0]).verdict == "inconclusive"


def test_a_check_that_is_judged_on_several_metrics_says_how_far_off_each_is() -> None:
    pairs = [a_pair(5.0, 5.1), a_pair(5.0, 5.2)]
    rows = [
        row
        for _, predicted, measured in pairs
        if measured is not None
        for row in compare.compare(predicted, measured, judged=("latency_s.mean", "tokens_per_s"))
    ]
    answer = check_answer(compare.judge(rows), pairs)
    assert answer.headlines == ("median errors: latency_s 3.0 %, tokens_per_s 2.9 %",)


def test_a_check_of_many_names_the_one_that_is_furthest_off() -> None:
    answer = answer_to(a_pair(5.0, 5.1), a_pair(5.0, 5.2, spread=0.03))
    assert answer.verdict.startswith(
        "Yes, the predictions hold: 2 compared, median error 3.0 %, 90th percentile 4 %"
    )
    assert answer.verdict.endswith("this machine repeats itself within 3 %.")
    assert "of flash_laptop, 4 % too high" in answer.bound
    assert len(answer.lines()) <= 8


def test_a_check_that_compared_nothing_says_so() -> None:
    pair = a_pair(5.0, 5.0)._replace(measurement=None)
    answer = check_answer(compare.judge([]), [pair])
    assert answer.verdict == "Undecided: nothing was compared."


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        (1.04, ""),
        (1.10, " (25.0 % for the speed at calibration: by its probes the machine was 10 % slower)"),
        (1 / 1.10, " (25.0 % for the speed at calibration: by its probes the machine was 10 % faster)"),
    ],
)
def test_a_check_says_how_far_the_machine_drifted_and_the_error_without_that(drift: float, said: str) -> None:
    pairs = [a_pair(5.0, 4.5 * ratio, drift=drift) for ratio in (0.99, 1.01)]
    rows = [row for pair in pairs if pair.measurement for row in compare.compare(pair.prediction, pair.measurement)]
    written = Summary(n=2, median_abs_error_frac=0.25, p90_abs_error_frac=0.3, coverage_frac=0.5)
    judged = compare.judge(rows).model_copy(update={"as_calibrated": written})
    assert f"median error 10.0 %{said}, 90th percentile" in check_answer(judged, pairs).verdict
    assert "(25.0 %" not in check_answer(compare.judge(rows), pairs).verdict
