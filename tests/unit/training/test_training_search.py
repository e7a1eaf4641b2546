"""The configurations of a training run that a search looks at, and what it says of them."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable.errors import ConfigError
from sandtable.hardware import Machine, library
from sandtable.workload.seam import Goal
from sandtable_workloads.training.choices import scaling_law, search
from sandtable_workloads.training.slm_training import SlmTrainingWorkload
from sandtable_workloads.training.training_parameters import SlmTraining

WORKLOAD = SlmTrainingWorkload()
STACK = {"stack": "huggingface_pytorch_2_3"}
P4D = library.load_machine("aws_p4d_24xlarge", STACK)
P5 = library.load_machine("aws_p5_48xlarge", STACK)


def run(**changes: Any) -> SlmTraining:
    return SlmTraining.model_validate({"model": "slm_500m", "micro_batch": 8, "devices": 8} | changes)


def test_every_candidate_trains_on_the_same_batch() -> None:
    found = list(search.candidates_on(run(), P4D, 16))
    assert len(found) > 100
    assert {p.global_batch for p in found} == {64}
    assert {p.devices for p in found} == {1, 2, 4, 8, 16}
    for p in found:
        assert p.devices % (p.tensor_parallel * p.pipeline_parallel) == 0
        SlmTraining.model_validate(p.model_dump())  # copies skip validation


def test_no_candidate_comes_twice() -> None:
    found = list(search.candidates_on(run(attention="vanilla"), P4D, 8))
    assert len({p.model_dump_json() for p in found}) == len(found)
    assert {p.checkpointing for p in found} == {"none", "selective", "full"}


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (6, [1, 2, 4]), (32, [1, 2, 4, 8, 16, 32])])
def test_device_counts_are_parts_of_a_machine_and_whole_ones(most: int, expected: list[int]) -> None:
    assert search.device_counts(P4D, most) == expected


def test_one_machine_without_a_network_stays_alone() -> None:
    alone = P4D.model_copy(update={"network": None})
    assert search.device_counts(alone, 64) == [1, 2, 4, 8]


def test_all_that_was_considered_is_accounted_for() -> None:
    found = WORKLOAD.choices(run(attention="vanilla"), [P4D, P5], Goal(most_devices=8))
    assert found.considered == len(found.choices) + sum(found.dropped.values())
    assert any(reason.startswith("does not fit: ") for reason in found.dropped)
    assert {choice.machine for choice in found.choices} == {P4D.name, P5.name}
    for choice in found.choices:
        assert 0 < choice.low_s <= choice.seconds <= choice.high_s
        assert choice.usd > 0


def test_a_choice_costs_what_a_prediction_of_it_says() -> None:
    p = run(total_tokens=1e9)
    found = WORKLOAD.choices(p, [P4D], Goal(most_devices=8))
    same = {name: getattr(p, name) for name in search.SETTINGS}
    (choice,) = [choice for choice in found.choices if choice.settings == same]
    (times,) = WORKLOAD.estimate([p], P4D)
    assert P4D.price is not None
    assert choice.seconds == pytest.approx(times["step_s"] * 1e9 / p.tokens_per_step)
    assert choice.usd == pytest.approx(choice.seconds / 3600 * P4D.price.usd_per_h)
    assert choice.facts["tokens_per_s"] == pytest.approx(p.tokens_per_step / times["step_s"])


def test_twice_the_tokens_take_twice_the_time_and_money() -> None:
    one, two = (
        WORKLOAD.choices(run(), [P4D], Goal(until={"tokens": tokens}, most_devices=2)) for tokens in (1e9, 2e9)
    )
    for a, b in zip(one.choices, two.choices, strict=True):
        assert (b.seconds, b.usd) == (pytest.approx(2 * a.seconds), pytest.approx(2 * a.usd))


def test_a_loss_becomes_tokens_by_the_scaling_law() -> None:
    p = run(scaling_law="kaplan")
    shape = p.shape
    law = scaling_law.law_named("kaplan")
    tokens = search.tokens_until(p, shape, Goal(until={"loss": 3.0}))
    assert law.loss(law.params_of(shape), tokens) == pytest.approx(3.0)


def test_without_a_goal_the_parameters_say_how_many_tokens() -> None:
    assert search.tokens_until(run(), run().shape, Goal()) == 20 * 526_550_016
    assert search.tokens_until(run(total_tokens=3e9), run().shape, Goal()) == 3e9


@pytest.mark.parametrize("until", [{"steps": 5.0}, {"tokens": 1e9, "loss": 3.0}, {"tokens": -1.0}])
def test_other_goals_are_refused(until: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        WORKLOAD.choices(run(), [P4D], Goal(until=until))


def test_a_machine_without_a_price_is_counted_as_such() -> None:
    free: Machine = P4D.model_copy(update={"price": None})
    found = WORKLOAD.choices(run(), [free], Goal(most_devices=1))
    assert found.choices == []
    assert found.dropped == {f"no price for {P4D.name}": found.considered}
