"""The study of structures: equal budgets, runs that ship as they ran, and a table that follows from them."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sandtable_workloads.butterfly.executed import glyph_study as study
from sandtable_workloads.butterfly.executed.glyph_records import Settings
from sandtable_workloads.butterfly.executed.run_glyphs import main
from sandtable_workloads.butterfly.published.glyph_accuracy import GLYPHS, finding
from sandtable_workloads.seed_intervals import interval

RUNS = study.committed()
CASES = {(case.budget, case.name): case for case in study.cases()}


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: f"{case.budget}-{case.name}")
def test_every_network_is_within_a_twentieth_of_its_budget(case: study.Case) -> None:
    budget = study.case(case.budget, "butterfly").settings.network.multiply_accumulates()
    assert case.settings.network.multiply_accumulates() == pytest.approx(budget, rel=0.05)


def test_runs_that_ship_ran_as_their_case_says_and_hold_what_its_network_has() -> None:
    for run in RUNS:
        case, outcome = CASES[run.budget, run.case], run.outcome
        assert replace(outcome.settings, seed=0) == case.settings
        assert outcome.multiply_accumulates == case.settings.network.multiply_accumulates()
        assert outcome.parameters == case.settings.network.parameters
        assert len(outcome.epochs) == case.settings.epochs
        assert outcome.epochs[-1].loss < outcome.epochs[0].loss
        assert {"cpu", "torch", "numpy", "python"} <= set(run.environment)


def test_dense_and_butterfly_have_five_seeds_at_each_budget_and_no_run_ships_twice() -> None:
    counted = Counter((run.budget, run.case, run.outcome.settings.seed) for run in RUNS)
    assert max(counted.values()) == 1
    for budget in study.BUDGETS:
        for structure in ("dense", "butterfly"):
            assert sum((budget, structure, seed) in counted for seed in range(study.SEEDS)) == study.SEEDS


def test_the_table_follows_from_the_runs() -> None:
    rows = {(row.budget, row.case): row for row in study.table(reversed(RUNS))}
    dense = {run.outcome.settings.seed: run.outcome.accuracy for run in RUNS if (run.budget, run.case) == DENSE}
    fly = {run.outcome.settings.seed: run.outcome.accuracy for run in RUNS if (run.budget, run.case) == FLY}
    gains = [fly[seed] - dense[seed] for seed in fly]
    row = rows[FLY]
    assert row.accuracy == pytest.approx(np.mean(list(fly.values())))
    assert row.gain == pytest.approx(np.mean(gains))
    assert row.gain_high - row.gain == pytest.approx(2.132 * np.std(gains, ddof=1) / math.sqrt(5), rel=1e-3)
    assert rows[DENSE].gain == 0
    assert rows[DENSE].gain_low == 0
    assert not rows[DENSE].wins
    assert row.wins == (row.gain_low > 0)


DENSE, FLY = ("small", "dense"), ("small", "butterfly")


@pytest.mark.parametrize("n", [2, 3, 5, 10, 11, 30])
def test_the_interval_is_students(n: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="Student's t to compare with")
    values = np.random.default_rng(n).normal(0.6, 0.1, n)
    mean, half = interval(list(values))
    low, high = stats.t.interval(0.9, n - 1, values.mean(), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-4)


def test_one_run_has_no_interval() -> None:
    assert interval([0.5]) == (0.5, math.inf)
    (row,) = study.table([run for run in RUNS if (run.budget, run.case) == FLY][:1])
    assert math.isnan(row.gain)
    assert not row.wins


def test_runs_that_ended_are_kept_and_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    pytest.importorskip("matplotlib", reason="glyphs are drawn in its fonts")
    tiny = Settings(width=0.125, epochs=1, batch=16, images=32, held_out=5)
    chosen, told = [study.Case("dense", "small", tiny)], []
    first = study.study(tmp_path, chosen, 1, told.append)
    again = study.study(tmp_path, chosen, 1, told.append)
    assert first == again
    assert len(told) == 1
    assert study.Kept.of_line(first[0].as_line()) == first[0]
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text().replace('"budget": "small"', '"budget": "large"'))
    monkeypatch.setattr(study, "cases", lambda: iter(chosen))
    assert main([str(tmp_path), "--seeds", "1"]) == 2


def test_the_command_shows_what_ships(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    assert main(["--case", "dense", "--case", "butterfly", "--budget", "small", "--collect", str(kept)]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("small") == 2
    assert "large" not in shown.out
    assert shown.err == ""
    assert [json.loads(line)["budget"] for line in kept.read_text().splitlines()] == ["small"] * 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--case", "butterfl"], "no case is called 'butterfl'"), (["--seeds", "0"], "write 1 or more")],
)
def test_what_it_does_not_know_is_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_the_readme_shows_the_table_of_what_ships() -> None:
    readme = Path(__file__).resolve().parents[3] / "workloads" / "README.md"
    assert study.as_text(study.table(RUNS)) in readme.read_text()


def test_the_finding_says_what_the_runs_say() -> None:
    found = finding()
    gains = [row for row in study.table(RUNS) if row.case == "butterfly"]
    assert found.holds == all(row.wins for row in gains)
    assert all(f"{100 * row.gain:+.1f} points" in found.evidence for row in gains)
    here = [row for row in found.data.rows if row[0] == GLYPHS]
    shown = {(round(x, 6), round(y, 6)) for _, _, x, y in here}
    assert {(round(row.multiply_accumulates / 1e6, 6), round(100 * row.accuracy, 6)) for row in gains} <= shown
