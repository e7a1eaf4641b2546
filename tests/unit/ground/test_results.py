from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sandtable import results
from sandtable.results import ComparedMetric, Comparison, Measurement, Metric, Prediction, Result

positive = st.floats(1e-6, 1e6)


def a_prediction(**changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "scenario": {"name": "made_up"},
        "machine": "m",
        "metrics": {"latency_s": Metric(value=1.0, low=0.9, high=1.2, unit="s")},
    }
    return Prediction(**(values | changes))


@pytest.mark.parametrize("kind", [Prediction, Measurement])
def test_a_result_survives_being_written(kind: type[Result]) -> None:
    result = kind(
        **a_prediction().model_dump(by_alias=True, exclude={"kind", "by_op", "binding_resource", "guesses"})
    )
    text = result.model_dump_json(by_alias=True)
    assert json.loads(text)["schema"] == 1
    assert kind.model_validate_json(text) == result


@pytest.mark.parametrize(
    "changes", [{"schema": 2}, {"kind": "measurement"}, {"surprise": 1}, {"metrics": {"x": {"value": 1}}}]
)
def test_a_record_of_another_kind_or_version_is_refused(changes: dict[str, Any]) -> None:
    data = json.loads(a_prediction().model_dump_json(by_alias=True)) | changes
    with pytest.raises(ValidationError):
        Prediction.model_validate(data)


def test_results_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        a_prediction().machine = "other"  # type: ignore[misc]


def test_a_point_is_its_own_interval() -> None:
    assert results.point(3.0, "bytes") == Metric(value=3.0, low=3.0, high=3.0, unit="bytes")


@given(st.lists(positive, min_size=1, max_size=40), st.sampled_from(["mean", "p50", "p90", "p95", "p99"]))
def test_a_measured_metric_lies_in_its_interval_and_keeps_its_samples(samples: list[float], statistic: str) -> None:
    metric = results.measured_metric("latency_s", samples, statistic)
    assert metric.low <= metric.value <= metric.high
    assert min(samples) * (1 - 1e-9) <= metric.value <= max(samples) * (1 + 1e-9)
    assert metric.samples == tuple(samples)
    assert metric.unit == "s"


@given(st.lists(positive, min_size=1, max_size=30), st.integers(2, 4))
def test_percentiles_do_not_depend_on_repeats(samples: list[float], repeats: int) -> None:
    for statistic in ("p50", "p90", "p95"):
        once, often = (results.measured_metric("latency_s", s, statistic) for s in (samples, samples * repeats))
        assert once.value == often.value


def test_statistics_by_hand() -> None:
    values = [float(i) for i in range(1, 101)]
    found = results.distribution("latency_s", values, ("mean", "p50", "p99"))
    assert list(found) == ["latency_s.mean", "latency_s.p50", "latency_s.p99"]
    assert [metric.value for metric in found.values()] == [50.5, 50.0, 99.0]


def test_only_the_first_statistic_keeps_the_samples() -> None:
    found = results.distribution("latency_s", [1.0, 2.0], ("mean", "p95"))
    assert found["latency_s.mean"].samples == (1.0, 2.0)
    assert found["latency_s.p95"].samples == ()


@pytest.mark.parametrize("statistic", ["mean", "p50", "p99"])
def test_many_samples_have_the_interval_that_resampling_gives(statistic: str) -> None:
    """Beyond some number the limiting distribution stands in for resamples: neither time nor memory grows with them."""
    values = np.random.default_rng(0).lognormal(size=10_000)
    resampled = results.measured_metric("latency_s", values, statistic)
    limiting = results.measured_metric("latency_s", np.append(values, np.median(values)), statistic)
    assert limiting.high - limiting.low == pytest.approx(resampled.high - resampled.low, rel=0.25)
    assert limiting.low <= limiting.value <= limiting.high


def test_of_many_samples_every_nth_is_kept() -> None:
    metric = results.measured_metric("latency_s", np.arange(25_000.0))
    assert metric.every == 3
    assert metric.samples[:3] == (0.0, 3.0, 6.0)
    assert len(metric.samples) <= 10_000


def test_more_samples_narrow_an_interval() -> None:
    rng = np.random.default_rng(0)
    few, many = (results.measured_metric("latency_s", list(rng.normal(10, 1, n))) for n in (10, 1000))
    assert many.high - many.low < few.high - few.low


def test_the_table_of_metrics_shows_no_samples() -> None:
    metrics = {"latency_s.mean": results.measured_metric("latency_s", [1.0, 3.0])}
    (shown,) = results.metric_table(metrics).values()
    assert set(shown) == {"value", "low", "high", "unit", "derived"}


def compared(error_frac: float, covered: bool) -> ComparedMetric:
    values = {"predicted": 1.0, "low": 0.0, "high": 2.0, "measured": 1.0}
    return ComparedMetric(
        scenario="a", metric="latency_s", unit="s", error_frac=error_frac, covered=covered, **values
    )


def test_a_summary_by_hand() -> None:
    rows = [compared(error, covered) for error, covered in ((-0.1, True), (0.2, True), (0.3, False), (-0.4, True))]
    summary = results.summarise(rows)
    assert summary.n == 4
    assert summary.median_abs_error_frac == pytest.approx(0.25)
    assert summary.p90_abs_error_frac == pytest.approx(0.37)
    assert summary.coverage_frac == 0.75


def test_a_comparison_survives_being_written() -> None:
    rows = (compared(0.1, True),)
    comparison = Comparison(comparisons=rows, summary=results.summarise(rows), verdict="pass")
    assert Comparison.model_validate_json(comparison.model_dump_json(by_alias=True)) == comparison
