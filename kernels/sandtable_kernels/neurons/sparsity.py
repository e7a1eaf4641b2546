"""Published activation sparsity of models, as data with sources.

All shares are fractions of the neurons of a layer, first layer first. "LLM in a flash" below is arXiv 2312.11514v3;
figures were digitised from its vector graphics (the layer means agree with its table 6 within 1 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sandtable.errors import UnknownName

# share of neurons of Falcon 7B's layer 10 used by k tokens: LLM in a flash, fig. 4a; 0.1231 k^0.415 within 1.6 %
FALCON_LAYER_10: Final[dict[int, float]] = {
    1: 0.1226,
    2: 0.1620,
    3: 0.1922,
    4: 0.2175,
    5: 0.2396,
    6: 0.2593,
    7: 0.2771,
    8: 0.2934,
    16: 0.3921,
    31: 0.5031,
}
FALCON_EXPONENT: Final = 0.415
# 10.29 % of neurons per token and 24 % per five tokens: LLM in a flash, fig. 9 and appendix C.1
OPT_EXPONENT: Final = math.log(0.24 / 0.1029) / math.log(5)


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
    if name not in PRESETS:
        raise UnknownName("sparsity preset", name, PRESETS)
    return PRESETS[name]


def resample(values: Sequence[float], n_layers: int) -> tuple[float, ...]:
    """Stretch one value per layer over ``n_layers`` layers, linearly in relative depth; the ends stay."""
    if len(values) == n_layers:
        return tuple(float(value) for value in values)
    depth = np.linspace(0, 1, n_layers) if n_layers > 1 else np.array([0.5])
    return tuple(float(value) for value in np.interp(depth, np.linspace(0, 1, len(values)), values))


def _percent(text: str) -> tuple[float, ...]:
    return tuple(float(value) / 100 for value in text.split())


def _hump(mean: float, peak: float, n_layers: int) -> tuple[float, ...]:
    """Return half a sine wave over the layers, on a floor, with the given mean and peak."""
    wave = np.sin(np.pi * (np.arange(n_layers) + 0.5) / n_layers)
    height = (peak - mean) / (wave.max() - wave.mean())
    return tuple(float(value) for value in peak + height * (wave - wave.max()))


def _tail(mean: float, last: tuple[float, ...], n_layers: int) -> tuple[float, ...]:
    """Return known last layers after equal ones that give the mean."""
    rest = (mean * n_layers - sum(last)) / (n_layers - len(last))
    return (rest,) * (n_layers - len(last)) + last


_OPT = SparsityPreset(
    name="opt_6_7b",
    active_frac=_percent(
        "1.39 0.51 0.41 0.30 0.23 0.25 0.37 0.45 0.65 0.75 1.01 1.20 1.48 1.87 2.24 2.48 "
        "3.50 4.16 4.69 5.23 5.35 5.63 5.70 5.56 5.31 5.35 5.67 6.16 6.70 7.39 7.71 5.30"
    ),
    predicted_frac=_percent(
        "3.75 0.95 0.89 0.72 0.71 1.04 2.16 2.72 3.81 5.76 5.18 6.61 7.34 8.87 9.81 10.5 "
        "12.7 13.8 14.9 15.7 16.2 17.5 17.9 18.2 17.6 17.8 18.8 19.6 14.3 15.4 15.9 12.3"
    ),
    growth=OPT_EXPONENT,
    predictor_rank=(128,) * 28 + (1024,) * 4,
    window=4,
    source="LLM in a flash, fig. 9 (shares), appendices B (ranks) and C.1 (window, 24 % kept)",
)
_FALCON = SparsityPreset(
    name="falcon_7b",
    active_frac=(0.05,) * 32,
    predicted_frac=(0.33 / 4**FALCON_EXPONENT,) * 32,
    growth=FALCON_EXPONENT,
    predictor_rank=(256,) * 28 + (1152,) * 4,
    window=4,
    source="LLM in a flash, fig. 4a (growth), appendices B and C (95 % sparse, ranks, 33 % kept, window 4)",
    guesses=(
        "equal shares in all layers; predicted share from the 33 % of neurons that a window of 4 keeps, divided "
        "by the growth of layer 10 (it gives 3.2 % new per token; 3.1 % is published)",
    ),
)
_PERSIMMON = SparsityPreset(
    name="persimmon_8b",
    active_frac=_tail(0.0763, (0.129, 0.176, 0.123), 36),
    predicted_frac=_tail(0.1239, (0.181, 0.220, 0.170), 36),
    growth=OPT_EXPONENT,
    predictor_rank=(256,) * 32 + (1152,) * 4,
    window=4,
    threshold=0.7,
    source="LLM in a flash, fig. 9 (means and last three layers), appendices B and C (ranks, window, threshold)",
    guesses=("layers 1 to 33 are taken as equal", "growth as for OPT 6.7B, also natively sparse"),
)
_PHI = SparsityPreset(
    name="phi_2",
    active_frac=_hump(0.1451, 0.209, 32),
    predicted_frac=_hump(0.2719, 0.306, 32),
    growth=FALCON_EXPONENT,
    predictor_rank=tuple(rank for rank in (160, 160, 480, 800, 800, 480, 160, 0) for _ in range(4)),
    window=4,
    threshold=0.55,
    source="LLM in a flash, fig. 9 (means, peak in the middle layers), appendix B (ranks of 8 groups of layers)",
    guesses=(
        "a half sine wave over the layers",
        "growth as for Falcon 7B, also relufied",
        "window 4",
        "the higher of two published thresholds",
    ),
)
_LLAMA = SparsityPreset(
    name="llama_2_7b",
    active_frac=(0.10,) * 32,
    predicted_frac=(0.20,) * 32,
    growth=FALCON_EXPONENT,
    predictor_rank=(256,) * 14 + (1024,) * 4 + (256,) * 14,
    window=2,
    source="LLM in a flash, appendices B and C (90 % sparse by FATReLU, ranks, window 2)",
    guesses=(
        "equal shares in all layers",
        "twice as many predicted as active, as for Phi-2",
        "growth as for Falcon 7B",
    ),
)
PRESETS: Final[dict[str, SparsityPreset]] = {each.name: each for each in (_OPT, _FALCON, _PERSIMMON, _PHI, _LLAMA)}
