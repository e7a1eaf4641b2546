"""The adapter of the SLM paper: what its rows mean, and what becomes of odd ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandtable.published import scoring
from sandtable.published.adapter import Scored, Skipped
from sandtable.published.rows import MalformedRow, Row
from sandtable_workloads.training.published.slm_paper import (
    BY_FIGURE,
    FIRST,
    LAST,
    OOM_AGREED,
    OOM_MISSED,
    OOM_WRONG,
    RANK,
    SlmPaper,
    best,
    measured_ranks,
    ranks,
)
from sandtable_workloads.training.published.slm_paper_grid import cells, labels, machine_of, prices

CELLS = {
    "figure": "2",
    "model": "500M",
    "gpu": "A100-40GB",
    "n_gpus": "8",
    "scheme": "best",
    "attention": "flash",
    "global_batch": "",
    "tokens_per_price": "16250",
    "half_error": "",
    "anchor": "",
    FIRST: "",
    LAST: "",
}


def row(**cells: str) -> Row:
    return Row(line=2, cells=CELLS | cells)


def test_best_is_the_maximum_of_what_is_open() -> None:
    everything = best(row(gpu="best", n_gpus=""))
    assert everything is not None
    own = cells()[(cells()["model"] == "500M") & (cells()["attention"] == "flash")]
    assert everything.value == own["speed"].max()
    one = best(row(scheme="ddp", global_batch="128"))
    assert one is not None
    assert (one.n_gpus, one.batch, one.scheme) == (8, 16, "ddp")


def test_a_scheme_needs_two_gpus() -> None:
    found = best(row(gpu="best", n_gpus="", scheme="ddp", global_batch="16"))
    assert found is not None
    assert found.n_gpus > 1
    assert cells()["devices"].min() == 1


def test_speeds_are_per_gpu_where_it_is_named() -> None:
    (speed, rank) = list(SlmPaper().predict(row(gpu="H100-80GB", tokens_per_price="11335")))  # type: ignore[arg-type]
    assert isinstance(speed, Scored)
    assert speed.measured == pytest.approx(11335 * 2.53)
    assert speed.low < speed.predicted < speed.high
    assert rank == Skipped("not a comparison of all GPU types", RANK)


def test_more_memory_fits_no_fewer_configurations() -> None:
    def fitting(gpu: str, model: str, attention: str) -> set[tuple[int, int, str]]:
        wanted = {"gpu": gpu, "model": model, "attention": attention}
        own = cells()[cells()["speed"] > 0]
        for axis, label in wanted.items():
            own = own[own[axis] == label]
        return set(own[["devices", "micro_batch", "sharding"]].itertuples(index=False, name=None))

    for model in ("500M", "1B"):
        assert fitting("A100-40GB", model, "flash") < fitting("A100-80GB", model, "flash")
        assert fitting("A100-80GB", model, "vanilla") < fitting("A100-80GB", model, "flash")


def test_out_of_memory_is_counted_as_agreed_or_missed() -> None:
    vanilla = {"model": "1B", "attention": "vanilla", "gpu": "best", "n_gpus": "", "figure": "1"}
    assert SlmPaper().predict(row(**vanilla, global_batch="1024", tokens_per_price="0")) == Skipped(OOM_AGREED)
    assert SlmPaper().predict(row(**vanilla, global_batch="512", tokens_per_price="0")) == Skipped(OOM_MISSED)
    assert SlmPaper().predict(row(**vanilla, global_batch="1024", tokens_per_price="9")) == Skipped(OOM_WRONG)


@pytest.mark.parametrize(
    "cells",
    [
        {"model": "7B"},
        {"attention": "linear"},
        {"gpu": "V100"},
        {"scheme": "zero"},
        {"n_gpus": "eight"},
        {"figure": "5"},
        {"tokens_per_price": ""},
    ],
)
def test_rows_of_no_figure_are_malformed(cells: dict[str, str]) -> None:
    with pytest.raises(MalformedRow):
        SlmPaper().predict(row(**cells))


def test_ranks_and_what_error_bars_leave_open() -> None:
    assert ranks({"a": 1.0, "b": 3.0, "c": 2.0}) == {"b": 1, "c": 2, "a": 3}
    clear, first, second = (
        row(tokens_per_price="9"),
        row(tokens_per_price="20", half_error="2"),
        row(tokens_per_price="22", half_error="1"),
    )
    column = [clear, first, second]
    assert measured_ranks(clear, column) == ("3", "3")
    assert measured_ranks(first, column) == ("1", "2")
    assert measured_ranks(second, column) == ("1", "2")


def test_a_folder_of_other_models_is_used(tmp_path: Path) -> None:
    names = [name for name in CELLS if name not in (FIRST, LAST)]
    lines = [",".join(names)]
    for gpu in labels("gpu"):
        lines.append(
            ",".join((CELLS | {"gpu": gpu, "model": "2B", "tokens_per_price": "5000"})[name] for name in names)
        )
    (tmp_path / "slm_paper.csv").write_text("\n".join(lines) + "\nnonsense\n")
    by_metric = {score.metric: score for score in scoring.run(tmp_path, "slm_paper").datasets}
    assert by_metric[BY_FIGURE["2"]].scored == 3
    assert by_metric[RANK].scored == 3
    assert len(by_metric[RANK].malformed_lines) == 1


def test_the_interval_is_at_least_what_the_stack_allows_for() -> None:
    found = best(row())
    stack = machine_of("A100-40GB").stack
    assert found is not None
    assert stack is not None
    assert found.low <= found.value * stack.datasheet.residual_low_frac
    assert found.high >= found.value * stack.datasheet.residual_high_frac


def test_prices_are_those_of_every_machine() -> None:
    assert set(prices()) == set(labels("gpu"))
    assert prices()["A100-40GB"] == 1.0
