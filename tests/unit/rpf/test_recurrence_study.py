"""The study of recurrence: runs that ship as they ran, tables and findings that follow from them, drawn events."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sandtable.studies.finding import Finding, findings_of
from sandtable_workloads.rpf.evaluated import study_tables
from sandtable_workloads.rpf.evaluated.recurrence_study import main
from sandtable_workloads.rpf.evaluated.study_tables import CASES, CONTRASTS, RECOVERY, SEEDS, SIZES, Run
from sandtable_workloads.seed_intervals import Gain

RUNS = study_tables.committed()
README = Path(__file__).resolve().parents[3] / "workloads" / "README.md"


# --- what ships ----------------------------------------------------------------------------------------------------


def test_every_case_ran_with_every_seed_once() -> None:
    assert SEEDS >= 10
    counted = Counter((run.case, run.seed) for run in RUNS)
    assert counted == {(case, seed): 1 for case in CASES for seed in range(SEEDS)}
    for run in RUNS:
        assert {"cpu", "numba", "numpy", "python"} <= set(run.environment)
        assert run.n_events > 5_000


def test_runs_hold_what_their_contrasts_compare() -> None:
    for contrast in CONTRASTS:
        for run in RUNS:
            if run.case == contrast.case:
                assert {contrast.model, contrast.against, "popularity", "recency"} <= set(run.figures)
    for run in RUNS:
        if run.case == RECOVERY:
            assert [int(size) for size in run.figures] == list(SIZES)


def test_gains_are_students_over_the_seeds_on_the_same_events() -> None:
    (row,) = [row for row in study_tables.contrasts(reversed(RUNS)) if row.contrast.case == "events recur"]
    gains = [run.figures["HRPF"]["ndcg"] - run.figures["HPF"]["ndcg"] for run in RUNS if run.case == "events recur"]
    assert row.ndcg.mean == pytest.approx(np.mean(gains))
    assert row.ndcg.high - row.ndcg.mean == pytest.approx(1.729 * np.std(gains, ddof=1) / math.sqrt(20), rel=1e-3)
    percent = [
        100 * (run.figures["HRPF"]["next_mean_h"] / run.figures["HPF"]["next_mean_h"] - 1)
        for run in RUNS
        if run.case == "events recur"
    ]
    assert row.next.mean == pytest.approx(np.mean(percent))


def test_models_gain_where_they_should_and_nowhere_else() -> None:
    rows = study_tables.contrasts(RUNS)
    assert [row.contrast for row in rows] == list(CONTRASTS)
    assert all(row.as_expected for row in rows)
    assert any(not row.contrast.gains for row in rows)


def test_slopes_are_those_of_a_line_through_the_logarithms() -> None:
    def run(seed: int, power: float) -> Run:
        errors = {str(size): {"tau": 3 * size**power} for size in (*SIZES[1:], 500)}
        return Run(case=RECOVERY, seed=seed, n_events=1, figures=errors, environment={})

    found = study_tables.slopes([run(0, -0.4), run(1, -0.6)], "tau")
    assert found.mean == pytest.approx(-0.5)
    assert found.high - found.mean == pytest.approx(6.314 * math.sqrt(0.02) / math.sqrt(2), rel=1e-3)


def test_one_run_has_no_interval() -> None:
    alone = Gain.of([0.25])
    assert alone.shown("+.2f") == "+0.25"
    assert not alone.above
    assert Gain.of([1.0, 1.2]).shown(".1f") == "1.1 (0.5 to 1.7)"


def test_the_readme_shows_the_tables_of_what_ships() -> None:
    text = README.read_text()
    for table in study_tables.as_text(RUNS).split("\n\n"):
        assert table in text


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_shows_what_ships(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    assert main(["--case", "events recur", "--seeds", "3", "--collect", str(kept)]) == 0
    shown = capsys.readouterr()
    assert "| events recur | HRPF | HPF | 3 |" in shown.out
    assert "nothing recurs" not in shown.out
    assert shown.err == ""
    assert [json.loads(line)["seed"] for line in kept.read_text().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--case", "event recur"], "no case is called 'event recur'"), (["--seeds", "0"], "write 1 or more")],
)
def test_what_it_does_not_know_is_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_runs_that_ended_are_kept_and_damage_is_a_sentence(tmp_path: Path) -> None:
    figures = {"HRPF": {"ndcg": 1 / 3}}
    first, ran = study_tables.kept_or(tmp_path, "events recur", 4, lambda: (7, figures))
    again, ran_again = study_tables.kept_or(tmp_path, "events recur", 4, lambda: (8, {}))
    assert (ran, ran_again) == (True, False)
    assert first == again
    assert first.figures["HRPF"]["ndcg"] == 0.333333
    assert Run.of_line(first.as_line()) == first
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace("HRPF", "SRPF"))
    assert main([str(tmp_path), "--case", "events recur", "--seeds", "5"]) == 2


# --- running -------------------------------------------------------------------------------------------------------


def test_a_run_that_ships_comes_out_again() -> None:
    """The same events to the last one; fits, which other rounding may lead elsewhere, within what seeds differ by."""
    pytest.importorskip("numba", reason="fits are compiled")
    from sandtable_workloads.rpf.evaluated.study_cases import runs_of_cases

    runs = runs_of_cases()
    assert tuple(runs) == CASES
    kept = [run for run in RUNS if run.case == "events recur"]
    n_events, figures = runs["events recur"](1)
    assert n_events == kept[1].n_events
    for rule in ("popularity", "recency"):
        assert figures[rule] == pytest.approx(kept[1].figures[rule], rel=1e-5)
    for model in ("HPF", "HRPF"):
        shipped = [run.figures[model]["ndcg"] for run in kept]
        assert min(shipped) < figures[model]["ndcg"] < max(shipped)


def test_shuffled_edges_leave_everybody_following_as_many() -> None:
    pytest.importorskip("numba", reason="fits are compiled")
    from sandtable_workloads.rpf.evaluated import study_cases
    from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
    from sandtable_workloads.rpf.events.simulated_events import simulate

    known = study_cases._social(0)
    edges = known.edges["user"], known.edges["follows"]
    held = HeldOut.of(simulate(known, 60.0, 0), edges)
    other = study_cases.shuffled(held, 0)
    assert other.edges is not None
    assert other.edges[0].tolist() == edges[0].tolist()
    assert np.bincount(other.edges[1]).tolist() == np.bincount(edges[1]).tolist()
    assert (other.edges[1] != edges[1]).mean() > 0.9


def test_errors_of_recovered_parameters_fall_with_events() -> None:
    pytest.importorskip("numba", reason="fits are compiled")
    from sandtable_workloads.rpf.evaluated.study_cases import recovered

    n_events, figures = recovered(3, (500, 20_000))
    assert n_events == 20_000
    few, many = figures["500"], figures["20000"]
    assert many["base"] < few["base"] / 2
    assert many["tau"] < few["tau"] / 2
    assert abs(many["tau_bias"]) < 0.1


# --- findings ------------------------------------------------------------------------------------------------------


def findings() -> dict[str, Finding]:
    return {item.name: item for item in findings_of("rpf")}


def test_findings_say_what_the_runs_say() -> None:
    found = findings()
    rows = {row.contrast: row for row in study_tables.contrasts(RUNS)}
    recurrence = rows[CONTRASTS[0]]
    assert found["recurrence"].holds == recurrence.as_expected
    assert recurrence.ndcg.shown("+.3f") in found["recurrence"].evidence
    assert found["returning_time"].holds == (recurrence.next.high < 0 and recurrence.split.high < 0)
    assert found["returning_time_after_training"].holds == (recurrence.last.high < 0)
    assert found["controls"].holds == all(row.as_expected for row in rows.values() if not row.contrast.gains)
    assert study_tables.slopes(RUNS, "tau").shown("+.3f") in found["recovery"].evidence


def test_each_finding_has_the_data_of_its_figure() -> None:
    for item in findings().values():
        assert item.data.columns == ("panel", "series", "x", "y")
        assert len(item.data.rows) >= 6, item.name
        assert all(row[2] > 0 and row[3] > 0 and math.isfinite(row[3]) for row in item.data.rows), item.name
        assert len({row[1] for row in item.data.rows}) <= 6, f"{item.name}: more series than colours"
