"""The configurations of a training run that a search looks at, and what it says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from sandtable.errors import ConfigError, DoesNotFit
from sandtable.hardware import Machine, library
from sandtable.studies import cheapest
from sandtable.studies.outcome import Outcome
from sandtable.workload import scenarios
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import Scenario
from sandtable_workloads.training.choices import scaling_law, search
from sandtable_workloads.training.slm_training import SlmTrainingWorkload
from sandtable_workloads.training.training_parameters import SlmTraining

WORKLOAD, SEARCH = SlmTrainingWorkload(), search.TrainingSearch()
STACK = {"stack": "huggingface_pytorch_2_3"}
P4D = library.load_machine("aws_p4d_24xlarge", STACK)
P5 = library.load_machine("aws_p5_48xlarge", STACK)


def case_of(machine: Machine = P4D, **changes: Any) -> Case:
    parameters = {"model": "slm_500m", "micro_batch": 8, "devices": 8} | changes
    scenario = Scenario(name="run", title="Run", workload="slm_training", parameters=parameters)
    return scenarios.case_of(scenario, machine=machine)


def searched(machines: Sequence[Machine], until: Mapping[str, float] | None = None, **changes: Any) -> Outcome:
    most = changes.pop("most_devices", 8)
    return cheapest.found_in(case_of(**changes), machines, until or {}, most_devices=most).outcome


def candidates(most_devices: int, **changes: Any) -> list[SlmTraining]:
    return [
        p for p in searched([P4D], most_devices=most_devices, **changes).parameters if isinstance(p, SlmTraining)
    ]


def goal(until: dict[str, float] | None = None, **changes: Any) -> float:
    return SEARCH.goal(SlmTraining.model_validate({"model": "slm_500m"} | changes), until or {}).amount


def test_every_candidate_trains_on_the_same_batch() -> None:
    found = candidates(16)
    assert len(found) > 100
    assert {p.global_batch for p in found} == {64}
    assert {p.devices for p in found} == {1, 2, 4, 8, 16}
    for p in found:
        assert p.devices % (p.tensor_parallel * p.pipeline_parallel) == 0


def test_no_candidate_comes_twice() -> None:
    found = candidates(8, attention="vanilla")
    assert len({p.model_dump_json() for p in found}) == len(found)
    assert {p.checkpointing for p in found} == {"none", "selective", "full"}


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (6, [1, 2, 4]), (32, [1, 2, 4, 8, 16, 32])])
def test_device_counts_are_parts_of_a_machine_and_whole_ones(most: int, expected: list[int]) -> None:
    assert search.device_counts(P4D, most) == expected


def test_one_machine_without_a_network_stays_alone() -> None:
    alone = P4D.model_copy(update={"network": None})
    assert search.device_counts(alone, 64) == [1, 2, 4, 8]


def test_all_that_was_considered_is_accounted_for() -> None:
    found = searched([P4D, P5], attention="vanilla")
    assert len(found.points) == found.runs.sum() + found.dropped().total()
    assert any(reason.startswith("does not fit: ") for reason in found.dropped())
    for machine in (P4D, P5):
        own = found.runs & np.array([other is machine for other in found.machines])
        low, time, high = (found.columns[name][own] for name in ("low_s", "time_s", "high_s"))
        assert own.any()
        assert ((low > 0) & (low <= time) & (time <= high)).all()
        assert (found.columns["cost_usd"][own] > 0).all()


def test_a_choice_costs_what_a_prediction_of_it_says() -> None:
    p = case_of(total_tokens=1e9).parameters
    assert isinstance(p, SlmTraining)
    found = searched([P4D], total_tokens=1e9)
    same = {name: getattr(p, name) for name in search.SETTINGS}
    (place,) = [i for i, q in enumerate(found.parameters) if same == {n: getattr(q, n) for n in search.SETTINGS}]
    step_s = WORKLOAD.estimate([p], P4D)["step_s"][0]
    assert P4D.price is not None
    time = found.columns["time_s"][place]
    assert time == pytest.approx(step_s * 1e9 / p.tokens_per_step / 0.9)
    assert found.columns["cost_usd"][place] == pytest.approx(time / 3600 * P4D.price.usd_per_h)
    assert found.columns["tokens_per_s"][place] == pytest.approx(p.tokens_per_step / step_s)


def test_twice_the_tokens_take_twice_the_time_and_money() -> None:
    one, two = (searched([P4D], {"tokens": tokens}, most_devices=2) for tokens in (1e9, 2e9))
    for name in ("time_s", "cost_usd"):
        assert two.columns[name] == pytest.approx(2 * one.columns[name], nan_ok=True)


def test_a_loss_becomes_tokens_by_the_scaling_law() -> None:
    law = scaling_law.law_named("kaplan")
    tokens = goal({"loss": 3.0}, scaling_law="kaplan")
    assert law.loss(law.params_of(SlmTraining(model="slm_500m").shape), tokens) == pytest.approx(3.0)


def test_without_a_goal_the_parameters_say_how_many_tokens() -> None:
    assert goal() == 20 * 526_550_016
    assert goal(total_tokens=3e9) == 3e9


@pytest.mark.parametrize("until", [{"steps": 5.0}, {"tokens": 1e9, "loss": 3.0}, {"tokens": -1.0}])
def test_other_goals_are_refused(until: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        goal(until)


def test_a_machine_without_a_price_is_counted_as_such() -> None:
    free: Machine = P4D.model_copy(update={"name": "free", "price": None})
    found = searched([free, P4D], most_devices=1)
    assert found.dropped()["no price for free"] == len(found.points) / 2
    with pytest.raises(DoesNotFit, match="no price for free"):
        searched([free], most_devices=1)
