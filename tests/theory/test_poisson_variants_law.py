"""Laws of factors that follow a clock and of items that excite others: what takes longer, and what is shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_up_devices import CPU

from sandtable.demand.operator import Operator
from sandtable_kernels.poisson.laws import dynamic_law, item_law
from sandtable_kernels.poisson.laws.dynamic_law import (
    CellPass,
    CellPassShape,
    ClockRates,
    ClockRatesShape,
    bins_of_items,
    bins_of_users,
    cells_op,
    rates_op,
)
from sandtable_kernels.poisson.laws.item_law import (
    GivenOff,
    GivenOffShape,
    ItemExcitation,
    ItemExcitationShape,
    excitation_op,
    given_op,
)
from sandtable_kernels.poisson.poisson_law import popular_share

CELLS = CellPassShape(
    rows=50_000,
    own_features=31,
    components=20,
    cells=4e6,
    active=2.0,
    mixed=4e6,
    events=1e7,
    triggers=0,
    sources=1e5,
    features=31,
    exponent=0.8,
)
RATES = ClockRatesShape(rows=50_000, features=31, components=20, bins=168, summed=31_000)
BETWEEN = ItemExcitationShape(
    rows=50_000, components=20, width=20, pairs=4e6, events=1e7, triggers=0, sources=1e5, exponent=0.8
)
GIVEN = GivenOffShape(pairs=4e6, elements=1e6)
LAWS: dict[type, Operator[Any]] = {
    CellPassShape: CellPass(),
    ClockRatesShape: ClockRates(),
    ItemExcitationShape: ItemExcitation(),
    GivenOffShape: GivenOff(),
}


def seconds(shape: Any, **changes: float) -> float:
    law = LAWS[type(shape)]
    return float(law.seconds(CPU, law.typical() | changes, law.columns(shape), dtype="float32")[0])


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        *((CELLS, name) for name in CellPassShape._fields[:10]),
        *((CELLS._replace(kind=dynamic_law.ITEMS), name) for name in ("rows", "components", "cells", "sources")),
        *((RATES, name) for name in ClockRatesShape._fields[:5]),
        *((BETWEEN, name) for name in ItemExcitationShape._fields[:7]),
        *((BETWEEN._replace(kind=item_law.CLUSTERS), name) for name in ItemExcitationShape._fields[:7]),
        *((GIVEN, name) for name in GivenOffShape._fields[:2]),
    ],
)
def test_more_of_anything_takes_longer(shape: Any, more: str) -> None:
    assert seconds(shape._replace(**{more: 2 * getattr(shape, more) + 1e6})) > seconds(shape)


@pytest.mark.parametrize("shape", [CELLS, RATES, BETWEEN, GIVEN], ids=lambda shape: type(shape).__name__)
def test_cores_share_the_work_and_no_constant_is_idle(shape: Any) -> None:
    law = LAWS[type(shape)]
    assert len(law.constants) <= 8
    one, four = (seconds(shape._replace(n_cores=n)) for n in (1, 4))
    assert four < one < 4.01 * four
    assert seconds(shape._replace(n_cores=99)) == seconds(shape)
    # some bind where caches hold little, others where they hold all
    sizes = [shape._replace(**{shape._fields[0]: shape[0] * times}) for times in (0.01, 1, 20)]
    sizes += [shape._replace(triggers=1e6)] if "triggers" in shape._fields else []
    for constant in law.constants:
        ends = [{constant.name: end} for end in (constant.low, constant.high)]
        assert any(seconds(size, **ends[0]) != seconds(size, **ends[1]) for size in sizes), constant.name


def test_each_side_and_each_cause_has_constants_of_its_own() -> None:
    assert [LAWS[CellPassShape].variant(CELLS._replace(kind=kind)) for kind in (0, 1)] == ["", "items"]
    assert [LAWS[ItemExcitationShape].variant(BETWEEN._replace(kind=kind)) for kind in (0, 1)] == ["", "clusters"]


def test_one_feature_that_always_holds_is_no_clock_at_all() -> None:
    # mixing a user's rows once for each user is all that is left of the clock
    still = CELLS._replace(own_features=1, features=1, active=1.0, mixed=2 * CELLS.rows)
    assert seconds(still) < seconds(CELLS) / 1.5


def test_clusters_cost_what_they_are_wide_and_factors_do_not_know_them() -> None:
    clustered = BETWEEN._replace(kind=item_law.CLUSTERS)
    assert seconds(clustered._replace(width=100)) > 1.3 * seconds(clustered._replace(width=8))
    assert seconds(clustered._replace(width=3)) == seconds(clustered._replace(width=8))


@pytest.mark.parametrize("bins", [24, 168])
def test_bins_met_are_those_that_chance_gives(bins: int) -> None:
    rng = np.random.default_rng(0)
    users, items, cells = 2000, 500, 60_000
    activity, popular = rng.lognormal(0, 1, users), np.diff(popular_share(np.arange(items + 1.0), items, 1.0))
    at = rng.integers(0, bins, cells)
    for weights, expected in (
        (activity, bins_of_users(cells, users, bins)),
        (popular, bins_of_items(cells, items, 1.0, bins)),
    ):
        who = rng.choice(weights.size, cells, p=weights / weights.sum())
        assert expected == pytest.approx(np.unique(who * bins + at).size, rel=0.03)


def test_demands_count_their_bytes() -> None:
    cells = cells_op("users", CELLS, "float32")
    gathered = CELLS.cells * (CELLS.active * 96 + dynamic_law.CELL_BYTES)
    assert cells.bytes_read == gathered + CELLS.rows * 31 * 96 + 4 * CELLS.events
    rates = rates_op("rates", RATES, "float32")
    assert rates.bytes_written == 8 * 31 * 20 * (50_000 + 168)
    assert rates_op("rates", RATES._replace(kind=dynamic_law.ITEMS), "float32").bytes_written == 8 * 31 * 20 * 168
    kinds = (item_law.FACTORS, item_law.CLUSTERS)
    factors, clusters = (excitation_op("pass", BETWEEN._replace(kind=kind), "float32") for kind in kinds)
    assert factors.bytes_written - clusters.bytes_written == BETWEEN.pairs * (96 - 4)
    assert given_op("given", GIVEN, "float32").bytes_read == 40 * GIVEN.pairs + 8 * GIVEN.elements
