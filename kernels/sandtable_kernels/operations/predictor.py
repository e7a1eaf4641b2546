"""Which neurons will be active: a low-rank predictor per layer.

LLM in a flash, section 3.1 and figure 3b: the output of the layer's attention goes through two linear maps with
nothing between them, ``sigmoid(B (A x))``, and a neuron counts as active when its score exceeds a threshold. Trained
with a loss balanced between the few active and the many inactive neurons (section 3.1, appendix B).

There is no bias, so that a predictor can only tell few neurons from many where its inputs have a mean to lean on, as
the outputs of attention have.

Shapes: ``d`` elements of the input, ``r`` the rank, ``m`` neurons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sandtable.errors import ConfigError
from sandtable_kernels.files.dtypes import encode, itemsize
from sandtable_kernels.operations.gemv import gemv
from sandtable_kernels.support import F32, Array, Ids


def parameter_count(rank: int, d_model: int, n_neurons: int) -> int:
    """Return the weights of one predictor, ``r (d + m)``."""
    return rank * (d_model + n_neurons)


def parameter_bytes(rank: int, d_model: int, n_neurons: int, dtype: str) -> int:
    """Return the size of one predictor in bytes."""
    return parameter_count(rank, d_model, n_neurons) * itemsize(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankPredictor:
    """The predictor of one layer.

    Attributes:
        reduce: Stored ``A`` [r, d].
        expand: Stored ``B`` [m, r].
        dtype: Element type of both.
        threshold: Score above which a neuron counts as active; 0.5, or 0.7 for Persimmon (appendix B).
    """

    reduce: Array
    expand: Array
    dtype: str = "float32"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.expand.shape[1] != len(self.reduce):
            raise ConfigError(
                f"predictor maps of shapes {self.reduce.shape} and {self.expand.shape} do not share a rank"
            )
        if not 0 < self.threshold < 1:
            raise ConfigError(f"a predictor's threshold lies between 0 and 1, not at {self.threshold}")

    @property
    def rank(self) -> int:
        """Width between the two maps."""
        return len(self.reduce)

    @property
    def n_parameters(self) -> int:
        """Weights of both maps."""
        return int(self.reduce.size + self.expand.size)

    def logits(self, x: F32, *, n_threads: int | None = None) -> F32:
        """Return ``B (A x)``, float32 [m], for ``x`` float32 [d].

        Raises:
            ConfigError: ``x`` of another length.
            NoDevice: numba is not installed.
        """
        inner = gemv(self.reduce, x, dtype=self.dtype, n_threads=n_threads)
        return gemv(self.expand, inner, dtype=self.dtype, n_threads=n_threads)

    def scores(self, x: F32, *, n_threads: int | None = None) -> F32:
        """Return the score of each neuron, between 0 and 1, float32 [m]."""
        return _sigmoid(self.logits(x, n_threads=n_threads))

    def predict(self, x: F32, *, n_threads: int | None = None) -> Ids:
        """Return the neurons predicted to be active, ascending, int64."""
        # the sigmoid rises, so its threshold can be applied to its argument
        cut = math.log(self.threshold / (1 - self.threshold))
        return np.flatnonzero(self.logits(x, n_threads=n_threads) > cut)


def fit_low_rank(
    inputs: F32,
    active: np.ndarray[tuple[int, int], np.dtype[np.bool_]],
    rank: int,
    *,
    n_epochs: int = 2,
    batch: int = 64,
    learning_rate: float = 3e-3,
    threshold: float = 0.5,
    dtype: str = "float32",
    seed: int = 0,
) -> LowRankPredictor:
    """Train a predictor with Adam on a cross-entropy that weighs active and inactive neurons equally.

    Args:
        inputs: Attention outputs, float32 [tokens, d].
        active: Which neurons were active, bool [tokens, m].
        rank: Width between the two maps.
        n_epochs: Passes over the tokens; the paper makes two over 10 000 samples.
        batch: Tokens per step.
        learning_rate: Of Adam.
        threshold: Kept with the predictor.
        dtype: Element type to store the maps in.
        seed: Of the initial maps and the order of tokens.

    Raises:
        ConfigError: inputs and targets of different lengths.
    """
    if len(inputs) != len(active):
        raise ConfigError(f"{len(inputs)} inputs but {len(active)} rows of active neurons")
    rng = np.random.default_rng(seed)
    (d, m), n = (inputs.shape[1], active.shape[1]), len(inputs)
    reduce = (rng.standard_normal((rank, d)) / math.sqrt(d)).astype(np.float32)
    expand = (rng.standard_normal((m, rank)) / math.sqrt(rank)).astype(np.float32)
    # each class carries half of the weight, whatever its share
    share = float(np.clip(active.mean(), 1e-6, 1 - 1e-6))
    optimiser = _Adam((reduce, expand), learning_rate)
    for _ in range(n_epochs):
        order = rng.permutation(n)
        for start in range(0, n, batch):
            rows = order[start : start + batch]
            optimiser.step(_gradients(inputs[rows], active[rows], reduce, expand, share))
    return LowRankPredictor(
        reduce=encode(reduce, dtype), expand=encode(expand, dtype), dtype=dtype, threshold=threshold
    )


def _gradients(x: F32, y: Array, reduce: F32, expand: F32, share: float) -> tuple[F32, F32]:
    """Return the gradients of the balanced cross-entropy with respect to both maps."""
    inner: F32 = x @ reduce.T
    guessed = _sigmoid(np.matmul(inner, expand.T, dtype=np.float32))
    error = np.empty_like(guessed)
    np.subtract(guessed, y, out=error)
    error *= np.where(y, np.float32(0.5 / share / y.size), np.float32(0.5 / (1 - share) / y.size))
    back: F32 = error @ expand
    by_reduce, by_expand = back.T @ x, error.T @ inner
    return by_reduce, by_expand


class _Adam:
    """Adam (Kingma and Ba, 2015, algorithm 1) on arrays that are updated in place."""

    def __init__(self, values: tuple[F32, ...], rate: float) -> None:
        self.values, self.rate, self.steps = values, rate, 0
        self.first = [np.zeros_like(value) for value in values]
        self.second = [np.zeros_like(value) for value in values]

    def step(self, gradients: tuple[F32, ...]) -> None:
        self.steps += 1
        rate = self.rate * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for i, gradient in enumerate(gradients):
            self.first[i] += np.float32(0.1) * (gradient - self.first[i])
            self.second[i] += np.float32(0.001) * (gradient * gradient - self.second[i])
            self.values[i][:] -= np.float32(rate) * self.first[i] / (np.sqrt(self.second[i]) + np.float32(1e-8))


def _sigmoid(values: F32) -> F32:
    # the logistic function by tanh, which does not overflow
    result: F32 = np.float32(0.5) * (np.tanh(np.float32(0.5) * values) + np.float32(1))
    return result
