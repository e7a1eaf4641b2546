from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable import results
from sandtable.errors import ConfigError
from sandtable.results import ComparedMetric, Measurement, Metric, Prediction
from sandtable.runs import compare


def metric(value: float, low: float | None = None, high: float | None = None, unit: str = "s") -> Metric:
    return Metric(value=value, low=value if low is None else low, high=value if high is None else high, unit=unit)


def prediction(**metrics: Metric) -> Prediction:
    named = {name.replace("__", "."): found for name, found in metrics.items()}
    return Prediction(scenario={"name": "made_up"}, machine="m", metrics=named)


def measurement(**metrics: Metric) -> Measurement:
    named = {name.replace("__", "."): found for name, found in metrics.items()}
    return Measurement(scenario={"name": "made_up"}, machine="m", metrics=named)


def row(
    error_frac: float,
    *,
    name: str = "latency_s.mean",
    covered: bool = True,
    scenario: str = "a",
    judged: bool | None = None,
) -> Any:
    return ComparedMetric(
        scenario=scenario,
        metric=name,
        unit="s",
        predicted=1 + error_frac,
        low=0.0,
        high=9.0,
        measured=1.0,
        error_frac=error_frac,
        covered=covered,
        judged=name == "latency_s.mean" if judged is None else judged,
    )


def test_only_what_both_carry_is_compared() -> None:
    predicted = prediction(latency_s__mean=metric(1.2, 1.0, 1.4), usd_per_h=metric(2, unit="USD/h"))
    measured = measurement(latency_s__mean=metric(1.0), overhead_s__mean=metric(0.1))
    (found,) = compare.compare(predicted, measured)
    assert (found.scenario, found.metric, found.unit) == ("made_up", "latency_s.mean", "s")
    assert (found.predicted, found.low, found.high, found.measured) == (1.2, 1.0, 1.4, 1.0)
    assert found.error_frac == pytest.approx(0.2)
    assert found.covered


def test_an_error_relative_to_nothing_is_left_out() -> None:
    assert compare.compare(prediction(io_s__mean=metric(0.1)), measurement(io_s__mean=metric(0.0))) == []


def derived(found: Metric) -> Metric:
    return found.model_copy(update={"derived": True})


def test_what_follows_from_other_metrics_is_no_further_evidence() -> None:
    """A rate, a price and a utilisation repeat the error of the time that they are made from."""
    time, rate = metric(1.0, 0.9, 1.1), metric(2.0, 1.9, 2.1, unit="steps/s")
    predicted = prediction(step_s=time, steps_per_s=derived(rate), energy_j=derived(metric(1.0, unit="J")))
    measured = measurement(step_s=metric(1.05), steps_per_s=derived(metric(9.0)), energy_j=metric(5.0))
    found = {row.metric: row for row in compare.compare(predicted, measured)}
    # energy that was counted says more than the time that a predicted one is made from
    assert {name: row.derived for name, row in found.items()} == {
        "step_s": False,
        "steps_per_s": True,
        "energy_j": False,
    }
    summary = compare.judge([found["step_s"], found["steps_per_s"]]).summary
    assert (summary.n, summary.coverage_frac) == (1, 1.0)
    assert compare.judge([found["steps_per_s"]]).verdict == "inconclusive"


@given(st.floats(0.01, 100), st.floats(0.01, 1), st.floats(1, 10), st.floats(0.01, 100))
def test_covered_means_inside_the_interval(value: float, down: float, up: float, measured: float) -> None:
    predicted = prediction(latency_s=metric(value, value * down, value * up))
    (found,) = compare.compare(predicted, measurement(latency_s=metric(measured)))
    assert found.covered == (value * down <= measured * (1 + 1e-9) and measured * (1 - 1e-9) <= value * up)
    assert (1 + found.error_frac) * measured == pytest.approx(value)


def test_counts_may_differ_by_rounding() -> None:
    (found,) = compare.compare(
        prediction(bytes_read=metric(3e9, unit="bytes")), measurement(bytes_read=metric(3e9 + 1e-6, unit="bytes"))
    )
    assert found.covered


# --- verdicts ----------------------------------------------------------------------------------------------


def test_good_predictions_pass() -> None:
    found = compare.judge([row(0.05), row(-0.08, covered=False), row(0.02), row(0.2, name="io_s.mean")])
    assert found.verdict == "pass"
    assert found.reasons == ()
    assert found.summary.n == 3  # the headline alone
    assert found.summary.median_abs_error_frac == pytest.approx(0.05)
    assert found.summary.coverage_frac == pytest.approx(2 / 3)
    assert len(found.comparisons) == 4


def test_a_median_that_is_too_far_off_fails() -> None:
    found = compare.judge([row(0.15), row(-0.12), row(0.01)])
    assert found.verdict == "fail"
    assert found.reasons == ("median of the absolute error is 12.0 %, above 10 %",)


