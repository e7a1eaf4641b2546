"""Networks of the butterfly paper on a phone's CPU, a laptop's, and an A100: time, joules and dollars of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sandtable import units
from sandtable.studies.evaluate import predictions
from sandtable.studies.finding import Finding
from sandtable.studies.study import Study
from sandtable.table import Table
from sandtable_workloads.butterfly.published.butterfly_paper import MEGA, PaperNetwork, paper_networks

# a phone or a laptop is shown one image at a time; an A100 is rented to be busy
MACHINES: dict[str, dict[str, Any]] = {
    "phone CPU": {"machine": "phone_pixel_3a", "batch": 1},
    "laptop CPU": {"machine": "laptop_pcie4", "batch": 1},
    "A100": {"machine": "verda_1a100_22v", "batch": 64},
}
# short enough for a legend; a network that the paper compares once is no line
DRAWN = {"mobilenet_v1": "MobileNet", "shufflenet_v2": "ShuffleNet"}
FORM = {"dense": "", "butterfly": " BFT"}
# what "no more", in time or money, is taken to mean
NO_MORE = 1.1
FIRST = "mobilenet_v1 14M"


@dataclass(frozen=True, slots=True)
class Image:
    """What one image takes of a network on one machine: seconds, joules, and dollars of a million of them."""

    seconds: float
    joules: float
    usd_per_million: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A dense network, and the most accurate butterfly of about as many multiply-adds."""

    dense: PaperNetwork
    butterfly: PaperNetwork

    @property
    def budget(self) -> float:
        """Millions of multiply-adds of the dense one, as the paper prints them."""
        return self.dense.multiply_accumulates / MEGA

    @property
    def gain(self) -> float:
        """Points of top-1 between them."""
        return 100 * (self.butterfly.top1_frac - self.dense.top1_frac)


@lru_cache(maxsize=1)
def pairs() -> Sequence[Pair]:
    """Return the paper's comparisons in its order."""
    found = []
    for claim in dict.fromkeys(network.claim for network in paper_networks()):
        beside = [network for network in paper_networks() if network.claim == claim]
        (dense,) = [network for network in beside if network.structure == "dense"]
        butterflies = [network for network in beside if network.structure == "butterfly"]
        if butterflies:
            found.append(Pair(dense, max(butterflies, key=lambda network: network.top1_frac)))
    return found


def images(on: str, settings: Sequence[Mapping[str, Any]]) -> list[Image]:
    """Return what an image takes of networks with these settings, each predicted as `sandtable simulate` does."""
    study = Study.model_validate(
        {
            "name": "butterfly_networks",
            "workload": "butterfly_vision",
            "machine": MACHINES[on]["machine"],
            "parameters": {"steps": 1, "batch": MACHINES[on]["batch"]},
            "cases": [dict(setting) for setting in settings],
        }
    )
    return [_image(found.prediction.metrics, MACHINES[on]["batch"]) for found in predictions(study)]


def _image(metrics: Mapping[str, Any], batch: int) -> Image:
    speed, joules, usd = (metrics[n].value for n in ("images_per_s", "energy_j", "usd_per_million_images"))
    return Image(1 / speed, joules / batch, usd)


@lru_cache(maxsize=1)
def found() -> Mapping[tuple[str, PaperNetwork], Image]:
    """Return what an image takes, by machine and network."""
    settings = [
        {"network": n.network, "width": n.width, "resolution": n.resolution, "structure": n.structure}
        for n in paper_networks()
    ]
    return {
        (on, network): image
        for on in MACHINES
        for network, image in zip(paper_networks(), images(on, settings), strict=True)
    }


def findings() -> list[Finding]:
    """Return what the paper's comparisons come to in time and in money."""
    return [_time(), _price(), _equal_time()]


def _rows(value: Callable[[Image], float]) -> list[list[Any]]:
    """Return rows of a figure: a panel per machine, over the budget, dense and butterfly networks."""
    return [
        [on, f"{DRAWN[network.network]}{FORM[network.structure]}", pair.budget, value(found()[on, network])]
        for on in MACHINES
        for pair in pairs()
        if pair.dense.network in DRAWN
        for network in (pair.dense, pair.butterfly)
    ]


def _ratios(on: str, value: Callable[[Image], float]) -> list[float]:
    return [value(found()[on, pair.butterfly]) / value(found()[on, pair.dense]) for pair in pairs()]


