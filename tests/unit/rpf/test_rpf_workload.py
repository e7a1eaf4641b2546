"""The workload rpf: what it plans, says, refuses and searches."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sandtable import api, units
from sandtable.errors import ConfigError, DoesNotFit
from sandtable.hardware import library
from sandtable.studies import cheapest
from sandtable_workloads.rpf import rpf_iterations, rpf_memory
from sandtable_workloads.rpf.rpf_iterations import iterations_of
from sandtable_workloads.rpf.rpf_parameters import Rpf
from sandtable_workloads.rpf.rpf_plan import iteration_ops, plan_of

BILLION = {"users": 10_000_000, "items": 1_000_000, "events": 10**9}


def rpf(**values: Any) -> Rpf:
    return Rpf.model_validate(values, context=units.AT_EDGE)


def test_an_iteration_is_two_passes_and_three_updates() -> None:
    assert [op.name for op in iteration_ops(rpf())] == [
        "responsibilities",
        "item counts",
        "user factors and rates",
        "excitation",
        "item factors and rates",
    ]
    assert "excitation" not in [op.name for op in iteration_ops(rpf(variant="hpf"))]


def test_ranks_share_users_and_add_up_the_counts_of_items() -> None:
    one, two = ({op.name: op for op in iteration_ops(rpf(ranks=n))} for n in (1, 2))
    assert two["responsibilities"].shape.pairs == one["responsibilities"].shape.pairs / 2
    assert two["item factors and rates"].shape == one["item factors and rates"].shape
    assert two["sums of ranks"].shape.n_bytes == 8 * (5_000 * 20 + 20 + 1)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"pairs": 10, "events": 5}, "at most 5"),
        ({"users": 3, "items": 2, "events": 100, "pairs": 7}, "at most 6"),
        ({"variant": "srpf", "ranks": 2}, "srpf is fitted by one process"),
        ({"users": 1, "ranks": 2}, "a user of its own"),
        ({"variant": "srpf", "users": 5, "followees": 5}, "nobody follows themselves"),
    ],
)
def test_what_cannot_be_is_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        rpf(**values)


def test_too_little_memory_says_what_would_fit() -> None:
    phone = library.load_machine("phone_pixel_3a")
    p = rpf(users=3_000_000, items=500_000, events=20_000_000, components=200)
    with pytest.raises(
        DoesNotFit, match=r"needs .* and phone_pixel_3a has .* take precision=float32, components=\d+"
    ):
        plan_of(p, phone)
    (change,) = rpf_memory.what_fits(p, phone)
    components = int(change.rpartition("=")[2])
    assert rpf_memory.verdict_of(p.model_copy(update={"components": components}), phone).fits


def test_a_whole_fit_is_as_uncertain_as_its_iterations_and_their_time() -> None:
    found = api.simulate("rpf_billion")
    low, most, high = iterations_of(rpf())
    fit, step = found["fit_s"], found["step_s.mean"]
    assert fit.value == pytest.approx(step.value * most)
    assert fit.high / fit.value > max(high / most, step.high / step.value)
    given = api.simulate("rpf_billion", {"parameters.iterations_to_converge": most})
    assert given["fit_s"].low > fit.low
    assert found["fit_usd"].value == pytest.approx(fit.value / 3600 * found["usd_per_h"].value)
    assert high > most > low


def test_the_closed_form_is_the_engine_s() -> None:
    from sandtable.workload.seam import workload_named

    machine = library.load_machine("aws_i3_8xlarge")
    found = api.simulate("rpf_billion", {"machine": "aws_i3_8xlarge"})
    workload = workload_named("rpf")
    columns = workload.estimate([rpf(**BILLION)], machine)
    assert columns["step_s"][0] == pytest.approx(found["step_s.mean"].value, rel=1e-6)


def test_an_instance_is_chosen_for_a_billion_events() -> None:
    found = cheapest.search("rpf_billion")
    machines = [machine.name for machine in found.outcome.machines]
    assert {"aws_i3_large", "aws_i3_xlarge", "aws_i3_2xlarge", "aws_i3_8xlarge", "aws_i4i_4xlarge"} == set(machines)
    assert found.best is not None
    assert all(machine.accelerator is None for machine in found.outcome.machines)
    assert "does not fit" in " ".join(found.outcome.dropped())
    with pytest.raises(ConfigError, match="until iterations, not tokens"):
        cheapest.search("rpf_billion", until=["tokens=5"])


@pytest.mark.parametrize("variant", ["hpf", "hrpf"])
def test_the_iterations_that_are_kept_are_those_of_a_fit(variant: Any) -> None:
    pytest.importorskip("numba", reason="fits are compiled by numba")
    known = rpf_iterations.kept()
    took = rpf_iterations.taken(variant, known["data"][0], known["tolerance"], seed=0)
    assert took == pytest.approx(known["iterations"][variant][0], abs=2)
