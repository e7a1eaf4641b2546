"""What becomes of the points of a study: columns, reasons, constraints, the best, and differences of two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.errors import ConfigError, DoesNotFit, PlanError
from sandtable.studies import study
from sandtable.studies.evaluate import estimated, predicted, predictions
from sandtable.studies.outcome import Outcome
from sandtable.studies.study import Study

FLASH = {"workload": "flash_inference", "machine": "laptop_pcie4"}
SMALL = {"geometry": "opt_mini", "tokens": 2}
TRAINING = {"workload": "slm_training", "machine": "dgx_a100_80gb", "stack": "megatron_lm"}


def a_study(**fields: Any) -> Study:
    return Study.model_validate({"name": "s"} | fields)


def training(**fields: Any) -> Study:
    return a_study(**(TRAINING | {"parameters": {"model": "slm_100m"}} | fields))


# --- through the engine ------------------------------------------------------------------------------------------


def test_the_engine_gives_what_simulate_gives() -> None:
    asked = a_study(**FLASH, parameters=SMALL, axes={"window": [1, 2]}, objective="min latency_s.mean")
    outcome = predicted(asked)
    for place, found in enumerate(predictions(asked)):
        for name, metric in found.prediction.metrics.items():
            ends = [outcome.columns[f"{name}{end}"][place] for end in (".low", "", ".high")]
            assert ends == [metric.low, metric.value, metric.high]
    frame = outcome.to_frame()
    assert list(frame.index) == ["window_1", "window_2"]
    assert list(frame["window"]) == [1, 2]
    best = outcome.best()
    assert best is not None
    assert frame["latency_s.mean"].iloc[best] == frame["latency_s.mean"].min()


def test_what_does_not_fit_is_dropped_or_refused_as_the_study_says() -> None:
    asked = training(cases=[{"micro_batch": [1, 1 << 14]}, {"sequence_parallel": True}])
    outcome = predicted(asked)
    assert outcome.dropped() == {"does not fit": 1, "cannot be laid out": 1}
    assert list(outcome.runs) == [True, False, False]
    assert np.isnan(outcome.columns["peak_memory_bytes"][1:]).all()
    with pytest.raises(DoesNotFit):
        predicted(asked.model_copy(update={"fits": False}))


# --- by the closed form ------------------------------------------------------------------------------------------


def test_reasons_are_counted_and_the_rest_is_estimated() -> None:
    outcome = estimated(
        training(
            cases=[
                {"micro_batch": [1, 4]},
                {"micro_batch": 1 << 14},
                {"devices": 8, "tensor_parallel": 3},
                {"devices": 7, "tensor_parallel": 7},
                {"devices": 1, "sequence_parallel": True},
            ]
        )
    )
    assert list(outcome.runs) == [True, True, False, False, False, False]
    assert outcome.dropped() == {
        "does not fit: activations": 1,
        "not valid: devices": 1,
        "cannot be laid out: tensor_parallel": 1,
        "cannot be laid out: sequence_parallel": 1,
    }
    assert "micro_batch 16384 needs" in outcome.nearest
    step, memory = outcome.column("step_s"), outcome.column("memory_frac")
    assert 0 < step[0] < step[1]
    assert memory[0] < memory[1] < 1 < memory[2]
    assert np.isnan(step[2:]).all()


def test_what_does_not_fit_is_timed_all_the_same_where_the_study_says_so() -> None:
    outcome = estimated(training(axes={"micro_batch": [4, 1 << 14]}, fits=False))
    assert outcome.runs.all()
    assert outcome.column("memory_frac")[1] > 1
    assert outcome.column("step_s")[1] > outcome.column("step_s")[0]


def test_points_are_estimated_each_on_its_own_machine() -> None:
    machines = ["dgx_a100_80gb", "dgx_h100"]
    together = estimated(training(axes={"machine": machines, "micro_batch": [2, 4]}))
    for machine in machines:
        alone = estimated(training(machine=machine, axes={"micro_batch": [2, 4]}))
        places = [i for i, point in enumerate(together.points) if point.labels["machine"] == machine]
        assert list(together.column("step_s")[places]) == list(alone.column("step_s"))


def test_a_workload_without_a_closed_form_says_so() -> None:
    with pytest.raises(PlanError, match="no closed form"):
        estimated(a_study(**FLASH, parameters=SMALL, axes={"window": [1]}))


def test_a_parameter_that_is_not_there_is_no_reason_but_an_error() -> None:
    with pytest.raises(ConfigError, match=r"micro_bach: unknown field \(did you mean 'micro_batch'"):
        estimated(training(axes={"micro_bach": [1]}))


# --- choosing ----------------------------------------------------------------------------------------------------


def made_up(values: list[float], **fields: Any) -> Outcome:
    asked = a_study(**FLASH, axes={"n": list(range(len(values)))}, **fields)
    points = list(asked.points())
    return Outcome(study=asked, points=points, columns={"a_s": np.array(values)}, reasons=[""] * len(values))


def test_constraints_are_judged_in_their_own_unit() -> None:
    outcome = made_up([0.1, 0.2, 0.3], constraints={"a_s": "< 250 ms"}, objective="max a_s")
    assert list(outcome.within()) == [True, True, False]
    assert outcome.best() == 1
    assert outcome.missed() == {"a_s < 250 ms": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has no objective"),
        ({"objective": "least a_s"}, "is not understood: write 'min METRIC'"),
        ({"objective": "min b_s"}, "no metric 'b_s'"),
        ({"objective": "min a_s", "constraints": {"b_s": "< 1 s"}}, "no metric 'b_s'"),
        ({"objective": "min a_s", "constraints": {"a_s": "1 s"}}, "is not a threshold"),
    ],
)
def test_an_objective_or_constraint_that_is_none_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made_up([1.0], **fields).best()


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=5))
def test_differences_change_their_sign_with_the_order(values: list[float]) -> None:
    outcome = made_up(values)
    first, last = outcome.difference(0, len(values) - 1), outcome.difference(len(values) - 1, 0)
    assert first == {name: -value for name, value in last.items()}


def test_points_are_found_by_name() -> None:
    outcome = made_up([1.0, 2.0])
    assert outcome.place("n_1") == 1
    with pytest.raises(ConfigError, match="no point 'n_2'"):
        outcome.place("n_2")


def test_a_pair_is_a_study_of_two_points() -> None:
    both = study.pair("flash_laptop", {"parameters.window": 2}, machine="desktop_rtx4090")
    before, after = both.resolved()
    assert before.machine == after.machine
    assert before.machine.name == "desktop_rtx4090"
    assert after.scenario.parameters == before.scenario.parameters | {"window": 2}