def test_a_tail_that_is_too_far_off_fails() -> None:
    found = compare.judge([row(0.01)] * 8 + [row(0.6)] * 2)
    assert found.verdict == "fail"
    assert found.reasons[0].startswith("90th percentile of the absolute error is ")
    assert len(found.reasons) == 1


@pytest.mark.parametrize(("error", "verdict"), [(0.0999, "pass"), (0.1001, "fail"), (-0.0999, "pass")])
def test_the_limit_is_ten_percent(error: float, verdict: str) -> None:
    assert compare.judge([row(error)] * 5).verdict == verdict


def test_a_crossed_threshold_fails_whatever_the_errors() -> None:
    found = compare.judge([row(0.0)], extra=["a: latency_s.mean < 1 s does not hold"])
    assert found.verdict == "fail"
    assert found.reasons == ("a: latency_s.mean < 1 s does not hold",)


def test_where_nothing_is_judged_all_metrics_count() -> None:
    found = compare.judge([row(0.5, name="io_s.mean"), row(0.5, name="compute_s.mean")])
    assert found.summary.n == 2
    assert found.verdict == "fail"


def test_a_check_may_be_judged_on_several_metrics() -> None:
    phases = [row(0.02, name="rollout_s.mean", judged=True), row(0.4, name="soup_s", covered=False, judged=True)]
    rows = [row(0.01), *phases, row(0.9, name="io_s.mean")]
    found = compare.judge(rows)
    assert found.verdict == "fail"
    assert (found.summary.n, found.summary.coverage_frac) == (3, pytest.approx(2 / 3))
    errors = {name: summary.median_abs_error_frac for name, summary in results.by_metric(rows).items()}
    assert errors == pytest.approx({"latency_s.mean": 0.01, "rollout_s.mean": 0.02, "soup_s": 0.4})
    assert results.by_metric(rows[:1]) == {}


def test_what_is_judged_counts_even_where_it_follows_from_others() -> None:
    predicted, measured = (derived(metric(value)) for value in (1.5, 1.0))
    (found,) = compare.compare(prediction(run_s=predicted), measurement(run_s=measured), judged=("run_s",))
    assert (found.derived, found.judged) == (True, True)
    assert compare.judge([found]).summary.n == 1


def test_nothing_compared_is_no_verdict() -> None:
    found = compare.judge([])
    assert found.verdict == "inconclusive"
    assert found.reasons == ("nothing was compared",)
    assert found.summary.n == 0


@given(st.lists(st.floats(-0.9, 10), min_size=1, max_size=30))
def test_the_summary_does_not_depend_on_order(errors: list[float]) -> None:
    rows = [row(error) for error in errors]
    assert compare.judge(rows).summary == compare.judge(rows[::-1]).summary
    summary = compare.judge(rows).summary
    assert summary.median_abs_error_frac <= summary.p90_abs_error_frac or len(rows) == 1


# --- thresholds --------------------------------------------------------------------------------------------

RESULT = prediction(
    latency_s__p95=metric(0.4),
    tokens_per_s=metric(12.0, unit="tokens/s"),
    peak_memory_bytes=metric(2e9, unit="bytes"),
)


@pytest.mark.parametrize(
    ("name", "text", "held"),
    [
        ("latency_s.p95", "< 500 ms", True),
        ("latency_s.p95", "<400ms", False),
        ("latency_s.p95", "<= 0.4 s", True),
        ("latency_s.p95", "> 1 s", False),
        ("tokens_per_s", ">= 10", True),
        ("tokens_per_s", "> 15 tokens/s", False),
        ("peak_memory_bytes", "< 2 GiB", True),
        ("peak_memory_bytes", "< 1 GB", False),
    ],
)
def test_a_threshold_is_read_in_the_unit_of_its_metric(name: str, text: str, held: bool) -> None:
    ((sentence, found, value),) = compare.check_thresholds({name: text}, RESULT)
    assert found is held
    assert sentence.startswith(name)
    assert value == RESULT.metrics[name].value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("latency_s.p96", "< 1 s", r"unknown metric 'latency_s.p96' \(did you mean 'latency_s.p95'"),
        ("latency_s.p95", "500 ms", "is not a threshold: write it like '< 500 ms'"),
        ("latency_s.p95", "< 500", "a unit is required"),
        ("latency_s.p95", "< 500 MB", "is a size, but a time is needed"),
        ("latency_s.p95", "= 5 s", "is not a threshold"),
        ("tokens_per_s", "> many", "'many' is not a number: write it like '< 15 tokens/s'"),
        ("tokens_per_s", "> 15 requests/s", "tokens_per_s is counted in tokens/s, not in 'requests/s'"),
    ],
)
def test_a_bad_threshold_is_refused(name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compare.check_thresholds({name: text}, RESULT)
