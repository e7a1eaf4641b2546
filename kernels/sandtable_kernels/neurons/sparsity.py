"""Published activation sparsity of models: what `sparsity.yaml` beside this file holds, with its sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from sandtable import yaml_files
from sandtable.errors import UnknownName

DATA: Final = Path(__file__).parent / "sparsity.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsityPreset:
    """How sparsely one model uses its neurons.

    Attributes:
        name: Of the model.
        active_frac: Neurons that are truly active for a token, per layer.
        predicted_frac: Neurons that the predictor asks for, per layer; these are loaded.
        growth: Exponent of the growth of ``s_agg(k)`` with ``k``.
        predictor_rank: Rank of the predictor per layer; 0 where a layer has none and is loaded whole.
        window: Tokens whose neurons are kept.
        threshold: Score above which the predictor calls a neuron active.
        source: Where the numbers are from.
        guesses: What of them is not published, and how it was filled in.
    """

    name: str
    active_frac: tuple[float, ...]
    predicted_frac: tuple[float, ...]
    growth: float
    predictor_rank: tuple[int, ...]
    window: int
    threshold: float = 0.5
    source: str
    guesses: tuple[str, ...] = ()

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.predicted_frac)


def preset(name: str) -> SparsityPreset:
    """Return the preset of that name.

    Raises:
        UnknownName: none has it.
    """
    known = presets()
    if name not in known:
        raise UnknownName("sparsity preset", name, known)
    return known[name]


def resample(values: Sequence[float], n_layers: int) -> tuple[float, ...]:
    """Stretch one value per layer over ``n_layers`` layers, linearly in relative depth; the ends stay."""
    if len(values) == n_layers:
        return tuple(float(value) for value in values)
    depth = np.linspace(0, 1, n_layers) if n_layers > 1 else np.array([0.5])
    return tuple(float(value) for value in np.interp(depth, np.linspace(0, 1, len(values)), values))


@lru_cache(maxsize=1)
def presets() -> dict[str, SparsityPreset]:
    """Return every preset by name."""
    return {name: _preset(name, entry) for name, entry in _table()["presets"].items()}


def falcon_layer_10() -> dict[int, float]:
    """Return the share of neurons of Falcon 7B's layer 10 that k tokens use, by k."""
    return {int(tokens): share for tokens, share in _table()["falcon_layer_10"].items()}


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml_files.plain(yaml_files.read_yaml(DATA))
    return found


def _preset(name: str, entry: Mapping[str, Any]) -> SparsityPreset:
    growth = _exponent(_table()["growth"][entry["growth"]])
    active, predicted = (_shares(entry[kind], growth) for kind in ("active", "predicted"))
    ranks = tuple(rank for rank, n_layers in entry["predictor_rank"] for _ in range(n_layers))
    rest = {key: value for key, value in entry.items() if key not in ("active", "predicted")}
    read = {"active_frac": active, "predicted_frac": predicted, "growth": growth, "predictor_rank": ranks}
    return SparsityPreset(name=name, **{**rest, **read, "guesses": tuple(entry.get("guesses", ()))})


def _exponent(growth: float | Mapping[str, float]) -> float:
    if isinstance(growth, Mapping):
        return math.log(growth["several"] / growth["one"]) / math.log(growth["tokens"])
    return growth


def _shares(entry: Mapping[str, Any], growth: float) -> tuple[float, ...]:
    """Return the share of each layer, in whichever form they are published."""
    if "percent" in entry:
        return tuple(float(value) / 100 for value in entry["percent"])
    n_layers = int(entry["layers"])
    if "last" in entry:
        return _tail(entry["mean"], tuple(entry["last"]), n_layers)
    if "peak" in entry:
        return _hump(entry["mean"], entry["peak"], n_layers)
    # of what a window keeps, a token asks for as much as makes the window grow to it
    alike = entry["all"] if "all" in entry else entry["kept"] / entry["window"] ** growth
    return (float(alike),) * n_layers


def _hump(mean: float, peak: float, n_layers: int) -> tuple[float, ...]:
    """Return half a sine wave over the layers, on a floor, with the given mean and peak."""
    wave = np.sin(np.pi * (np.arange(n_layers) + 0.5) / n_layers)
    height = (peak - mean) / (wave.max() - wave.mean())
    return tuple(float(value) for value in peak + height * (wave - wave.max()))


def _tail(mean: float, last: tuple[float, ...], n_layers: int) -> tuple[float, ...]:
    """Return known last layers after equal ones that give the mean."""
    rest = (mean * n_layers - sum(last)) / (n_layers - len(last))
    return (rest,) * (n_layers - len(last)) + last
