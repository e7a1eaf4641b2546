"""What the SLM paper (arXiv 2410.19456) found, predicted; and which of its configurations run out of memory."""

from __future__ import annotations

import csv
import itertools
from functools import lru_cache
from pathlib import Path

import pytest

from sandtable.report import lines
from sandtable.studies.finding import Finding, findings_of
from sandtable_workloads.training.published.slm_paper_grid import cells, labels, machine_of, outcome
from sandtable_workloads.training.slm_training import SlmTrainingWorkload
from sandtable_workloads.training.training_parameters import SlmTraining

WORKLOAD = SlmTrainingWorkload()


@lru_cache(maxsize=1)
def found() -> dict[str, Finding]:
    return {item.name: item for item in findings_of("slm_training")}


def runs(**wanted: object) -> bool:
    fitting = cells()[cells()["speed"] > 0]
    for name, value in wanted.items():
        fitting = fitting[fitting[name] == value]
    return not fitting.empty


@pytest.mark.parametrize(
    ("model", "attention", "sharding", "batch", "fits"),
    [
        ("1B", "vanilla", None, 1024, False),
        ("2B", "vanilla", None, 1024, False),
        ("1B", "vanilla", None, 512, True),
        ("500M", "vanilla", None, 1024, True),
        ("1B", "flash", "ddp", 1024, True),
        ("2B", "flash", "ddp", 512, True),
        ("2B", "flash", "ddp", 1024, False),
        ("2B", "flash", "fsdp_full", 1024, True),
        ("2B", "flash", "fsdp_grad_op", 1024, True),
    ],
)
def test_what_runs_out_of_memory(model: str, attention: str, sharding: str | None, batch: int, fits: bool) -> None:
    wanted: dict[str, object] = {"model": model, "attention": attention, "batch": batch}
    assert runs(**wanted, **({} if sharding is None else {"sharding": sharding})) is fits


def test_two_billion_parameters_train_on_one_gpu_with_40_gb() -> None:
    assert runs(model="2B", attention="flash", gpu="A100-40GB", devices=1, batch=4)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp_full", "fsdp_grad_op"])
def test_128_sequences_fit_on_no_gpu_even_with_the_smallest_model(sharding: str) -> None:
    p = SlmTraining(model="slm_100m", micro_batch=128, devices=8, sharding=sharding)  # type: ignore[arg-type]
    for gpu in labels("gpu"):
        assert not WORKLOAD.verdicts([p], machine_of(gpu))[0].fits


def test_the_first_step_makes_ten_steps_slower_and_most_so_on_a_fast_gpu() -> None:
    fitting = cells()[cells()["speed"] > 0]
    slower = fitting["steady"] / fitting["speed"]
    assert (slower > 1).all()
    means = slower.groupby(fitting["gpu"], observed=True).mean()
    assert means["H100-80GB"] > means["A100-80GB"]


def test_tokens_per_dollar_are_those_that_simulate_says() -> None:
    # eight GPUs are a whole machine: the same configuration, its price, its speed once warm
    rows = found()["gpu_ranking_today"].data.rows
    (value,) = [row[3] for row in rows if row[:3] == ["500M", "A100-40GB", 8]]
    machine = machine_of("A100-40GB")
    assert machine.price is not None
    labelled = {"gpu": "A100-40GB", "model": "500M", "attention": "flash", "devices": 8, "first_step": "left_out"}
    speeds = [
        WORKLOAD.estimate([p], machine)["step_s"][0] ** -1 * p.tokens_per_step  # type: ignore[list-item,union-attr]
        for point, p, fits in zip(outcome().points, outcome().parameters, outcome().runs, strict=True)
        if fits and labelled.items() <= point.labels.items()
    ]
    assert value == pytest.approx(max(speeds) * 3600 / machine.price.usd_per_h)


def test_speed_on_one_gpu_grows_with_the_batch_by_ever_less() -> None:
    rows = [row for row in found()["saturation"].data.rows if row[0] == "speed over the best"]
    for model in labels("model"):
        speeds = [row[3] for row in rows if row[1] == model]
        gains = [b - a for a, b in itertools.pairwise(speeds)]
        assert speeds[-1] == 1
        assert all(gain > 0 for gain in gains)
        assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize("name", ["flash_gain", "gpu_ranking", "peak_batch", "saturation"])
def test_a_finding_is_predicted(name: str) -> None:
    assert found()[name].holds, found()[name].evidence


def test_each_finding_has_the_data_of_its_figure() -> None:
    for item in found().values():
        assert item.data.columns == ("panel", "series", "x", "y")
        assert len(item.data.rows) >= 4
        assert all(row[2] > 0 and row[3] > 0 for row in item.data.rows), item.name


def test_figures_and_data_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = lines.write(list(found().values()), tmp_path)
    assert {path.suffix for path in paths} == {".csv", ".svg", ".md"}
    page = (tmp_path / "index.md").read_text()
    for item in found().values():
        assert f"{item.claim}: {'holds' if item.holds else 'does not hold'} in the prediction" in page
        assert item.evidence in page
        assert (tmp_path / f"{item.name}.svg").is_file()
    with (tmp_path / "gpu_ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["series"] for row in rows} == {"A100-40GB", "A100-80GB", "H100-80GB"}
    assert "<svg" in (tmp_path / "gpu_ranking.svg").read_text()
    summary = lines.summary(list(found().values()))
    assert [row[1] for row in summary.rows if row[0] == "✓"] == [
        item.name for item in found().values() if item.holds
    ]
