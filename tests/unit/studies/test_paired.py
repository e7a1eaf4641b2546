"""What a change comes to: ratios with intervals, probabilities, money."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sandtable
from sandtable.errors import UnknownName
from sandtable.runs.predict import Foreseen, foresee
from sandtable.studies import paired
from sandtable.studies.paired import Change, better, changes, probability
from sandtable.workload import scenarios

SMALL = {"parameters.geometry": "opt_mini", "parameters.tokens": 3}
CHANGES: dict[str, dict[str, Any]] = {
    "window": {"parameters.window": 1},
    "drive": {"machine.storage": "crucial_t700_2tb"},
}


@functools.cache
def end(name: str) -> Foreseen:
    """Return a small scenario as it is, or with one thing changed."""
    case = scenarios.load("flash_laptop", changes=SMALL | CHANGES.get(name, {}))
    machine = case.machine
    if name == "memory":
        larger = machine.memory.datasheet.model_copy(update={"capacity_bytes": 2.0**36})
        machine = machine.model_copy(update={"memory": machine.memory.model_copy(update={"datasheet": larger})})
    if name == "price":
        assert machine.price is not None
        machine = machine.model_copy(update={"price": machine.price.model_copy(update={"usd_per_h": 2.0})})
    return foresee(case.scenario, case.workload, case.parameters, machine)


@functools.cache
def training(micro_batch: int) -> Foreseen:
    case = scenarios.load("slm_100m_a100", changes={"parameters.micro_batch": micro_batch})
    return foresee(case.scenario, case.workload, case.parameters, case.machine)


def test_what_stays_is_exactly_one() -> None:
    for name, change in changes(end("as it is"), end("as it is")).items():
        assert (change.ratio, change.ratio_low, change.ratio_high, change.probability) == (1, 1, 1, None), name
        assert change.saved is None or (change.saved.low, change.saved.high) == (0, 0)


def test_more_memory_than_is_used_changes_nothing() -> None:
    change = changes(end("as it is"), end("memory"))["latency_s.mean"]
    assert (change.ratio_low, change.ratio_high) == (1, 1)


@pytest.mark.parametrize("name", ["window", "drive", "price"])
def test_exchanged_ends_invert_the_ratio(name: str) -> None:
    there, back = changes(end("as it is"), end(name)), changes(end(name), end("as it is"))
    assert set(there) == set(back)
    for metric, change in there.items():
        other = back[metric]
        assert other.ratio * change.ratio == pytest.approx(1)
        assert (1 / other.ratio_high, 1 / other.ratio_low) == pytest.approx((change.ratio_low, change.ratio_high))
        if change.probability is not None:
            assert other.probability == pytest.approx(1 - change.probability)
        if change.saved is not None and other.saved is not None:
            ends = (-other.saved.value, -other.saved.high, -other.saved.low)
            assert ends == pytest.approx((change.saved.value, change.saved.low, change.saved.high))


def test_what_both_ends_share_is_taken_out() -> None:
    """The interval is a small part of what two intervals that are compared end to end leave open."""
    before, after = end("as it is"), end("window")
    change = changes(before, after)["latency_s.mean"]
    old, new = (one.prediction.metrics["latency_s.mean"] for one in (before, after))
    overlap = new.high / old.low - new.low / old.high
    assert change.ratio_low < change.ratio < change.ratio_high
    assert change.ratio_high - change.ratio_low < overlap / 5


def test_only_the_drive_is_uncertain_where_only_the_drive_changes() -> None:
    found = changes(end("as it is"), end("drive"))
    assert found["compute_s.mean"].ratio_high == 1
    assert found["io_s.mean"].ratio_high > found["latency_s.mean"].ratio_high
    assert found["bytes_read.mean"].certain is False


def test_a_price_is_known_exactly() -> None:
    change = changes(end("as it is"), end("price"))["usd_per_mtok"]
    assert change.ratio_low == change.ratio == change.ratio_high > 1
    assert change.probability == 0
    assert change.certain
    assert change.saved is not None
    assert change.saved.low < change.saved.value < change.saved.high < 0


def test_training_shares_the_laws_of_its_gpus() -> None:
    change = changes(training(4), training(16))["tokens_per_s"]
    assert 1 < change.ratio_low < change.ratio < change.ratio_high < 1.4
    assert change.probability is not None
    assert change.probability > 0.95


@given(st.floats(-0.5, 0.5), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.001, 0.2))
def test_the_probability_grows_with_the_change(change: float, below: float, above: float, more: float) -> None:
    rises = [probability("tokens_per_s", "tokens/s", one, below, above) for one in (change, change + more)]
    falls = [probability("latency_s.mean", "s", one, below, above) for one in (change, change + more)]
    assert None not in rises + falls
    assert rises[0] <= rises[1]  # type: ignore[operator]
    assert falls[0] >= falls[1]  # type: ignore[operator]
    assert rises[0] + falls[0] == pytest.approx(1)  # type: ignore[operator]


def test_the_end_of_the_interval_at_no_change_is_a_probability_of_95_percent() -> None:
    assert probability("latency_s", "s", -0.1, 0.3, 0.1) == pytest.approx(0.95)
    assert probability("latency_s", "s", 0.1, 0.1, 0.3) == pytest.approx(0.05)
    assert probability("latency_s", "s", -0.1, 0.0, 0.0) == 1
    assert probability("n_requests", "1", -0.1, 0.1, 0.1) is None


def test_which_way_is_better() -> None:
    assert [better(*pair) for pair in (("tokens_per_s", "tokens/s"), ("mfu", "1"))] == [1, 1]
    assert [better(*pair) for pair in (("latency_s.p95", "s"), ("usd_per_h", "USD/h"), ("energy_j", "J"))] == [
        -1
    ] * 3
    assert better("hit_frac.mean", "1") == 0


def test_a_sentence_says_what_it_comes_to() -> None:
    before, after = end("as it is").prediction, end("drive").prediction
    times, money = paired.sentences(before, after, changes(end("as it is"), end("drive")))
    assert "times as many tokens/s" in times
    assert "±" in times
    assert "of the time" in times
    assert money.startswith(("saves ", "costs "))
    assert "pays with a probability of" in money
    assert not list(paired.sentences(before, after, {}))


def test_the_table_shows_metrics_of_either_end() -> None:
    before = end("as it is").prediction
    without = {name: metric for name, metric in before.metrics.items() if name != "io_s.mean"}
    after = before.model_copy(update={"metrics": without, "machine": "other"})
    found = changes(end("as it is"), end("window"))
    known: Mapping[str, Change] = {name: change for name, change in found.items() if name != "io_s.mean"}
    table = paired.table(before, after, known)
    rows = {row["metric"]: row for row in table.records()}
    assert rows["io_s.mean"]["after"] is None
    assert rows["io_s.mean"]["ratio"] is None
    assert rows["latency_s.mean"]["ratio"] == pytest.approx(found["latency_s.mean"].ratio)
    assert rows["bytes_read.mean"]["low"] is None
    assert "~ machine laptop_pcie4 → other" in table.notes


def test_programs_are_told_what_is_saved() -> None:
    before, after, found = end("as it is"), end("price"), changes(end("as it is"), end("price"))
    table = paired.table(before.prediction, after.prediction, found, saved=True)
    rows = {row["metric"]: row for row in table.records()}
    hour, own = rows["usd_per_h"], rows["usd_per_mtok"]
    assert hour["saved"] == hour["saved_low"] == hour["saved_high"] == pytest.approx(hour["before"] - 2.0)
    assert own["saved_low"] < own["saved"] < own["saved_high"] < 0
    assert rows["latency_s.mean"]["saved"] is None


def test_the_public_function_gives_a_frame() -> None:
    both = sandtable.whatif("flash_laptop", SMALL | {"machine.storage": "crucial_t700_2tb"})
    frame = both.to_frame()
    assert list(frame.columns[:3]) == ["before", "after", "change_frac"]
    row = frame.loc["latency_s.mean"]
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"]
    assert row["ratio"] == pytest.approx(1 + row["change_frac"])
    assert both["latency_s.mean"].ratio == row["ratio"]
    assert math.isnan(row["saved"])
    with pytest.raises(UnknownName, match=r"latency_s\.mean"):
        both["latency_s.maen"]


# --- the answer --------------------------------------------------------------------------------------------------


def test_a_change_answers_with_a_ratio_what_it_saves_and_what_moved() -> None:
    found = sandtable.whatif("flash_laptop", {"machine.storage": "crucial_t700_2tb"})
    answer = found.answer
    assert answer.question == "What changes with machine.storage=crucial_t700_2tb?"
    assert re.match(
        r"1\.\d+ ± 0\.\d+ times as many tokens/s; .*; storage falls from \d+ to \d+ % of the time\.$",
        answer.verdict,
    )
    assert re.match(r"saves [\d.]+ USD per million tokens \(", answer.headlines[0])
    assert answer.headlines[1] == "without the part's price"
    assert len(answer.lines()) <= 8
    assert str(found) == str(answer)
    assert f"<pre>{answer.question}" in found._repr_html_()


def test_a_change_of_nothing_says_so_and_one_of_the_machine_shows_both() -> None:
    same = sandtable.whatif("flash_laptop", {"seed": 1}).answer
    assert same.verdict == "As many tokens/s as before."
    assert same.headlines == ()
    other = sandtable.whatif("flash_laptop", {"machine": "aws_i4i_4xlarge"}).answer
    assert "Laptop with a PCIe 4 drive and no accelerator → AWS i4i.4xlarge" in other.subject
    assert any(re.match(r"0\.046 USD/h before, [\d.]+ USD/h after", text) for text in other.headlines)


def test_a_change_of_images_is_told_in_images() -> None:
    answer = sandtable.whatif("butterfly_narrow_phone", {"parameters.width": 1.0}).answer
    assert "times as many images/s" in str(answer)
