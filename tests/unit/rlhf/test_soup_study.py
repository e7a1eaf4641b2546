"""The study of references: runs that ship are whole, tables are of them, and it resumes and says what it finds."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_alignment import TINY

from sandtable.errors import ConfigError
from sandtable.studies.finding import findings_of
from sandtable_workloads.rlhf.soup_study import soup_runs, soup_tables
from sandtable_workloads.rlhf.soup_study.soup_runs import (
    ALPHA,
    CURVE_EVERY,
    GRID_ALPHA,
    GRID_KL,
    ITERATIONS,
    KL,
    PLAIN,
    SEEDS,
    Point,
    points,
)
from sandtable_workloads.rlhf.soup_study.soup_study import main

RUNS = soup_runs.committed()
MAIN = soup_tables.of_case(RUNS, "main")
PPO, SOUP = Point(PLAIN, KL), Point(ALPHA, KL)
README = Path(__file__).resolve().parents[3] / "workloads" / "README.md"


# --- what ships ----------------------------------------------------------------------------------------------------


def test_every_case_ran_with_every_seed_once() -> None:
    assert SEEDS["main"] >= 20
    counted = Counter((run.case, run.seed) for run in RUNS)
    assert counted == {(case, seed): 1 for case, n in SEEDS.items() for seed in range(n)}
    assert all({"cpu", "numpy", "python", "torch"} <= set(run.environment) for run in RUNS)


def test_runs_hold_every_point_of_their_case() -> None:
    kept = {f"{name}_{kind}" for name in ("gold", "score", "kl_reference", "kl_sft") for kind in ("seen", "unseen")}
    kept |= {f"gold_at_{number}" for number in range(CURVE_EVERY, ITERATIONS + 1, CURVE_EVERY)}
    for run in RUNS:
        assert list(run.figures) == [point.name for point in points(run.case)]
        assert set(run.before) == {"sft", "other_sft", "soup"}
        for figures in run.figures.values():
            assert kept <= set(figures)
            assert all(0 <= figures[name] <= 1 for name in figures if name.startswith(("gold_", "wins_")))
            assert all(figures[name] >= 0 for name in figures if name.startswith(("kl_reference", "kl_sft")))


def test_plain_ppo_is_its_own_rival_and_its_reference_is_where_it_began() -> None:
    for run in RUNS:
        for point in points(run.case):
            if point == point.plain:
                figures = run.figures[point.name]
                assert figures["wins_seen"] == figures["wins_unseen"] == 0.5
                assert figures["kl_reference_seen"] == figures["kl_sft_seen"]


def test_a_seed_gives_the_same_alignment_in_both_cases() -> None:
    grid = {run.seed: run for run in soup_tables.of_case(RUNS, "grid")}
    both = [(run, grid[run.seed]) for run in MAIN if run.seed in grid]
    assert both
    for one, other in both:
        for point in (PPO, SOUP):
            assert one.figures[point.name] == other.figures[point.name]


def test_ppo_helps_and_the_reward_model_is_good_yet_imperfect() -> None:
    gains = [run.figures[PPO.name]["gold_seen"] - run.before["sft"]["gold_seen"] for run in MAIN]
    assert np.mean(gains) > 0.02
    accuracies = [run.accuracy["held_out"] for run in MAIN]
    assert 0.55 < np.mean(accuracies) < 0.8


def test_gains_are_students_over_the_seeds() -> None:
    (row,) = [row for row in soup_tables.contrasts(RUNS) if (row.kind, row.measure) == ("unseen", "gold")]
    gains = [run.figures[SOUP.name]["gold_unseen"] - run.figures[PPO.name]["gold_unseen"] for run in MAIN]
    assert row.gain.mean == pytest.approx(np.mean(gains))
    assert row.gain.n == len(gains)
    assert row.soup - row.plain == pytest.approx(row.gain.mean)
    half = 1.729 * np.std(gains, ddof=1) / math.sqrt(20)
    assert row.gain.high - row.gain.mean == pytest.approx(half, rel=1e-3)


def test_the_grid_has_a_cell_for_each_point_and_kind() -> None:
    cells = soup_tables.cells(RUNS)
    assert len(cells) == 2 * len(GRID_KL) * len(GRID_ALPHA)
    assert {cell.beyond_plain.mean for cell in cells if cell.point == cell.point.plain} == {0.0}


# --- what is said --------------------------------------------------------------------------------------------------


def test_findings_are_decided_by_the_intervals() -> None:
    found = {finding.name: finding for finding in findings_of("rlhf")}
    assert list(found) == ["reward", "generalisation", "wins", "distance", "share", "over_optimisation"]
    for name, kind in (("reward", "seen"), ("generalisation", "unseen")):
        assert found[name].holds == (soup_tables.gain_of(MAIN, SOUP, f"gold_{kind}").low > 0)
    wins = [soup_tables.wins_of(MAIN, SOUP, kind).low > 0.5 for kind in ("seen", "unseen")]
    assert found["wins"].holds == all(wins)
    for finding in found.values():
        assert finding.data.rows
        assert "90 %" in finding.evidence


def test_the_readme_shows_the_tables_of_these_runs() -> None:
    text = README.read_text()
    assert soup_tables.before_text(MAIN) in text
    assert soup_tables.contrasts_text(RUNS) in text


def test_the_command_shows_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == f"{soup_tables.as_text(RUNS)}\n"
    assert main(["--case", "main", "--seeds", "5"]) == 0
    some = [run for run in MAIN if run.seed < 5]
    assert capsys.readouterr().out == f"{soup_tables.as_text(some)}\n"


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--seeds", "0"], "write 1 or more"), (["--case", "minor"], "there are main, grid")]
)
def test_bad_arguments_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


# --- running -------------------------------------------------------------------------------------------------------


def test_a_run_is_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="models are PyTorch's")
    monkeypatch.setattr(soup_runs, "ITERATIONS", CURVE_EVERY)
    first = soup_runs.kept_or_run("main", 0, tmp_path, lambda _: None, TINY)
    assert list(first.figures) == [PPO.name, SOUP.name]
    again = soup_runs.kept_or_run("main", 0, tmp_path, lambda _: None, TINY)
    assert again == first
    kept = tmp_path / "main-0.json"
    kept.write_bytes(kept.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(ConfigError):
        soup_runs.kept_or_run("main", 0, tmp_path, lambda _: None, TINY)
