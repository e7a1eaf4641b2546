"""Choosing among configurations: deadline, budget, front, refusals, and the command."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.contracts import run_command
from sandtable.errors import CheckFailed, ConfigError, DoesNotFit
from sandtable.hardware import library
from sandtable.studies import cheapest, cheapest_answer
from sandtable.studies.cheapest import CHEAPEST, COST, FASTEST, MACHINES, TIME, Found
from sandtable.studies.outcome import Outcome
from sandtable.studies.study import Study

LAPTOP = library.load_machine("laptop_pcie4")
TOO_LARGE = 3
# seconds and dollars of each configuration, by the number that tells them apart
ALL = {4: (1800.0, 20.0), 3: (3600.0, 15.0), 1: (7200.0, 10.0), 2: (3600.0, 12.0)}


def outcome_of(amounts: dict[int, tuple[float, float]], **fields: Any) -> Outcome:
    """Points as given, and three more that are too large."""
    study = Study(name="s", axes={"n": [*amounts, -1, -2, -3]}, **fields)
    seconds, usd = np.array([*amounts.values(), *[(math.nan, math.nan)] * TOO_LARGE]).T
    return Outcome(
        study=study,
        points=list(study.points()),
        columns={
            TIME: seconds,
            COST: usd,
            MACHINES: np.ones(len(usd)),
            "low_s": 0.9 * seconds,
            "high_s": 1.1 * seconds,
            "low_usd": 0.9 * usd,
            "high_usd": 1.1 * usd,
        },
        reasons=[*[""] * len(amounts), *["too large"] * TOO_LARGE],
        machines=[LAPTOP] * (len(amounts) + TOO_LARGE),
    )


def chosen(amounts: dict[int, tuple[float, float]], objective: tuple[str, ...] = CHEAPEST, **limits: str) -> Found:
    constraints = {metric: limits[name] for name, metric in (("time", TIME), ("cost", COST)) if name in limits}
    return cheapest.choose(outcome_of(amounts, objective=objective, constraints=constraints), "a goal", ("n",))


def best(found: Found) -> int | None:
    return None if found.best is None else found.outcome.points[found.best].changes["n"]


def test_without_limits_the_cheapest_wins() -> None:
    assert best(chosen(ALL)) == 1


def test_a_deadline_takes_the_cheapest_within_it() -> None:
    found = chosen(ALL, time="<= 1 h")
    assert best(found) == 2
    assert found.outcome.within().sum() == 3
    assert found.outcome.missed() == {"time_s <= 1 h": 1}


def test_a_budget_takes_the_fastest_that_it_pays_for() -> None:
    assert best(chosen(ALL, FASTEST, cost="<= 15 USD")) == 2
    assert best(chosen(ALL, FASTEST, cost="<= 100 USD")) == 4


def test_both_limits_hold_together() -> None:
    found = chosen(ALL, time="<= 30 min", cost="<= 15 USD")
    assert found.best is None
    with pytest.raises(CheckFailed, match=r"within 30 min and 15 USD: the cheapest takes 2 h and 10 USD"):
        cheapest_answer.check(found)


def test_nothing_that_can_run_is_refused_with_the_reasons() -> None:
    with pytest.raises(DoesNotFit, match="none of 3 configurations can run \\(3 too large\\)"):
        chosen({})


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=30))
def test_nothing_beats_the_front_and_all_else_is_beaten(pairs: list[tuple[int, int]]) -> None:
    outcome = outcome_of({n: (float(seconds), float(usd)) for n, (seconds, usd) in enumerate(pairs)})
    ends = {pairs[place] for place in outcome.front(*CHEAPEST)}
    assert all(place < len(pairs) for place in outcome.front(*CHEAPEST))
    for seconds, usd in pairs:
        assert any(s <= seconds and u <= usd for s, u in ends)
        if (seconds, usd) in ends:
            assert not any((s, u) != (seconds, usd) and s <= seconds and u <= usd for s, u in ends)


def test_the_table_marks_the_best_and_shows_what_differs() -> None:
    table = cheapest_answer.table(chosen(ALL, time="<= 1 h"))
    assert [row[0] for row in table.rows] == ["", cheapest_answer.CHOSEN, ""]
    assert "n" in table.columns
    factors = [row[table.columns.index("factor")] for row in table.rows]
    assert factors == pytest.approx([10 / 12, 1, 20 / 12])
    assert table.notes[0] == "7 considered, 4 can run, 3 within the limits"


def test_a_long_front_is_thinned_and_keeps_its_best() -> None:
    many = {i: (1000.0 - i, 10.0 + i) for i in range(100)}
    table = cheapest_answer.table(chosen(many, FASTEST, cost="<= 47.5 USD"))
    assert len(table.rows) <= cheapest_answer.N_ROWS + 1
    assert sum(row[0] == cheapest_answer.CHOSEN for row in table.rows) == 1


@pytest.mark.parametrize(
    ("text", "quantity", "message"), [("24", "s", "unit is required"), ("5 USD", "s", "a price, but a time")]
)
def test_a_limit_needs_its_unit(text: str, quantity: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"--within: .*{message}"):
        cheapest.limit(text, quantity, "--within")


# --- the command ---------------------------------------------------------------------------------------------


def test_the_command_finds_one_within_the_deadline() -> None:
    done = run_command(
        "cheapest", "slm_100m_a100", "--until", "tokens=2e9", "--within", "2 h", "--most-devices", "8",
        "--machines", "aws_p4d_24xlarge", "--format", "json",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    marked = [row for row in rows if row["chosen"] == cheapest_answer.CHOSEN]
    assert len(marked) == 1
    assert 0 < marked[0]["low [h]"] < marked[0]["time [h]"] <= 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("flash_laptop",), 2, "no search"),
        (("slm_100m_a100", "--machines", "dgx_h100", "--until", "steps=5"), 2, "one of tokens, loss, not steps"),
        (("slm_100m_a100", "--until", "tokens"), 2, "NAME=NUMBER"),
        (("slm_100m_a100", "--machines", "dgx_h100", "--until", "loss=1.0"), 2, "out of reach"),
        (("slm_100m_a100", "--machines", "dgx_h100", "--within", "1 s"), 3, "no configuration ends within 1 s"),
        (
            ("slm_100m_a100", "--set", "parameters.model=llama_3_70b", "--most-devices", "1"),
            5,
            "configurations can run",
        ),
    ],
)
def test_refusals(arguments: tuple[str, ...], code: int, message: str) -> None:
    done = run_command("cheapest", *arguments)
    assert done.code == code, done.err
    assert message in done.err
