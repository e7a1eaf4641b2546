"""Laws of Poisson factorization: what takes longer, what is shared among cores, and what caches find again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_up_devices import CPU

from sandtable.hardware import Roofline
from sandtable_kernels.poisson import poisson_law as law
from sandtable_kernels.poisson.poisson_law import (
    GammaRowsOperator,
    GammaRowsShape,
    PoissonPass,
    PoissonPassShape,
    lines_of,
    padded_bytes,
    popular_share,
)

PASS, ROWS = PoissonPass(), GammaRowsOperator()
SHAPE = PoissonPassShape(
    rows=50_000, components=20, pairs=4e6, events=1e7, triggers=0, sources=1e6, exponent=0.8, kind=law.EXCITED
)


def seconds(shape: Any = SHAPE, device: Roofline = CPU, dtype: str = "float32", **changes: float) -> float:
    operator: Any = PASS if isinstance(shape, PoissonPassShape) else ROWS
    found = operator.seconds(device, operator.typical() | changes, operator.columns(shape), dtype=dtype)
    return float(found[0])


@pytest.mark.parametrize("more", ["rows", "components", "pairs", "events", "triggers", "sources"])
def test_more_of_anything_takes_longer(more: str) -> None:
    assert seconds(SHAPE._replace(**{more: 2 * getattr(SHAPE, more) + 1e6})) > seconds()


def test_time_is_linear_in_the_data() -> None:
    def beyond_rows(n: float) -> float:
        return seconds(SHAPE._replace(pairs=4e5 * n, events=1e6 * n)) - seconds(SHAPE._replace(pairs=0, events=0))

    assert beyond_rows(10) == pytest.approx(10 * beyond_rows(1))


def test_rows_of_its_own_side_cost_lines_where_no_cache_holds_them() -> None:
    def each(rows: float) -> float:
        few = SHAPE._replace(pairs=0, events=0, rows=rows)
        return (seconds(few) - PASS.typical()["launch_s"]) / rows

    assert each(1e6) > 1.5 * each(1e3)
    assert each(1e3) == pytest.approx(each(2e3))


def test_cores_share_the_work_until_memory_is_the_bound() -> None:
    launch = PASS.typical()["launch_s"]
    one, four = (seconds(SHAPE._replace(n_cores=n)) - launch for n in (1, 4))
    assert one == pytest.approx(4 * four, rel=0.1)
    assert seconds(SHAPE._replace(n_cores=99)) == seconds()


def test_popular_rows_stay_in_cache() -> None:
    assert popular_share(100, 1000, 0.0) == pytest.approx(0.1, rel=1e-3)
    assert popular_share(100, 1000, 1.0) == pytest.approx(np.log(101) / np.log(1001), rel=1e-3)
    assert popular_share(5000, 1000, 0.5) == 1.0
    assert seconds(SHAPE._replace(exponent=1.5)) < seconds(SHAPE._replace(exponent=0.0))
    # what the core's own cache holds costs no line at all
    few = SHAPE._replace(sources=100, rows=1000)
    assert seconds(few) == seconds(few, line_s=1e-7)


def test_rows_are_padded_to_whole_vectors() -> None:
    assert [float(padded_bytes(k, "float32")) for k in (1, 8, 9, 20)] == [32, 32, 64, 96]
    assert float(padded_bytes(20, "float64")) == 160
    assert [float(lines_of(n)) for n in (32.0, 96.0, 160.0)] == [1, 2, 3]
    assert seconds(SHAPE._replace(components=17)) == seconds(SHAPE._replace(components=24))


def test_triggers_cost_most_where_they_come_by_surprise() -> None:
    def each(per_event: float) -> float:
        more = SHAPE._replace(triggers=per_event * SHAPE.events)
        return (seconds(more) - seconds()) / per_event

    assert each(0.1) > 3 * each(10)


def test_passes_over_users_items_and_friends_have_constants_of_their_own() -> None:
    kinds = [PASS.variant(SHAPE._replace(kind=kind)) for kind in range(len(law.KINDS))]
    assert kinds == ["", "excited", "social", "items"]


def test_factors_left_over_from_vectors_take_longer() -> None:
    shape = GammaRowsShape(rows=100_000, components=20, sums=1)
    assert seconds(shape._replace(components=22)) > seconds(shape._replace(components=24))
    assert seconds(shape._replace(sums=3)) > seconds(shape)
    assert seconds(shape, dtype="float64") >= seconds(shape)
