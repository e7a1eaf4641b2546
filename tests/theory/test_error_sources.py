"""What two predictions share of their errors: the algebra, against draws, and against laws that are really off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.model import cost_model
from sandtable.model.cost_model import CostModel
from sandtable.model.error_sources import ALIKE_PER_DOUBLING, Miss, Source, less, miss_of
from sandtable.runs.predict import Foreseen, foresee
from sandtable.studies.paired import Side
from sandtable.workload import scenarios

Weights = dict[tuple[str, Source], float]


def source(law: str = "gemv", place: float = 0.0, **more: Any) -> Source:
    fields: dict[str, Any] = {"own": Miss(0.1, 0.2), "common": Miss(0.0, 0.0), "drift": 0.05} | more
    return Source("compute", "host", law, law, place=(place, 2 * place), **fields)


LAWS = [
    source("gemv", 1.0),
    source("gemv", 3.0),
    source("copy", 2.0),
    source("sheet", 1.0, common=Miss(0.3, 0.4), drift=0.0),
]
weights = st.builds(
    lambda values: {("part", one): value for one, value in zip(LAWS, values, strict=True)},
    st.lists(st.floats(-1, 1), min_size=len(LAWS), max_size=len(LAWS)),
)


@given(weights, weights)
def test_exchanged_ends_exchange_the_misses_exactly(after: Weights, before: Weights) -> None:
    below, above = miss_of(less(after, before))
    assert miss_of(less(before, after)) == (above, below)


@given(weights)
def test_equal_ends_leave_nothing(both: Weights) -> None:
    assert miss_of(less(both, dict(both))) == (0.0, 0.0)


@given(weights, st.floats(0.1, 10))
def test_misses_grow_with_the_weights(ends: Weights, factor: float) -> None:
    grown = miss_of({key: factor * weight for key, weight in ends.items()})
    assert grown == pytest.approx([factor * miss for miss in miss_of(ends)], abs=1e-12)


def test_laws_join_in_squares_and_drift_adds_up() -> None:
    both = {("part", source("gemv", drift=0.0)): 0.5, ("part", source("copy", drift=0.0)): 0.5}
    assert miss_of(both) == pytest.approx((0.05 * math.sqrt(2), 0.1 * math.sqrt(2)))
    drifting = {("part", source(law, own=Miss(0.0, 0.0))): 0.5 for law in ("gemv", "copy")}
    assert miss_of(drifting) == pytest.approx((0.05, 0.05))


def test_the_nearer_two_shapes_the_more_of_an_error_cancels() -> None:
    misses = [
        miss_of({("part", source(place=0.0)): 1.0, ("part", source(place=apart)): -1.0})[0]
        for apart in (0.1, 0.25, 0.5, 1.0, 2.0, 8.0)
    ]
    assert misses == sorted(misses)
    # of errors that have nothing in common the squares add up: what is below at one end is above at the other
    assert misses[-1] == pytest.approx(math.hypot(0.1, 0.2), rel=1e-3)


def test_other_parts_share_nothing() -> None:
    same = miss_of({("drive", source()): 0.0})
    other = miss_of({("drive", source()): 1.0, ("another", source()): -1.0})
    assert same == (0.0, 0.0)
    assert other[0] == pytest.approx(math.sqrt(0.1**2 + 0.2**2 + 2 * 0.05**2))


def test_the_interval_is_that_of_common_random_numbers() -> None:
    """Both times drawn with the same errors, op by op and without any linearising, against the closed form."""
    rng = np.random.default_rng(1)
    places = [0.0, 0.5, 1.5]
    ops = [source("gemv", p / math.sqrt(5), own=Miss(0.1, 0.1)) for p in places]
    after, before = np.array([2.0, 1.0, 0.5]), np.array([1.0, 1.0, 3.0])
    apart = np.abs(np.subtract.outer(places, places))
    drawn = rng.multivariate_normal(np.zeros(3), 0.1**2 * ALIKE_PER_DOUBLING**apart, 40_000)
    drawn = (drawn + 0.05 * rng.standard_normal((40_000, 1))) / 1.6448536
    ratios = np.log((np.exp(drawn) @ after) / (np.exp(drawn) @ before))
    below, above = miss_of(
        less(
            {("p", op): w for op, w in zip(ops, after / after.sum(), strict=True)},
            {("p", op): w for op, w in zip(ops, before / before.sum(), strict=True)},
        )
    )
    low, high = np.percentile(ratios, [5, 95]) - math.log(after.sum() / before.sum())
    assert [-low, high] == pytest.approx([below, above], rel=0.03)


def test_thousands_of_shapes_come_to_about_the_same_as_their_sum() -> None:
    """A process that makes new shapes all the time: places are taken together, and little changes."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 6, 3000)
    many: Weights = {}
    for place in places:
        key = ("part", source(place=float(place), drift=0.0))
        many[key] = many.get(key, 0.0) + 1 / len(places)
    shape = np.sqrt(5) * np.abs(places[:300, None] - places[None, :300])
    expected = 0.1 * math.sqrt(float(np.mean(ALIKE_PER_DOUBLING**shape)))
    assert miss_of(many)[0] == pytest.approx(expected, rel=0.05)


# --- weights are derivatives -------------------------------------------------------------------------------------

SCENARIOS = {
    "flash_laptop": {"parameters.geometry": "opt_mini", "parameters.tokens": 3},
    "slm_100m_a100": {},
    "finetune_7b_a100": {},
}


def foreseen(name: str) -> Foreseen:
    case = scenarios.load(name, changes=SCENARIOS[name])
    return foresee(case.scenario, case.workload, case.parameters, case.machine)


@pytest.mark.parametrize("name", SCENARIOS)
def test_weights_say_what_a_law_that_is_off_does_to_a_metric(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = foreseen(name)
    side = Side(found)
    once, step = CostModel._once, 1e-3
    resources = {source.resource for sources in found.run.sources.values() for source in sources}
    assert resources
    for resource in resources:

        def slower(self: CostModel, op: Any, slowed: str = resource) -> cost_model.OpTime:
            time = once(self, op)
            scaled = time.times(math.exp(step)) if op.resource == slowed else time
            return replace(scaled, host_s=time.host_s)

        monkeypatch.setattr(CostModel, "_once", slower)
        then = foreseen(name).prediction.metrics
        for metric in ("latency_s.mean", "usd_per_mtok", "tokens_per_s", "compute_s.mean"):
            if metric in then and metric in found.prediction.metrics:
                really = math.log(then[metric].value / found.prediction.metrics[metric].value) / step
                assert _weight(side.weights(metric), resource) == pytest.approx(really, abs=0.02), metric


def _weight(found: Mapping[tuple[str, Source], float], resource: str) -> float:
    return sum(weight for (_, source), weight in found.items() if source.resource == resource)