def _first(on: str, value: Callable[[Image], float]) -> tuple[float, float]:
    (pair,) = [pair for pair in pairs() if pair.dense.claim == FIRST]
    return value(found()[on, pair.dense]), value(found()[on, pair.butterfly])


def _time() -> Finding:
    ratios = {on: _ratios(on, _seconds) for on in MACHINES}
    shown = ", ".join(f"{on} {min(each):.2g} to {max(each):.2g} times" for on, each in ratios.items())
    before, after = _first("phone CPU", _seconds)
    return Finding(
        name="equal_multiply_adds_time",
        claim="At equal multiply-adds a wide butterfly network takes no more time than the narrow dense one",
        holds=all(ratio <= NO_MORE for each in ratios.values() for ratio in each),
        evidence=(
            f"the butterfly takes, of the dense network's time, {shown}; MobileNetV1 of 14 million, on the phone, "
            f"{units.format_seconds(before)} and {units.format_seconds(after)} an image"
        ),
        data=_table("Time of an image, by machine", _rows(lambda image: 1e3 * image.seconds), "ms"),
        x="million multiply-adds",
        y="ms an image",
    )


def _seconds(image: Image) -> float:
    return image.seconds


def _usd(image: Image) -> float:
    return image.usd_per_million


def _price() -> Finding:
    ratios = [ratio for on in MACHINES for ratio in _ratios(on, _usd)]
    shown = "; ".join(f"{on} {_money(on)}" for on in MACHINES)
    return Finding(
        name="equal_multiply_adds_price",
        claim="The points of accuracy that a butterfly gains at equal multiply-adds cost nothing",
        holds=all(ratio <= NO_MORE for ratio in ratios),
        evidence=f"a million images of MobileNetV1 of 14 million, for 5.1 points: {shown}",
        data=_table("Dollars of a million images, by machine", _rows(_usd), "USD"),
        x="million multiply-adds",
        y="USD for a million images",
    )


def _money(on: str) -> str:
    (usd, usd_after), (joules, joules_after) = _first(on, _usd), _first(on, lambda image: image.joules)
    return f"{usd:.2g} becomes {usd_after:.2g} USD, {joules / 3.6:.2g} becomes {joules_after / 3.6:.2g} kWh"


def _equal_time() -> Finding:
    rows: list[list[Any]] = []
    for name, title in DRAWN.items():
        own = [pair for pair in pairs() if pair.dense.network == name]
        series = {"multiply-adds": [pair.gain for pair in own]}
        series |= {f"time, {on}": [_gain(on, pair) for pair in own] for on in MACHINES}
        rows += [[title, s, p.budget, y] for s, ys in series.items() for p, y in zip(own, ys, strict=True)]
    gains = {on: [row[3] for row in rows if row[1] == f"time, {on}"] for on in MACHINES}
    told = ", ".join(f"{on} {min(each):.1f} to {max(each):.1f}" for on, each in gains.items())
    return Finding(
        name="equal_time_accuracy",
        claim="A butterfly network is more accurate than a dense one that takes as much time",
        holds=all(gain > 0 for each in gains.values() for gain in each),
        evidence=f"points gained over a dense network, between the paper's, that takes as long: {told}",
        data=_table("Points of top-1 that a butterfly gains at equal", rows, "points"),
        x="million multiply-adds",
        y="points of top-1",
        log_y=False,
        mark=0.0,
    )


def _gain(on: str, pair: Pair) -> float:
    """Return points over the dense network of the paper that takes as long, by the logarithm of time between two.

    Beyond the slowest of them, over that one, and below the fastest over that.
    """
    dense = [n for n in paper_networks() if n.network == pair.dense.network and n.structure == "dense"]
    times = np.log([found()[on, network].seconds for network in dense])
    order = np.argsort(times)
    tops = np.array([network.top1_frac for network in dense])
    alike = np.interp(np.log(found()[on, pair.butterfly].seconds), times[order], np.maximum.accumulate(tops[order]))
    return float(100 * (pair.butterfly.top1_frac - alike))


def _table(title: str, rows: Sequence[Sequence[Any]], y_unit: str) -> Table:
    return Table(columns=("panel", "series", "x", "y"), units=("", "", "", y_unit), rows=rows, title=title)
