"""The workload rpf: what it plans, says, refuses and searches."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from sandtable import api, units
from sandtable.errors import ConfigError, DoesNotFit
from sandtable.hardware import library
from sandtable.studies import cheapest, cheapest_answer
from sandtable_workloads.rpf import rpf_iterations, rpf_memory
from sandtable_workloads.rpf.rpf_cells import expected_cells
from sandtable_workloads.rpf.rpf_iterations import iterations_of
from sandtable_workloads.rpf.rpf_parameters import Rpf, Variant
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


@pytest.mark.parametrize("variant", ["drpf", "dsrpf"])
def test_by_the_clock_rates_are_made_for_each_feature(variant: str) -> None:
    ops = {op.name: op for op in iteration_ops(rpf(variant=variant))}
    assert list(ops) == [
        "responsibilities",
        "item counts",
        "rates of users",
        "user factors and rates",
        "rates of items",
        "excitation",
        "item factors and rates",
    ]
    assert ops["user factors and rates"].shape.rows == 31 * 20_000
    assert ops["item counts"].shape.cells == ops["responsibilities"].shape.cells < 1_000_000
    assert (ops["responsibilities"].shape.triggers > 0) is (variant == "dsrpf")
    daily = {op.name: op for op in iteration_ops(rpf(variant=variant, features="hours"))}
    assert daily["item factors and rates"].shape.rows == 24 * 5_000
    assert daily["responsibilities"].shape.active == 1 < ops["responsibilities"].shape.active == 2


@pytest.mark.parametrize("variant", ["iirpf", "xiirpf"])
def test_between_items_one_pass_in_order_of_time_counts_for_all(variant: str) -> None:
    ops = {op.name: op for op in iteration_ops(rpf(variant=variant, clusters=12))}
    clusters = ["excitation of clusters"] * (variant == "xiirpf")
    assert list(ops) == [
        "responsibilities",
        "excitation given off",
        "user factors and rates",
        "excitation",
        "excitation of others",
        *clusters,
        "item factors and rates",
    ]
    assert ops["responsibilities"].shape.width == (12 if clusters else 20)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_parameters_are_as_many_as_an_estimator_has(variant: Variant) -> None:
    pytest.importorskip("numba", reason="fits are compiled by numba")
    from sandtable_workloads.rpf import rpf_run

    p = rpf(variant=variant, users=30, items=12, events=400, components=3, followees=2, clusters=4)
    state = rpf_run.observing(p, 0, 1)[0].state_
    n = sum(rows.mean.size for rows in state.values())
    found = state["pi"].mean.size if variant == "xiirpf" else 0
    # fewer clusters may be found than were asked for
    assert n - found == p.n_params - p.n_clusters**2
    assert found <= p.n_clusters**2


@pytest.mark.parametrize("features", ["weekdays_and_hours", "hours"])
@pytest.mark.parametrize("data", [(400, 9_000, None), (5_000, 200_000, None), (50, 200_000, 4_000)])
def test_cells_are_known_before_there_is_data(features: Any, data: tuple[int, int, int | None]) -> None:
    pytest.importorskip("numba", reason="events are put in order by numba")
    from sandtable_kernels.poisson.event_cells import EventCells
    from sandtable_kernels.poisson.event_pairs import EventPairs
    from sandtable_kernels.poisson.feature_clock import FeatureClock, named_features
    from sandtable_workloads.rpf import rpf_run

    users, events, pairs = data
    p = rpf(variant="drpf", users=users, items=400, events=events, pairs=pairs, features=features)
    table = rpf_run.generated(p, 3).table()
    ordered = EventPairs.of(table.user_code, table.item_code, table.time, users, 400)
    named = named_features(features)
    clock = FeatureClock(named.table, named.table, named.period)
    cells = EventCells.of(ordered, clock.bins(ordered.time), clock.n_bins)
    expected = expected_cells(p)
    assert expected.cells == pytest.approx(cells.n_cells, rel=0.02)
    user = np.repeat(np.arange(users), np.diff(cells.user_start))
    assert expected.user_bins == pytest.approx(np.unique(user * clock.n_bins + cells.bin).size, rel=0.1)
    item_bins = np.unique(cells.item.astype(np.int64) * clock.n_bins + cells.bin).size
    # users who have met what is popular go on to what is less so, which popularity alone does not know
    assert item_bins * (0.65 if pairs else 0.85) < expected.item_bins <= item_bins


def test_ranks_share_users_and_add_up_the_counts_of_items() -> None:
    one, two = ({op.name: op for op in iteration_ops(rpf(ranks=n))} for n in (1, 2))
    assert two["responsibilities"].shape.pairs == one["responsibilities"].shape.pairs / 2
    assert two["item factors and rates"].shape == one["item factors and rates"].shape
    assert two["sums of ranks"].shape.n_bytes == 8 * (5_000 * 20 + 20 + 1)


@pytest.mark.parametrize(
    ("variant", "numbers"),
    [
        ("srpf", [5_001 * 20 + 1, 20_000]),
        ("drpf", [5_001 * 31 * 20 + 1]),
        ("dsrpf", [5_001 * 31 * 20 + 1, 20_000]),
        ("iirpf", [5_001 * 20 + 1 + 5_000]),
        ("xiirpf", [5_001 * 20 + 1 + 5_000 + 100]),
    ],
)
def test_ranks_add_up_what_no_user_owns(variant: str, numbers: list[int]) -> None:
    sums = [
        op.shape.n_bytes / 8 for op in iteration_ops(rpf(variant=variant, ranks=2)) if op.operator == "all_reduce"
    ]
    assert sums == numbers


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"pairs": 10, "events": 5}, "at most 5"),
        ({"users": 3, "items": 2, "events": 100, "pairs": 7}, "at most 6"),
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
    table = cheapest_answer.summary(found)
    assert table.columns[2] == "threads"
    assert all(int(row[2]) > 0 for row in table.rows)
    with pytest.raises(ConfigError, match="until iterations, not tokens"):
        cheapest.search("rpf_billion", until=["tokens=5"])


@pytest.mark.parametrize("variant", ["hpf", "hrpf", "drpf", "xiirpf"])
def test_the_iterations_that_are_kept_are_those_of_a_fit(variant: Any) -> None:
    pytest.importorskip("numba", reason="fits are compiled by numba")
    known = rpf_iterations.kept()
    took = rpf_iterations.taken(variant, known["data"][0], known["tolerance"], seed=0)
    assert took == pytest.approx(known["iterations"][variant][0], abs=2)
