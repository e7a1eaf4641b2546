"""The grid of "Computational Bottlenecks of Training Small-scale Language Models" (arXiv 2410.19456), predicted once.

Its figures are scored on it (`slm_paper`), and its findings are looked for in it (`slm_paper_findings`). Speed is
tokens per second and GPU over the GPU's price beside an A100 with 40 GB, the paper's unit.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sandtable.hardware import Machine
from sandtable.studies import study
from sandtable.studies.evaluate import estimated
from sandtable.studies.outcome import Outcome

# a pandas frame or series, whose own annotations leave open what selecting from it gives
Frame = Any
GRID = Path(__file__).parent / "slm_paper_grid.yaml"
PRICES = Path(__file__).parent / "data" / "slm_paper_prices.csv"


@lru_cache(maxsize=1)
def outcome() -> Outcome:
    """Return the grid with memory and step times of every configuration that fits."""
    return estimated(study.load(str(GRID)))


def labels(axis: str) -> list[str]:
    """Return the labels of an axis, as the paper names its values."""
    return list(dict.fromkeys(point.labels[axis] for point in outcome().points))


def machine_of(gpu: str) -> Machine:
    """Return the machine that stands for one GPU type."""
    labelled = zip(outcome().points, outcome().machines, strict=True)
    return next(machine for point, machine in labelled if point.labels["gpu"] == gpu)


@lru_cache(maxsize=1)
def prices() -> dict[str, float]:
    """Return the price of a GPU relative to an A100 40 GB, as the paper uses it."""
    import pandas as pd

    table: Frame = pd.read_csv(PRICES)
    return dict(zip(table["gpu"], table["used"].map(float), strict=True))


@lru_cache(maxsize=1)
def cells() -> Frame:
    """Return a row per configuration, with its speed over the paper's ten steps, and ``steady`` without the first.

    Speeds are 0 where it does not fit; ``memory_frac`` is what it needs over what its GPU has, ``batch`` the sequences
    of a step. Texts are ordered as in the grid.
    """
    import pandas as pd

    frame: Frame = outcome().to_frame()
    for axis in ("gpu", "model", "attention", "sharding"):
        frame[axis] = pd.Categorical(frame[axis], categories=labels(axis))
    frame["batch"] = frame["devices"] * frame["micro_batch"]
    tokens = frame["micro_batch"] * outcome().study.parameters["sequence_tokens"]
    frame["work"] = tokens / frame["gpu"].map(prices()).astype(float)
    frame["speed"] = (frame["work"] / frame["step_s"]).fillna(0.0)
    counted = frame["first_step"] == "counted"
    return frame[counted].assign(steady=frame.loc[~counted, "speed"].to_numpy()).reset_index(drop=True)
