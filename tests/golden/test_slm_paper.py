"""How well the figures of the SLM paper are predicted; the digitised values ship with the package."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

from sandtable.published import scoring
from sandtable.published.scoring import DatasetScore
from sandtable_workloads.training.published.slm_paper import (
    ANCHOR,
    BY_FIGURE,
    OOM_AGREED,
    OOM_MISSED,
    OOM_WRONG,
    RANK,
)


@lru_cache(maxsize=1)
def scores() -> dict[str, DatasetScore]:
    return {score.metric: score for score in scoring.run(only="slm_paper").datasets}


def test_every_row_has_one_outcome() -> None:
    for score in scores().values():
        assert score.rows == 142
        assert score.scored + sum(score.skipped.values()) == score.rows
        assert not score.malformed_lines
        # one GPU and 1B parameters: three cells of Figure 2, and the one of Figure 1 that repeats one of them
        assert score.skipped[ANCHOR] == 4


def test_what_runs_out_of_memory() -> None:
    for score in scores().values():
        assert score.skipped[OOM_AGREED] == 1
        assert OOM_MISSED not in score.skipped
        assert OOM_WRONG not in score.skipped


def test_ranking_by_tokens_per_price() -> None:
    right: dict[str, list[bool]] = defaultdict(list)
    for point in scores()[RANK].points:
        n_gpus = point.label.split()[4]
        right[f"{point.group} {n_gpus}"].append(point.error_frac == 0)
    assert len(right) == 13
    assert sum(all(column) for column in right.values()) >= 10


def test_data_parallel_beats_sharding_between_machines_and_flash_doubles_the_speed() -> None:
    by_scheme: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for point in scores()[BY_FIGURE["3"]].points:
        _, _, model, _, *counts, scheme, _ = point.label.partition(":")[0].split()
        by_scheme[model, " ".join(counts)][scheme] = point.predicted
    several = [found for (_, counts), found in by_scheme.items() if counts in ("16", "32", "64")]
    assert len(several) == 6
    assert all(found["ddp"] > max(found["fsdp_full"], found["fsdp_grad_op"]) for found in several)
    gains = []
    points = {point.label.partition(":")[0]: point.predicted for point in scores()[BY_FIGURE["1"]].points}
    for label, value in points.items():
        plain = points.get(label.replace("flash", "vanilla"))
        if plain is not None and "flash" in label:
            gains.append(value / plain)
    assert len(gains) >= 11
    assert all(1.4 < gain < 2.6 for gain in gains)
