"""The commands ``sandtable rpf``: a model from a file, what it recommends, a comparison, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sandtable.contracts import run_command
from sandtable.table import Table
from sandtable_workloads.rpf import rpf_use

pytest.importorskip("numba", reason="fits are compiled by numba")
pytest.importorskip("scipy", reason="fits need scipy")


@pytest.fixture
def events(in_tmp: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(0, 30, 600), rng.integers(0, 12, 600), np.sort(rng.random(600)) * 400, strict=True)
    path = in_tmp / "events.csv"
    path.write_text("user,item,time\n" + "".join(f"u{u},i{i},{t:.4f}\n" for u, i, t in rows))
    return path


FIT = ("rpf", "fit", "events.csv", "-o", "model.npz", "-k", "4", "--max-iter", "15")


def test_a_model_is_fitted_written_and_asked(events: Path) -> None:
    ran = run_command(*FIT, "--format", "json")
    assert ran.code == 0, ran.err
    found = {row["what"]: row["value"] for row in json.loads(ran.out)["rows"]}
    assert (found["model"], found["events"], found["written"]) == ("HRPF", "600", "model.npz")
    ran = run_command("rpf", "recommend", "model.npz", "u3", "-n", "5", "--format", "json")
    rows = json.loads(ran.out)["rows"]
    assert len({row["item"] for row in rows}) == 5
    best = rows[0]["item"]
    ran = run_command("rpf", "recommend", "model.npz", "u3", "-n", "5", "--exclude", best, "--format", "json")
    assert best not in {row["item"] for row in json.loads(ran.out)["rows"]}
    ran = run_command("rpf", "recommend", "model.npz", "nobody")
    assert ran.code == 0
    assert "was never seen" in ran.err


def test_more_components_than_items_are_said(events: Path) -> None:
    ran = run_command("rpf", "fit", "events.csv", "-o", "model.npz", "-k", "20", "--max-iter", "2")
    assert ran.code == 0, ran.err
    assert "20 components for 30 users and 12 items" in ran.err


def test_recommenders_are_compared_on_later_events(events: Path) -> None:
    options = ("-k", "3", "--max-iter", "10", "--no-rivals", "--format", "json")
    ran = run_command("rpf", "evaluate", "events.csv", *options)
    assert ran.code == 0, ran.err
    rows = {row["model"]: row for row in json.loads(ran.out)["rows"]}
    assert list(rows) == ["popularity", "own counts", "recency", "HPF", "HRPF"]
    assert all(0 < row["ndcg"] <= 1 for row in rows.values())


def test_a_comparison_ends_with_when_users_come_back(events: Path) -> None:
    ran = run_command("rpf", "evaluate", "events.csv", "-k", "3", "--max-iter", "5", "--no-rivals")
    assert ran.code == 0, ran.err
    lines = ran.out.partition("Returning times")[2].splitlines()
    drawn = {line.split()[0]: line.split("  ")[-1] for line in lines if "█" in line}
    assert list(drawn) == ["actual", "popularity", "HPF", "HRPF"]
    assert "50 % back" in ran.out


def test_users_back_are_drawn_as_they_come() -> None:
    rows = [("actual", 0.25, 1.0), ("actual", 0.5, 2.0), ("actual", 0.75, 4.0), ("actual", 0.9, 8.0)]
    shown = rpf_use.users_back(Table(columns=("model", "share back", "within"), rows=rows))
    name, *within, line = shown.rows[0]
    assert (name, [each.value for each in within]) == ("actual", [3600.0, 7200.0, 14400.0, 28800.0])
    assert len(line) == 32
    assert (line[0], line[-1], sorted(line) == list(line)) == ("▂", "█", True)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("rpf", "fit", "nowhere.csv", "-o", "m.npz"), 2, "nowhere.csv"),
        ((*FIT, "--variant", "hrfp"), 2, "did you mean 'hrpf'"),
        ((*FIT, "--variant", "srpf"), 2, "--edges FILE"),
        ((*FIT, "--edges", "events.csv"), 2, "hrpf has no use for --edges"),
        ((*FIT, "--time-unit", "days"), 2, "h, s or ms, not 'days'"),
        ((*FIT[:4], "nowhere/m.npz"), 2, "nowhere is no folder"),
        ((*FIT, "-k", "0"), 2, "n_components must be"),
        ((*FIT, "-k", "100000000"), 5, "the fit needs"),
        (("rpf", "recommend", "events.csv", "u1"), 2, "damaged, or was not written by a fit"),
        (("rpf", "recommend", "nowhere.npz", "u1"), 2, "nowhere.npz"),
        ((*FIT, "--user", "who"), 2, "no column 'who' for user"),
        (("rpf", "evaluate", "events.csv", "--plot", "plot.txt"), 2, ".svg or .png"),
        (("rpf", "evaluate", "events.csv", "--train", "1.5"), 2, "between 0 and 1"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: tuple[str, ...], code: int, sentence: str, events: Path
) -> None:
    ran = run_command(*words)
    assert ran.code == code, ran.err
    assert sentence in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
