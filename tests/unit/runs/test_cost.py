from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.hardware import Machine, Power, Price
from sandtable.results import Cost, Metric
from sandtable.runs import bill

amounts = st.floats(-1e9, 1e9, allow_nan=False)


@pytest.fixture
def priced(machine: Machine) -> Machine:
    """36 USD/h, which is a cent per second, and 100 to 300 W."""
    return machine.model_copy(
        update={
            "price": Price(usd_per_h=36.0, as_of=dt.date(2026, 1, 1)),
            "power": Power(idle_w=100.0, max_w=300.0),
        }
    )


@st.composite
def costs(draw: st.DrawFn) -> Cost:
    return Cost(
        usd_per_h=draw(amounts),
        usd=draw(amounts),
        energy_j=draw(amounts),
        usd_per_unit=draw(amounts),
        breakdown=draw(st.dictionaries(st.sampled_from(["machine_usd", "idle_j", "busy_j"]), amounts)),
    )


@given(costs(), costs())
def test_a_difference_is_antisymmetric(a: Cost, b: Cost) -> None:
    forth, back = a.diff(b), b.diff(a)
    assert forth.keys() == back.keys()
    assert all(forth[key] == -back[key] for key in forth)
    assert set(a.diff(a).values()) == {0.0}


@given(costs(), costs(), costs())
def test_differences_add_up(a: Cost, b: Cost, c: Cost) -> None:
    direct, first, second = a.diff(c), a.diff(b), b.diff(c)
    for key, value in direct.items():
        assert first.get(key, 0.0) + second.get(key, 0.0) == pytest.approx(value, abs=1e-3)


def test_money_and_energy_by_hand(priced: Machine) -> None:
    found = bill.cost_of(priced, seconds=10.0, busy_s=4.0, n_units=5)
    assert found.usd_per_h == 36.0
    assert found.usd == pytest.approx(0.10)
    assert found.usd_per_unit == pytest.approx(0.02)
    assert found.energy_j == pytest.approx(10 * 100 + 4 * 200)
    assert found.breakdown == pytest.approx({"machine_usd": 0.10, "idle_j": 1000.0, "busy_j": 800.0})


def test_nothing_is_busier_than_the_time_there_is(priced: Machine) -> None:
    found = bill.cost_of(priced, seconds=10.0, busy_s=99.0, n_units=1)
    assert found.energy_j == pytest.approx(10 * 300)


def test_a_machine_without_price_or_power_is_free(machine: Machine) -> None:
    found = bill.cost_of(machine, seconds=10.0, busy_s=1.0, n_units=1)
    assert set(found.amounts().values()) == {0.0}


def each(value: float, low: float, high: float) -> Metric:
    return Metric(value=value, low=low, high=high, unit="s")


def test_metrics_follow_the_latency(priced: Machine) -> None:
    found = bill.metrics(priced, each(0.5, 0.4, 0.8), 0.2, ("mtok", 1e6))
    assert found["usd_per_h"].value == found["usd_per_h"].low == 36.0
    per_mtok = found["usd_per_mtok"]
    # a cent per second
    assert (per_mtok.low, per_mtok.value, per_mtok.high) == pytest.approx((0.4e4, 0.5e4, 0.8e4))
    assert found["energy_j"].value == pytest.approx(0.5 * 100 + 0.2 * 200)
    assert found["energy_j"].low < found["energy_j"].value < found["energy_j"].high
    assert all(metric.derived for metric in found.values())
    assert [found[name].unit for name in ("usd_per_h", "usd_per_mtok", "energy_j")] == ["USD/h", "USD/Mtok", "J"]


def test_only_work_that_is_priced_by_something_has_a_price_for_it(priced: Machine) -> None:
    assert set(bill.metrics(priced, each(1, 1, 1), 0.0, None)) == {"usd_per_h", "energy_j"}


def test_what_is_not_known_is_left_out(machine: Machine) -> None:
    assert bill.metrics(machine, each(1, 1, 1), 0.0, None) == {}
