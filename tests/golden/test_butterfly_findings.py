"""What the butterfly paper (arXiv 1906.02256) found, beside what is predicted: where multiply-adds mislead."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from sandtable.contracts import run_command
from sandtable.report import lines
from sandtable.studies.finding import Finding, findings_of
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.networks import network_named
from sandtable_workloads.butterfly.published.crossover import (
    KINDS,
    MULTIPLY_ADDS,
    ROWS,
    SHOWN,
    SHOWN_ROWS,
    SIDES,
    computers,
    crossings,
    flops_per_byte,
    gains,
)
from sandtable_workloads.butterfly.published.layer_times import crossing, layer_seconds
from sandtable_workloads.butterfly.published.networks_compared import (
    DRAWN,
    MACHINES,
    images,
    pairs,
)
from sandtable_workloads.butterfly.published.networks_compared import (
    found as images_found,
)
from sandtable_workloads.butterfly.published.shares_and_bases import BASES, BUDGET, SIDE, shares, width_of_budget


@lru_cache(maxsize=1)
def found() -> dict[str, Finding]:
    return {item.name: item for item in findings_of("butterfly_vision")}


# --- layers on every device --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "side"),
    [
        ([0.5, 2.0, 4.0, 8.0], 8 * 2**0.5),
        ([2.0, 2.0, 4.0, 8.0], 8.0),
        # ahead, behind, and ahead again: what counts is where it stays ahead
        ([2.0, 0.5, 0.5, 2.0], 32 * 2**0.5),
        ([2.0, 2.0, 2.0, 0.5], None),
        ([0.5, 0.5, 0.5, 1.0], None),
    ],
)
def test_the_crossing_is_where_the_gain_stays_above_one(gain: list[float], side: float | None) -> None:
    assert crossing((8, 16, 32, 64), np.array(gain)) == (None if side is None else pytest.approx(side))


def test_every_computer_has_a_kind_of_its_own_name() -> None:
    kinds = {each.name: each.kind for each in computers()}
    assert len(kinds) == len(computers()) > 80
    assert set(kinds.values()) == set(KINDS)
    assert kinds["qualcomm_snapdragon_670"] == "phone CPUs"
    assert kinds["intel_core_i9_13900k"] == kinds["apple_m1_max"] == "laptop and desktop CPUs"
    assert kinds["nvidia_t4"] == "GPUs with GDDR"
    assert kinds["nvidia_h100_sxm"] == "GPUs with HBM"
    assert not any(name.startswith("apple_") and "gpu" in name for name in kinds)


@pytest.mark.parametrize("name", ["qualcomm_snapdragon_670", "intel_xeon_8480c_2s", "nvidia_a100_sxm"])
@pytest.mark.parametrize("structure", ["dense", "butterfly"])
def test_many_layers_at_once_take_what_simulate_says_of_each(name: str, structure: str, in_tmp: Path) -> None:
    (computer,) = [each for each in computers() if each.name == name]
    seconds = layer_seconds(computer.machine, structure, ROWS, SIDES, computer.precision)
    # more rows may be worth another core for each part, which at most halves the time
    assert (seconds[1:] >= 0.5 * seconds[:-1]).all()
    assert (seconds > 0).all()
    together = layer_seconds(computer.machine, structure, (256, 4096), (512, 1024), computer.precision)
    alone = layer_seconds(computer.machine, structure, (4096,), (512,), computer.precision)
    assert together[1, 0] == pytest.approx(alone[0, 0], rel=1e-9)


def test_a_butterfly_gains_more_the_wider_the_layer() -> None:
    """Where there are rows for all cores: one does a butterfly of a few alone, all share a dense product."""
    for each in computers():
        gain = gains(each.name)[ROWS.index(4096) :]
        assert (gain[:, -1] >= gain[:, SIDES.index(1024)]).all(), each.name


def test_the_map_says_of_each_kind_where_the_first_half_and_all_cross() -> None:
    rows = found()["crossover"].data.rows
    for kind in KINDS:
        sides = [crossings(each.name)[-1] for each in computers() if each.kind == kind]
        first = [row[3] for row in rows if row[:3] == [kind, "the first", ROWS[-1]]]
        assert first == ([min(side for side in sides if side)] if any(sides) else [])
        every = [row[3] for row in rows if row[:3] == [kind, "all", ROWS[-1]]]
        assert every == ([] if None in sides else [max(side for side in sides if side)])


def test_the_balance_of_a_device_is_that_of_its_data_sheet() -> None:
    by_name = {each.name: each for each in computers()}
    assert flops_per_byte(by_name["qualcomm_snapdragon_670"]) == pytest.approx(32 / 14.9)
    assert flops_per_byte(by_name["nvidia_a100_sxm"]) == pytest.approx(312e12 / 2039e9)
    assert flops_per_byte(by_name["nvidia_t4"]) < flops_per_byte(by_name["nvidia_l4"])  # float32, without bfloat16


def test_the_first_gpus_to_cross_have_the_least_arithmetic_per_byte() -> None:
    gpus = [each for each in computers() if each.kind == "GPUs with HBM"]
    in_order = sorted(gpus, key=lambda each: crossings(each.name)[-1] or np.inf)
    first, last = in_order[0], in_order[-1]
    assert flops_per_byte(first) < flops_per_byte(last)


def test_time_never_falls_as_far_as_multiply_adds_do() -> None:
    rows = found()["fewer_multiply_adds"].data.rows
    at_1024 = {row[1]: row[3] for row in rows if row[2] == 1024}
    assert at_1024.pop(MULTIPLY_ADDS) == pytest.approx(51.2)
    assert max(at_1024.values()) < 51.2


# --- the paper's networks ----------------------------------------------------------------------------------------


def test_an_image_takes_what_simulate_says(in_tmp: Path) -> None:
    setting = {"network": "mobilenet_v1", "width": 0.5, "resolution": 128, "structure": "dense"}
    (image,) = images("phone CPU", [setting])
    words = [f"--set=parameters.{name}={value}" for name, value in setting.items()]
    machine = MACHINES["phone CPU"]["machine"]
    shown = run_command(
        "simulate",
        "butterfly_mobilenet",
        f"--machine={machine}",
        *words,
        "--set=parameters.batch=1",
        "--format=json",
    )
    metrics = json.loads(shown.out)["metrics"]
    assert image.seconds == pytest.approx(1 / metrics["images_per_s"]["value"], rel=1e-3)
    assert image.usd_per_million == pytest.approx(metrics["usd_per_million_images"]["value"], rel=1e-3)


def test_pairs_are_the_papers_best_at_equal_multiply_adds() -> None:
    assert len(pairs()) == 10
    for pair in pairs():
        assert pair.gain > 1
        assert 0.9 < pair.butterfly.multiply_accumulates / pair.dense.multiply_accumulates < 1.16


def test_dollars_of_one_machine_are_its_seconds() -> None:
    for on in MACHINES:
        usd_per_s = {
            image.usd_per_million / image.seconds for (where, _), image in images_found().items() if where == on
        }
        assert max(usd_per_s) == pytest.approx(min(usd_per_s), rel=1e-6)


def test_a_gain_at_equal_time_is_that_at_equal_multiply_adds_where_the_times_are_equal() -> None:
    rows = found()["equal_time_accuracy"].data.rows
    for title in DRAWN.values():
        for budget in {row[2] for row in rows if row[0] == title}:
            by_series = {row[1]: row[3] for row in rows if row[0] == title and row[2] == budget}
            assert len(by_series) == 1 + len(MACHINES)
            assert all(abs(gain) < 25 for gain in by_series.values())


# --- shares, memory, bases ---------------------------------------------------------------------------------------


def test_shares_of_multiply_adds_are_those_of_the_papers_figure() -> None:
    dense, butterfly = shares()["multiply-adds", "dense", 1.0], shares()["multiply-adds", "butterfly", 2.0]
    assert dense["pointwise"] == pytest.approx(0.95, abs=0.005)
    assert butterfly["pointwise"] == pytest.approx(0.60, abs=0.005)
    assert butterfly["depthwise"] / dense["depthwise"] == pytest.approx(8, abs=0.4)
    for by_group in shares().values():
        assert sum(by_group.values()) == pytest.approx(1)


def test_the_working_memory_is_four_times_as_much() -> None:
    at_224 = {row[1]: row[3] for row in found()["working_memory"].data.rows if row[2] == 224}
    assert 3 < at_224["butterfly 2.0"] / at_224["dense 0.5"] < 5
    assert found()["working_memory"].holds


@pytest.mark.parametrize("base", BASES)
def test_bases_are_compared_at_equal_multiply_adds(base: int) -> None:
    width = width_of_budget(base)
    p = ButterflyVision(network="mobilenet_v1", structure="butterfly", base=base, width=width, resolution=SIDE)
    assert 0.85 * BUDGET < p.built().multiply_accumulates() <= BUDGET
    wider = network_named("mobilenet_v1", width=width + 0.01, resolution=SIDE, structure="butterfly", base=base)
    assert wider.multiply_accumulates() > BUDGET


def test_the_readme_tells_what_is_predicted() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    lines_of = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines_of]
    (place,) = [index for index, line in enumerate(cells) if line[0] == f"predicted, {SHOWN_ROWS} rows"]
    heads, channels, faster = cells[place], cells[place + 2], cells[place + 3]
    at = ROWS.index(SHOWN_ROWS)
    assert heads[1:] == list(SHOWN)
    for label, side, times in zip(heads[1:], channels[1:], faster[1:], strict=True):
        name = SHOWN[label]
        assert crossings(name)[at] == pytest.approx(float(side), rel=0.05), label
        assert gains(name)[at][SIDES.index(1024)] == pytest.approx(float(times), rel=0.05), label
    told = re.search(r"take ([\d.]+) to ([\d.]+) times as long on that phone", text)
    assert told is not None
    ratios = [
        images_found()["phone CPU", p.butterfly].seconds / images_found()["phone CPU", p.dense].seconds
        for p in pairs()
    ]
    assert [min(ratios), max(ratios)] == pytest.approx([float(each) for each in told.groups()], rel=0.05)
    gain = re.search(r"up to ([\d.]+) points", text)
    assert gain is not None
    assert max(pair.gain for pair in pairs()) == pytest.approx(float(gain[1]), abs=0.05)
    assert f"all {len(computers())} CPUs and GPUs" in text
    on_phone = [row[3] for row in found()["equal_time_accuracy"].data.rows if row[1] == "time, phone CPU"]
    assert f"more accurate in {sum(gain < 0 for gain in on_phone)} of {len(on_phone)} comparisons" in text


# --- figures -----------------------------------------------------------------------------------------------------


def test_each_finding_has_the_data_of_its_figure() -> None:
    for item in found().values():
        assert item.data.columns == ("panel", "series", "x", "y")
        assert len(item.data.rows) >= 4, item.name
        assert all(row[2] > 0 and np.isfinite(row[3]) for row in item.data.rows), item.name
        assert all(row[3] > 0 for row in item.data.rows if item.log_y), item.name
        assert len({row[1] for row in item.data.rows}) <= 6, f"{item.name}: more series than colours"


def test_findings_of_the_layer_do_not_all_hold() -> None:
    assert not found()["fewer_multiply_adds"].holds
    assert "51 times fewer" in found()["fewer_multiply_adds"].evidence


def test_figures_and_data_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chosen = [found()["crossover"], found()["fewer_multiply_adds"]]
    assert {path.suffix for path in lines.write(chosen, tmp_path)} == {".csv", ".svg", ".md"}
    drawn = (tmp_path / "crossover.svg").read_text()
    for kind in KINDS:
        assert kind in drawn
