"""By how many percent a metric rises with a percent more time for all ops."""

from __future__ import annotations

import math

import pytest

from sandtable.results import Metric
from sandtable.runs import predict
from sandtable.workload import scenarios


def metric(value: float) -> Metric:
    return Metric(value=value, low=value, high=value, unit="s")


SPAN = math.log(1.1 / 0.9)


@pytest.mark.parametrize("power", [1.0, -1.0, 3.0, 0.0])
def test_a_power_of_the_time_has_it_as_its_slope(power: float) -> None:
    ends = (metric(0.9**power), metric(1.1**power))
    assert predict._slope(metric(1.0), *ends, SPAN) == pytest.approx(power)


def test_what_can_be_zero_has_the_slope_of_its_difference() -> None:
    assert predict._slope(metric(1.0), metric(0.0), metric(2.0), SPAN) == pytest.approx(2 / SPAN)
    assert predict._slope(metric(0.0), metric(0.0), metric(2.0), SPAN) == 0
    assert predict._slope(metric(1.0), None, metric(2.0), SPAN) == 0
    assert predict._slope(metric(1.0), metric(1.0), metric(1.0), 0.0) == 0


def test_times_of_a_plan_rise_with_its_ops_and_counts_do_not() -> None:
    case = scenarios.load("flash_laptop", changes={"parameters.geometry": "opt_mini", "parameters.tokens": 2})
    found = predict.foresee(case.scenario, case.workload, case.parameters, case.machine)
    assert found.slopes["latency_s.mean"] == 1
    assert found.slopes["bytes_read.mean"] == 0
    assert found.prediction == predict.predict(case.scenario, case.workload, case.parameters, case.machine)[0]
