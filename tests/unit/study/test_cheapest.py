"""Choosing among configurations: deadline, budget, front, refusals, and the command."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.contracts import run_command
from sandtable.errors import CheckFailed, ConfigError, DoesNotFit
from sandtable.study import cheapest
from sandtable.workload.seam import Choice, Choices


def choice(seconds: float, usd: float, **settings: int) -> Choice:
    return Choice(
        machine="m",
        settings=settings,
        seconds=seconds,
        low_s=0.9 * seconds,
        high_s=1.1 * seconds,
        usd=usd,
        facts={},
    )


def offered(*choices: Choice) -> Choices:
    return Choices(goal="a goal", considered=len(choices) + 3, dropped={"too large": 3}, choices=choices)


SLOW, MIDDLE, FAST = choice(7200, 10, n=1), choice(3600, 12, n=2), choice(1800, 20, n=4)
WORSE = choice(3600, 15, n=3)
ALL = offered(FAST, WORSE, SLOW, MIDDLE)


def test_without_limits_the_cheapest_wins() -> None:
    assert cheapest.find(ALL).best is SLOW


def test_a_deadline_takes_the_cheapest_within_it() -> None:
    assert cheapest.find(ALL, within_s=3600).best is MIDDLE
    assert cheapest.find(ALL, within_s=3600).n_within == 3


def test_a_budget_takes_the_fastest_that_it_pays_for() -> None:
    assert cheapest.find(ALL, budget_usd=15).best is MIDDLE
    assert cheapest.find(ALL, budget_usd=100).best is FAST


def test_both_limits_hold_together() -> None:
    found = cheapest.find(ALL, within_s=1800, budget_usd=15)
    assert found.best is None
    with pytest.raises(CheckFailed, match=r"within 30 min and 15 USD: the cheapest takes 2 h and 10 USD"):
        cheapest.check(found, within_s=1800, budget_usd=15)


def test_nothing_that_can_run_is_refused_with_the_reasons() -> None:
    with pytest.raises(DoesNotFit, match="none of 3 configurations can run \\(3 too large\\)"):
        cheapest.find(offered())


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=30))
def test_nothing_beats_the_front_and_all_else_is_beaten(pairs: list[tuple[int, int]]) -> None:
    choices = [choice(float(seconds), float(usd)) for seconds, usd in pairs]
    front = cheapest.pareto(choices)
    ends = {(c.seconds, c.usd) for c in front}
    for seconds, usd in pairs:
        assert any(s <= seconds and u <= usd for s, u in ends)
        if (seconds, usd) in ends:
            assert not any((s, u) != (seconds, usd) and s <= seconds and u <= usd for s, u in ends)


def test_the_table_marks_the_best_and_shows_what_differs() -> None:
    found = cheapest.find(ALL, within_s=3600)
    table = cheapest.table(ALL, found)
    assert [row[0] for row in table.rows] == ["", cheapest.CHOSEN, ""]
    assert "n" in table.columns
    factors = [row[table.columns.index("factor")] for row in table.rows]
    assert factors == pytest.approx([10 / 12, 1, 20 / 12])
    assert table.notes[0] == "7 considered, 4 can run, 3 within the limits"


def test_a_long_front_is_thinned_and_keeps_its_best() -> None:
    many = offered(*(choice(1000.0 - i, 10.0 + i, n=i) for i in range(100)))
    found = cheapest.find(many, budget_usd=47.5)
    table = cheapest.table(many, found)
    assert len(table.rows) <= cheapest.N_ROWS + 1
    assert sum(row[0] == cheapest.CHOSEN for row in table.rows) == 1


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
        "--format", "json",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    marked = [row for row in rows if row["chosen"] == cheapest.CHOSEN]
    assert len(marked) == 1
    assert 0 < marked[0]["low [h]"] < marked[0]["time [h]"] <= 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("flash_laptop",), 2, "no search"),
        (("slm_100m_a100", "--until", "steps=5"), 2, "one of tokens, loss, not steps"),
        (("slm_100m_a100", "--until", "tokens"), 2, "NAME=NUMBER"),
        (("slm_100m_a100", "--until", "loss=1.0"), 2, "out of reach"),
        (("slm_100m_a100", "--within", "1 s"), 3, "no configuration ends within 1 s"),
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
