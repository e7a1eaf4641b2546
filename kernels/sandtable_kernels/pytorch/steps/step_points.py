"""Training steps whose operators calibration times while they run, and what is kept of each.

Alone in a loop, an operator finds its code, its operands and its threads warm, or, behind copies of itself, colder
than they are: forward passes of PyTorch on a CPU took 6 to 26 % less alone than in a step, single operators from 30 %
less to 58 % more (measured on a core of a Xeon, steps of 23 to 490 ms, each operator at the step's own shape).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sandtable.demand.kernel import Calls, Dims
from sandtable.system import contention
from sandtable_kernels.pytorch.torch_pool import Pool

HEAD_DIM = 32
# points of a grid within one step beside its products: embedding, norm, positions, attention, gate and loss forward and
# backward, the sum and the optimiser
BESIDE_PRODUCTS = 14
# the case of whole steps, whose answer is by part
STEP = "step"
OPTIMIZER = "optimizer"
# steps that are timed at one visit, and as many whose marks are silent
REPEATS = 8


class StepSize(NamedTuple):
    """A decoder and the batch of one step; heads are `HEAD_DIM` wide."""

    layers: int
    width: int
    neurons: int
    batch: int
    tokens: int
    vocabulary: int
    flash: bool = True

    @property
    def name(self) -> str:
        """Layers x width, sequences x tokens."""
        return f"{self.layers}x{self.width}-{self.batch}x{self.tokens}{'' if self.flash else '-vanilla'}"

    @property
    def n_tokens(self) -> int:
        """Tokens of the batch."""
        return self.batch * self.tokens

    @property
    def n_heads(self) -> int:
        """Heads of queries, and of keys and values."""
        return self.width // HEAD_DIM

    @property
    def n_params(self) -> int:
        """Weights, embedding and head apart from each other."""
        layer = 4 * self.width**2 + 3 * self.width * self.neurons + 2 * self.width
        return self.layers * layer + 2 * self.vocabulary * self.width + self.width

    @property
    def n_tensors(self) -> int:
        """Tensors of weights: four products and two norms a layer; embedding, last norm and head."""
        return 6 * self.layers + 3

    @property
    def n_points(self) -> int:
        """Points of a grid within this step: products have three passes."""
        return BESIDE_PRODUCTS + 3 * len(self.products)

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """Columns and depth of each linear layer by the part of a step that it is."""
        d, i = self.width, self.neurons
        return {
            "qkv": (3 * d, d),
            "attention output": (d, d),
            "ffn up": (2 * i, d),
            "ffn down": (d, i),
            "head": (self.vocabulary, d),
        }


# from a step that caches hold to one that they do not, 0.2 to 14 million weights
QUICK_SIZES = (
    StepSize(5, 64, 176, 4, 96, 256),
    StepSize(2, 96, 256, 8, 256, 512, flash=False),
    StepSize(3, 192, 512, 3, 160, 256),
    StepSize(2, 416, 1120, 3, 128, 256),
)
SIZES = (
    *QUICK_SIZES,
    StepSize(2, 64, 176, 12, 192, 256),
    StepSize(2, 96, 256, 3, 448, 512),
    StepSize(3, 128, 352, 4, 192, 256),
    StepSize(2, 160, 432, 8, 320, 384),
    StepSize(2, 224, 608, 3, 384, 256, flash=False),
    StepSize(4, 288, 768, 4, 192, 256),
    StepSize(2, 320, 864, 2, 320, 512, flash=False),
    StepSize(4, 512, 1376, 2, 160, 256),
)
# threads and caches are busy in it, and eight of it are over in a quarter of a second
PROBE = {"within": QUICK_SIZES[2].name, "part": STEP, "processes": 1, "dtype": "float32"}
BY_NAME = {size.name: size for size in SIZES}


def sizes(*, quick: bool) -> Sequence[StepSize]:
    """Return the steps of a grid."""
    return QUICK_SIZES if quick else SIZES


def within(size: StepSize, part: str, **dims: Any) -> dict[str, Any]:
    """Return the dims of a part of a step."""
    return {**dims, "dtype": "float32", "within": size.name, "part": part}


def part_of(dims: Dims) -> str:
    """Return the part of a step as `torch_step` names it: the two products of a backward pass are one."""
    return f"{dims['part']} backward" if str(dims.get("pass", "forward")).startswith("backward") else dims["part"]


def role_of(dims: Dims) -> str:
    """Return the role of a part as plans of training call it: section and name."""
    section = OPTIMIZER if dims["part"] == OPTIMIZER else str(dims["pass"]).split("_")[0]
    return f"{section}.{part_of(dims)}"


class StepTimings:
    """Parts of steps that were timed, each handed out once: for one that is gone, its step is timed anew.

    So a pass over a grid times every step once, whichever of its parts comes first.
    """

    def __init__(self) -> None:
        self._left: dict[tuple[str, int], dict[str, Calls]] = {}

    def take(self, dims: Dims, workers: Pool, budget_s: float) -> Calls:
        """Return seconds of each call of a part; ``budget_s`` is the share of one of them.

        Each of the two products of a linear layer's backward pass, which run in one go, has half of their time: they
        do the same arithmetic.
        """
        step, part = (dims["within"], dims["processes"]), _key(dims)
        if part not in self._left.get(step, {}):
            self._left[step] = self._timed(dims, workers, budget_s)
        return self._left[step].pop(part)

    def whole(self, dims: Dims, workers: Pool, budget_s: float) -> list[float]:
        """Return the seconds of a whole step, and keep nothing of it."""
        timed = self._by_part(dims, workers, budget_s)
        n_steps = len(timed[OPTIMIZER])
        return [sum(float(np.median(seconds)) * len(seconds) for seconds in timed.values()) / n_steps]

    @staticmethod
    def _by_part(dims: Dims, workers: Pool, budget_s: float) -> Mapping[str, list[float]]:
        asked = {"within": dims["within"], "processes": dims["processes"]}
        budget_s *= BY_NAME[dims["within"]].n_points
        return workers.time_parts(STEP, asked, repeats=REPEATS, budget_s=budget_s)

    def _timed(self, dims: Dims, workers: Pool, budget_s: float) -> dict[str, Calls]:
        size, before, begin_s = BY_NAME[dims["within"]], contention.core_time(), time.perf_counter()
        timed = self._by_part(dims, workers, budget_s)
        lost_frac = contention.lost_frac(before, contention.core_time())
        found = {part: Calls(seconds, lost_frac, begin_s) for part, seconds in timed.items()}
        for name in size.products:
            half = [0.5 * seconds for seconds in found.pop(f"{name} backward")]
            both = ("backward_data", "backward_weight")
            found |= {f"{name} {which}": Calls(half, lost_frac, begin_s) for which in both}
        return found


def _key(dims: Dims) -> str:
    which = str(dims.get("pass", "forward"))
    return dims["part"] if which == "forward" else f"{dims['part']} {which}"
