"""Events that are drawn from known parameters, and which models should be better on them: cases of a study.

Each case has what it is about, or the same without it, as a control: no recurrence, a graph of others' edges, the same
preferences at all hours. Fits know the number of components and the decay that the events were drawn with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sandtable_workloads.rpf.evaluated.study_records import Figures

DECAY, COMPONENTS, HOURS = 0.5, 5, 672.0
# pairs of a model and the one it is held against
Better = Literal["gains", "none"]
SIZES = (1_000, 10_000, 100_000, 1_000_000)


class Contrast(NamedTuple):
    """Two models on the same events, and whether the first should be better."""

    model: str
    against: str
    expected: Better


@dataclass(frozen=True)
class Case:
    """Events of one kind, and what is compared on them."""

    name: str
    contrasts: tuple[Contrast, ...]
    run: Callable[[int], tuple[int, Figures]]
